"""Pictures of a run: rankers, losses, codes in use, ids over the life of a room, alignment, an A/B test."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from data_pipelines.pictures.plots import BLUE, COLOURS, GREEN, INK, ORANGE, legend_above, panel, panels, plain
from onelive_jax.evaluation.ranking_metrics import GROUPS, INTERVAL

GROUP_COLOURS = {"all": BLUE, "repeat": GREEN, "new": ORANGE}
# A step round the circle of hues that no few multiples of it close: codes that differ by little differ in colour.
GOLDEN = 0.61803398875


def group_plot(rows: Sequence[tuple[str, Mapping]]) -> Figure:
    """Bars of NDCG@10 over all, repeat and new targets; rows of (label, groups), drawn from top to bottom."""
    figure, axes = panel("NDCG@10", height=1.1 + 0.62 * len(rows), grid="x")
    height = 0.25
    for offset, group in enumerate(GROUPS):
        for row, (_, groups) in enumerate(rows):
            value, interval = groups[group]["ndcg@10"], groups[group][INTERVAL]
            if value is None:
                continue
            at = row + (offset - 1) * height
            axes.barh(at, value, height * 0.92, color=GROUP_COLOURS[group])
            low, high = interval
            axes.hlines(at, low, high, color=INK, linewidth=1.3)
            axes.text(high + 0.008, at, f"{value:.3f}", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(range(len(rows)), [plain(label) for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.06)
    handles = [axes.barh(0, 0, color=GROUP_COLOURS[group]) for group in GROUPS]
    legend_above(axes, handles=handles, labels=GROUPS)
    return figure


def loss_plot(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """Losses by optimizer step; a curve of few points (a validation) is marked where it was measured."""
    figure, axes = panel("optimizer step", "loss", height=3.8)
    for colour, (name, (steps, values)) in zip(COLOURS, curves.items(), strict=False):
        marker = "o" if len(steps) <= 12 else None
        axes.plot(steps, values, color=colour, linewidth=1.7, label=plain(name), marker=marker, markersize=4.5)
    legend_above(axes)
    return figure


def utilization_plot(utilization: Mapping[str, float]) -> Figure:
    """Bars of the share of codes in use; level → share in [0, 1]."""
    figure, axes = panel(ylabel="codes in use", grid="y")
    names = [plain(name) for name in utilization]
    bars = axes.bar(names, list(utilization.values()), width=0.55, color=BLUE)
    axes.bar_label(bars, [f"{value:.2%}" for value in utilization.values()], padding=3, fontsize=9.5, color=INK)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def code_colours(codes: Sequence[int]) -> np.ndarray:
    """float [n, 3], a colour for each code: the same code has the same colour in every picture."""
    codes = np.asarray(codes, np.int64)
    hue, shade = codes * GOLDEN % 1.0, codes % 3
    return hsv_to_rgb(np.stack([hue, 0.42 + 0.2 * shade, 0.93 - 0.14 * shade], axis=-1))


def lives_plot(lives: Sequence[Mapping]) -> Figure:
    """Strips of the codes of a few rooms over the minutes that they were on air, one strip per level. A colour is a
    code: a strip of one colour is a code that stayed.

    Args:
      lives: {"room", "author", "views", "minutes", "moves": [[minute, q0, q1, …], …]} of each room.
    """
    figure, grid = panels(len(lives), 1, height=0.5 + 0.85 * len(lives), sharex=True)
    longest = max(room["minutes"] for room in lives)
    for axes, room in zip(grid[:, 0], lives, strict=True):
        moves = np.asarray(room["moves"], float)
        starts, codes = moves[:, 0].copy(), moves[:, 1:].astype(int)
        starts[0] = 0.0  # what a room is called before its first segment ends is what it is called after it
        ends = np.append(starts[1:], room["minutes"])
        levels = codes.shape[1]
        for level in range(levels):
            fresh = np.append(True, codes[1:, level] != codes[:-1, level])
            begin = starts[fresh]
            width = np.append(begin[1:], ends[-1]) - begin
            axes.barh(np.full(len(begin), level), width, left=begin, height=0.86,
                      color=code_colours(codes[fresh, level]), linewidth=0)
        axes.set_yticks(range(levels), [f"q{level}" for level in range(levels)], fontsize=8.5)
        axes.invert_yaxis()
        axes.set_xlim(0, longest)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_title(f"author {room['author']}, room {room['room']}: {room['views']:,} views in training, "
                       f"{len(moves) - 1} changes of its id", loc="left", fontsize=9.5, color=INK)
    grid[-1, 0].set_xlabel("minutes on air")
    return figure


def alignment_plot(curve: Sequence[Mapping[str, float]], chosen_step: int) -> Figure:
    """Judged steps of a policy: predicted reward (left axis) and HR@128 on validation (right)."""
    figure, axes = panel("policy step", "predicted reward", height=3.4)
    steps, other = [line["step"] for line in curve], axes.twinx()
    left = axes.plot(steps, [line["predicted_reward"] for line in curve], color=BLUE, marker="o", ms=4,
                     label="predicted reward")
    right = other.plot(steps, [line["hr@128"] for line in curve], color=ORANGE, marker="s", ms=4, label="HR@128")
    chosen = axes.axvline(chosen_step, color=INK, lw=1, ls="--", label="handed on")
    other.set_ylabel("HR@128 on validation")
    other.spines[:].set_visible(False)
    legend_above(axes, handles=[*left, *right, chosen])
    return figure


def lift_plot(lifts: Mapping[str, Mapping[str, float | None]], labels: Mapping[str, str]) -> Figure:
    """Lift of every outcome in per cent of the control with its 95 % interval; what has no interval is left out."""
    known = [name for name in labels if None not in (lifts[name]["low"], lifts[name]["high"])]
    figure, axes = panel("lift over the control", height=0.9 + 0.3 * len(known), grid="x")
    for row, name in enumerate(known):
        low, high = lifts[name]["low"], lifts[name]["high"]
        colour = GREEN if low > 0 else ORANGE if high < 0 else INK
        axes.hlines(row, low, high, color=colour, linewidth=2)
        axes.plot(lifts[name]["lift"], row, "o", color=colour, ms=5)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(known)), [labels[name] for name in known])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure
