"""Reader of Twitch viewing logs in rounds of ten minutes (Rappaz, McAuley and Aberer, RecSys 2021).

Two forms are read: the LiveRec form, five columns without a header (user, stream, streamer, start, stop), and the form
with a header (user_id, stream_id, streamer_name, start_time, stop_time, and maybe others, which are ignored). Times are
whole rounds since the crawl's start and the stop is exclusive. A room's life is only a lower bound: from the first to
the last round in which a row shows it.
"""

import csv
import gzip
from pathlib import Path

import polars as pl

from data_pipelines.readers.csv_files import RECORD, line_of_record, open_text
from data_pipelines.tables import ROOMS, ReadReport, Tables, sort_interactions, validate

ROUND_MS = 600_000
# Rounds of 19,000 years: a larger number is a clock in seconds or milliseconds, not in rounds.
MAX_ROUND = 10**9
COLUMNS = ("user_id", "stream_id", "streamer_name", "start_time", "stop_time")
TIMES = ("start_time", "stop_time")
SHORT = dict(zip(COLUMNS, ("user", "stream", "streamer", "start", "stop"), strict=True))


def read_twitch(path: str | Path) -> Tables:
    """Canonical tables of a Twitch log; start_ms and watch_ms are rounds × 600,000.

    Rows that repeat another exactly and rows with stop <= start are dropped and counted in the report. A person whose
    every row is dropped stays in `users` with an empty history. Overlapping sessions of a person are kept (people do
    watch two rooms at once) and counted in the notes, as is a stream id that several streamers claim: each of them gets
    a room of their own.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: with the file, line, column and value, if the content is not in one of the two forms.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the path of the CSV file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give the path of a Twitch log (CSV)")
    frame, notes = _read_cells(path)
    frame = _parse_times(path, frame)

    rows_read = len(frame)
    frame = frame.select(pl.col(name).alias(short) for name, short in SHORT.items())
    users, user_ids = _index(frame["user"], "user_id")
    unique = frame.unique(keep="first", maintain_order=True)
    kept = unique.filter(pl.col("stop") > pl.col("start"))
    dropped = {"repeated row": rows_read - len(unique), "stop <= start": len(unique) - len(kept)}
    dropped = {reason: count for reason, count in dropped.items() if count}
    if not len(kept):
        raise ValueError(f"{path}: none of {rows_read} rows can be used ({dropped}): stop_time must be after "
                         "start_time")

    authors, author_ids = _index(kept["streamer"], "author_id")
    streams, stream_ids = _index(kept["stream"], "stream_index")
    kept = (kept.join(user_ids, on="user", maintain_order="left")
            .join(author_ids, on="streamer", maintain_order="left")
            .join(stream_ids, on="stream", maintain_order="left"))
    rooms = _rooms(kept, streams)
    room_ids = rooms.select("stream_index", "author_id", "room_id")
    kept = kept.join(room_ids, on=["stream_index", "author_id"], maintain_order="left")
    shared = rooms.filter(pl.len().over("stream_index") > 1)["stream_index"].n_unique()
    if shared:
        notes["stream id of several streamers (one room each)"] = shared

    log = sort_interactions(kept.select(
        "user_id", "room_id", "author_id", (pl.col("start") * ROUND_MS).alias("start_ms"),
        ((pl.col("stop") - pl.col("start")) * ROUND_MS).alias("watch_ms"),
        pl.lit(True).alias("click"),
        *[pl.lit(0, pl.Int32).alias(name) for name in ("like", "comment", "follow", "share")],
        pl.lit(0.0, pl.Float32).alias("gift_value"), pl.lit(False).alias("negative"),
    ))
    overlapping = _overlapping(log)
    if overlapping:
        notes["session overlaps an earlier one of the same user"] = overlapping
    report = ReadReport(str(path), rows_read, len(log), dropped, notes)
    return validate(Tables(log, rooms.select(*ROOMS, "source_id"), authors, users, report))


def _read_cells(path: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """Text cells of the five columns and the number of each record (RECORD); blank lines are left out and counted."""
    try:
        with open_text(path) as lines:
            first = next(csv.reader(lines), None)
    except (UnicodeDecodeError, gzip.BadGzipFile, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not first or not any(cell.strip() for cell in first):
        raise ValueError(f"{path}: the file is empty (or its first line is blank); expected rows of "
                         f"{', '.join(COLUMNS)}")
    first = [cell.strip() for cell in first]
    names, skip = _column_names(path, first)
    try:
        # All cells as text: a typed reader would refuse a bad cell without saying where it is.
        frame = pl.read_csv(path, has_header=False, schema={f"c{i}": pl.String for i in range(len(first))})
    except pl.exceptions.PolarsError as error:
        raise ValueError(_bad_width(path, len(first)) or f"{path}: not a CSV file ({error})") from error
    frame = frame.rename(dict(zip(frame.columns, names, strict=True)))
    frame = frame.with_columns(pl.all().str.strip_chars()).with_row_index(RECORD)[skip:]
    blank = pl.all_horizontal(pl.col(names).is_null() | (pl.col(names) == ""))
    rows = frame.filter(~blank)
    if not len(rows):
        raise ValueError(f"{path}: there is a header but no row below it")
    if any(rows.null_count().row(0)) and (bad := _bad_width(path, len(first))):  # a short row reads as empty cells
        raise ValueError(bad)
    notes = {"blank line": len(frame) - len(rows)} if len(rows) < len(frame) else {}
    for name in COLUMNS:
        empty = rows.filter(pl.col(name).is_null() | (pl.col(name) == ""))
        if len(empty):
            line = line_of_record(path, empty[RECORD][0])
            raise ValueError(f"{path}, line {line}: {name} is empty; every row needs a value there ({len(empty)} such "
                             "rows). Fill it in or remove the row")
    for name in names:
        if name not in COLUMNS:
            notes[f"value of the column {name!r}, which is not used"] = len(rows)
    return rows.select(RECORD, *COLUMNS), notes


def _column_names(path: Path, first: list[str]) -> tuple[list[str], int]:
    """Names of the columns and the number of header lines, from the cells of the first line."""
    if not set(first) & set(COLUMNS):
        if len(first) != len(COLUMNS):
            raise ValueError(f"{path}, line 1: {len(first)} columns, but a log without a header has exactly 5: user, "
                             f"stream, streamer, start, stop. With other columns, add a header that names "
                             f"{', '.join(COLUMNS)}")
        return list(COLUMNS), 0
    missing = [name for name in COLUMNS if name not in first]
    if missing:
        raise ValueError(f"{path}, line 1: the header lacks the column(s) {', '.join(missing)}; found "
                         f"{', '.join(first)}. Rename the columns to {', '.join(COLUMNS)}")
    repeated = sorted({name for name in first if first.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}, line 1: the header names {repeated[0]!r} more than once; remove one of the columns")
    # A column without a name is carried along under a name that no header can hold after stripping.
    return [name or f" unnamed column {i + 1}" for i, name in enumerate(first)], 1


def _parse_times(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with start_time and stop_time as int64 rounds."""
    numbers = frame.with_columns(pl.col(name).cast(pl.Int64, strict=False) for name in TIMES)
    for name in TIMES:
        for bad, what in ((pl.col(name).is_null(), "is not a whole number; times are rounds of 10 minutes, like 154"),
                          (pl.col(name) < 0, "is negative; times are rounds since the start of the crawl, 0 or more"),
                          (pl.col(name) > MAX_ROUND, "is too large for a round of 10 minutes; if it is a clock in "
                           "seconds or milliseconds, divide by 600 or 600,000")):
            rows = numbers.select(bad.fill_null(False)).to_series().arg_true()
            if len(rows):
                line, value = line_of_record(path, frame[RECORD][rows[0]]), frame[name][rows[0]]
                hint = f". If this line is a header, name its columns {', '.join(COLUMNS)}" if line == 1 else ""
                raise ValueError(f"{path}, line {line}: {name} = {value!r} {what} ({len(rows)} such rows){hint}")
    return numbers


def _index(source: pl.Series, key: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(table: key int32 0..n-1 and source_id, in order; map from the source's column to the key).

    The order is numeric if every id is a number, else lexicographic, so that it does not depend on the order of rows.
    """
    unique = source.unique().sort()
    number = unique.cast(pl.Int64, strict=False)
    if not number.has_nulls():
        unique = pl.DataFrame({"id": unique, "number": number}).sort("number", "id")["id"]
    dense = pl.Series(key, range(len(unique)), dtype=pl.Int32)
    return pl.DataFrame([dense, unique.alias("source_id")]), pl.DataFrame([unique.alias(source.name), dense])


def _rooms(kept: pl.DataFrame, streams: pl.DataFrame) -> pl.DataFrame:
    """One room for each (stream, streamer), with its life in ms and the stream's id in the source."""
    lives = kept.group_by("stream_index", "author_id").agg(
        (pl.col("start").min() * ROUND_MS).alias("start_ms"),
        (pl.col("stop").max() * ROUND_MS).alias("end_ms")).sort("stream_index", "author_id")
    return lives.join(streams, on="stream_index", maintain_order="left").with_columns(
        pl.int_range(pl.len(), dtype=pl.Int32).alias("room_id"),
        pl.lit(-1, pl.Int32).alias("category"), pl.lit(-1, pl.Int32).alias("title_embedding"))


def _overlapping(log: pl.DataFrame) -> int:
    """Sessions that begin before an earlier session of the same user has ended (rows in canonical order)."""
    stop = pl.col("start_ms") + pl.col("watch_ms")
    earlier = stop.cum_max().shift().over("user_id")
    return int(log.select((pl.col("start_ms") < earlier).fill_null(False).sum()).item())


def _bad_width(path: Path, width: int) -> str | None:
    """A sentence about the first line whose number of cells differs from the first line's; None if there is none."""
    try:
        with open_text(path) as lines:
            reader, line = csv.reader(lines), 1
            for cells in reader:
                if len(cells) != width and any(cell.strip() for cell in cells):
                    return (f"{path}, line {line}: {len(cells)} cells, but line 1 has {width}. Every row "
                            "needs the same columns; a comma inside a value must be quoted")
                line = reader.line_num + 1
    except (UnicodeDecodeError, gzip.BadGzipFile, csv.Error) as error:
        return f"{path}: not a CSV file in UTF-8 ({error})"
    return None
