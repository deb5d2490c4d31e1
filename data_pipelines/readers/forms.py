"""The form of a file: which of its columns are known, the units of its times, the kind of its ids.

A form is told from the head of a file, thousands of rows of it, and says how all of them are parsed (`rows`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from data_pipelines.readers import cells, text_files
from data_pipelines.readers.text_files import LINE, Layout
from data_pipelines.tables import moment

UNIT_WORDS = {"ms": ("ms", "millis", "msec", "milliseconds"), "s": ("s", "sec", "secs", "seconds"),
              "min": ("min", "mins", "minutes"), "h": ("h", "hours"), "us": ("us", "micros", "microseconds")}
HEAD_ROWS = 10_000  # of a parquet file, from which its form is told
TYPES = {"id": pl.String, "whole": pl.Int64, "index": pl.Int64, "real": pl.Float64, "time": pl.Int64, "end": pl.Int64,
         "length": pl.Int64, "text": pl.String, "category": pl.String, "any": None}


@dataclass(frozen=True)
class Column:
    """A column that a file may have.

    Attributes:
      name: name in the result. also: other names that files use; case, spaces and punctuation do not matter.
      kind: a key of TYPES. "end" is a time that may be a sentinel (0, −1, 9999-12-31), which is then missing.
      needed: the file is refused without the column. empty: cells may be missing.
      unit: of times and lengths, a key of cells.UNIT_MS; None: told from the column.
    """

    name: str
    kind: str
    needed: bool = True
    empty: bool = False
    also: tuple[str, ...] = ()
    unit: str | None = None


@dataclass(frozen=True)
class Form:
    """How the rows of a file are parsed.

    Attributes:
      path: the file. columns: the known ones. places, names: of each of them in the file.
      layout: of a text file, or None. units: of times and lengths. medians: of their numbers in the head, or None.
      head_ms: median of the times in the head, or None. middle_ms: the same where they are dates; None where they are
        small numbers, since the beginning of the log.
      whole_ids: ids are int64 (in the head they are whole numbers).
      offset_ms: of clocks without a zone. unused: columns that are not read.
      events: whether its rows count as rows of the log. label: what reasons begin with.
    """

    path: Path
    columns: tuple[Column, ...]
    places: tuple[str | int, ...]
    names: tuple[str, ...]
    layout: Layout | None
    units: dict[str, str] = field(default_factory=dict)
    medians: dict[str, float | None] = field(default_factory=dict)
    head_ms: int | None = None
    middle_ms: int | None = None
    whole_ids: bool = False
    offset_ms: int = 0
    unused: tuple[str, ...] = ()
    events: bool = True
    label: str = ""

    def name(self, column: str) -> str:
        """What the file calls a column; `column`, where it is not the file's."""
        return next((name for c, name in zip(self.columns, self.names, strict=True) if c.name == column), column)

    def as_written(self, column: str, value: object) -> object:
        """A typed value about as the file has it: a time in its unit, or in words where the file has a clock."""
        if column not in self.units or not isinstance(value, int):
            return value
        if self.medians.get(column) is None:
            return moment(value, self.offset_ms / 3_600_000)
        return f"{value / cells.UNIT_MS[self.units[column]]:.15g}"

    @property
    def schema(self) -> dict:
        """Of the frames that `parse` returns; the content of a column of kind "any" is the file's."""
        ids = pl.Int64 if self.whole_ids else pl.String
        return {c.name: ids if c.kind == "id" else TYPES[c.kind] for c in self.columns} | {LINE: pl.Int64}


def plain(name: str) -> str:
    """A column's name without case and punctuation: userId, User-ID and " user_id" are one."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def unit_in(name: str) -> str | None:
    """The unit that a column's name ends with (watch_ms, secs), a key of cells.UNIT_MS, or None."""
    word = plain(name).rpartition("_")[2]
    return next((unit for unit, words in UNIT_WORDS.items() if word in words), None)


def find(header: Sequence[str], columns: Sequence[Column], path: Path, given: dict[str, str] | None = None
         ) -> dict[str, int]:
    """Name of a column → its place in the header.

    `Column.name` goes before `also`, and those in their order; a name of a time or a length may end with its unit.
    given: column → its name in the header (or #1, #2, …), which goes before all.

    Raises: ValueError: for a column that is missing, or whose name the header has twice.
    """
    given = given or {}
    names = [plain(name) for name in header]
    found: dict[str, int] = {}

    def look(wanted: str, stem: bool) -> int | None:
        at = [i for i, name in enumerate(names) if wanted == (
            name.rpartition("_")[0] if stem and unit_in(name) else name)]
        if len(at) > 1 and not stem:
            raise ValueError(f"{path}, line 1: the header names {header[at[0]]!r} twice; remove one of the columns")
        return at[0] if at else None

    for column, name in given.items():
        at = int(name[1:]) - 1 if re.fullmatch(r"#\d+", name) else look(plain(name), False)
        if at is None or not 0 <= at < len(header):
            raise ValueError(f"{path} has no column {name!r} (for {column}); it has {', '.join(header)}")
        found[column] = at
    for column in columns:
        if column.name in given:
            continue
        stem = column.kind in ("time", "end", "length")
        spots = (look(plain(name), ending) for name in (column.name, *column.also)
                 for ending in ((False, True) if stem else (False,)))
        at = next((at for at in spots if at is not None and at not in found.values()), None)
        if at is not None:
            found[column.name] = at
        elif column.needed:
            raise ValueError(f"{path}, line 1: the header lacks the column {column.name!r}; found {', '.join(header)}")
    return found


def form_of(path: Path, columns: Sequence[Column], events: bool = True, label: str = "", offset_ms: int = 0,
            given: dict[str, str] | None = None) -> Form:
    """The form of a file, from its head. `given`: see `find`; with #1, #2, … the file has no header.

    Raises: ValueError: if it cannot be read, lacks a column, or holds times in another unit than it says.
    """
    layout, numbered = None, any(name.startswith("#") for name in (given or {}).values())
    if path.suffixes[-1:] == [".parquet"]:
        head = first_rows(path)
        header = tuple(head.columns)
        at = find(header, columns, path, given)
        sample = {name: head.to_series(i) for name, i in at.items()}
    else:
        layout, head = text_files.layout_of(path, not numbered)
        header = layout.header
        at = find(header, [] if numbered else columns, path, given)
        sample = {name: pl.Series([row[i] for row in head], dtype=pl.String) for name, i in at.items()}
    known = [c for c in columns if c.name in at]
    units, medians = {}, {}
    try:
        for column in known:
            if column.kind in ("time", "end", "length"):
                medians[column.name] = cells.median(sample[column.name])
            if column.kind in ("time", "end"):
                units[column.name] = _unit(path, column, header[at[column.name]], medians[column.name])
        # A column without a number in the head has the unit of the file's other times.
        usual = next((unit for unit in units.values() if unit), "ms")
        units = {name: unit or usual for name, unit in units.items()}
        first = next((c.name for c in known if c.kind == "time"), None)
        middle = cells.times(sample[first], units[first], offset_ms)[0].median() if first else None
        whole = not any(cells.ids(sample[c.name], whole=True)[1].any() for c in known if c.kind == "id")
    except TypeError as error:
        raise ValueError(f"{path}: a column holds {error}") from error
    for column in known:
        if column.kind == "length":
            units[column.name] = column.unit or unit_in(header[at[column.name]]) or "ms"
    unused = () if numbered else tuple(name for i, name in enumerate(header) if i not in at.values() and plain(name)
                                       and not plain(name).startswith("unnamed"))
    names = tuple(f"#{at[c.name] + 1}" if numbered else header[at[c.name]] for c in known)
    places = tuple(at[c.name] for c in known) if layout else names
    found = None if middle is None else int(middle)
    middle = found if found and found > cells.DECADE_MS and units[first] in cells.EPOCHS else None
    return Form(path, tuple(known), places, names, layout, units, medians, found, middle, whole, offset_ms, unused,
                events, label)


def _unit(path: Path, column: Column, name: str, median: float | None) -> str | None:
    """The unit of a column of times: as its numbers say, which must agree with what is given for it."""
    if median is None:
        return column.unit
    seen = next((unit for unit, (low, high) in cells.EPOCHS.items() if low <= median < high), None)
    if seen and column.unit in cells.EPOCHS and seen != column.unit:
        raise ValueError(f"{path}, column {name}: holds numbers like {median:.0f}, which are {cells.UNIT_NAMES[seen]} "
                         f"since 1970, not {cells.UNIT_NAMES[column.unit]}")
    return column.unit or seen or unit_in(name)


def first_rows(path: Path, limit: int = HEAD_ROWS) -> pl.DataFrame:
    """The first rows of a parquet file. Raises: ValueError: if it cannot be read."""
    try:
        return scan(path).head(limit).collect() if isinstance(path, Path) else path.first_rows(limit)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy or download it again") from error


def scan(path: Path) -> pl.LazyFrame:
    """The rows of a parquet file."""
    # A name with [1] or * in it is a name, not a pattern, and a=1/ in it is no column.
    if not isinstance(path, Path):
        return path.first_rows(None).lazy()
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)
