"""Baselines beside published figures on public item sequences (python -m experiments.public_check)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_pipelines.log import tasks
from data_pipelines.readers import amazon
from experiments.baselines import encoder_decoder, fitting, heuristics, lightgcn, sasrec
from experiments.baselines.fitting import Training
from experiments.common import study
from experiments.common.log import Log
from experiments.common.tables import number, table
from onelive_jax.config import Config
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.evaluation.bootstrap import mean_interval
from onelive_jax.files import sha256
from onelive_jax.training import metrics

VALIDATION_PEOPLE = 2048  # on whom a step is chosen
COLUMNS = ("R@5", "R@10", "NDCG@10")
# (model, whose figures) → R@5, R@10, NDCG@10 on Beauty, leave-one-out, full ranking.
PUBLISHED = {
    ("SASRec", "S3-Rec"): (.0387, .0605, .0318), ("SASRec", "genrec"): (.0469, .0688, .0375),
    ("SASRec", "Cornac, tuned"): (.0508, .0740, .0423), ("TIGER", "paper"): (.0454, .0648, .0384),
    ("TIGER", "Cornac"): (.0419, .0634, .0338), ("TIGER", "genrec"): (.0465, .0721, .0378),
    ("TIGER", "another reproduction"): (.0376, .0582, .0319),
}


@dataclass(frozen=True)
class Entry:
    """A baseline under settings: `make(folder, seed)` gives the object with `fit` and `score`."""

    model: str
    settings: dict
    make: Callable[[Path, int], object]


class Popularity:
    """Training views of each item: the floor."""

    def fit(self, log: Log, validation: list[tasks.Task]) -> None:
        self.count_A = heuristics.popularity(log.views, log.split.p1_ms, log.num_authors)

    def score(self, task: tasks.Task) -> np.ndarray:
        return self.count_A[task.candidates].astype(np.float64)


def entries(log: Log, codes_file: str = "", steps: int = 0) -> dict[str, Entry]:
    """The baselines of the check, by the name that --baselines knows; TIGER is there with `codes_file`, the semantic
    ids of the items (a JSON object item → codes). steps: of a run, instead of each baseline's own."""
    def training(own: int, rate: float) -> Training:
        length = steps or own
        return Training(steps=length, validate_every=max(1, length // 4), learning_rate=rate)

    s = sasrec.Settings(sampled=2048, training=training(1400, 2e-3))
    g = lightgcn.Settings(batch=16_384, training=training(400, 2e-2))
    found = {"popularity": Entry("popularity", {}, lambda folder, seed: Popularity()),
             "sasrec": Entry("SASRec", asdict(s), lambda folder, seed: sasrec.SASRec(s, folder, seed)),
             "lightgcn": Entry("LightGCN", asdict(g), lambda folder, seed: lightgcn.LightGCN(g, folder, seed))}
    if codes_file:
        t = encoder_decoder.Settings(training=training(6000, 3e-3))
        codes = np.array(amazon.read_codes(codes_file, log.tables.authors["source_id"].to_list()), np.int32)
        found["tiger"] = Entry("TIGER", asdict(t) | {"codes": sha256(codes)},
                               lambda folder, seed: encoder_decoder.EncoderDecoder(t, folder, codes, seed))
    return found


def check(config: Config, entry: Entry, folder: Path, log: Log) -> dict:
    """Trains a baseline (or finds it trained) and ranks all items for everybody's last one. Kept in FOLDER."""
    def result() -> dict:
        made = entry.make(folder / "run", config.seed)
        validation = tasks.full_ranking(log.views, log.num_authors, log.split.p1_ms, log.split.p2_ms,
                                        max_targets=VALIDATION_PEOPLE)
        made.fit(log, validation)
        found = fitting.validation_figures(made.score, validation)
        test = tasks.full_ranking(log.views, log.num_authors, log.split.p2_ms)
        ranks_R = fitting.judge(made.score, test)
        five_R, gains = ranking_metrics.at_cutoff(ranks_R, 5)[0], ranking_metrics.gains(ranks_R)
        figures = (five_R, gains["hr@10"], gains["ndcg@10"])
        return {"n": len(ranks_R), "figures": [float(x.mean()) for x in figures],
                "intervals": [mean_interval(x, 1000, 0) for x in figures], "validation": found,
                "curve": curve_of(folder / "run")}

    return study.kept(folder / study.RESULT, config, result, baseline=entry.settings)


def curve_of(folder: Path) -> list[tuple[int, float]]:
    """(step, validation NDCG@10) of a run; empty for what is not trained."""
    lines = metrics.read(folder) if folder.is_dir() else []
    return [(line["step"], line["validation/ndcg@10"]) for line in lines if "validation/ndcg@10" in line]


def format_check(rows: dict[str, dict], models: dict[str, str], published: bool) -> str:
    """Ours over the published figures of the same model; then validation curves."""
    cells = []
    for name, row in rows.items():
        figures = [f"{x:.4f} ± {(high - low) / 2:.4f}" for x, (low, high) in zip(row["figures"], row["intervals"],
                                                                                strict=True)]
        cells.append([f"{name} (ours)", f"{row['n']:,}", *figures, number(row["validation"]["ndcg@10"], ".4f")])
    cells.sort(key=lambda cell: cell[0])
    if published:
        cells += [[f"{model}: {who}", "22,363", *(f"{x:.4f}" for x in figures), ""] for (model, who), figures in
                  PUBLISHED.items() if model in models.values()]
    lines = [table(["baseline", "n", *COLUMNS, "NDCG@10 (validation)"], cells)]
    lines += [f"{name}, validation NDCG@10 by step: " + ", ".join(f"{step} {value:.4f}" for step, value in row["curve"])
              for name, row in rows.items() if row["curve"]]
    return "\n".join(lines)


