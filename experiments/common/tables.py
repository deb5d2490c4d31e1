"""Text tables: every command prints its rows through `table`."""

from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from onelive_jax.files import printable


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Rows under headers, as text in columns.

    Args:
      rows: cells are printed as they are (`str`, `printable`); None is an empty cell. Format numbers before.
      left: the first columns, which are aligned to the left; all others are aligned to the right.
    """
    cells = [["" if cell is None else printable(str(cell), "") for cell in row] for row in rows]
    align = ["left" if column < left else "right" for column in range(len(headers))]
    return tabulate(cells, headers, tablefmt="simple", colalign=align, disable_numparse=True)


def number(value: float | None, form: str = ".3f") -> str:
    """A figure, "-" where it is not defined; whole numbers with separators."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:{form}}"


def counted(counts: Mapping[str, int]) -> str:
    """Counts by name in one line; those of 0 are left out."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"


def interval(bounds: Sequence[float] | None, form: str = ".3f") -> str:
    """An interval, "-" where there is none."""
    return "-" if bounds is None else " … ".join(f"{bound:{form}}" for bound in bounds)
