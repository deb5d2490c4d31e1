"""The paper's Table 1 beside ours: utilization and collisions of ids (python -m experiments.table1)."""

import dataclasses
import functools
import itertools
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.log.content import author_content
from experiments.common import study
from experiments.common.log import Log, data_settings
from experiments.common.tables import table
from experiments.common.workdir import flat
from experiments.stages.tokenizer import fit_towers, view_log
from onelive_jax.config import Config
from onelive_jax.settings import differing
from onelive_jax.sharding.partitioning import process_mesh
from onelive_jax.tokenizer import residual_kmeans, rq_vae, semantic_ids
from onelive_jax.tokenizer.encoder import Towers
from onelive_jax.training import checkpoints

PAPER_AUTHORS = 4_000_000
COLUMNS = ("L0", "L1", "L2", "L0xL1", "CR SID", "CR author")
# (embedding, quantizer, codes of a level) → the paper's figures, in per cent.
PAPER = {
    ("MLLM", "Res-Kmeans", 512): (100, 99.61, 97.66, 53.83, 28.10, 63.83),
    ("MLLM", "Res-Kmeans", 8192): (88.99, 63.93, 53.10, 2.34, 3.56, 9.47),
    ("IA", "RQ-VAE", 512): (100, 100, 100, 74.41, 15.76, 39.76),
    ("IA", "RQ-VAE", 8192): (100, 100, 100, 1.16, 8.54, 22.78),
    ("IA", "Res-Kmeans", 512): (100, 100, 100, 93.98, 9.72, 23.03),
    ("IA", "Res-Kmeans", 8192): (100, 100, 100, 4.50, 0.66, 1.76),
}


def orderings() -> list[tuple[str, tuple, str, tuple]]:
    """(text, higher row, column, lower row) of every two rows of the paper's table that differ in one thing (embedding,
    quantizer or size) and of every column in which the paper has them apart."""
    found = []
    for (one, first), (other, second) in itertools.combinations(PAPER.items(), 2):
        if sum(a != b for a, b in zip(one, other, strict=True)) == 1:
            for column, a, b in zip(COLUMNS, first, second, strict=True):
                high, low = (one, other) if a > b else (other, one)
                if a != b:
                    found.append((f"{column} of {'/'.join(map(str, high))} above that of {'/'.join(map(str, low))}",
                                  high, column, low))
    return found


def scaled(codes: int, authors: int) -> int:
    """The code count that leaves as many authors for each possible id (of three levels) as the paper has."""
    return max(2, round(codes * (authors / PAPER_AUTHORS) ** (1 / 3)))


def embeddings(config: Config, workdir: Path, log: Log) -> tuple[np.ndarray, np.ndarray]:
    """(MLLM float32 [A', 2C], IA float32 [A', D]) of the A' authors with content, from towers trained once."""
    content = author_content(log.tables, log.split.p1_ms)
    row = content.row_at(np.arange(log.num_authors), np.full(log.num_authors, log.split.end_ms))
    author = np.flatnonzero(row >= 0).astype(np.int32)
    print(f"{author.size:,} of {log.num_authors:,} authors were on air: the others have no content, and no id here")
    values, c = content.values(row[author]), config.tokenizer
    folder = workdir / "towers"
    if not folder.exists():
        made = fit_towers(config, view_log(log, content, log.training_views)).towers
        checkpoints.save_artifact(folder, {"towers": made.params, "author_views": made.author_views},
                                  {"kind": "table1-towers", "version": 1, "settings": tower_settings(config)})
    arrays, meta = checkpoints.load_artifact(folder, "table1-towers", 1)
    if found := differing(meta["settings"], tower_settings(config)):
        raise ValueError(f"{folder} was trained with other settings ({found}): choose another --workdir, or delete "
                         f"{folder} and {workdir / 'rows'}")
    return values, Towers(arrays["towers"], c, arrays["author_views"]).authors(author, values)


def quantized(points: np.ndarray, quantizer: str, codes: int, config: Config, rq_vae_steps: int) -> np.ndarray:
    """int32 [N, 3], the ids of points by one of the two quantizers."""
    if quantizer == "RQ-VAE":
        settings = rq_vae.Settings(levels=3, codes=codes, latent=config.tokenizer.dim, hidden=config.tokenizer.hidden)
        with tqdm(total=rq_vae_steps, desc=f"RQ-VAE 3x{codes}", unit="step", disable=None) as bar:
            state, _ = rq_vae.train(points, settings, rq_vae_steps, config.seed,
                                    progress=lambda step, error: (bar.update(step - bar.n),
                                                                  bar.set_postfix(error=f"{error:.4f}")))
        return np.asarray(rq_vae.encode(state, points, settings))
    settings = dataclasses.replace(config.tokenizer, levels=3, codes=codes)
    books = residual_kmeans.fit(points, settings, jax.random.key(config.seed), mesh=process_mesh(config.mesh))
    if settings.kmeans_balance:
        return np.asarray(residual_kmeans.encode_balanced(books, points, settings.kmeans_balance))
    return np.asarray(residual_kmeans.encode(books, points))


def tower_settings(config: Config) -> dict:
    """What the towers depend on: all of the tokenizer but how its codebooks are made."""
    codebooks = ("levels", "codes", "kmeans_", "refresh_", "embedding", "follow_content")
    return data_settings(config) | {name: value for name, value in flat(config, "tokenizer", "seed").items()
                                    if not name.startswith(tuple(f"tokenizer.{part}" for part in codebooks))}


def make_rows(config: Config, workdir: Path, log: Log) -> dict[tuple, dict]:
    """Row of `PAPER` → {"codes", "authors", "figures", "seconds"}, each kept in a file under W/rows."""
    mllm, ia = embeddings(config, workdir, log)
    points, rows = {"MLLM": mllm, "IA": ia}, {}
    for key in PAPER:
        make = functools.partial(make_row, points[key[0]], key[1], scaled(key[2], len(ia)), config)
        rows[key] = study.kept(workdir / "rows" / f"{'-'.join(map(str, key))}.json", config, make)
    return rows


def make_row(points: np.ndarray, quantizer: str, codes: int, config: Config) -> dict:
    began, epochs = time.perf_counter(), 20
    ids_Nx3 = quantized(points, quantizer, codes, config, epochs * max(1, len(points) // 1024))
    used, collisions = semantic_ids.utilization(ids_Nx3, codes), semantic_ids.collision_rates(ids_Nx3)
    return {"codes": codes, "authors": len(points), "seconds": time.perf_counter() - began,
            "figures": [100 * float(x) for x in (*(used[name] for name in COLUMNS[:4]), *collisions)]}


def format_table1(rows: dict[tuple, dict]) -> str:
    """Ours over the paper's, row by row, then the orderings."""
    cells = []
    for key, paper in PAPER.items():
        if key in rows:
            embedding, quantizer, size = key
            cells += [[embedding, quantizer, f"3x{rows[key]['codes']}", *(f"{x:.2f}%" for x in rows[key]["figures"])],
                      ["  paper", "", f"3x{size}", *(f"{x:.2f}%" for x in paper)]]
    found = verdicts({key: row["figures"] for key, row in rows.items()})
    counts = Counter(verdict for verdict, *_ in found)
    return "\n\n".join([
        table(["embedding", "quantizer", "size", *COLUMNS], cells, left=2),
        table(["", "in the paper", "higher", "lower"], [[verdict, text, f"{high:.2f}%", f"{low:.2f}%"]
                                                        for verdict, text, high, low in found], left=2),
        f"orderings in the paper: {counts.total()}, of which {counts['holds']} hold here, {counts['tie']} are ties "
        f"here, {counts['does not hold']} do not hold"])


def verdicts(rows: dict[tuple, list[float]]) -> list[tuple[str, str, float, float]]:
    """Of every ordering in the paper between two rows that we have: ("holds", "tie" or "does not hold", text, our
    figure of the row that is higher in the paper, ours of the lower)."""
    found = []
    for text, high, column, low in orderings():
        if high in rows and low in rows:
            a, b = (rows[key][COLUMNS.index(column)] for key in (high, low))
            found.append(("holds" if a > b else "tie" if a == b else "does not hold", text, a, b))
    return found
