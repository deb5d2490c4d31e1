"""Text tables: every command prints its rows through this one function."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Rows under headers, as text in columns.

    Args:
      rows: cells are printed as they are (`str`); None is an empty cell. Format numbers before.
      left: the first columns, which are aligned to the left; all others are aligned to the right.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    align = ["left" if column < left else "right" for column in range(len(headers))]
    return tabulate(cells, headers, tablefmt="simple", colalign=align, disable_numparse=True)
