"""Towers, residual k-means and the table of semantic ids.

    python -m experiments.train_tokenizer --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments import flags
from experiments.prepare import DONE, Log, data_settings, flat, is_done, mark_done, prepare, save_config
from onelive_jax.config import Config
from onelive_jax.tokenizer import residual_kmeans, semantic_ids, tower_training, towers
from onelive_jax.training import checkpoints

logger = logging.getLogger(__name__)
KIND, VERSION = "onelive-tokenizer", 1


@dataclass
class Tokenizer:
    """What the tokenizer stage hands on.

    Attributes:
      ids: the table of semantic ids. embedding_AxD: float32, every author's IA embedding outside any known content.
      figures: utilization, collisions, residual norms, seconds.
    """

    ids: semantic_ids.IdTable
    embedding_AxD: np.ndarray
    figures: dict


def settings_of(config: Config) -> dict:
    data = data_settings(config) | {f"data.{n}": getattr(config.data, n) for n in ("valid_hours", "test_hours")}
    return data | flat(config, "tokenizer", "seed")


def train_tokenizer(config: Config, workdir: Path, log: Log) -> Tokenizer:
    """Fits the tokenizer on views and segments of the training period, once a workdir."""
    folder, figures_file = workdir / "tokenizer", workdir / "tokenizer.json"
    settings = settings_of(config)
    if is_done(folder, settings):
        return load_tokenizer(config, workdir)
    started = time.perf_counter()
    c = config.tokenizer
    training = log.training_views
    user = log.views.users()[training]
    user_ptr = np.searchsorted(user, np.arange(log.views.num_users + 1))
    author = log.views.author[training]
    content = author_content(log)
    if content is None and log.num_authors < c.codes:
        raise ValueError(f"the log has {log.num_authors} authors, fewer than config.tokenizer.codes={c.codes}: "
                         f"set --config.tokenizer.codes to {log.num_authors} or less")
    row = None if content is None else content.row_at(author, log.views.start_ms[training])
    with tqdm(total=c.steps, desc="towers", unit="step", disable=None) as bar:
        def progress(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        values = None if content is None else content.values
        result = tower_training.train_towers(user_ptr, author, c, log.num_authors, values, row, config.seed,
                                             progress=progress)
    base, moments = embed(result, config, log, content)
    fit_on = base if content is None else np.concatenate([base, moments[content.end_ms <= log.split.p1_ms]])
    books = residual_kmeans.fit(fit_on, c.levels, c.codes, jax.random.key(config.seed), c.kmeans_iterations,
                                c.kmeans_init)
    base_codes = np.asarray(residual_kmeans.encode(books, base))
    if content is None:
        ids = semantic_ids.IdTable.static(base_codes)
    else:
        ids = semantic_ids.IdTable.dynamic(base_codes, content.author, content.end_ms,
                                           np.asarray(residual_kmeans.encode(books, moments)))
    norms = np.asarray(residual_kmeans.residual_norms(books, fit_on))
    sid, shared = semantic_ids.collision_rates(base_codes)
    figures = {
        "utilization": semantic_ids.utilization(base_codes, c.codes),
        "collision_rate_sid": sid,
        "collision_rate_author": shared,
        "distinct_ids": len(np.unique(base_codes, axis=0)),
        "moments": int(ids.author.size),
        "residual_norms": [round(float(norm), 5) for norm in norms],
        "info_nce_loss": float(np.mean(result.losses[-100:])),
        "seconds": time.perf_counter() - started,
    }
    meta = {"kind": KIND, "version": VERSION, "figures": figures, "settings": settings}
    checkpoints.save_artifact(folder / "artifact", {"towers": result.params, "centroids": books.centroids,
                                                    "embedding": base, "ids": ids.to_arrays()}, meta)
    figures_file.write_text(json.dumps(figures, indent=1))
    mark_done(folder, settings)
    return Tokenizer(ids, base, figures)


def load_tokenizer(config: Config, workdir: Path) -> Tokenizer:
    """What `train_tokenizer` left in a workdir.

    Raises: FileNotFoundError where it has not run to its end; ValueError where it ran with other settings.
    """
    folder = workdir / "tokenizer"
    if not is_done(folder, settings_of(config)):
        raise FileNotFoundError(f"{folder} holds no finished tokenizer: run experiments.train_tokenizer, or all stages "
                                f"with experiments.run, on --workdir={workdir}")
    arrays, meta = checkpoints.load_artifact(folder / "artifact", KIND, VERSION)
    return Tokenizer(semantic_ids.IdTable.from_arrays(arrays["ids"]), arrays["embedding"], meta["figures"])


@dataclass
class Content:
    """Segments as the towers read them, sorted by (author, end_ms).

    Attributes:
      author: int32 [S]. end_ms: int64 [S]. values: float32 [S, 2C], concat(x_30s, x_pool); x_pool is the mean over the
        author's segments up to this one.
    """

    author: np.ndarray
    end_ms: np.ndarray
    values: np.ndarray

    def row_at(self, author: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """int64 [n]: the last segment of each author that ended by the time; −1 where there is none."""
        times = np.unique(self.end_ms)
        rank = lambda t: np.searchsorted(times, t, side="right")  # noqa: E731
        width = times.size + 1
        keys = self.author.astype(np.int64) * width + rank(self.end_ms)
        row = np.searchsorted(keys, np.asarray(author, np.int64) * width + rank(times_ms), side="right") - 1
        return np.where((row >= 0) & (self.author[np.maximum(row, 0)] == author), row, -1)


def author_content(log: Log) -> Content | None:
    """The segments of a log by author, or None where the log has no content."""
    segments = log.tables.segments
    if segments is None or not len(segments):
        return None
    author = log.tables.rooms["author_id"].to_numpy()[segments["room_id"].to_numpy()]
    end = segments["end_ms"].to_numpy()
    now = segments["embedding"].to_numpy().astype(np.float32)
    order = np.lexsort((end, author))
    author, end, now = author[order], end[order], now[order]
    first = np.searchsorted(author, author)  # where each author's segments begin
    total = np.concatenate([np.zeros((1, now.shape[1])), np.cumsum(now, 0, dtype=np.float64)])
    count = np.arange(1, author.size + 1) - first
    pool = (total[1:] - total[first]) / count[:, None]
    return Content(author, end, np.concatenate([now, pool.astype(np.float32)], 1))


def embed(result: tower_training.TowersResult, config: Config, log: Log, content: Content | None):
    """(float32 [A, D] of authors outside any content of the moment, float32 [S, D] of segments or None).

    An author's standing embedding reads the content pooled over the training period, where there is any.
    """
    c = config.tokenizer
    if content is None:
        return towers.author_embeddings(result.params, c, result.author_views), None
    everyone = np.arange(log.num_authors, dtype=np.int32)
    row = content.row_at(everyone, np.full(log.num_authors, log.split.p1_ms))
    width = content.values.shape[1] // 2
    pooled = np.tile(content.values[np.maximum(row, 0), width:], 2)
    base = towers.author_embeddings(result.params, c, result.author_views, everyone, pooled, row >= 0)
    return base, towers.author_embeddings(result.params, c, result.author_views, content.author, content.values)


def main(config: Config, workdir: Path) -> None:
    log = prepare(config, workdir)
    tokenizer = train_tokenizer(config, workdir, log)
    if not (workdir / "supervised" / DONE).is_file():  # a finished run keeps the settings it was made with
        save_config(config, workdir)
    print(json.dumps(tokenizer.figures, indent=1))


if __name__ == "__main__":
    flags.define_config()
    flags.run(main)
