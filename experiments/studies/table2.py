"""The paper's Table 2: every baseline and OneLive rank the same candidates (python -m experiments.table2).

A method is tried under as many settings as every other, judged by validation NDCG@10 with the first seed. The best of
them then runs with all seeds, and only those touch the test period, once each.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.log.tasks import Task
from experiments.baselines import (
    encoder_decoder,
    fitting,
    heuristics,
    kuaiformer,
    lambdarank,
    lightgcn,
    sasrec,
)
from experiments.common import scoring, study
from experiments.common.log import Log, prepare
from experiments.common.tables import interval, number, table
from experiments.stages.tokenizer import Tokenizer, train_tokenizer
from onelive_jax.config import Config
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.evaluation.bootstrap import mean_interval

TRIALS = 3  # settings that each method is tried under
CUTOFFS = (64, 128)
SMALL = (1, 5, 10)  # printed too where fewer than the paper's 64 are on air
VALIDATION_TARGETS = 2000
# LongView HR@64, MRR@64, HR@128, MRR@128, then the same of clicks.
PAPER = {
    "SASRec": (.2525, .0665, .3047, .0671, .2394, .0623, .2924, .0629),
    "KuaiFormer": (.3181, .0907, .3762, .0913, .3145, .0890, .3750, .0897),
    "GNN": (.4720, .1548, .5465, .1556, .4565, .1469, .5319, .1478),
    "TIGER": (.2847, .0795, .3395, .0801, .2877, .0785, .3442, .0791),
    "OneRec": (.5967, .2836, .6347, .2840, .5802, .2667, .6209, .2671),
    "OneLive": (.6887, .3213, .7388, .3218, .6720, .3046, .7246, .3052),
}
ONELIVE = "onelive"
HEURISTICS = ("own_counts_knn_unseen", "own_counts_knn", "own_counts", "viewers")


@dataclass(frozen=True)
class Method:
    """A ranker that is trained. title: in the table; trials: changes of its settings; run: (change, seed, folder) →
    a function of a task that scores its candidates."""

    title: str
    trials: list[dict]
    run: Callable[[dict, int, Path], Callable[[Task], np.ndarray]]


@dataclass(frozen=True)
class Problem:
    """What every method of a study is given."""

    config: Config
    log: Log
    workdir: Path
    validation: Task
    test: Task
    steps: int


def problem_of(config: Config, workdir: Path, steps: int) -> Problem:
    """steps: of each run of a baseline that is trained by the loop."""
    log = prepare(config, workdir)
    small = dataclasses.replace(config, data=dataclasses.replace(config.data, max_targets=min(
        VALIDATION_TARGETS, config.data.max_targets)))
    return Problem(config, log, workdir, scoring.targets(log, small, "validation", "strict"),
                   scoring.targets(log, config, "test", "strict"), steps)


def methods(problem: Problem) -> dict[str, Method]:
    """All that are trained, by the name that --methods knows."""
    def baseline(title: str, settings, make: Callable, trials: list[dict]) -> Method:
        length = problem.steps

        def run(change: dict, seed: int, folder: Path) -> Callable[[Task], np.ndarray]:
            own, training = split_change(change)
            c = settings
            if hasattr(c, "training"):
                c = dataclasses.replace(c, training=dataclasses.replace(
                    c.training, steps=length, validate_every=max(1, length // 4), **training))
            made = make(dataclasses.replace(c, **own), folder / "run", seed)
            made.fit(problem.log, [problem.validation])
            return made.score

        assert len(trials) == TRIALS
        return Method(title, trials, run)

    def tiger(s, folder, seed):
        codes = encoder_decoder.with_own_code(static_codes(problem, problem.config))
        return encoder_decoder.EncoderDecoder(s, folder, codes, seed)

    def onerec(s, folder, seed):
        return encoder_decoder.EncoderDecoder(s, folder, static_codes(problem, content_config(problem)), seed, "onerec")

    rates = [{"training.learning_rate": rate} for rate in (1e-3, 3e-3)]
    codes = encoder_decoder.Settings(dim=64, length=32, rows=16, beams=128)
    return {
        "sasrec": baseline("SASRec", sasrec.Settings(rows=16), sasrec.SASRec,
                           [*rates, {"training.learning_rate": 3e-3, "dropout": 0.5}]),
        "kuaiformer": baseline("KuaiFormer", kuaiformer.Settings(), kuaiformer.KuaiFormer,
                               [*rates, {"training.learning_rate": 3e-3, "smoothing": 0.0}]),
        "gnn": baseline("GNN", lightgcn.Settings(), lightgcn.LightGCN, [
            {"training.learning_rate": 1e-2}, {"training.learning_rate": 3e-2},
            {"training.learning_rate": 1e-2, "counts": True}]),
        "tiger": baseline("TIGER", codes, tiger, [*rates, {"training.learning_rate": 3e-3, "dropout": 0.3}]),
        "onerec": baseline("OneRec", dataclasses.replace(codes, token_a_code=False), onerec,
                           [*rates, {"training.learning_rate": 3e-3, "dropout": 0.3}]),
        "lambdarank": baseline("LambdaRank", lambdarank.Settings(), lambdarank.LambdaRank,
                               [{}, {"leaves": 15, "learning_rate": 0.03}, {"leaves": 63, "least": 100}]),
        ONELIVE: Method("OneLive", [{}, {"training.learning_rate": 2e-3}, {"decoding.identity_weight": 2.0}],
                        lambda change, seed, folder: run_onelive(problem, change, seed, folder)),
    }


def split_change(change: dict) -> tuple[dict, dict]:
    """A change of settings as (own fields, fields of their training)."""
    training = {name.removeprefix("training."): value for name, value in change.items() if name.startswith("training.")}
    return {name: value for name, value in change.items() if not name.startswith("training.")}, training


def static_codes(problem: Problem, config: Config) -> np.ndarray:
    """int32 [A, L], one id an author: of what was known when the training period ended."""
    folder = problem.workdir / ("tokenizers" if config is problem.config else "content_tokenizers")
    study.share(problem.workdir, folder, *study.LOG_PARTS)
    made: Tokenizer = train_tokenizer(config, folder, problem.log)
    authors = np.arange(problem.log.num_authors, dtype=np.int32)
    return np.asarray(made.ids.codes_at(authors, np.full(authors.size, problem.log.split.p1_ms)), np.int32)


def content_config(problem: Problem) -> Config:
    """OneRec's ids: three levels of content alone, where the log has any; the problem's own ids where it has none."""
    config = problem.config
    if problem.log.tables.segments is None and problem.log.tables.titles is None:
        return config
    codes = min(512, max(2, problem.log.num_authors // 4))
    return study.changed(config, {"tokenizer.embedding": "mllm", "tokenizer.levels": 3, "tokenizer.codes": codes,
                                  "model.loss_weights": (1.0, 1.0, 1.0)}, config.seed)


def run_onelive(problem: Problem, change: dict, seed: int, folder: Path) -> Callable[[Task], np.ndarray]:
    """The whole supervised model, under its own config; its tokenizer is shared by the trials of a seed."""
    base = study.changed(problem.config, {}, seed)
    home = problem.workdir / ONELIVE / f"base_{seed}"
    study.share(problem.workdir, home, *study.LOG_PARTS)
    made = study.train(study.changed(problem.config, change, seed), folder / "run", base, home)
    maker = problem.log.batch_maker(made.tokenizer.ids, made.config)
    rank = scoring.make_ranker(made.model, made.config, made.tokenizer, problem.log)
    return lambda task: scoring.score(rank, made.params, maker, task)


def trials(problem: Problem, name: str, method: Method, count: int = TRIALS) -> list[dict]:
    """The trials of a method with the first seed, each kept: {"settings", "validation"}; best first."""
    rows = []
    for number_, change in enumerate(method.trials[:count]):
        folder = problem.workdir / name / f"trial_{number_}"

        def result(change=change, folder=folder) -> dict:
            score = method.run(change, problem.config.seed, folder)
            return {"settings": change, "validation": fitting.validation_figures(score, [problem.validation])}

        kept = study.kept(folder / study.RESULT, problem.config, result, trial=change, steps=problem.steps)
        rows.append(kept | {"number": number_})
    return sorted(rows, key=lambda row: (-row["validation"]["ndcg@10"], row["number"]))


def on_test(problem: Problem, name: str, method: Method, best: dict, seed: int) -> np.ndarray:
    """`ranking_metrics.ranks` of the test targets, by the best settings under a seed; kept."""
    first = seed == problem.config.seed
    folder = problem.workdir / name / (f"trial_{best['number']}" if first else f"seed_{seed}")

    def result() -> list:
        score = method.run(best["settings"], seed, folder)
        places = fitting.judge(score, [problem.test])
        return np.where(np.isfinite(places), places, -1).astype(int).tolist()

    kept = study.kept(folder / "test.json", problem.config, result, seed=seed, trial=best["settings"],
                      steps=problem.steps)
    places = np.array(kept, np.float64)
    return np.where(places < 0, np.inf, places)


def heuristic_ranks(problem: Problem) -> dict[str, np.ndarray]:
    """Of the test targets, by the heuristics, whose few numbers are tuned on a grid over validation."""
    log, task = problem.log, problem.test
    weights = heuristics.tune(log.views, problem.validation, log.split.p1_ms)
    scores = heuristics.scores(log.views, task, log.split.p1_ms, weights)
    return {name: ranking_metrics.ranks(scores[name], task.offsets, task.position) for name in HEURISTICS}


@dataclass(frozen=True)
class Row:
    """A line of the table: ranks of the test targets, one array a seed (a heuristic has one)."""

    title: str
    ranks: list[np.ndarray]
    trials: list[dict]


def format_table2(rows: dict[str, Row], problem: Problem) -> str:
    """What wins, first; then the table for all targets and for long views, differences, and trials."""
    task, groups = problem.test, {"click": np.ones(problem.test.user.size, bool)}
    if "long_view" in problem.log.outcomes:
        groups["long view"] = problem.log.outcomes["long_view"][task.view] > 0
    count = np.diff(task.offsets)
    cutoffs = (*(SMALL if np.median(count) < CUTOFFS[0] else (10,)), *CUTOFFS)
    parts = [findings(rows), f"{task.user.size:,} test targets (strict), {int(np.median(count)):,} authors on air at "
             f"the median one ({count.min():,} … {count.max():,})"
             + (f": HR@{CUTOFFS[0]} says little, so smaller cutoffs stand beside it" if len(cutoffs) > 3 else "")]
    for group, chosen in groups.items():
        cells = []
        for row in rows.values():
            line = [row.title]
            for k in cutoffs:
                made = [ranking_metrics.at_cutoff(ranks[chosen], k) for ranks in row.ranks]
                line += [study.over_seeds([float(hit.mean()) for hit, _ in made]),
                         study.over_seeds([float(place.mean()) for _, place in made])]
            cells.append(line)
        parts.append(table([f"{group} (n={int(chosen.sum()):,})", *(f"{name}@{k}" for k in cutoffs
                                                                     for name in ("HR", "MRR"))], cells))
    parts.append(format_differences(rows))
    parts.append("heuristics are tuned on a grid of their own, on validation (experiments/baselines/heuristics.py)")
    parts.append(table(["method", "trial", "validation NDCG@10"], [
        [row.title, ", ".join(f"{name}={value}" for name, value in trial["settings"].items()) or "as given",
         number(trial["validation"]["ndcg@10"], ".4f")] for row in rows.values() for trial in row.trials], left=2))
    return "\n\n".join(parts)


def ndcg_of(row: Row) -> np.ndarray:
    """float64 [R]: NDCG@10 of every target, mean over seeds."""
    return np.mean([ranking_metrics.gains(ranks)["ndcg@10"] for ranks in row.ranks], 0)


def format_differences(rows: dict[str, Row]) -> str:
    """OneLive's NDCG@10 above every other's, request by request."""
    if ONELIVE not in rows:
        return "OneLive is not among the methods: no paired differences"
    ours, cells = ndcg_of(rows[ONELIVE]), []
    for name, row in rows.items():
        if name != ONELIVE:
            difference = ours - ndcg_of(row)
            cells.append([row.title, f"{ndcg_of(row).mean():.4f}", f"{difference.mean():+.4f}",
                          interval(mean_interval(difference, 1000, 0), "+.4f")])
    return table([f"NDCG@10 (OneLive {ours.mean():.4f})", "NDCG@10", "OneLive above it", "95 % interval"], cells)


def findings(rows: dict[str, Row]) -> str:
    """One sentence: what ranks best, and whether a baseline or a heuristic does."""
    means = {name: float(ndcg_of(row).mean()) for name, row in rows.items()}
    best = max(means, key=means.get)
    if ONELIVE not in rows:
        return f"Best: {rows[best].title}, NDCG@10 {means[best]:.4f}."
    if best == ONELIVE:
        second = max((name for name in means if name != ONELIVE), key=means.get, default=ONELIVE)
        return f"OneLive ranks best: NDCG@10 {means[best]:.4f}; next {rows[second].title}, {means[second]:.4f}."
    above = [f"{rows[name].title} {value:.4f}" for name, value in sorted(means.items(), key=lambda item: -item[1])
             if value > means[ONELIVE]]
    return f"OneLive (NDCG@10 {means[ONELIVE]:.4f}) is beaten here by " + ", ".join(above) + "."


def format_paper() -> str:
    return table(["the paper's", *(f"{group} {name}@{k}" for group in ("long view", "click") for k in CUTOFFS
                                    for name in ("HR", "MRR"))],
                 [[name, *(f"{x:.4f}" for x in figures)] for name, figures in PAPER.items()])


def to_json(rows: dict[str, Row]) -> dict:
    """What docs and reports read: means over targets by seed."""
    result = {}
    for name, row in rows.items():
        seeds = [{f"{figure}@{k}": float(values.mean()) for k in (*SMALL, *CUTOFFS) for figure, values in zip(
            ("hr", "mrr"), ranking_metrics.at_cutoff(ranks, k), strict=True)} for ranks in row.ranks]
        result[name] = {"title": row.title, "seeds": seeds, "ndcg@10": float(ndcg_of(row).mean()), "trials": row.trials}
    return result

