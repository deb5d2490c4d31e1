"""The form of a file: which of its columns are known, the units of its times, the kind of its ids.

A form is told from the head of a file, thousands of rows of it, and says how all of them are parsed (`rows`).
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from data_pipelines.readers import cells, dates, text_files
from data_pipelines.readers.text_files import LINE, Layout
from data_pipelines.tables import UNREADABLE, moment

UNIT_WORDS = {"ms": ("ms", "millis", "msec", "milliseconds", "毫秒"), "s": ("s", "sec", "secs", "seconds", "秒"),
              "min": ("min", "mins", "minutes", "分钟"), "h": ("h", "hours"), "us": ("us", "micros", "microseconds")}
ID_WORDS = ("id", "ids", "uuid", "uid", "name", "no", "key", "hash", "code", "login", "number")
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
      order: of day and month in dates, a key of dates.ORDERS; None: told from the column.
    """

    name: str
    kind: str
    needed: bool = True
    empty: bool = False
    also: tuple[str, ...] = ()
    unit: str | None = None
    order: str | None = None


@dataclass(frozen=True)
class Form:
    """How the rows of a file are parsed.

    Attributes:
      path: the file. columns: the known ones. places, names: of each of them in the file.
      layout: of a text file, or None. units: of times and lengths. medians: of their numbers in the head, or None.
      head_ms: median of the times in the head, or None. middle_ms: the same where they are dates; None where they are
        small numbers, since the beginning of the log.
      whole_ids: ids are int64 (in the head they are whole numbers).
      offset_ms: of clocks without a zone; offsets: of columns whose names give one. orders: of columns with dates like
        25/06/2025, a key of dates.ORDERS. unused: columns that are not read.
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
    offsets: dict[str, int] = field(default_factory=dict)
    orders: dict[str, str] = field(default_factory=dict)

    def name(self, column: str) -> str:
        """What the file calls a column; `column`, where it is not the file's."""
        return next((name for c, name in zip(self.columns, self.names, strict=True) if c.name == column), column)

    def number(self, raw: pl.Series) -> pl.Series:
        """Cells of a column of numbers, without commas that its file puts into them."""
        return raw if self.layout is None else cells.localised(raw, self.layout.delimiter)

    def as_written(self, column: str, value: object) -> object:
        """A typed value about as the file has it: a time in its unit, or in words where the file has a clock."""
        if column not in self.units or not isinstance(value, int):
            return value
        if self.medians.get(column) is None or self.units[column] == cells.DIGITS:
            return moment(value, self.offset_ms / 3_600_000)
        return f"{value / cells.UNIT_MS[self.units[column]]:.15g}"

    @property
    def schema(self) -> dict:
        """Of the frames that `parse` returns; the content of a column of kind "any" is the file's."""
        ids = pl.Int64 if self.whole_ids else pl.String
        return {c.name: ids if c.kind == "id" else TYPES[c.kind] for c in self.columns} | {LINE: pl.Int64}


def plain(name: str) -> str:
    """A column's name without case, accents and punctuation: userId, User-ID and " user_id" are one."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    name = "".join(mark for mark in unicodedata.normalize("NFKD", name) if not unicodedata.combining(mark))
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def unit_in(name: str) -> str | None:
    """The unit that a column's name ends with (watch_ms, secs), a key of cells.UNIT_MS, or None."""
    word = plain(name).rpartition("_")[2]
    return next((unit for unit, words in UNIT_WORDS.items() if word in words), None)


def zone_in(name: str) -> int | None:
    """Milliseconds ahead of UTC of the zone that a column's name ends with (Joined at (UTC), start_utc+8), or None."""
    found = re.search(r"(?:^|[\W_])(?:utc|gmt)\s*(?:([+-])(\d\d?)(?::?(\d\d))?)?\W*$", name.lower())
    if found is None:
        return None
    sign, hours, minutes = found.groups()
    return (-1 if sign == "-" else 1) * (int(hours or 0) * 60 + int(minutes or 0)) * 60_000


def stem_of(name: str, kind: str) -> str:
    """A column's `plain` name without the word at its end that says only what its values are."""
    if kind == "id":
        head, _, word = name.rpartition("_")
        return head if word in ID_WORDS else re.sub(r"(?<=[^\x00-\x7f])id$", "", name)
    if kind in ("time", "end"):
        name = re.sub(r"_(?:utc|gmt)(?:_\d\d?(?:_?\d\d)?)?$", "", name)
    return name.rpartition("_")[0] if kind in ("time", "end", "length") and unit_in(name) else name


def find(header: Sequence[str], columns: Sequence[Column], path: Path, given: dict[str, str] | None = None
         ) -> dict[str, int]:
    """Name of a column → its place in the header.

    `Column.name` goes before `also`, and those in their order; a name may end with a word for its unit, its zone or for
    an id, and all names may begin with one word (`v_user`, `v_start`) that is then passed over.
    given: column → its name in the header (or #1, #2, …), which goes before all.

    Raises: ValueError: for a column that is missing, or whose name the header has twice.
    """
    given = given or {}
    names = [plain(name) for name in header]
    found: dict[str, int] = {}

    def look(wanted: str, kind: str = "") -> int | None:
        at = [i for i, name in enumerate(names) if wanted == stem_of(name, kind)]
        if len(at) > 1 and not kind:
            raise ValueError(f"{path}, line 1: the header names {header[at[0]]!r} twice; remove one of the columns")
        return at[0] if at else None

    for column, name in given.items():
        at = int(name[1:]) - 1 if re.fullmatch(r"#\d+", name) else look(plain(name))
        if at is None or not 0 <= at < len(header):
            raise ValueError(f"{path} has no column {name!r} (for {column}); it has {', '.join(header)}")
        found[column] = at
    first = {name.partition("_")[0] for name in names if name}
    wanted = {plain(name) for column in columns for name in (column.name, *column.also)}
    if len(first) == 1 and len(names) > 2 and not wanted & set(names):
        names = [name.partition("_")[2] or name for name in names]
    for column in columns:
        if column.name in given:
            continue
        spots = (look(plain(name), kind) for kind in (("", column.kind) if column.kind == "id" else ("",))
                 for name in (column.name, *column.also)) if column.kind not in ("time", "end", "length") else (
            look(plain(name), kind) for name in (column.name, *column.also) for kind in ("", column.kind))
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
    if text_files.is_parquet(path):
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
    units, medians, offsets, orders, whole = {}, {}, {}, {}, True
    for column in known:
        name, told = header[at[column.name]], sample[column.name]
        if layout and column.kind != "id":
            sample[column.name] = told = cells.localised(told, layout.delimiter)
        try:
            if column.kind in ("time", "end", "length"):
                medians[column.name] = cells.median(told)
            if column.kind in ("time", "end"):
                units[column.name] = _unit(path, column, name, medians[column.name])
                if (zone := zone_in(name)) is not None:
                    offsets[column.name] = zone
                if order := _order(path, column, name, told):
                    orders[column.name] = order
            if column.kind == "id":
                whole &= not cells.ids(told, whole=True)[1].any()
        except TypeError as error:
            raise ValueError(f"{path}, column {name}: holds {error}") from error
    # A column without a number in the head has the unit of the file's other times.
    usual = next((unit for unit in units.values() if unit), "ms")
    units = {name: unit or usual for name, unit in units.items()}
    first, middle = next((c.name for c in known if c.kind == "time"), None), None
    if first:
        try:
            zone, order = offsets.get(first, offset_ms), orders.get(first)
            middle = cells.times(sample[first], units[first], zone, order)[0].median()
        except TypeError as error:
            raise ValueError(f"{path}, column {header[at[first]]}: holds {error}") from error
    for column in known:
        if column.kind == "length":
            units[column.name] = column.unit or unit_in(header[at[column.name]]) or "ms"
    unused = () if numbered else tuple(name for i, name in enumerate(header) if i not in at.values() and plain(name)
                                       and not plain(name).startswith("unnamed"))
    names = tuple(f"#{at[c.name] + 1}" if numbered else header[at[c.name]] for c in known)
    places = tuple(at[c.name] for c in known) if layout else names
    found = None if middle is None else int(middle)
    middle = found if found and found > cells.DECADE_MS and units[first] in (*cells.EPOCHS, cells.DIGITS) else None
    return Form(path, tuple(known), places, names, layout, units, medians, found, middle, whole, offset_ms, unused,
                events, label, offsets, orders)


def _unit(path: Path, column: Column, name: str, median: float | None) -> str | None:
    """The unit of a column of times: as its numbers say, which must agree with what is given for it."""
    if median is None:
        return column.unit
    if cells.DIGITS_RANGE[0] <= median < cells.DIGITS_RANGE[1]:
        return cells.DIGITS
    seen = next((unit for unit, (low, high) in cells.EPOCHS.items() if low <= median < high), None)
    if seen and column.unit in cells.EPOCHS and seen != column.unit:
        raise ValueError(f"{path}, column {name}: holds numbers like {median:.0f}, which are {cells.UNIT_NAMES[seen]} "
                         f"since 1970, not {cells.UNIT_NAMES[column.unit]}")
    return column.unit or seen or unit_in(name)


def _order(path: Path, column: Column, name: str, told: pl.Series) -> str | None:
    """Whether dates like 25/06/2025 in a column begin with the day or the month, a key of dates.ORDERS, or None.

    Raises: ValueError: where neither its dates nor a person say so.
    """
    if told.dtype != pl.String or column.order:
        return column.order
    order = dates.order_of(told)
    if order == dates.UNSURE:
        example = told.drop_nulls().filter(told.drop_nulls() != "")[0]
        raise ValueError(f"{path}, column {name}: dates like {example!r} may begin with the day or with the month. Say "
                         f"which: --columns={column.name}={name}:dmy (or :mdy) with --source=log; or write them as "
                         "2025-12-31")
    return order


def first_rows(path: Path, limit: int = HEAD_ROWS) -> pl.DataFrame:
    """The first rows of a parquet file. Raises: ValueError: if it cannot be read."""
    try:
        return scan(path).head(limit).collect() if isinstance(path, Path) else path.first_rows(limit)
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read ({error}): copy or download it again") from error


def scan(path: Path) -> pl.LazyFrame:
    """The rows of a parquet file."""
    # A name with [1] or * in it is a name, not a pattern, and a=1/ in it is no column.
    if not isinstance(path, Path):
        return path.first_rows(None).lazy()
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)
