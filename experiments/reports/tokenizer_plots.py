"""Pictures of semantic ids for the HTML report of a run: how they move over a room's life.

A room is a strip a level; time runs from its start to its last segment, and a colour is a code. A strip of one colour
is a code that stayed. What is drawn is `experiments.stages.tokenizer.room_lives`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

INK = "#1f2933"
# A step round the circle of hues that no few multiples of it close: codes that differ by little differ in colour.
GOLDEN = 0.61803398875


def code_colours(codes: Sequence[int]) -> np.ndarray:
    """float [n, 3], a colour for each code: the same code has the same colour in every picture."""
    codes = np.asarray(codes, np.int64)
    hue, shade = codes * GOLDEN % 1.0, codes % 3
    return hsv_to_rgb(np.stack([hue, 0.42 + 0.2 * shade, 0.93 - 0.14 * shade], axis=-1))


def lives_plot(lives: Sequence[Mapping]) -> Figure:
    """Strips of the codes of a few rooms over the minutes that they were on air.

    Args:
      lives: {"room", "author", "views", "minutes", "moves": [[minute, q0, q1, …], …]} of each room.
    """
    figure = Figure(figsize=(9.0, 0.5 + 0.85 * len(lives)), layout="constrained")
    FigureCanvasAgg(figure)
    longest = max(room["minutes"] for room in lives)
    all_axes = figure.subplots(len(lives), 1, sharex=True, squeeze=False)[:, 0]
    for axes, room in zip(all_axes, lives, strict=True):
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
        axes.spines[:].set_visible(False)
        axes.tick_params(colors=INK, length=0)
        axes.set_title(f"author {room['author']}, room {room['room']}: {room['views']:,} views in training, "
                       f"{len(moves) - 1} changes of its id", loc="left", fontsize=9.5, color=INK)
    all_axes[-1].set_xlabel("minutes on air")
    return figure
