"""Typed reading of large CSV files with a header, whose errors name the file, the line and the column.

The columns of a file are parsed straight into their types. Only when that fails is the file read again as text, to find
the cell that is to blame. A Path may also be a file on another file system: it has `open`, `name`, `suffixes`, and its
address as its text (`beam_files.StoredFile`).
"""

import csv
import gzip
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data_pipelines.tables import LATEST_MS

NULLS = ("", "null", "NULL", "Null", "nan", "NaN", "None", "\\N", "unknown", "Unknown", "UNKNOWN")
RECORD = "record"  # 0-based number of the row below the header, which `refuse` turns into a line of the file
# kind of cell → (type, what a person is told that it is)
KINDS = {
    "whole": (pl.Int64, "a whole number"), "count": (pl.Int32, "a whole number"), "real": (pl.Float64, "a number"),
    "time": (pl.Int64, "a time in whole milliseconds"), "end": (pl.Float64, "a time in whole milliseconds"),
    "text": (pl.String, "text"),
}


@dataclass(frozen=True)
class Column:
    """A column that a file may have.

    Attributes:
      name: name in the result. also: other names that copies of the file use.
      kind: a key of KINDS, or "id": whole numbers, or text where the source has text ids.
      needed: the file is refused without the column. empty: cells may be empty ("end": times that may be empty).
    """

    name: str
    kind: str
    needed: bool = True
    empty: bool = False
    also: tuple[str, ...] = ()


@dataclass
class Rows:
    """Rows of a file.

    Attributes:
      path: the file. frame: its known columns, and RECORD. total: rows in the file, before any was left out.
      unused: names of columns that were not read.
    """

    path: Path
    frame: pl.DataFrame
    total: int
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """How the rows of a file are parsed, as its header and its first row tell.

    Attributes:
      path: the file. columns: its known columns, in its order.
      types: name of every cell of a row → type that it is parsed into; text for columns that are not known.
      clocks: columns of times that are written as a date and a clock.
      empty: whether there is no row below the header.
    """

    path: Path
    columns: dict[str, Column]
    types: dict[str, type[pl.DataType]]
    clocks: tuple[str, ...]
    empty: bool


def read_header(path: Path, columns: tuple[Column, ...], unknown_is_error: bool = True) -> list[str]:
    """Names of the file's columns in its order, as `Column.name` where known.

    Raises:
      ValueError: for a column that is unknown (where that is an error), missing or named twice.
    """
    try:
        with open_text(path) as lines:
            header = next(csv.reader(lines), None)
    except (UnicodeDecodeError, gzip.BadGzipFile, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not header:
        raise ValueError(f"{path}: the file is empty; expected a header with {', '.join(c.name for c in columns)}")
    names = {name: column.name for column in columns for name in (column.name, *column.also)}
    found = [names.get(cell.strip(), cell.strip()) for cell in header]
    for i, (name, cell) in enumerate(zip(found, header, strict=True)):
        if unknown_is_error and name not in names.values():
            raise ValueError(f"{path}, line 1, column {cell.strip()!r}: not a column of this file; it has "
                             f"{', '.join(c.name for c in columns)}. Rename or remove the column")
        if name in found[:i]:
            raise ValueError(f"{path}, line 1, column {cell.strip()!r}: {name} stands there twice; remove one of them")
    missing = [c.name for c in columns if c.needed and c.name not in found]
    if missing:
        raise ValueError(f"{path}, line 1: the header lacks the column {missing[0]!r}; found {', '.join(found)}")
    return found


def text_ids(path: Path, columns: tuple[Column, ...], unknown_is_error: bool = True) -> frozenset[str]:
    """The id columns that hold text, judged by the first row: a source has whole numbers or text, not both."""
    header = read_header(path, columns, unknown_is_error)
    first = _first_row(path, header)
    return frozenset(c.name for c in columns if c.kind == "id" and first and not _is_whole(first.get(c.name)))


def read_csv(path: Path, columns: tuple[Column, ...], texts: frozenset[str] = frozenset(),
             only: pl.Series | None = None, unknown_is_error: bool = True) -> Rows:
    """The known columns of a CSV file, typed, with the number of each row in the column RECORD.

    Args:
      path: the file; blank lines in it are passed over.
      columns: what the file may hold. texts: names of id columns that are text.
      only: values of user_id to keep, to save memory; None keeps every row.
      unknown_is_error: refuse a column that is not in `columns`, or leave it out.

    Raises:
      ValueError: with file, line and column, for a cell that is empty or not of its column's type, or an impossible
        time (negative, or later than LATEST_MS).
    """
    form = form_of(path, columns, texts, unknown_is_error)
    scan = _scan(path, form.types).select(*form.columns).with_row_index(RECORD)
    if only is not None:
        scan = scan.filter(pl.col("user_id").is_in(only.implode()))
    try:
        frame = scan.collect(engine="streaming")
        total = len(frame) if only is None else _scan(path, form.types).select(
            pl.col(next(iter(form.types))).len()).collect().item()
    except pl.exceptions.PolarsError as error:
        _find_bad_cell(form)
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    return _checked(form, frame, total)


def form_of(path: Path, columns: tuple[Column, ...], texts: frozenset[str] = frozenset(), unknown_is_error: bool = True
            ) -> Form:
    """How a file is parsed; arguments and errors as for `read_csv`, of which this is the first step."""
    header = read_header(path, columns, unknown_is_error)
    names = {c.name: c for c in columns}
    known = {name: names[name] for name in header if name in names}
    cells = _first_row(path, header)
    first = cells or {}
    types = {name: pl.String if name in texts else _type(column) for name, column in known.items()}
    # Some copies write a time as a date and a clock; it is then read as text and converted below.
    clocks = [name for name, column in known.items() if column.kind in ("time", "end") and first.get(name)
              and pl.select(clock_ms(pl.lit(first[name]))).item() is not None]
    types |= {name: pl.String for name in clocks}
    return Form(path, known, {name: types.get(name, pl.String) for name in header}, tuple(clocks), cells is None)


def parse_part(form: Form, part: bytes, record: int) -> Rows:
    """The rows in a part of a file, as `read_csv` reads the whole.

    Args:
      form: of the file. part: whole lines from below the header. record: rows of the file before them.

    Raises:
      ValueError: as `read_csv`, and for a quoted cell that holds a line break: it may begin in another part.
    """
    lines = part.lstrip(b"\r\n")
    record += part.count(b"\n", 0, len(part) - len(lines))
    if b'"' in lines:
        for i, line in enumerate(lines.split(b"\n")):
            if line.count(b'"') % 2:
                raise ValueError(f"{form.path}, line {record + i + 2}: a quoted cell holds a line break, so that the "
                                 "file cannot be read in parts: remove it, or use python -m data_pipelines.prepare")
    try:
        frame = pl.read_csv(lines, has_header=False, schema=form.types, null_values=list(NULLS)).select(
            *form.columns) if lines else pl.DataFrame(schema={name: form.types[name] for name in form.columns})
    except pl.exceptions.PolarsError as error:
        _find_bad_cell(form, lines, record)
        raise ValueError(f"{form.path}: not a CSV file in UTF-8 ({error})") from error
    # int64: a part's rows are numbered within the whole file, which may have more than 2³² of them.
    frame = frame.select(pl.int_range(record, record + pl.len(), dtype=pl.Int64).alias(RECORD), pl.all())
    return _checked(form, frame, len(frame))


def _checked(form: Form, frame: pl.DataFrame, total: int) -> Rows:
    path, known = form.path, form.columns
    blank = frame.select(pl.all_horizontal(pl.col(*known).is_null()))
    if blank.to_series().any():
        frame = frame.filter(~blank.to_series())
        total -= int(blank.to_series().sum())
    for name in form.clocks:
        moment = clock_ms(pl.col(name))
        refuse(path, frame, name, pl.col(name).is_not_null() & moment.is_null(), "is not a date and time")
        frame = frame.with_columns(moment.alias(name))
    for name, column in known.items():
        if not column.empty:
            refuse(path, frame, name, pl.col(name).is_null(), "is empty, or the row is too short; every row needs a "
                                                              "value there")
        if column.kind in ("time", "end"):
            check_times(path, frame, name)
        if column.kind == "end" or (column.kind == "whole" and column.empty):
            frame = frame.with_columns(pl.col(name).cast(pl.Int64))
    return Rows(path, frame, total, tuple(name for name in form.types if name not in known))


def ids_in(path: Path, columns: tuple[Column, ...], name: str, texts: frozenset[str],
           unknown_is_error: bool = True) -> pl.Series:
    """The different ids in one column of a CSV file; the other columns are not parsed.

    Raises: ValueError as `read_csv` does.
    """
    header = read_header(path, columns, unknown_is_error)
    schema = {cell: pl.Int64 if cell == name and name not in texts else pl.String for cell in header}
    try:
        found = _scan(path, schema).select(pl.col(name).unique()).collect(engine="streaming")[name]
    except pl.exceptions.PolarsError:
        found = read_csv(path, columns, texts, unknown_is_error=unknown_is_error).frame[name]
    return found.drop_nulls()


def check_times(path: Path, frame: pl.DataFrame, name: str) -> None:
    """Raises ValueError for a time that is negative, not whole, or later than LATEST_MS."""
    value = pl.col(name)
    refuse(path, frame, name, value < 0, "is negative; times are milliseconds since 1970")
    refuse(path, frame, name, value > LATEST_MS, f"is later than any time can be ({LATEST_MS}); times are milliseconds "
                                                 "since 1970")
    if frame.schema[name].is_float():
        refuse(path, frame, name, value != value.floor(), "is not a time in whole milliseconds")


def clock_ms(text: pl.Expr) -> pl.Expr:
    """Milliseconds since 1970 of dates with a clock (2025-05-04 20:15:00.123), read as UTC; null for other text."""
    forms = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f")
    return pl.coalesce(text.str.to_datetime(form, time_unit="ms", strict=False) for form in forms).dt.epoch("ms")


def refuse(path: Path, frame: pl.DataFrame, column: str, bad: pl.Expr, what: str, shown: str | None = None) -> None:
    """Raises ValueError with file, line, column and value of the first row that is bad, if there is one.

    `shown` is the frame's column that holds the value, where it is not called as in the file.
    """
    rows = frame.select(bad.fill_null(False)).to_series().arg_true()
    if len(rows):
        row = frame.row(rows[0], named=True)
        raise ValueError(f"{place(path, row[RECORD])}, column {column}: {row[shown or column]!r} {what} "
                         f"({len(rows):,} such row(s))")


def place(path: Path, record: int) -> str:
    """'FILE, line N' of a row of a CSV file, or 'FILE, row N' (from 1) of any other."""
    if ".csv" not in path.suffixes:
        return f"{path}, row {record + 1}"
    return f"{path}, line {line_of_record(path, record + 1)}"


def line_of_record(path: Path, record: int) -> int:
    """The line, counted from 1 as an editor does, on which a record begins.

    The header is record 0; a record is more than one line where a quoted cell holds line breaks.
    """
    with open_text(path) as lines:
        reader = csv.reader(lines)
        for _ in range(record):
            next(reader)
        return reader.line_num + 1


def open_text(path: Path):
    """A text stream of a CSV file in UTF-8, packed with gzip or not."""
    raw = path.open("rb")
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8-sig", newline="")


def _scan(path: Path, schema: dict) -> pl.LazyFrame:
    # The header is skipped rather than matched: its names may be others than those of the schema.
    if _first_row(path, list(schema)) is None:
        return pl.LazyFrame(schema=schema)
    source = path if isinstance(path, Path) else path.open("rb").read()
    return pl.scan_csv(source, has_header=False, skip_rows=1, schema=schema, null_values=list(NULLS))


def _type(column: Column):
    if column.kind == "id":
        return pl.Int64
    # Other tools write whole numbers of a column with gaps as 3.0: they are read as numbers and cast afterwards.
    return pl.Float64 if column.kind == "whole" and column.empty else KINDS[column.kind][0]


def _first_row(path: Path, header: list[str]) -> dict[str, str] | None:
    with open_text(path) as lines:
        reader = csv.reader(lines)
        next(reader)
        cells = next((row for row in reader if any(cell.strip() for cell in row)), None)
    return None if cells is None else dict(zip(header, (cell.strip() for cell in cells), strict=False))


def _is_whole(cell: str | None) -> bool:
    return cell is not None and pl.Series([cell], dtype=pl.String).cast(pl.Int64, strict=False)[0] is not None


def _find_bad_cell(form: Form, part: bytes | None = None, record: int = 0) -> None:
    """Raises ValueError for the first row of another length than the header, or the first cell of the wrong type.

    Looks in the whole file, or in a part of it, whose first row has the number `record`.
    """
    path = form.path
    try:
        if part is None:
            with open_text(path) as lines:
                _check_widths(form, lines, 1)
            texts = _scan(path, dict.fromkeys(form.types, pl.String)).collect()
        else:
            _check_widths(form, io.StringIO(part.decode(), newline=""), record + 2)
            texts = pl.read_csv(part, has_header=False, schema=dict.fromkeys(form.types, pl.String),
                                null_values=list(NULLS))
    except (UnicodeDecodeError, gzip.BadGzipFile, csv.Error, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    texts = texts.select(pl.int_range(record, record + pl.len(), dtype=pl.Int64).alias(RECORD), pl.all())
    for name, column in form.columns.items():
        dtype = form.types[name]
        if dtype != pl.String:
            wanted = "a whole number, like the other ids" if column.kind == "id" else KINDS[column.kind][1]
            bad = pl.col(name).is_not_null() & pl.col(name).cast(dtype, strict=False).is_null()
            refuse(path, texts, name, bad, f"is not {wanted}")


def _check_widths(form: Form, lines: Iterable[str], line: int) -> None:
    """Raises ValueError for the first row whose number of cells is not the header's; `line` is that of the first."""
    reader, first = csv.reader(lines), line
    for cells in reader:
        if len(cells) != len(form.types) and any(cells):
            raise ValueError(f"{form.path}, line {line}: {len(cells)} cells, but the header has {len(form.types)}; a "
                             "comma inside a value must be quoted")
        line = first + reader.line_num
