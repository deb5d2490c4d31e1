"""Ranks the rooms on air at every target of a split and prints what the rankings are worth, beside the heuristics."""


import numpy as np

from experiments.baselines import heuristics
from experiments.common import scoring
from experiments.common.log import Log
from experiments.common.tables import interval, number, table
from onelive_jax.config import Config
from onelive_jax.evaluation import bootstrap, ranking_metrics


def evaluate(config: Config, log: Log, rank, params, maker, split: str, protocol: str,
             weights: heuristics.Weights) -> tuple[dict[str, dict], dict[str, dict], dict[str, int]]:
    """A split under a protocol; `rank` from `scoring.make_ranker`.

    Returns: (metrics of "onelive" and of every heuristic, by name; how much NDCG@10 of "onelive" is above each
    heuristic's, request by request, with its interval: `evaluation.difference`; views of the period that are no target,
    by reason).
    """
    task = scoring.targets(log, config, split, protocol)
    scores = {"onelive": scoring.score(rank, params, maker, task, own_rows=protocol == "liverec")}
    scores |= heuristics.scores(log.views, task, log.split.p1_ms, weights)
    ranks = {name: ranking_metrics.ranks(score, task.offsets, task.position) for name, score in scores.items()}
    ours = ranks["onelive"]
    groups = {name: values[task.view] > 0 for name, values in log.outcomes.items()}
    return ({name: ranking_metrics.metrics(rank_R, task.repeat, groups=groups) for name, rank_R in ranks.items()},
            {name: ranking_metrics.difference(ours, rank_R) for name, rank_R in ranks.items() if name != "onelive"},
            task.dropped)


def format_dropped(dropped: dict[str, int]) -> str:
    """One line: which views of the period are no target, and why."""
    return "not targets: " + (", ".join(f"{n:,} ({reason})" for reason, n in dropped.items() if n) or "none")


def format_differences(differences: dict[str, dict]) -> str:
    """One line a heuristic: NDCG@10 above it, request by request, with the paired interval."""
    return table(["NDCG@10 above", "difference", "95 % interval"],
                 [[name, f"{row['difference']:+.3f}", interval(row["interval"], "+.3f")]
                  for name, row in differences.items()])


def format_ranking(rows: dict[str, dict]) -> str:
    """One line a ranker: figures over all targets, NDCG@10 over repeat and new ones, and, where the log has outcomes,
    a second table over the targets of each.

    Args: rows: name of a ranker → `ranking_metrics.metrics`.
    """
    names = ("hr@1", "hr@10", "hr@64", "hr@128", "mrr")
    cells = [[ranker, number(groups["all"]["ndcg@10"]), interval(groups["all"][ranking_metrics.INTERVAL]),
              *(number(groups["all"][name]) for name in names), *(number(groups[group]["ndcg@10"])
                                                                  for group in ("repeat", "new")),
              "/".join(f"{groups[group]['n']:,}" for group in ranking_metrics.GROUPS)]
             for ranker, groups in rows.items()]
    text = table(["ranker", "NDCG@10", "95 % interval", *(name.upper() for name in names), "repeat NDCG@10",
                  "new NDCG@10", "n all/repeat/new"], cells)
    first = next(iter(rows.values()))
    outcomes = [name for name in first if name not in ranking_metrics.GROUPS]
    if not outcomes:
        return text
    cells = [[ranker, *(f"{number(groups[name]['ndcg@10'])} / {number(groups[name]['hr@10'])}" for name in outcomes)]
             for ranker, groups in rows.items()]
    return text + "\n\n" + table(["NDCG@10 / HR@10 of views with", *(f"{name} (n={first[name]['n']:,})"
                                                                    for name in outcomes)], cells)


def tuned_weights(config: Config, log: Log) -> heuristics.Weights:
    """The heuristics' numbers, tuned on the validation targets of this very log."""
    task = scoring.make_task(log, config, "validation", "strict")
    return heuristics.tune(log.views, task, log.split.p1_ms) if task.user.size else heuristics.Weights()


def compare_policies(log: Log, config: Config, rank, control, treatment, maker, split: str,
                     protocol: str) -> dict[str, dict]:
    """Two sets of parameters of one model on the same targets.

    Returns: {"ndcg@10" (every target alike), "watch ndcg@10" (weight of a target: minutes watched), "hr@128":
    {"control", "treatment", "lift", "low", "high"}}; intervals of relative lifts by a paired bootstrap over targets.
    """
    task = scoring.targets(log, config, split, protocol)
    own_rows = protocol == "liverec"
    gains = [ranking_metrics.gains(ranking_metrics.ranks(
        scoring.score(rank, params, maker, task, own_rows), task.offsets, task.position))
        for params in (control, treatment)]
    minutes = (log.views.stop_ms[task.view] - log.views.start_ms[task.view]) / 60_000
    alike = np.ones_like(minutes)
    return {"ndcg@10": weighted_lift(*(gain["ndcg@10"] for gain in gains), alike),
            "watch ndcg@10": weighted_lift(*(gain["ndcg@10"] for gain in gains), minutes),
            "hr@128": weighted_lift(*(gain["hr@128"] for gain in gains), alike)}


def weighted_lift(control_R: np.ndarray, treatment_R: np.ndarray, weight_R: np.ndarray, resamples: int = 1000,
                  seed: int = 0) -> dict[str, float]:
    """Weighted means of two figures of the same R requests, and the relative lift with its 95 % interval."""
    arms = ((values_R * weight_R)[:, None] for values_R in (control_R, treatment_R))
    control, treatment, lift, low, high = (float(x[0]) for x in bootstrap.lifts(*arms, resamples=resamples, seed=seed))
    total = float(weight_R.sum())
    return {"control": control / total, "treatment": treatment / total, "lift": lift, "low": low, "high": high}


def format_policies(figures: dict[str, dict]) -> str:
    """One line a figure: supervised model, policy, relative lift with its interval."""
    return table(["", "supervised", "policy", "lift", "95 % interval"], [
        [name, f"{x['control']:.4f}", f"{x['treatment']:.4f}", f"{x['lift']:+.2%}",
         interval((x["low"], x["high"]), "+.2%")] for name, x in figures.items()])
