"""Pictures of a log, to look at before training: one self-contained HTML page, and a PNG a picture.

    python -m data_pipelines.report --data_dir=TABLES --out=report.html [--utc_offset_hours=8]

TABLES is a folder of canonical tables (data_pipelines.prepare, data_pipelines.simulator, or W/data of a run). The PNGs
lie in report_images/ beside the page. A picture that the log has no data for is left out, and the page says so.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from data_pipelines.pictures import log_figures, page
from data_pipelines.pictures.plots import BLUE, GREEN, INK, ORANGE, legend_above, panel, png
from data_pipelines.tables import Tables, load
from onelive_jax.files import write_whole

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
NO_DATA = "The log has no data for this picture."


def pictures(tables: Tables, utc_offset_hours: float) -> dict[str, tuple[str, str, Figure | None]]:
    """name → (title, what to look for, figure or None where the log has no data for it)."""
    views = tables.interactions.filter(pl.col("watch_ms") > 0)
    return {
        "hour_of_week": ("Views by hour of week", "A flat line means that the clock is wrong, or that there is none: "
                         "try --utc_offset_hours.", _hour_of_week(views, utc_offset_hours)),
        "on_air": ("Rooms on air", "How many candidates a request has. Steps at the ends are rooms whose start or end "
                   "the log does not hold.", _on_air(tables)),
        "lifetimes": ("Room lifetimes", "" if tables.rooms_are_true_lifetimes else "Lower bounds: from the first to "
                      "the last time that somebody was seen in the room.", _lifetimes(tables)),
        "watch_time": ("Watch time of a view", "A spike at one length is a heartbeat or a time-out of the player.",
                       _watch_time(views)),
        "repeat": ("Repeat share", "Views whose author is among the viewer's last 16, by how many views came before. "
                   "The higher, the stronger a model must remember.", _repeat(views)),
        "objectives": ("Objectives", "What 100 clicks bring. Empty bars are objectives that the log does not have.",
                       _objectives(tables)),
        "drift": ("Content drift inside a room", "Similarity of two segments of one room by the time between them, "
                  "beside two rooms of one author and two of anybody. If the first falls no lower than the second, "
                  "semantic ids need not follow the content.", _drift(tables)),
    }


def _hour_of_week(views, utc_offset_hours):
    if not len(views):
        return None
    share = log_figures.hour_of_week(views["start_ms"].to_numpy(), utc_offset_hours)
    figure, axes = panel("local time", "share of views")
    axes.plot(np.arange(168), share, color=BLUE)
    axes.set_xticks(np.arange(0, 168, 24), DAYS)
    axes.set_xlim(0, 167)
    axes.set_ylim(0)
    return figure


def _on_air(tables):
    hours, count = log_figures.rooms_on_air(tables)
    if not count.size:
        return None
    figure, axes = panel("days since the first view", "rooms on air")
    axes.fill_between(hours / 24, count, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(hours / 24, count, color=BLUE, linewidth=1)
    axes.set_ylim(0)
    return figure


def _histogram(minutes, xlabel, ylabel):
    minutes = minutes[minutes > 0]
    if not minutes.size:
        return None
    figure, axes = panel(xlabel, ylabel)
    low, high = max(minutes.min(), 1 / 60), max(minutes.max(), 1 / 30)
    axes.hist(np.maximum(minutes, low), np.geomspace(low, high * 1.001, 60), color=BLUE)
    axes.set_xscale("log")
    ticks = [(t, label) for t, label in ((1 / 60, "1 s"), (1 / 6, "10 s"), (1, "1 min"), (10, "10 min"), (60, "1 h"),
                                         (360, "6 h"), (1440, "1 day"), (10080, "1 week")) if low <= t <= high]
    axes.set_xticks([t for t, _ in ticks], [label for _, label in ticks])
    axes.minorticks_off()
    median, mean = np.median(minutes), minutes.mean()
    axes.axvline(median, color=ORANGE, label=f"median {median:,.1f} min")
    axes.axvline(mean, color=GREEN, linestyle="--", label=f"mean {mean:,.1f} min")
    legend_above(axes)
    return figure


def _lifetimes(tables):
    ended = tables.rooms.filter(pl.col("end_ms").is_not_null())
    return _histogram((ended["end_ms"] - ended["start_ms"]).to_numpy() / 60_000, "length", "rooms")


def _watch_time(views):
    return _histogram(views["watch_ms"].to_numpy() / 60_000, "length", "views")


def _repeat(views):
    before, share = log_figures.repeat_by_experience(views)
    if not share.size:
        return None
    figure, axes = panel("views of the person before", "repeat share")
    axes.plot(before, share, color=BLUE, marker="o")
    axes.set_xscale("log")
    axes.set_xticks(before, [f"{n:,.0f}" for n in before])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    return figure


def _objectives(tables):
    rates = log_figures.objective_rates(tables)
    if not any(rates.values()):
        return None
    figure, axes = panel("per 100 clicks", "", height=2.6, grid="x")
    bars = axes.barh(list(rates)[::-1], list(rates.values())[::-1], color=BLUE)
    axes.bar_label(bars, [f"{value:,.2f}" for value in list(rates.values())[::-1]], padding=4, color=INK)
    axes.margins(x=0.12)
    return figure


def _drift(tables):
    if tables.segments is None or len(tables.segments) < 2:
        return None
    result = log_figures.content_drift(tables)
    if not result["minutes"].size:
        return None
    figure, axes = panel("minutes between two segments of a room", "mean cosine")
    axes.plot(result["minutes"], result["same_room"], color=BLUE, marker="o", label="same room")
    levels = (("same_author", "two rooms of one author", GREEN), ("anybody", "any two rooms", ORANGE))
    for name, label, colour in levels:
        if np.isfinite(result[name]):
            axes.axhline(result[name], color=colour, linestyle="--", label=label)
    legend_above(axes)
    return figure


def write_report(tables: Tables, out: str | Path, utc_offset_hours: float = 0.0) -> list[Path]:
    """Writes the page and its PNGs (in <stem>_images/ beside it); returns the paths, the page first."""
    out = Path(out)
    images = out.parent / f"{out.stem}_images"
    images.mkdir(parents=True, exist_ok=True)
    report = tables.report
    rows = [*log_figures.summary(tables).items(), *((f"dropped: {reason}", n) for reason, n in report.dropped.items()
                                                    if n)]
    sections, written = [page.Section("The log", blocks=[page.Table((), [[name, _number(value)]
                                                                         for name, value in rows])])], [out]
    for name, (title, note, figure) in pictures(tables, utc_offset_hours).items():
        if figure is None:
            sections.append(page.Section(title, NO_DATA))
            continue
        sections.append(page.Section(title, note, [page.Picture(figure, title)]))
        written.append(images / f"{name}.png")
        write_whole(written[-1], png(figure))
    write_whole(out, page.render(report.source, sections))
    return written


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of a log, to look at before training.")
    parser.add_argument("--data_dir", required=True, help="folder of canonical tables")
    parser.add_argument("--out", required=True, help="the page to write, e.g. report.html")
    parser.add_argument("--utc_offset_hours", type=float, default=0.0, help="local time of the platform minus UTC")
    options = parser.parse_args()
    try:
        written = write_report(load(options.data_dir), options.out, options.utc_offset_hours)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()
