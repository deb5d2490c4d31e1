"""Rows of a file, typed: what its cells say, and what becomes of bad rows.

Rows are parsed block by block, here and on the workers of the Beam pipeline, by the same functions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from data_pipelines.readers import cells, text_files
from data_pipelines.readers.forms import Column, Form, scan
from data_pipelines.readers.text_files import LINE
from data_pipelines.tables import UNREADABLE, ReadReport

EXAMPLES = 3  # of the rows of a reason
ROWS = 2**18  # of a parquet file, read at a time
MIXED_SHARE = 0.01  # of rows whose time is far from the others: more are no slip but another unit
OUTSIDE = "view that begins before its room does, or after its end"
FAR = "is in another unit than the column, or years from its other times"
WHAT = {"id": "is not an id (a number that was rounded or cut?)", "whole": "is not a whole number, 0 or more",
        "index": "is not a whole number", "real": "is not a number, 0 or more", "time": "is not a time",
        "end": "is not a time", "length": "is not a length of time, 0 or more"}


@dataclass(frozen=True)
class Options:
    """What a person says of a log beyond its path. `columns`, `room_gap_min` and `default_watch_s` are of source=log.

    Attributes:
      columns: field → column, or column:unit (a key of cells.UNIT_MS), or #1, #2, … in files without a header.
      utc_offset_hours: of clocks without a zone. room_gap_min: a streamer's pause after which a room without an id is
        another one. default_watch_s: length of a view of unknown length; 0: such a view is left out.
      stop: refuse a bad row, rather than leave it out and count it.
      limit_users: keep the first so many people in the order of their ids; None: everybody.
    """

    columns: dict[str, str] = field(default_factory=dict)
    utc_offset_hours: float = 0.0
    room_gap_min: float = 30.0
    default_watch_s: float = 0.0
    stop: bool = False
    limit_users: int | None = None

    def __post_init__(self):
        if self.limit_users is not None and self.limit_users < 1:
            raise ValueError(f"limit_users={self.limit_users} must be at least 1")
        if min(self.room_gap_min, self.default_watch_s) < 0 or abs(self.utc_offset_hours) > 14:
            raise ValueError(f"room_gap_min={self.room_gap_min:g} and default_watch_s={self.default_watch_s:g} must "
                             f"not be negative, and utc_offset_hours={self.utc_offset_hours:g} be between -14 and 14")

    @property
    def offset_ms(self) -> int:
        return round(self.utc_offset_hours * 3_600_000)


DEFAULTS = Options()


@dataclass
class Counts:
    """Rows by reason, of a log or of a part of it, as in ReadReport; `stop` refuses a bad row instead."""

    stop: bool = False
    rows_read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    merged: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, int, str]]] = field(default_factory=dict)

    def add(self, kind: str, reason: str, rows: int) -> None:
        """Adds to one of dropped, notes and merged."""
        if rows:
            reasons = getattr(self, kind)
            reasons[reason] = reasons.get(reason, 0) + int(rows)

    def report(self, source: str, kept: tuple[int, int], about: Sequence[str] = ()) -> ReadReport:
        """What became of the rows, for the tables. kept: rows of the interactions, and views among them."""
        examples = {reason: [f"{file}, line {line}" + f": {value}" * bool(value) for file, line, value in found]
                    for reason, found in self.examples.items()}
        return ReadReport(source, self.rows_read, kept[0], self.dropped, self.notes, self.merged, kept[1], examples,
                          list(about))

    def keep_good(self, form: Form, frame: pl.DataFrame, bad: pl.Expr | pl.Series, column: str, what: str,
                  shown: str | None = None, dirt: bool = False) -> pl.DataFrame:
        """The frame without its bad rows, which are counted with examples (see `remark`)."""
        mark = frame.select(bad.fill_null(False)).to_series() if isinstance(bad, pl.Expr) else bad
        if not mark.any():
            return frame
        self.remark(form, frame, mark, column, what, shown, dirt)
        return frame.filter(~mark)

    def remark(self, form: Form, frame: pl.DataFrame, mark: pl.Expr | pl.Series, column: str, what: str,
               shown: str | None = None, dirt: bool = False, kind: str | None = None) -> None:
        """Counts marked rows of a frame with LINE, with examples.

        Args:
          column, what: "timestamp", "is not a time". shown: the frame's column that holds the value, if not `column`.
          dirt: what every real log has: it is counted even where bad rows stop the reader.
          kind: of the count; dropped, for rows of the log, else notes.

        Raises: ValueError: for the first of them, where bad rows stop the reader.
        """
        mark = frame.select(mark.fill_null(False)).to_series() if isinstance(mark, pl.Expr) else mark
        found = frame.filter(mark).head(EXAMPLES).select(LINE, shown or column).rows()
        self.note(form, column, what, [(line, form.as_written(column, value)) for line, value in found],
                  int(mark.sum()), dirt, kind)

    def note(self, form: Form, column: str, what: str, found: Sequence[tuple[int, object]], rows: int,
             dirt: bool = False, kind: str | None = None) -> None:
        """Counts rows of a reason; `found` are (line, value) of the first of them."""
        if not rows:
            return
        name = form.name(column)
        if self.stop and not dirt:
            line, value = found[0]
            shown = "" if value in (None, "") else f": {value!r}"
            said = f", column {name}{shown} {what}" if column else f": {value} {what}"
            raise ValueError(f"{place(form.path, line)}{said} ({rows:,} such row(s)). --bad_rows=drop leaves such rows "
                             "out and counts them")
        reason = f"{form.label}{name} {what}" if column else f"{form.label}{what}"
        self.add(kind or ("dropped" if form.events else "notes"), reason, rows)
        kept = self.examples.get(reason, [])
        self.examples[reason] = sorted([*kept, *((form.path.name, int(line), "" if value is None else str(value))
                                                 for line, value in found)]
                                       )[:EXAMPLES]


def require_most(report: ReadReport) -> None:
    """Raises ValueError where nothing or less than half of a log was kept, or its times cannot be right."""
    dropped = {reason: count for reason, count in report.dropped.items() if "(limit_users)" not in reason}
    lost, read = sum(dropped.values()), report.rows_read  # rows of people beyond a limit could be used
    far = sum(count for reason, count in dropped.items() if FAR in reason)
    said = "\n".join(report.lines())
    if not report.rows_kept:
        raise ValueError(f"no row of the log can be used\n{said}")
    if 2 * lost > read:
        raise ValueError(f"only {read - lost:,} of {read:,} rows can be used: is this the right --source, are these "
                         f"the right columns?\n{said}")
    if far > MIXED_SHARE * read and far > 1:
        raise ValueError(f"{far:,} of {read:,} rows have a time in another unit than the rest\n{said}")
    outside = report.notes.get(OUTSIDE, 0)
    if 2 * outside > report.views:
        raise ValueError(f"{outside:,} of {report.views:,} views lie outside their rooms' lives: their times are in "
                         "another unit or zone (--utc_offset_hours is for clocks without a zone), or the ids of rooms "
                         f"do not match\n{said}")


def place(path: Path, line: int) -> str:
    """'FILE, line N' of a text file, 'FILE, row N' of any other."""
    return f"{path}, {'row' if text_files.is_parquet(path) else 'line'} {line}"


def parse_block(form: Form, block: bytes, line: int, counts: Counts) -> pl.DataFrame:
    """The typed rows of whole lines of a text file, the first of which is `line`."""
    frame, wrong = text_files.cells_of(form.layout, block, line, list(form.places))
    if form.events:
        counts.rows_read += len(frame) + len(wrong)
    width = len(form.layout.header)
    counts.note(form, "", f"cells, where the first line has {width} (a delimiter inside a value must be quoted)",
                wrong[:EXAMPLES], len(wrong))
    return typed(form, frame.rename({str(spot): column.name for column, spot in zip(form.columns, form.places,
                                                                                    strict=True)}), counts)


def typed(form: Form, frame: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """The rows whose cells can be read, of a frame with the form's columns as they are in the file, and LINE."""
    made, bads = {}, []
    for column in form.columns:
        raw = frame[column.name]
        try:
            values, bad = _values(form, column, raw)
        except TypeError as error:
            raise ValueError(f"{form.path}, column {form.name(column.name)}: holds {error}") from error
        if bad.any():
            bads.append((column.name, bad, WHAT[column.kind]))
        if column.kind in ("time", "end"):
            far = (values < 0) | ((values - (form.middle_ms or 0)).abs() > cells.DECADE_MS)
            if far.any() and column.kind == "time":
                bads.append((column.name, far.fill_null(False), FAR))
            elif far.any():  # 0, −1 and 9999-12-31 stand for an end that is not known
                found = frame.filter(far).head(EXAMPLES).select(LINE, column.name).rows()
                counts.note(form, column.name, "is no date, read as unknown", found, int(far.sum()), True, "notes")
                values = cells.only(values, ~far)
        if not column.empty and values.null_count():
            bads.append((column.name, values.is_null() & ~bad, "is missing"))
        made[column.name] = values
    result = pl.DataFrame(made).with_columns(frame[LINE])
    if not bads:
        return result
    gone = pl.Series([False]).new_from_index(0, len(frame))
    for name, bad, what in bads:  # a row counts once, under its first reason
        found = frame.filter(bad & ~gone).head(EXAMPLES).select(LINE, name).rows()
        counts.note(form, name, what, found, int((bad & ~gone).sum()))
        gone |= bad
    return result.filter(~gone)


def _values(form: Form, column: Column, raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    match column.kind:
        case "id":
            return cells.ids(raw, form.whole_ids)
        case "whole":
            return cells.counts(form.number(raw))
        case "index":
            return cells.counts(raw, negative="missing")
        case "real":
            return cells.reals(form.number(raw))
        case "time" | "end":
            return cells.times(form.number(raw), form.units[column.name], form.offsets.get(column.name, form.offset_ms),
                               form.orders.get(column.name))
        case "length":
            return cells.lengths(form.number(raw), form.units[column.name])
        case "category":
            return cells.category(raw), pl.Series([False]).new_from_index(0, len(raw))
        case "text":
            return cells.text(raw), pl.Series([False]).new_from_index(0, len(raw))
    return raw, pl.Series([False]).new_from_index(0, len(raw))


def parts(form: Form, counts: Counts) -> Iterator[pl.DataFrame]:
    """The typed rows of a file, block by block."""
    if form.layout is not None:
        for block, line in text_files.blocks(form.layout):
            yield parse_block(form, block, line, counts)
        return
    rows = scan(form.path).select(pl.len()).collect().item()
    for first in range(0, rows, ROWS):
        yield parquet_part(form, scan(form.path).slice(first, ROWS), first, counts)


def parquet_part(form: Form, found: pl.LazyFrame, first: int, counts: Counts) -> pl.DataFrame:
    """The typed rows of a part of a parquet file, before which there are `first` others."""
    names = {str(spot): column.name for column, spot in zip(form.columns, form.places, strict=True)}
    try:
        frame = found.select(pl.col(spot).alias(name) for spot, name in names.items()).with_row_index(
            LINE, first + 1).cast({LINE: pl.Int64}).collect()
    except UNREADABLE as error:
        raise ValueError(f"{form.path} cannot be read ({error}): copy or download it again") from error
    if form.events:
        counts.rows_read += len(frame)
    return typed(form, frame, counts)


def read(form: Form, counts: Counts, keep: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame
         ) -> pl.DataFrame:
    """All typed rows of a file, or what `keep` makes of each block of them."""
    return pl.concat([keep(pl.DataFrame(schema=form.schema)), *(keep(frame) for frame in parts(form, counts))])


def ids_in(form: Form, name: str) -> pl.Series:
    """The different ids in a column of rows that can be read; nothing is counted."""
    return read(form, Counts(), lambda frame: frame.select(pl.col(name).unique()))[name].unique()
