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
KIND, VERSION = "onelive-tokenizer", 1
FIT_MOMENTS = 2_000_000


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
    content = author_content(log.tables, log.split.p1_ms)
    if content is None and log.num_authors < c.codes:
        raise ValueError(f"the log has {log.num_authors} authors, fewer than config.tokenizer.codes={c.codes}: "
                         f"set --config.tokenizer.codes to {log.num_authors} or less")
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
    base = fit_on = embed(result, config, log, content)
    if content is not None:
        sample = training_sample(content, log.split.p1_ms, config.seed)
        fit_on = np.concatenate([base, embed_moments(result, config, content, sample)])
    books = residual_kmeans.fit(fit_on, c.levels, c.codes, jax.random.key(config.seed), c.kmeans_iterations,
                                c.kmeans_init)
    base_codes = np.asarray(residual_kmeans.encode(books, base))
    if content is None:
        ids = semantic_ids.IdTable.static(base_codes)
    else:
        parts = [np.asarray(residual_kmeans.encode(books, embed_moments(result, config, content, rows)))
                 for rows in np.array_split(np.arange(content.author.size), -(-content.author.size // ROWS_AT_ONCE))]
        ids = semantic_ids.IdTable.dynamic(base_codes, content.author, content.from_ms, np.concatenate(parts))
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


def embed(result: tower_training.TowersResult, config: Config, log: Log, content: Content | None) -> np.ndarray:
    """float32 [A, D], every author outside any content of the moment.

    An author's standing embedding reads the content pooled over the training period, where there is any.
    """
    c = config.tokenizer
    if content is None:
        return towers.author_embeddings(result.params, c, result.author_views)
    everyone = np.arange(log.num_authors, dtype=np.int32)
    row = content.row_at(everyone, np.full(log.num_authors, log.split.p1_ms))
    pooled = np.tile(content.values(row)[:, content.width:], 2)
    return towers.author_embeddings(result.params, c, result.author_views, everyone, pooled, row >= 0)


def embed_moments(result: tower_training.TowersResult, config: Config, content: Content, rows: np.ndarray) -> np.ndarray:
    """float32 [n, D], authors at the moments `rows` int [n] of the content."""
    return towers.author_embeddings(result.params, config.tokenizer, result.author_views, content.author[rows],
                                    content.values(rows))


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
