"""One style for every picture: colours, axes, legends, PNG.

Okabe and Ito's colours, told apart by colour-blind readers; the same group has the same colour on every picture.
"""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, OLIVE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, OLIVE)
INK, GRID = "#1f2933", "#dde3ea"
DPI = 144


def panels(rows: int = 1, columns: int = 1, width: float = 8.0, height: float = 3.0,
           **more) -> tuple[Figure, np.ndarray]:
    """(figure of `width` x `height` inches, its axes [rows, columns]). No global state, no window.

    `more` goes to `Figure.subplots`, e.g. sharex, width_ratios.
    """
    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **more)
    for axes in grid.flat:
        axes.set_axisbelow(True)
        axes.grid(color=GRID)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9aa5b1")
        axes.tick_params(colors=INK, length=0)
    return figure, grid


def panel(xlabel: str = "", ylabel: str = "", width: float = 8.0, height: float = 3.0,
          grid: str = "both") -> tuple[Figure, Axes]:
    """(figure, its only axes). `grid`: "both", or the one axis whose grid is drawn, "x" or "y"."""
    figure, ((axes,),) = panels(width=width, height=height)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if grid != "both":
        axes.grid(False)
        axes.grid(axis=grid, color=GRID)
    return figure, axes


def legend_above(axes: Axes, columns: int = 3, **more) -> None:
    """A legend between the title and the curves, where it hides none of them. `more` goes to `Axes.legend`."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, frameon=False, borderaxespad=0.2, **more)


def png(figure: Figure, transparent: bool = False) -> bytes:
    """The picture as a PNG file, the same bytes in every process. `transparent`: without a background of its own."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, transparent=transparent)
    return buffer.getvalue()


def plain(text: object) -> str:
    """A label that matplotlib does not read as a formula."""
    return str(text).replace("$", r"\$")
