"""By what an artefact knows the log that it was made of."""

import hashlib
import json

import numpy as np

from experiments.common.log import Log
from onelive_jax.files import sha256

# What `fingerprint` knows a log by, as a person calls it.
LOG_PARTS = {"users": "people", "authors": "authors", "views": "views", "segments": "segments", "sha256": "hash of the "
             "views", "content_width": "width of the content", "content_sha256": "hash of the content"}


def fingerprint(log: Log) -> dict:
    """By which an artefact knows the log it was made of: sizes, the width of the content, a hash of all views, and one
    of all content (segments or titles: whose, when, and the embeddings)."""
    segments, titles, rooms = log.tables.segments, log.tables.titles, log.tables.rooms
    content, embedding = [], np.zeros((0, 0), np.float32)
    if segments is not None and len(segments):
        content, embedding = [segments["room_id"], segments["end_ms"]], segments["embedding"].to_numpy()
    elif titles is not None and len(titles):  # beside segments nobody reads them
        content, embedding = [rooms["title_embedding"]], titles["embedding"].to_numpy()
    return {"users": log.views.num_users, "authors": log.num_authors, "views": int(log.views.author.size),
            "segments": 0 if segments is None else len(segments),
            "sha256": sha256(log.views.user_ptr, log.views.author, log.views.start_ms, log.views.stop_ms),
            "content_width": embedding.shape[1], "content_sha256": sha256(
                *(column.to_numpy().astype(np.int64) for column in content), embedding.astype(np.float32, copy=False))}


def identity(log: Log) -> str:
    """`fingerprint` in a few characters, as it stands among the settings of checkpoints."""
    return hashlib.sha256(json.dumps(fingerprint(log)).encode()).hexdigest()[:16]


def other_log(then: dict, now: dict) -> str:
    """What differs between two fingerprints, "" where nothing does."""
    return "; ".join(f"{name}: {then[key]} then, {now[key]} now" for key, name in LOG_PARTS.items()
                     if then[key] != now[key])
