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

from data_pipelines.content import ROWS_AT_ONCE, Content, author_content
from experiments import flags
from experiments.prepare import DONE, Log, data_settings, flat, is_done, mark_done, prepare, save_config
from onelive_jax.config import Config
from onelive_jax.tokenizer import residual_kmeans, semantic_ids, tower_training, towers
from onelive_jax.training import checkpoints

logger = logging.getLogger(__name__)
KIND, VERSION = "onelive-tokenizer", 2
FIT_MOMENTS = 2_000_000


@dataclass
class Tokenizer:
    """What the tokenizer stage hands on.

    Attributes:
      ids: the table of semantic ids. embedding_AxD: float32, every author's IA embedding outside any known content.
      figures: utilization, collisions, residual norms, seconds.
      params: of the towers. author_views: int32 [A], training views of each author. books: the codebooks.
    """

    ids: semantic_ids.IdTable
    embedding_AxD: np.ndarray
    figures: dict
    params: dict
    author_views: np.ndarray
    books: residual_kmeans.Codebooks

    def moments(self, config: Config, content: Content, rows: np.ndarray) -> np.ndarray:
        """float32 [n, D], what is quantized of authors at the moments `rows` int [n] of the content.

        Raises: ValueError where the content has another width than that which the towers were trained on.
        """
        values = content.values(rows)
        if config.tokenizer.embedding == "mllm":
            return values
        return towers.author_embeddings(self.params, config.tokenizer, self.author_views, content.author[rows], values)

    def codes(self, config: Config, content: Content, rows: np.ndarray) -> np.ndarray:
        """int32 [n, L], semantic ids of authors at those moments: how new segments are encoded as they come."""
        parts = [np.asarray(residual_kmeans.encode(self.books, self.moments(config, content, part)))
                 for part in np.array_split(rows, max(1, -(-rows.size // ROWS_AT_ONCE)))]
        return np.concatenate(parts)


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
    content = author_content(log.tables, log.split.p1_ms)
    if content is None and log.num_authors < c.codes:
        raise ValueError(f"the log has {log.num_authors} authors, fewer than config.tokenizer.codes={c.codes}: "
                         f"set --config.tokenizer.codes to {log.num_authors} or less")
    if content is None and c.embedding == "mllm":
        raise ValueError("config.tokenizer.embedding='mllm' quantizes the content of rooms, and this log has neither "
                         "segments nor titles: use 'ia'")
    values = row = None
    if content is not None:
        # Only the moments that some view reads, each once.
        rows, row = np.unique(content.row_at(author, log.views.start_ms[training]), return_inverse=True)
        values, row = content.values(rows), np.where(rows[row] < 0, -1, row)
    with tqdm(total=c.steps, desc="towers", unit="step", disable=None) as bar:
        def progress(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        result = tower_training.train_towers(user_ptr, author, c, log.num_authors, values, row, config.seed,
                                             progress=progress)
    made = Tokenizer(None, embed(result, config, log, content), {}, result.params, result.author_views, None)
    base = made.embedding_AxD
    standing = pooled_content(log, content)[0] if c.embedding == "mllm" else base  # what is quantized of an author
    fit_on = standing
    if content is not None:
        sample = training_sample(content, log.split.p1_ms, config.seed)
        fit_on = np.concatenate([standing, made.moments(config, content, sample)])
    books = made.books = residual_kmeans.fit_from_config(fit_on, c, jax.random.key(config.seed))
    base_codes = np.asarray(residual_kmeans.encode(books, standing))
    if content is None or not c.follow_content:
        made.ids = semantic_ids.IdTable.static(base_codes)
    else:
        codes = made.codes(config, content, np.arange(content.author.size))
        made.ids = semantic_ids.IdTable.dynamic(base_codes, content.author, content.from_ms, codes)
    norms = np.asarray(residual_kmeans.residual_norms(books, fit_on))
    sid, shared = semantic_ids.collision_rates(base_codes)
    made.figures = figures = {
        "utilization": semantic_ids.utilization(base_codes, c.codes),
        "collision_rate_sid": sid,
        "collision_rate_author": shared,
        "distinct_ids": len(np.unique(base_codes, axis=0)),
        "moments": int(made.ids.author.size),
        "residual_norms": [round(float(norm), 5) for norm in norms],
        "info_nce_loss": float(np.mean(result.losses[-100:])),
        "seconds": time.perf_counter() - started,
    }
    meta = {"kind": KIND, "version": VERSION, "figures": figures, "settings": settings}
    checkpoints.save_artifact(folder / "artifact", {"towers": result.params, "centroids": books.centroids,
                                                    "embedding": base, "author_views": result.author_views,
                                                    "ids": made.ids.to_arrays()}, meta)
    figures_file.write_text(json.dumps(figures, indent=1))
    mark_done(folder, settings)
    return made


def load_tokenizer(config: Config, workdir: Path) -> Tokenizer:
    """What `train_tokenizer` left in a workdir.

    Raises: FileNotFoundError where it has not run to its end; ValueError where it ran with other settings.
    """
    folder = workdir / "tokenizer"
    if not is_done(folder, settings_of(config)):
        raise FileNotFoundError(f"{folder} holds no finished tokenizer: run experiments.train_tokenizer, or all stages "
                                f"with experiments.run, on --workdir={workdir}")
    arrays, meta = checkpoints.load_artifact(folder / "artifact", KIND, VERSION)
    books = residual_kmeans.Codebooks(arrays["centroids"])
    return Tokenizer(semantic_ids.IdTable.from_arrays(arrays["ids"]), arrays["embedding"], meta["figures"],
                     arrays["towers"], arrays["author_views"], books)


def embed(result: tower_training.TowersResult, config: Config, log: Log, content: Content | None) -> np.ndarray:
    """IA embedding, float32 [A, D], of every author outside any content of the moment.

    It reads the content pooled over the training period, where there is any.
    """
    c = config.tokenizer
    if content is None:
        return towers.author_embeddings(result.params, c, result.author_views)
    pooled, known = pooled_content(log, content)
    everyone = np.arange(log.num_authors, dtype=np.int32)
    return towers.author_embeddings(result.params, c, result.author_views, everyone, pooled, known)


def pooled_content(log: Log, content: Content) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [A, 2C] with x_pool at the end of training in both halves, bool [A] whether anything was known)."""
    row = content.row_at(np.arange(log.num_authors), np.full(log.num_authors, log.split.p1_ms))
    return np.tile(content.values(row)[:, content.width:], 2), row >= 0


def training_sample(content: Content, until_ms: int, seed: int) -> np.ndarray:
    """int64, the moments that codebooks are fitted on: those known by the end of training, at most `FIT_MOMENTS`."""
    rows = np.flatnonzero(content.from_ms <= until_ms)
    if rows.size > FIT_MOMENTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, FIT_MOMENTS, replace=False))
        logger.info("codebooks are fitted on %d of the moments of the training period, drawn at random", FIT_MOMENTS)
    return rows


def main(config: Config, workdir: Path) -> None:
    log = prepare(config, workdir)
    tokenizer = train_tokenizer(config, workdir, log)
    if not (workdir / "supervised" / DONE).is_file():  # a finished run keeps the settings it was made with
        save_config(config, workdir)
    print(json.dumps(tokenizer.figures, indent=1))


if __name__ == "__main__":
    flags.define_config()
    flags.run(main)
