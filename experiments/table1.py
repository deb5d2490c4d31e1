"""The paper's Table 1 beside ours: utilization and collisions of ids, by embedding, quantizer and size.

    python -m experiments.table1 --workdir=W [--config.simulator.authors=200000]

Towers are trained on the views of a simulated platform. Every author with content then gets one id, from its content
of the last moment (MLLM: x_30s and x_pool as they come; IA: the author tower's output), by residual k-means and, for
IA, by an RQ-VAE. The paper has 4 million authors; code counts are scaled by the cube root of the ratio of authors, so
that there are as many authors for each possible id. Of each ordering in the paper it is said whether it holds here.
Codebooks are fitted by config.tokenizer.kmeans_*; with kmeans_balance, ids keep to its bound too. Rows are kept in
W/table1.json as they are made: a killed run goes on.
"""

import dataclasses
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.log.content import author_content
from experiments.common import flags
from experiments.common.log import Log, data_settings, prepare
from experiments.common.workdir import differing, flat
from experiments.stages.tokenizer import fit_towers, view_log
from onelive_jax.config import Config, TokenizerConfig
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
    if changed := differing(meta.get("settings", {}), tower_settings(config)):
        raise ValueError(f"{folder} was trained with other settings ({changed}): choose another --workdir, or delete "
                         f"{folder} and {workdir / 'table1.json'}")
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


def kmeans_settings(config: TokenizerConfig) -> dict:
    return {name: value for name, value in dataclasses.asdict(config).items() if name.startswith("kmeans_")}


def row_of(codes_Nx3: np.ndarray, codes: int) -> list[float]:
    """The figures of `COLUMNS`, in per cent."""
    used = semantic_ids.utilization(codes_Nx3, codes)
    return [100 * float(x) for x in (*(used[name] for name in COLUMNS[:4]), *semantic_ids.collision_rates(codes_Nx3))]


def format_table1(rows: dict[tuple, list[float]], sizes: dict[int, int]) -> str:
    """Ours over the paper's, row by row, then the orderings."""
    head = f"{'embedding':10} {'quantizer':11} {'size':>8}  " + "".join(f"{name:>11}" for name in COLUMNS)
    lines = [head, "-" * len(head)]
    for key, paper in PAPER.items():
        if key not in rows:
            continue
        embedding, quantizer, codes = key
        lines.append(f"{embedding:10} {quantizer:11} {f'3x{sizes[codes]}':>8}  "
                     + "".join(f"{value:10.2f}%" for value in rows[key]))
        lines.append(f"{'  paper':22} {f'3x{codes}':>8}  " + "".join(f"{value:10.2f}%" for value in paper))
    lines.append("")
    lines += [f"{verdict:14} {text}: {high:.2f} % and {low:.2f} % here" for verdict, text, high, low in verdicts(rows)]
    counts = Counter(verdict for verdict, *_ in verdicts(rows))
    lines.append(f"orderings in the paper: {counts.total()}, of which {counts['holds']} hold here, {counts['tie']} are "
                 f"ties here, {counts['does not hold']} do not hold")
    return "\n".join(lines)


def verdicts(rows: dict[tuple, list[float]]) -> list[tuple[str, str, float, float]]:
    """Of every ordering in the paper between two rows that we have: ("holds", "tie" or "does not hold", text, our
    figure of the row that is higher in the paper, ours of the lower)."""
    found = []
    for text, high, column, low in orderings():
        if high in rows and low in rows:
            a, b = (rows[key][COLUMNS.index(column)] for key in (high, low))
            found.append(("holds" if a > b else "tie" if a == b else "does not hold", text, a, b))
    return found


def main(config: Config, workdir: Path) -> None:
    file = workdir / "table1.json"
    log = prepare(config, workdir)
    mllm, ia = embeddings(config, workdir, log)
    points = {"MLLM": mllm, "IA": ia}
    sizes = {codes: scaled(codes, len(ia)) for codes in (512, 8192)}
    steps = 20 * max(1, len(ia) // 1024)  # 20 epochs
    settings = kmeans_settings(config.tokenizer)
    kept = json.loads(file.read_text()) if file.is_file() else {"authors": len(ia), "kmeans": settings, "rows": []}
    if kept["authors"] != len(ia):
        raise ValueError(f"{file} was made with {kept['authors']:,} authors, now there are {len(ia):,}: choose another "
                         "--workdir")
    # An older file does not say: it knew the defaults, and kmeans_iterations and kmeans_init as told.
    older = kmeans_settings(TokenizerConfig()) | {name: settings[name] for name in ("kmeans_iterations", "kmeans_init")}
    if kept.setdefault("kmeans", older) != settings:
        changed = ", ".join(f"{name}={kept['kmeans'][name]} then, {settings[name]} now" for name in settings
                            if kept["kmeans"][name] != settings[name])
        raise ValueError(f"{file} was made with other settings of config.tokenizer ({changed}): choose another "
                         f"--workdir, or delete {file}")
    rows = {tuple(row["key"]): row["figures"] for row in kept["rows"]}
    for key in PAPER:
        if key in rows:
            continue
        embedding, quantizer, codes = key
        began = time.perf_counter()
        rows[key] = row_of(quantized(points[embedding], quantizer, sizes[codes], config, steps), sizes[codes])
        kept["rows"].append({"key": key, "codes": sizes[codes], "figures": rows[key],
                             "seconds": time.perf_counter() - began})
        file.write_text(json.dumps(kept, indent=1))
    print(format_table1(rows, sizes))
    print(f"\n{len(ia):,} authors; utilization (L0 … L0xL1) and collision rates by the paper's definitions; {file}")


if __name__ == "__main__":
    flags.define_config(default_config="experiments/configs/table1.py")
    flags.run(main)
