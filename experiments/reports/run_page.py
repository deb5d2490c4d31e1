"""One self-contained HTML page of a run: no script, no link, nothing to fetch. Plots are PNGs inside the file.

The page shows what `report.json` holds: {"protocols": {"strict": groups, "liverec": groups}, "heuristics": {name:
groups}, "training": {"seconds", "examples_per_second", "parameters"}, "tokenizer": {"utilization": {level: share},
"collision_rate_sid", "collision_rate_author"}, "data": {"rows_read", "rows_kept", "dropped": {reason: n}}}, where
groups is what `ranking_metrics.metrics` returns. The heuristics are scored under the strict protocol.
A part that is missing or None is left out of the page, and the page says so.
"""

import base64
import html
import io
import json
import os
from pathlib import Path
from typing import Any, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.reports.tokenizer_plots import lives_plot
from onelive_jax.evaluation.ranking_metrics import FIGURES, GROUPS, INTERVAL

# Okabe and Ito's colours, told apart by colour-blind readers; the same group has the same colour on every plot.
COLOURS = {"all": "#0072b2", "repeat": "#009e73", "new": "#d55e00"}
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00")
INK, GRID = "#1f2933", "#dde3ea"
MAX_CURVES = len(LINE_COLOURS)
HEURISTICS = {
    "viewers": "Current viewers",
    "popularity": "Popularity in training",
    "own_counts": "Own view counts",
    "own_counts_time": "Own counts, recency and time of day",
    "own_counts_knn": "Own counts, time and item-kNN",
    "own_counts_knn_unseen": "The same, broadcasts seen before last",
}
HEADINGS = {"hr@1": "HR@1", "hr@10": "HR@10", "hr@64": "HR@64", "hr@128": "HR@128", "ndcg@10": "NDCG@10", "mrr": "MRR"}
COLUMNS = ("ndcg@10", "hr@1", "hr@10", "hr@64", "hr@128", "mrr")

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: #1f2933; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 0 0 14px; max-width: 75ch; }
.note { color: #52606d; font-size: 14px; }
section { background: #fff; border: 1px solid #dde3ea; border-radius: 10px; padding: 22px 24px; margin-top: 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; margin-top: 24px; }
.tile { background: #fff; border: 1px solid #dde3ea; border-radius: 10px; padding: 14px 18px; }
.tile b { display: block; font-size: 26px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: #52606d; font-size: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14.5px; }
th, td { padding: 7px 10px; text-align: right; border-bottom: 1px solid #e8edf2; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: #52606d; font-weight: 600; border-bottom: 2px solid #cbd5df; }
tr.ours { background: #eaf3fa; font-weight: 600; }
td small { color: #52606d; font-weight: 400; }
img { display: block; max-width: 100%; height: auto; margin: 8px auto 0; }
details summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: #f5f7fa; border-radius: 8px; padding: 14px; font: 13px/1.5 ui-monospace,
  SFMono-Regular, Menlo, Consolas, monospace; }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""


def write_html(path: str | Path, report: Mapping[str, Any], config: Mapping[str, Any] | None = None,
               training_log: Sequence[Mapping[str, Any]] = (), title: str = "OneLive") -> Path:
    """Writes the page of a run and returns its path; a page that is there already is replaced in one move.

    Args:
      path: the HTML file; its folder must exist.
      report: what report.json holds (see the top of this file).
      config: the run's settings, as `dataclasses.asdict(config)`; None leaves them out.
      training_log: lines of metrics.jsonl, {"step": int, name: number or None, …}, as `training.metrics.read` gives.
      title: name of the run.

    Raises:
      ValueError: the report has no figures under "protocols", or a group lacks a figure; names it.
    """
    _check(report)
    parts = [_header(report, title), _figures(report), _groups(report), _training(report.get("training"), training_log),
             _tokenizer(report.get("tokenizer")), _data(report.get("data")), _config(config)]
    page = ("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
            f"<title>{_escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(parts) + "\n</main>\n</body>\n</html>\n")
    path = Path(path)
    draft = path.with_name(path.name + ".part")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path


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


def _rankers(report: Mapping[str, Any]) -> list[tuple[str, Mapping, bool]]:
    """(label, groups, whether it is the model) of everything scored under the strict protocol, best last."""
    known = list(HEURISTICS)
    heuristics = report.get("heuristics") or {}
    names = sorted(heuristics, key=lambda name: known.index(name) if name in known else len(known))
    rows = [(HEURISTICS.get(name, name), heuristics[name], False) for name in names]
    strict = report["protocols"].get("strict")
    return rows + ([("OneLive (this run)", strict, True)] if strict else [])


def _header(report: Mapping[str, Any], title: str) -> str:
    protocol = "strict" if "strict" in report["protocols"] else next(iter(report["protocols"]))
    everyone = report["protocols"][protocol]["all"]
    tiles = [(_number(everyone["ndcg@10"]), f"NDCG@10, {protocol}, all targets"),
             (_number(everyone["hr@10"]), f"HR@10, {protocol}, all targets"),
             (f"{everyone['n']:,}", "test targets")]
    others = [(groups["all"]["ndcg@10"], label) for label, groups, ours in _rankers(report) if not ours]
    others = [(ndcg, label) for ndcg, label in others if ndcg is not None]
    if protocol == "strict" and others and everyone["ndcg@10"] is not None:
        best, label = max(others)
        tiles.append((f"{everyone['ndcg@10'] - best:+.3f}", f"NDCG@10 against the best heuristic ({label})"))
    boxes = "".join(f"<div class=\"tile\"><b>{_escape(value)}</b><span>{_escape(label)}</span></div>"
                    for value, label in tiles)
    return (f"<h1>{_escape(title)}</h1>\n<p class=\"note\">Which room on air does a viewer open next? Every figure "
            "ranks the authors on air at the moment of the request; ties are scored by their expectation.</p>\n"
            f"<div class=\"tiles\">{boxes}</div>")


def _figures(report: Mapping[str, Any]) -> str:
    rows = _rankers(report)
    body = []
    if rows:
        body += ["<h3>Strict: authors that other people (or true room lifetimes) show to be on air</h3>",
                 _metrics_table(rows, "all")]
        body += [f"<details><summary>{title}</summary>{_metrics_table(rows, group)}</details>" for group, title in
                 (("repeat", "Repeat targets only"), ("new", "New targets only"))]
    liverec = report["protocols"].get("liverec")
    if liverec:
        body += ["<h3>LiveRec: the tested person's own row counts too</h3>",
                 _metrics_table([(f"OneLive, {group} targets", liverec, group == "all", group) for group in GROUPS]),
                 "<p class=\"note\">For comparison with published work only: many of these targets are on air for no "
                 "other reason than that the tested person was watching.</p>"]
    return _section("Ranking", "Higher is better. The range beside NDCG@10 is a 95 % bootstrap interval over requests. "
                    "Repeat: the author is among the viewer's last 16 views.", *body)


def _metrics_table(rows: Sequence[tuple], group: str = "all") -> str:
    """Rows are (label, groups, highlighted) or, with a group of their own, (label, groups, highlighted, group)."""
    head = "".join(f"<th scope=\"col\">{_escape(cell)}</th>"
                   for cell in ("Ranker", *(HEADINGS[name] for name in COLUMNS), "n"))
    lines = []
    for label, groups, ours, *own_group in rows:
        figures = groups[own_group[0] if own_group else group]
        cells = [f"<td>{_escape(label)}</td>"]
        for name in COLUMNS:
            text = _escape(_number(figures[name]))
            if name == "ndcg@10" and figures[INTERVAL]:
                low, high = figures[INTERVAL]
                text += f" <small>{_number(low)}–{_number(high)}</small>"
            cells.append(f"<td>{text}</td>")
        cells.append(f"<td>{figures['n']:,}</td>")
        lines.append(f"<tr class=\"ours\">{''.join(cells)}</tr>" if ours else f"<tr>{''.join(cells)}</tr>")
    return f"<div class=\"scroll\"><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _groups(report: Mapping[str, Any]) -> str:
    rows = [row for row in _rankers(report) if row[1]["all"]["n"]]
    if not rows:
        return _section("NDCG@10 by group", "The report has no figures under the strict protocol.")
    return _section("NDCG@10 by group", "Bars with their 95 % intervals, strict protocol.",
                    _image(group_plot([(label, groups) for label, groups, _ in rows]),
                           "Bar chart of NDCG@10 over all, repeat and new targets for every ranker"))


def group_plot(rows: Sequence[tuple[str, Mapping]]) -> Figure:
    """Bars of NDCG@10 over all, repeat and new targets; rows of (label, groups), drawn from top to bottom."""
    figure, axes = _axes(9.0, 1.1 + 0.66 * len(rows))
    height = 0.25
    for offset, group in enumerate(GROUPS):
        for row, (_, groups) in enumerate(rows):
            value, interval = groups[group]["ndcg@10"], groups[group][INTERVAL]
            if value is None:
                continue
            at = row + (offset - 1) * height
            axes.barh(at, value, height * 0.92, color=COLOURS[group])
            low, high = interval
            axes.hlines(at, low, high, color=INK, linewidth=1.3)
            axes.text(high + 0.008, at, f"{value:.3f}", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(range(len(rows)), [_plain(label) for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.06)
    axes.set_xlabel("NDCG@10")
    axes.grid(axis="x", color=GRID)
    handles = [axes.barh(0, 0, color=COLOURS[group]) for group in GROUPS]
    axes.legend(handles, GROUPS, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def _training(training: Mapping[str, Any] | None, log: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    if training:
        rows = [("Wall time", _duration(training.get("seconds"))),
                ("Examples a second", _count(training.get("examples_per_second"))),
                ("Parameters", _count(training.get("parameters")))]
    curves = loss_curves(log)
    body = [_pairs(rows)] if rows else []
    if curves:
        body.append(_image(loss_plot(curves), "Line chart of the losses by optimizer step"))
        left_out = len(_loss_names(log)) - len(curves)
        if left_out:
            body.append(f"<p class=\"note\">{left_out} more losses are in metrics.jsonl.</p>")
    note = "" if curves else "No losses were logged for this run."
    return _section("Training", note, *body)


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


def loss_plot(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """Losses by optimizer step; a curve of few points (a validation) is marked where it was measured."""
    figure, axes = _axes(9.0, 3.6)
    for colour, (name, (steps, values)) in zip(LINE_COLOURS, curves.items(), strict=False):
        marker = "o" if len(steps) <= 12 else None
        axes.plot(steps, values, color=colour, linewidth=1.7, label=_plain(name), marker=marker, markersize=4.5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(color=GRID)
    axes.legend(frameon=False, ncols=2)
    return figure


def _tokenizer(tokenizer: Mapping[str, Any] | None) -> str:
    if not tokenizer:
        return _section("Semantic ids", "The report has no tokenizer figures.")
    rows = [("Ids held by more than one author", _share(tokenizer.get("collision_rate_sid"))),
            ("Authors who share their id", _share(tokenizer.get("collision_rate_author")))]
    recall = tokenizer.get("recall") or {}
    if recall.get("views"):
        rows += [(f"Towers alone, {name} among all {recall['authors']:,} authors, {recall['views']:,} validation views",
                  _number(value)) for name, value in recall.items() if "@" in name]
    body = [_pairs(rows)]
    if tokenizer.get("utilization"):
        body.append(_image(utilization_plot(tokenizer["utilization"]), "Bar chart of the share of codes in use"))
    body.append("<h3>Ids over the life of a room</h3>")
    if tokenizer.get("lives"):
        body += ["<p class=\"note\">Rooms with the most views in training, one strip a level; a colour is a code.</p>",
                 _image(lives_plot(tokenizer["lives"]), "Strips of the codes of busy rooms over their minutes on air")]
    else:
        body.append("<p class=\"note\">There is nothing to move: the log has no content that changes while a room is "
                    "on air, or ids do not follow it.</p>")
    return _section("Semantic ids", "Share of codes (and of pairs of codes) that at least one author holds.", *body)


def utilization_plot(utilization: Mapping[str, float]) -> Figure:
    """Bars of the share of codes in use; level → share in [0, 1]."""
    figure, axes = _axes(9.0, 3.0)
    names = [_plain(name) for name in utilization]
    bars = axes.bar(names, list(utilization.values()), width=0.55, color=COLOURS["all"])
    axes.bar_label(bars, [_share(value) for value in utilization.values()], padding=3, fontsize=9.5, color=INK)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("codes in use")
    axes.grid(axis="y", color=GRID)
    return figure


def _data(data: Mapping[str, Any] | None) -> str:
    if not data:
        return _section("Data", "The report has no figures of the log.")
    rows = [("Rows read", _count(data.get("rows_read"))), ("Rows kept", _count(data.get("rows_kept")))]
    rows += [(f"Dropped: {reason}", _count(n)) for reason, n in (data.get("dropped") or {}).items()]
    return _section("Data", "" if data.get("dropped") else "No row was dropped.", _pairs(rows))


def _config(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return _section("Settings", "The settings of this run were not given.")
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return _section("Settings", "", "<details><summary>Every setting of this run</summary>"
                    f"<pre>{_escape(text)}</pre></details>")


def _section(heading: str, note: str, *body: str) -> str:
    shown = f"<p class=\"note\">{_escape(note)}</p>" if note else ""
    return f"<section><h2>{_escape(heading)}</h2>{shown}{''.join(body)}</section>"


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><td>{_escape(name)}</td><td>{_escape(value)}</td></tr>" for name, value in rows)
    return f"<div class=\"scroll\"><table><tbody>{lines}</tbody></table></div>"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own (no global state, no window), in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa5b1")
    axes.tick_params(colors=INK, length=0)
    return figure, axes


def _image(figure: Figure, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt=\"{_escape(description)}\" src=\"data:image/png;base64,{data}\">"


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _plain(text: object) -> str:
    """A label that matplotlib does not take for a formula."""
    return str(text).replace("$", r"\$")


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
