"""The report of a run: W/report.html, one page from what the stages left in the workdir W.

`report.json` (experiments/stages/run.py) holds {"protocols": {"strict": groups, "liverec": groups}, "heuristics":
{name: groups}, "training": {"seconds", "examples_per_second", "parameters"}, "tokenizer": {"utilization": {level:
share}, "collision_rate_sid", "collision_rate_author"}, "data": {"rows_read", "rows_kept", "dropped": {reason: n}}},
where groups is what `ranking_metrics.metrics` returns. The heuristics are scored under the strict protocol. A part that
is missing or None is left out of the page, and the page says so.

Later commands add files, and the page is written again: reward.json, policy*.json, recommendations.json (person → rooms
of `stages.recommend`) and ab_test*.json.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.pictures.page import Code, Picture, Section, Table, render
from experiments.reports import figures
from experiments.stages.ab_test import ROWS, lift_rows
from experiments.stages.policy import curve_rows, handed_on
from experiments.stages.recommend import room_rows
from experiments.stages.reward import objective_rows
from onelive_jax.evaluation.ranking_metrics import FIGURES, GROUPS, INTERVAL
from onelive_jax.files import write_whole
from onelive_jax.training import metrics

MAX_CURVES = len(figures.COLOURS)
OURS = "OneLive (this run)"
HEURISTICS = {
    "viewers": "Current viewers",
    "popularity": "Popularity in training",
    "own_counts": "Own view counts",
    "own_counts_time": "Own counts, recency and time of day",
    "own_counts_knn": "Own counts, time and item-kNN",
    "own_counts_knn_unseen": "The same, broadcasts seen before last",
}
HEADINGS = {"ndcg@10": "NDCG@10", "hr@1": "HR@1", "hr@10": "HR@10", "hr@64": "HR@64", "hr@128": "HR@128", "mrr": "MRR"}
TERMS = (
    ("Target", "A view of the test period. The ranker orders the authors on air at the moment it began; the figures "
     "say where the author who was watched stands in that order."),
    ("HR@k, NDCG@10, MRR", "HR@k: share of targets among the first k. NDCG@10: 1 / log2(1 + place) up to place 10, "
     "else 0. MRR: 1 / place. Each is a mean over targets; equal scores count as their mean over all orders."),
    ("Strict, LiveRec", "Who counts as on air. Strict: authors that true room lifetimes or other people's views show. "
     "LiveRec: the tested person's own view counts too, as in published work; many targets are then easy."),
    ("Repeat, new", "Repeat: the target's author is among the person's last 16 views. New: all others."),
    ("Semantic id, q0 q1 q2", "The codes of an author, one per level: q0 is the coarsest cluster of its content, q1 "
     "refines q0, q2 refines q1. Codes can change while a room is on air."),
    ("L0, L0xL1", "Codes in use. L0: share of the codes of the first level that some author has. L0xL1: share of the "
     "pairs of codes of the first two levels."),
    ("AUC, user AUC, ECE, ratio", "AUC: how often a positive outscores a negative. User AUC: the same within a person. "
     "ECE: mean distance of predicted from observed rates. Ratio: mean prediction / mean outcome."),
    ("Lift", "Treatment / control − 1, with the 95 % interval of a paired bootstrap over people; * where 0 lies "
     "outside."),
)


def refresh(workdir: Path) -> None:
    """Writes W/report.html from what W holds by now; nothing where the run has no report.json yet."""
    file = workdir / "report.json"
    if not file.is_file():
        return
    report, config = _read(file), _read(workdir / "config.json") if (workdir / "config.json").is_file() else None
    for name in ("reward", "recommendations"):
        if (workdir / f"{name}.json").is_file():
            report[name] = _read(workdir / f"{name}.json")
    report["policies"] = {path.stem: _read(path) for path in sorted(workdir.glob("policy*.json"))}
    report["ab_tests"] = [_read(path) for path in sorted(workdir.glob("ab_test*.json"))]
    log = metrics.read(workdir / "supervised") if (workdir / "supervised" / metrics.FILE).is_file() else ()
    write_html(workdir / "report.html", report, config, log, f"OneLive on {config['name']}" if config else "OneLive")


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def write_html(path: Path, report: Mapping[str, Any], config: Mapping[str, Any] | None = None,
               training_log: Sequence[Mapping[str, Any]] = (), title: str = "OneLive") -> Path:
    """Writes the page of a run and returns its path; a page that is there already is replaced in one move.

    Args:
      report: what report.json holds, and "reward", "policies" {name: report}, "recommendations", "ab_tests" [report].
      config: the run's settings; None leaves them out.
      training_log: lines of metrics.jsonl, {"step": int, name: number or None, …}, as `training.metrics.read` gives.

    Raises:
      ValueError: the report has no figures under "protocols", or a group lacks a figure; names it.
    """
    _check(report)
    sections = [_ranking(report), _groups(report), *_people(report), *_rewards(report), *_policies(report),
                *_ab_tests(report), _training(report.get("training"), training_log),
                _tokenizer(report.get("tokenizer")), _data(report.get("data")), _config(config)]
    write_whole(Path(path), render(title, sections, "Which room on air does a viewer open next? Terms are explained at "
                                   "the end of the page.", _tiles(report), TERMS))
    return Path(path)


def _check(report: Mapping[str, Any]) -> None:
    if not report.get("protocols"):
        raise ValueError("the report has no figures: report[\"protocols\"] needs \"strict\" or \"liverec\"")
    for part in ("protocols", "heuristics"):
        for name, groups in (report.get(part) or {}).items():
            for group in GROUPS:
                for figure in ("n", INTERVAL, *FIGURES):
                    if figure not in groups.get(group, {}):
                        raise ValueError(f"report[{part!r}][{name!r}][{group!r}] lacks {figure!r}; take it from "
                                         "onelive_jax.evaluation.ranking_metrics.metrics")


def _rankers(report: Mapping[str, Any]) -> list[tuple[str, Mapping]]:
    """(label, groups) of everything scored under the strict protocol, the model last."""
    known = list(HEURISTICS)
    heuristics = report.get("heuristics") or {}
    names = sorted(heuristics, key=lambda name: known.index(name) if name in known else len(known))
    strict = report["protocols"].get("strict")
    return [(HEURISTICS.get(name, name), heuristics[name]) for name in names] + ([(OURS, strict)] if strict else [])


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    protocol = "strict" if "strict" in report["protocols"] else next(iter(report["protocols"]))
    everyone = report["protocols"][protocol]["all"]
    tiles = [(_number(everyone["ndcg@10"]), f"NDCG@10, {protocol}, all targets"),
             (_number(everyone["hr@10"]), f"HR@10, {protocol}, all targets"), (f"{everyone['n']:,}", "test targets")]
    others = [(groups["all"]["ndcg@10"], label) for label, groups in _rankers(report) if label != OURS]
    others = [(ndcg, label) for ndcg, label in others if ndcg is not None]
    if protocol == "strict" and others and everyone["ndcg@10"] is not None:
        best, label = max(others)
        tiles.append((f"{everyone['ndcg@10'] - best:+.3f}", f"NDCG@10 against the best heuristic ({label})"))
    return tiles


def _ranking(report: Mapping[str, Any]) -> Section:
    rows, blocks = _rankers(report), []
    if rows:
        blocks = [_metrics_table([(label, groups["all"]) for label, groups in rows], "Strict protocol, all targets")]
        blocks += [_metrics_table([(label, groups[group]) for label, groups in rows], f"{group.capitalize()} targets "
                                  "only", folded=True) for group in ("repeat", "new")]
    if liverec := report["protocols"].get("liverec"):
        blocks.append(_metrics_table([(f"OneLive, {group} targets", liverec[group]) for group in GROUPS],
                                     "LiveRec protocol, for comparison with published work only"))
    return Section("Ranking", "Higher is better. The range is the 95 % bootstrap interval of NDCG@10 over requests.",
                   blocks)


def _metrics_table(rows: Sequence[tuple[str, Mapping]], caption: str, folded: bool = False) -> Table:
    cells = [[label, _number(figures["ndcg@10"]), "–" if not figures[INTERVAL] else "–".join(
        map(_number, figures[INTERVAL])), *(_number(figures[name]) for name in HEADINGS if name != "ndcg@10"),
        f"{figures['n']:,}"] for label, figures in rows]
    ndcg, *others = HEADINGS.values()
    return Table(["Ranker", ndcg, "95 % interval", *others, "n"], cells, caption,
                 [i for i, (label, _) in enumerate(rows) if label == OURS], folded)


def _groups(report: Mapping[str, Any]) -> Section:
    rows = [row for row in _rankers(report) if row[1]["all"]["n"]]
    if not rows:
        return Section("NDCG@10 by group", "The report has no figures under the strict protocol.")
    return Section("NDCG@10 by group", "Bars with their 95 % intervals, strict protocol.", [Picture(
        figures.group_plot(rows), "Bar chart of NDCG@10 over all, repeat and new targets for every ranker")])


def _people(report: Mapping[str, Any]) -> list[Section]:
    people = report.get("recommendations")
    return [Section("Recommendations", "The best rooms on air for some people, best first.", [
        Table(*room_rows(rooms), f"Person {person}") for person, rooms in people.items()])] if people else []


def _rewards(report: Mapping[str, Any]) -> list[Section]:
    reward = report.get("reward")
    if not reward:
        return []
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in reward["weights"].items())
    return [Section("Reward model", "How well each objective is predicted on validation rows. The last two columns are "
                    "of the one fused score.", [Table(*objective_rows(reward)), f"Weights of the objectives in the "
                                                f"score: {weights}."])]


def _policies(report: Mapping[str, Any]) -> list[Section]:
    sections = []
    for name, policy in (report.get("policies") or {}).items():
        headers, rows = curve_rows(policy)
        marked = [i for i, line in enumerate(policy["validation"]) if line["step"] == policy["chosen_step"]]
        sections.append(Section(
            f"Alignment: {name}", f"Loss {policy['loss']}, judged on validation. {handed_on(policy)}",
            [Picture(figures.alignment_plot(policy["validation"], policy["chosen_step"]),
                     "Line chart of predicted reward and HR@128 over the steps of the policy"),
             Table(headers[:-1], [row[:-1] for row in rows], marked=marked)]))
    return sections


def _ab_tests(report: Mapping[str, Any]) -> list[Section]:
    return [Section(
        f"A/B test: {Path(test['treatment']).name} against {Path(test['control']).name}",
        f"Played on the simulated platform, {test['requests']:,} requests that both arms answer. Green: the interval "
        "lies above 0; orange: below.",
        [Picture(figures.lift_plot(test["observed"], ROWS), "Lifts of every outcome with their 95 % intervals"),
         Table(*lift_rows(test["observed"]), "Observed; of true utility its expectation"),
         Table(*lift_rows(test["expected"]), "Expected: means over what chance decides", folded=True)])
        for test in report.get("ab_tests") or ()]


def _training(training: Mapping[str, Any] | None, log: Sequence[Mapping[str, Any]]) -> Section:
    blocks: list = []
    if training:
        blocks.append(Table((), [("Wall time", _duration(training.get("seconds"))),
                                 ("Examples per second", _count(training.get("examples_per_second"))),
                                 ("Parameters", _count(training.get("parameters")))]))
    curves = loss_curves(log)
    if curves:
        blocks.append(Picture(figures.loss_plot(curves), "Line chart of the losses by optimizer step"))
        if left_out := len(_loss_names(log)) - len(curves):
            blocks.append(f"{left_out} more losses are in metrics.jsonl.")
    return Section("Training", "" if curves else "No losses were logged for this run.", blocks)


def _loss_names(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names with "loss" in them, in order of appearance, total losses ("train/loss", "valid/loss") first."""
    names = dict.fromkeys(name for line in log for name, value in line.items() if "loss" in name and value is not None)
    return sorted(names, key=lambda name: name.rsplit("/", 1)[-1] != "loss")


def loss_curves(log: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Name → (steps, values) of the first `MAX_CURVES` losses of a training log."""
    curves = {}
    for name in _loss_names(log)[:MAX_CURVES]:
        points = [(line["step"], line[name]) for line in log if line.get(name) is not None]
        curves[name] = ([step for step, _ in points], [value for _, value in points])
    return curves


def _tokenizer(tokenizer: Mapping[str, Any] | None) -> Section:
    if not tokenizer:
        return Section("Semantic ids", "The report has no tokenizer figures.")
    rows = [("Ids held by more than one author", _share(tokenizer.get("collision_rate_sid"))),
            ("Authors who share their id", _share(tokenizer.get("collision_rate_author")))]
    recall = tokenizer.get("recall") or {}
    if recall.get("views"):
        rows += [(f"Towers alone, {name} among all {recall['authors']:,} authors, {recall['views']:,} validation views",
                  _number(value)) for name, value in recall.items() if "@" in name]
    blocks: list = [Table((), rows)]
    if tokenizer.get("utilization"):
        blocks.append(Picture(figures.utilization_plot(tokenizer["utilization"]),
                              "Bar chart of the share of codes in use", "Codes in use"))
    if tokenizer.get("lives"):
        blocks += [Picture(figures.lives_plot(tokenizer["lives"]), "Strips of the codes of busy rooms over their "
                           "minutes on air", "Ids over the life of a room"),
                   "Rooms with the most views in training, one strip per level; a colour is a code."]
    else:
        blocks.append("Ids over the life of a room: there is nothing to move. The log has no content that changes "
                      "while a room is on air, or ids do not follow it.")
    return Section("Semantic ids", "Share of codes (and of pairs of codes) that at least one author has.", blocks)


def _data(data: Mapping[str, Any] | None) -> Section:
    if not data:
        return Section("Data", "The report has no figures of the log.")
    rows = [("Rows read", _count(data.get("rows_read"))), ("Rows kept", _count(data.get("rows_kept")))]
    rows += [(f"Dropped: {reason}", _count(n)) for reason, n in (data.get("dropped") or {}).items()]
    return Section("Data", "" if data.get("dropped") else "No row was dropped.", [Table((), rows)])


def _config(config: Mapping[str, Any] | None) -> Section:
    if config is None:
        return Section("Settings", "The settings of this run were not given.")
    return Section("Settings", blocks=[Code("Every setting of this run", json.dumps(config, indent=2, default=str,
                                                                                    ensure_ascii=False))])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{round(value):,}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 120 else f"{hours:.1f} h"
