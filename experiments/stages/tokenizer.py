"""Towers, residual k-means and the table of semantic ids."""

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import flax
import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.log.content import ROWS_AT_ONCE, Content, author_content
from data_pipelines.log.side_features import SideFeatures, side_features
from experiments.common import distributed
from experiments.common.fingerprint import fingerprint, other_log
from experiments.common.log import Log, data_settings
from experiments.common.workdir import flat, is_done, mark_done, remake
from onelive_jax import __version__
from onelive_jax.config import Config
from onelive_jax.files import write_json
from onelive_jax.settings import differing
from onelive_jax.sharding.partitioning import process_mesh
from onelive_jax.tokenizer import residual_kmeans, semantic_ids, tower_training
from onelive_jax.tokenizer.encoder import Encoder, Towers
from onelive_jax.tokenizer.tower_training import ViewLog
from onelive_jax.training import checkpoints

logger = logging.getLogger(__name__)
KIND, VERSION = "onelive-tokenizer", 3
FIT_MOMENTS = 2_000_000
RECALL_AT, RECALL_VIEWS = (10, 64, 128), 10_000
LIVES, LIFE_MOMENTS = 6, 4  # rooms whose ids are kept for the report, and the least segments of one


@dataclass(frozen=True)
class Tokenizer:
    """What the tokenizer stage hands on.

    Attributes:
      ids: the table of semantic ids. embedding_AxD: float32, every author's IA embedding outside any known content.
      encoder: towers and codebooks, which turn further content into ids.
      figures: utilization, collisions, residual norms, recall of the towers, seconds.
      lives: what became of the ids of a few busy rooms (`room_lives`).
    """

    ids: semantic_ids.IdTable
    embedding_AxD: np.ndarray
    encoder: Encoder
    figures: dict
    lives: list[dict] = field(default_factory=list)


def segment_points(towers: Towers, content: Content, rows: np.ndarray) -> np.ndarray:
    """float32 [n, D], what is quantized of authors at the moments `rows` int [n] of the content."""
    return towers.quantized(content.author[rows], content.values(rows))


def standing_points(towers: Towers, num_authors: int, content: Content | None, time_ms: int) -> np.ndarray:
    """float32 [A, D], what is quantized of every author outside a moment: x_pool by `time_ms` is its content."""
    return towers.quantized(np.arange(num_authors, dtype=np.int32), *pooled_content(content, num_authors, time_ms))


def segment_codes(encoder: Encoder, content: Content, rows: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """int32 [n, L], semantic ids of authors at the moments `rows` int [n] of the content; `before` as in
    `Encoder.codes`."""
    parts = [encoder.codes(content.author[rows[part]], content.values(rows[part]),
                           previous_MxL=None if before is None else before[part])
             for part in np.array_split(np.arange(rows.size), max(1, -(-rows.size // ROWS_AT_ONCE))) if part.size]
    return np.concatenate(parts) if parts else np.zeros((0, encoder.books.levels), np.int32)


def settings_of(config: Config) -> dict:
    data = data_settings(config) | {f"data.{n}": getattr(config.data, n) for n in ("valid_hours", "test_hours")}
    # How codebooks are refreshed later changes nothing about how they are made.
    tokenizer = {name: value for name, value in flat(config, "tokenizer", "seed").items() if ".refresh_" not in name}
    return data | tokenizer


@distributed.stage("tokenizer")
def train_tokenizer(config: Config, workdir: Path, log: Log, towers_of: Tokenizer | None = None) -> Tokenizer:
    """Fits the tokenizer on views and segments of the training period, once a workdir.

    With `towers_of`, its towers are taken as they are: those of a tokenizer of the same log and tower settings.
    """
    if is_done(workdir / "tokenizer", settings_of(config)):
        return load_tokenizer(config, workdir, log)
    started = time.perf_counter()
    c = config.tokenizer
    content = author_content(log.tables, log.split.p1_ms)
    if content is None and log.num_authors < c.codes:
        raise ValueError(f"the log has {log.num_authors} authors, fewer than config.tokenizer.codes={c.codes}: "
                         f"set --config.tokenizer.codes to {log.num_authors} or less")
    if content is None and c.embedding == "mllm":
        raise ValueError("config.tokenizer.embedding='mllm' quantizes the content of rooms, and this log has neither "
                         "segments nor titles: use 'ia'")
    of_users, of_authors = side_features_of(log) if c.side_features else (None, None)
    if towers_of is None:
        result = fit_towers(config, view_log(log, content, log.training_views, of_users, of_authors))
        towers, loss = result.towers, float(np.mean(result.losses[-100:]))
        training_views = {"pairs": result.pairs, "without another author before": result.without_history}
    else:
        towers = dataclasses.replace(towers_of.encoder.towers, config=c)
        loss, training_views = towers_of.figures["info_nce_loss"], towers_of.figures.get("training_views")
    p1 = log.split.p1_ms
    embedding = towers.authors(np.arange(log.num_authors), *pooled_content(content, log.num_authors, p1))
    standing = fit_on = standing_points(towers, log.num_authors, content, p1)
    if content is not None:
        fit_on = np.concatenate([standing, segment_points(towers, content, training_sample(content, p1, config.seed))])
    books = residual_kmeans.fit(fit_on, c, jax.random.key(config.seed), mesh=process_mesh(config.mesh))
    encoder, base_codes = Encoder(towers, books), np.asarray(residual_kmeans.encode(books, standing))
    if content is None or not c.follow_content:
        ids, lives = semantic_ids.IdTable.static(base_codes), []
    else:
        codes = segment_codes(encoder, content, np.arange(content.author.size))
        ids = semantic_ids.IdTable.dynamic(base_codes, content.author, content.from_ms, codes)
        lives = room_lives(log, ids)
    figures = id_figures(base_codes, c.codes, residual_kmeans.residual_norms(books, fit_on)) | {
        "moments": int(ids.author.size), "info_nce_loss": loss, "training_views": training_views,
        "recall": recall(towers, embedding, config, log, content, of_users),
        "side_features": {who: None if made_of is None else {"columns": len(made_of.names), **made_of.counts,
                                                             "left_out": made_of.left_out}
                          for who, made_of in (("users", of_users), ("authors", of_authors))},
        "seconds": time.perf_counter() - started,
    }
    made = Tokenizer(ids, embedding, encoder, figures, lives)
    save_tokenizer(made, config, workdir, log)
    return made


def id_figures(codes_AxL: np.ndarray, codes: int, norms: np.ndarray) -> dict:
    """What is said of one id an author, and of the residual norms of what the codebooks were fitted to."""
    sid, shared = semantic_ids.collision_rates(codes_AxL)
    return {"utilization": semantic_ids.utilization(codes_AxL, codes), "collision_rate_sid": sid,
            "collision_rate_author": shared, "distinct_ids": len(np.unique(codes_AxL, axis=0)),
            "residual_norms": [round(float(norm), 5) for norm in np.asarray(norms)]}


def save_tokenizer(made: Tokenizer, config: Config, workdir: Path, log: Log) -> None:
    """Writes workdir/tokenizer (and tokenizer.json, its figures), as `load_tokenizer` reads it."""
    folder, settings = workdir / "tokenizer", settings_of(config)
    meta = {"kind": KIND, "version": VERSION, "figures": made.figures, "settings": settings, "log": fingerprint(log),
            "lives": made.lives, "packages": {"onelive_jax": __version__, "jax": jax.__version__,
                                              "flax": flax.__version__, "numpy": np.__version__}}
    towers = made.encoder.towers
    arrays = {"towers": towers.params, "centroids": made.encoder.books.centroids, "embedding": made.embedding_AxD,
              "author_views": towers.author_views, "ids": made.ids.to_arrays()}
    checkpoints.save_artifact(folder / "artifact", arrays | (
        {} if towers.attributes_AxS is None else {"attributes": towers.attributes_AxS}), meta)
    write_json(workdir / "tokenizer.json", made.figures)
    mark_done(folder, settings)


def load_tokenizer(config: Config, workdir: Path, log: Log | None = None) -> Tokenizer:
    """What `train_tokenizer` left in a workdir.

    Raises: FileNotFoundError where it has not run to its end; ValueError where it ran with other settings, was written
      by another version, or, if `log` is given, was made of another log.
    """
    folder = workdir / "tokenizer"
    if not is_done(folder, settings_of(config)):
        raise FileNotFoundError(f"{folder} holds no finished tokenizer: run experiments.train_tokenizer, or all stages "
                                f"with experiments.run, on --workdir={workdir}")
    try:
        arrays, meta = checkpoints.load_artifact(folder / "artifact", KIND, VERSION)
        if missing := [name for name in ("settings", "log", "figures", "lives") if name not in meta]:
            raise ValueError(f"{folder / 'artifact'} is damaged ({missing[0]} is missing)")
        if changed := differing(meta["settings"], settings_of(config)):
            raise ValueError(f"{folder / 'artifact'} is of another run ({changed})")
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{error}. {remake(folder)}") from error
    if log is not None and (differs := other_log(meta["log"], fingerprint(log))):
        raise ValueError(f"{folder} was made of another log ({differs}): choose another --workdir, or delete {folder} "
                         "and the stages after it")
    books = residual_kmeans.Codebooks(arrays["centroids"])
    c, found = config.tokenizer, arrays["embedding"].shape[1]
    if found != c.dim or books.centroids.shape[:2] != (c.levels, c.codes):
        raise ValueError(f"{folder} holds embeddings {found} wide and {books.levels} x {books.codes} codes; config.toke"
                         f"nizer says dim={c.dim}, levels={c.levels}, codes={c.codes}: it is not of this run")
    towers = Towers(arrays["towers"], c, arrays["author_views"], arrays.get("attributes"))
    return Tokenizer(semantic_ids.IdTable.from_arrays(arrays["ids"]), arrays["embedding"], Encoder(towers, books),
                     meta["figures"], meta["lives"])


def side_features_of(log: Log) -> tuple[SideFeatures | None, SideFeatures | None]:
    """(of users, of authors); None where the log tells nothing of them. Columns are made by who has a training view."""
    training, views = log.training_views, log.views
    result = []
    for name, who, count in (("users", views.users()[training], views.num_users),
                             ("authors", views.author[training], log.num_authors)):
        made = side_features(getattr(log.tables, name), np.isin(np.arange(count), who))
        if made is not None:
            logger.info("side features of %s: %d columns from %d categories and %d numbers; %d cells missing, %d rare "
                        "values share columns; left out: %s", name, len(made.names), made.counts["categories"],
                        made.counts["numbers"], made.counts["missing cells"], made.counts["rare values"],
                        "; ".join(f"{column}, which {why}" for column, why in made.left_out.items()) or "nothing")
        result.append(made)
    return tuple(result)


def view_log(log: Log, content: Content | None, rows: np.ndarray, of_users: SideFeatures | None = None,
             of_authors: SideFeatures | None = None) -> ViewLog:
    """The views `rows` int64 [V] (ascending) of a log, with the content that was known when each began."""
    user, author, time_ms = log.views.users()[rows], log.views.author[rows], log.views.start_ms[rows]
    user_ptr = np.searchsorted(user, np.arange(log.views.num_users + 1))
    sides = [None if side is None else side.values for side in (of_authors, of_users)]
    if content is None:
        return ViewLog(user_ptr, author, log.num_authors, time_ms, None, None, *sides)
    # Only the moments that some view reads, each once.
    moments, row = np.unique(content.row_at(author, time_ms), return_inverse=True)
    return ViewLog(user_ptr, author, log.num_authors, time_ms, content.values(moments),
                   np.where(moments[row] < 0, -1, row), *sides)


def fit_towers(config: Config, views: ViewLog, initial: dict | None = None) -> tower_training.TowersResult:
    """`tower_training.train_towers` with a progress bar."""
    with tqdm(total=config.tokenizer.steps, desc="towers", unit="step", disable=None) as bar:
        def progress(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        return tower_training.train_towers(views, config.tokenizer, config.seed, initial, progress,
                                           process_mesh(config.mesh))


def recall(towers: Towers, embedding_AxD: np.ndarray, config: Config, log: Log, content: Content | None,
           of_users: SideFeatures | None) -> dict:
    """What the towers alone recall of the validation views, against all authors: {"recall@10": …, "views": n}.

    Not the first view of a person (there is nobody to describe yet); at most `RECALL_VIEWS` of the others, at random.
    """
    views, split = log.views, log.split
    inside = (views.start_ms >= split.p1_ms) & (views.start_ms < split.p2_ms)
    inside[views.user_ptr[:-1][np.diff(views.user_ptr) > 0]] = False
    rows = np.flatnonzero(inside)
    if not rows.size:
        return {"views": 0, "authors": log.num_authors}
    if rows.size > RECALL_VIEWS:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, RECALL_VIEWS, replace=False))
    values = content_row = None
    if content is not None:
        history, mask = tower_training.slice_history(views.user_ptr, rows, config.tokenizer.history_items)
        asked = np.unique(np.append(history[mask], rows))
        moments, row = np.unique(content.row_at(views.author[asked], views.start_ms[asked]), return_inverse=True)
        values, content_row = content.values(moments), np.full(views.author.size, -1, np.int64)
        content_row[asked] = np.where(moments[row] < 0, -1, row)
    chunk = int(np.clip(2**27 // log.num_authors, 16, 4096))  # scores of all authors are held for so many views
    found = tower_training.recall_on_log(
        towers, ViewLog(views.user_ptr, views.author, log.num_authors, content=values, content_row=content_row,
                        features_UxF=None if of_users is None else of_users.values), rows, embedding_AxD, RECALL_AT,
        chunk)
    return {f"recall@{k}": share for k, share in found.items()} | {"views": int(rows.size), "authors": log.num_authors}


def room_lives(log: Log, ids: semantic_ids.IdTable) -> list[dict]:
    """How ids moved in the rooms with the most training views, one room an author, for the report.

    Returns: of each room {"room", "author", "views", "minutes": from its start to its last segment, "moves": [[minute,
      q0, q1, …], …] one row at the start and one at every change}. Nothing where a log has no segments: a title never
      changes.
    """
    segments, rooms = log.tables.segments, log.tables.rooms
    if segments is None or not len(segments):
        return []
    owner, end = segments["room_id"].to_numpy(), segments["end_ms"].to_numpy()
    views = np.bincount(log.views.room[log.training_views], minlength=len(rooms))
    author, start = rooms["author_id"].to_numpy(), rooms["start_ms"].to_numpy()
    enough = (np.bincount(owner, minlength=len(rooms)) >= LIFE_MOMENTS) & (views > 0)
    order = np.flatnonzero(enough)[np.argsort(-views[enough], kind="stable")]
    _, first = np.unique(author[order], return_index=True)
    lives = []
    for room in order[np.sort(first)][:LIVES].tolist():
        moments = end[np.searchsorted(owner, room):np.searchsorted(owner, room, side="right")]
        codes = ids.codes_at(author[room], moments)
        changed = np.append(True, (codes[1:] != codes[:-1]).any(axis=1))
        minute = np.round((moments - start[room]) / 60_000, 1)
        moves = [[m, *q] for m, q in zip(minute[changed].tolist(), codes[changed].tolist(), strict=True)]
        lives.append({"room": room, "author": int(author[room]), "views": int(views[room]),
                      "minutes": minute[-1].item(), "moves": moves})
    return lives


def pooled_content(content: Content | None, num_authors: int, time_ms: int
                   ) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(float32 [A, 2C] with x_pool by a moment in both halves, bool [A] whether anything was known); None, None
    without content."""
    if content is None:
        return None, None
    row = content.row_at(np.arange(num_authors), np.full(num_authors, time_ms))
    return np.tile(content.values(row)[:, content.width:], 2), row >= 0


def training_sample(content: Content, until_ms: int, seed: int, from_ms: int | None = None) -> np.ndarray:
    """int64, the moments that codebooks are fitted on: those known by `until_ms` (and after `from_ms`), at most
    `FIT_MOMENTS`."""
    early = content.from_ms <= until_ms
    rows = np.flatnonzero(early if from_ms is None else early & (content.from_ms > from_ms))
    if rows.size > FIT_MOMENTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, FIT_MOMENTS, replace=False))
        logger.info("codebooks are fitted on %d of the moments of the period, drawn at random", FIT_MOMENTS)
    return rows


def recall_line(figures: dict) -> str:
    """One line of what the towers alone recall."""
    found = figures.get("recall") or {}
    if not found.get("views"):
        return "recall of the towers alone: no validation view to measure it on"
    return ("towers alone, " + ", ".join(f"{name} {found[name]:.3f}" for name in found if "@" in name)
            + f" of {found['views']:,} validation views, among all {found['authors']:,} authors")
