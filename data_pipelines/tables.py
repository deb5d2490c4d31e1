"""The canonical tables: what every source becomes, and all that the code after the readers knows.

Times are int64 milliseconds (since the epoch, or since the start of the crawl where the source has no clock). Ids are
dense int32: row i of `users`, `authors` and `rooms` is id i.
"""

import dataclasses
import datetime
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

INTERACTIONS = {
    "user_id": pl.Int32, "room_id": pl.Int32, "author_id": pl.Int32, "start_ms": pl.Int64, "watch_ms": pl.Int64,
    "click": pl.Boolean, "like": pl.Int32, "comment": pl.Int32, "follow": pl.Int32, "share": pl.Int32,
    "gift_value": pl.Float32, "negative": pl.Boolean,
}
ROOMS = {
    "room_id": pl.Int32, "author_id": pl.Int32, "start_ms": pl.Int64, "end_ms": pl.Int64, "category": pl.Int32,
    "title_embedding": pl.Int32,
}
LOGGED = {"position": pl.Int32, "propensity": pl.Float32}  # of interactions, where the platform logs them
ASKED = {"satisfaction": pl.Float32}  # of interactions, where people were asked; null where one was not
SEGMENTS = {"room_id": pl.Int32, "end_ms": pl.Int64}  # and `embedding`, whose width is the source's
TITLES = {"title_id": pl.Int32}  # and `embedding`
AUTHORS = {"author_id": pl.Int32, "source_id": pl.String}
USERS = {"user_id": pl.Int32, "source_id": pl.String}
VIDEOS = {"user_id": pl.Int32, "author_id": pl.Int32, "start_ms": pl.Int64, "watch_ms": pl.Int64}

REQUIRED = ("interactions", "rooms", "authors", "users")
OPTIONAL = ("segments", "videos", "titles")
# What reading a damaged parquet file raises; polars panics where its footer points beyond its end.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
HOUR_MS = 3_600_000
CENTURY_MS = 3_155_760_000_000
EARLIEST_DATE_MS = 315_576_000_000  # 1980; a time before it is no date but one since the log's beginning
# Later than any real clock in milliseconds (year 33658) and far from overflow when a duration is added.
LATEST_MS = 10**15


@dataclass
class ReadReport:
    """What a reader made of its source.

    `rows_read == rows_kept + sum(merged.values()) + sum(dropped.values())`.

    Attributes:
      source: file, folder or simulator that was read.
      rows_read: rows of interactions found.
      rows_kept: rows of interactions in the tables.
      dropped: reason → rows left out.
      notes: observation → rows; these rows were kept.
      merged: reason → rows that became part of another row (a comment of the view in which it was written).
      views: rows kept that are views, not just impressions.
      examples: reason → the first rows of it, as "FILE, line N: VALUE".
      about: sentences on how the source was understood.
    """

    source: str
    rows_read: int
    rows_kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    merged: dict[str, int] = field(default_factory=dict)
    views: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)
    about: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Sentences to print."""
        result = [f"{self.source}: {self.rows_read:,} rows read, {self.rows_kept:,} kept", *self.about]
        for word, reasons in (("merged", self.merged), ("dropped", self.dropped), ("noted", self.notes)):
            for reason, count in reasons.items():
                if count:
                    shown = "; ".join(self.examples.get(reason, ()))
                    result.append(f"{word} {count:,}: {reason}" + (f" ({shown})" if shown else ""))
        return result


@dataclass
class Tables:
    """A log in canonical form.

    Attributes:
      interactions: one row a view or impression, sorted by (user_id, start_ms, start_ms + watch_ms, room_id). A room
        that was shown but not clicked has click=False and watch_ms=0. Counts are 0 where the source has none.
      rooms: one row a broadcast; end_ms is null while on air; category and title_embedding are -1 where unknown.
      authors, users: one row an id, with the id of the source and any side features (integers: categories, floats).
      segments: room_id, end_ms (time of the END of a window), embedding (array of float32, one width for all), sorted
        by (room_id, end_ms); None where the source has no content.
      videos: short-video views of the same people, or None.
      titles: title_id and embedding (as in segments), which rooms.title_embedding points to; or None.
      report: what was read and what was left out.
      rooms_are_true_lifetimes: False where a room's life is only a lower bound (first to last seen).
    """

    interactions: pl.DataFrame
    rooms: pl.DataFrame
    authors: pl.DataFrame
    users: pl.DataFrame
    report: ReadReport
    segments: pl.DataFrame | None = None
    videos: pl.DataFrame | None = None
    titles: pl.DataFrame | None = None
    rooms_are_true_lifetimes: bool = False


def moment(time_ms: int, utc_offset_hours: float = 0.0) -> str:
    """A time in words: Sun 4 May 2025 20:00 UTC+8; or day 3, 04:10, where times are since the log's beginning."""
    if time_ms > 250_000_000_000_000:  # beyond the calendar of Python
        return f"{time_ms} ms"
    local = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=time_ms, hours=utc_offset_hours)
    if time_ms < EARLIEST_DATE_MS:
        return f"day {time_ms // (24 * HOUR_MS) + 1}, {time_ms // HOUR_MS % 24:02d}:{time_ms // 60_000 % 60:02d}"
    return f"{local:%a} {local.day} {local:%b %Y %H:%M} UTC{f'{utc_offset_hours:+g}' if utc_offset_hours else ''}"


def sort_interactions(frame: pl.DataFrame) -> pl.DataFrame:
    """Canonical order: by user, start, end of the watch, room; it never depends on the order of the source."""
    stop = (pl.col("start_ms") + pl.col("watch_ms")).alias("stop")
    order = ["user_id", "start_ms", "stop", "room_id"]
    return frame.with_columns(stop).sort(order, maintain_order=True).drop("stop")


def validate(tables: Tables) -> Tables:
    """Returns the tables, or raises ValueError with the table, the column and the first bad row (counted from 0)."""
    _check_schema("users", tables.users, USERS)
    _check_schema("authors", tables.authors, AUTHORS)
    _check_schema("rooms", tables.rooms, ROOMS, nullable=("end_ms",))
    _check_schema("interactions", tables.interactions, INTERACTIONS)
    for name, key in (("users", "user_id"), ("authors", "author_id"), ("rooms", "room_id")):
        dense = pl.col(key) == pl.int_range(pl.len(), dtype=pl.Int32)
        _check_rows(name, key, getattr(tables, name), dense, "ids must be 0, 1, 2, … in the order of the rows")
    n_users, n_authors, n_rooms = len(tables.users), len(tables.authors), len(tables.rooms)

    rooms = tables.rooms
    _check_range("rooms", "author_id", rooms, 0, n_authors - 1, "a row of authors")
    _check_range("rooms", "start_ms", rooms, 0, LATEST_MS, "milliseconds")
    _check_rows("rooms", "end_ms", rooms, pl.col("end_ms").is_null() | (pl.col("end_ms") > pl.col("start_ms")),
                "a room must end after its start_ms (or be null: still on air)")
    _check_rows("rooms", "end_ms", rooms, pl.col("end_ms").is_null() | (pl.col("end_ms") <= LATEST_MS),
                f"must not exceed {LATEST_MS} milliseconds")
    if len(tables.interactions):
        # Who is on air is kept by ten minutes: one date in the year 9999 would fill the memory.
        middle = int(tables.interactions["start_ms"].median())
        for name, column in (("rooms", "start_ms"), ("rooms", "end_ms"), ("interactions", "start_ms")):
            near = ((pl.col(column) - middle).abs() <= CENTURY_MS) | pl.col(column).is_null()
            _check_rows(name, column, getattr(tables, name), near, "is more than a century from most views: correct "
                        "it, or remove the row")
        _check_rows("interactions", "watch_ms", tables.interactions, pl.col("watch_ms") <= CENTURY_MS,
                    "is longer than a century")
    for column in ("category", "title_embedding"):
        _check_rows("rooms", column, rooms, pl.col(column) >= -1, "must be -1 (unknown) or more")

    log = tables.interactions
    _check_range("interactions", "user_id", log, 0, n_users - 1, "a row of users")
    _check_range("interactions", "room_id", log, 0, n_rooms - 1, "a row of rooms")
    owner = rooms["author_id"].gather(log["room_id"])
    _check_rows("interactions", "author_id", log, pl.col("author_id") == owner,
                "must be the author_id of the room in rooms")
    for column in ("start_ms", "watch_ms"):
        _check_range("interactions", column, log, 0, LATEST_MS, "milliseconds")
    for column in ("like", "comment", "follow", "share"):
        _check_rows("interactions", column, log, pl.col(column) >= 0, "a count must not be negative")
    _check_rows("interactions", "gift_value", log, pl.col("gift_value").is_finite() & (pl.col("gift_value") >= 0),
                "must be a finite number, 0 or more")
    _check_rows("interactions", "watch_ms", log, pl.col("click") | (pl.col("watch_ms") == 0),
                "a room that was not clicked (click=False) must have watch_ms=0")
    _check_sorted("interactions", log.with_columns(watch_end=pl.col("start_ms") + pl.col("watch_ms")),
                  ("user_id", "start_ms", "watch_end", "room_id"), strict=False)

    for column, dtype in (LOGGED | ASKED).items():
        if column in log.columns:
            _check_schema("interactions", log, {column: dtype}, nullable=tuple(ASKED))
    if "position" in log.columns:
        _check_rows("interactions", "position", log, pl.col("position") >= -1, "must be -1 (unknown) or more")
    if "propensity" in log.columns:
        _check_rows("interactions", "propensity", log, pl.col("propensity").is_between(0, 1, closed="right"),
                    "a probability must be above 0 and at most 1")

    if tables.segments is not None:
        _check_segments(tables.segments, n_rooms)
    if tables.titles is not None:
        _check_schema("titles", tables.titles, TITLES)
        dense = pl.col("title_id") == pl.int_range(pl.len(), dtype=pl.Int32)
        _check_rows("titles", "title_id", tables.titles, dense, "ids must be 0, 1, 2, … in the order of the rows")
        _check_embedding("titles", tables.titles)
        _check_rows("rooms", "title_embedding", rooms, pl.col("title_embedding") < len(tables.titles),
                    f"must be a row of titles (there are {len(tables.titles)}) or -1")
    if tables.videos is not None:
        _check_schema("videos", tables.videos, VIDEOS)
        _check_range("videos", "user_id", tables.videos, 0, n_users - 1, "a row of users")
        _check_range("videos", "author_id", tables.videos, 0, n_authors - 1, "a row of authors")
        for column in ("start_ms", "watch_ms"):
            _check_range("videos", column, tables.videos, 0, LATEST_MS, "milliseconds")
        _check_sorted("videos", tables.videos, ("user_id", "start_ms"), strict=False)
    return tables


def save(tables: Tables, folder: str | Path) -> None:
    """Writes one parquet file a table and report.json, the last file: a folder without it is not complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").unlink(missing_ok=True)
    present, digests = [], {}
    for name in REQUIRED + OPTIONAL:
        path, frame = folder / f"{name}.parquet", getattr(tables, name)
        for shard in folder.glob(f"{name}-*-of-*.parquet"):
            shard.unlink()
        if frame is None:
            path.unlink(missing_ok=True)
            continue
        frame.write_parquet(path)
        present.append(name)
        digests[path.name] = _digest(path)
    text = json.dumps({"report": dataclasses.asdict(tables.report), "tables": present, "sha256": digests,
                       "rooms_are_true_lifetimes": tables.rooms_are_true_lifetimes}, indent=2)
    unfinished = folder / "report.json.unfinished"
    unfinished.write_text(text)
    unfinished.replace(folder / "report.json")


def load(folder: str | Path) -> Tables:
    """The inverse of `save`, validated; a table may also lie in shards (`shard_name`), as the Beam pipeline writes it.

    Raises:
      FileNotFoundError: if the folder or one of its files is missing.
      ValueError: if a file cannot be read or its content breaks the rules of the tables.
    """
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"{folder} is not a complete folder of canonical tables: report.json is missing. "
                                "Write it again (tables.save writes report.json last)")
    try:
        meta = json.loads((folder / "report.json").read_text())
        report = ReadReport(**meta["report"])
        report.lines()  # of a damaged report, its values too are others
        present, true_lifetimes = [str(name) for name in meta["tables"]], bool(meta["rooms_are_true_lifetimes"])
        digests = dict(meta.get("sha256", {}))  # the Beam pipeline writes none
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'report.json'} is damaged ({error}): write the tables again") from error
    frames = {}
    for name in REQUIRED + OPTIONAL:
        if name not in present and name in OPTIONAL:
            continue
        parts = []
        for path in _files(folder, name):
            try:
                # A name with [1] or * in it is a name, not a pattern.
                parts.append(pl.read_parquet(path, glob=False, hive_partitioning=False))
            except UNREADABLE as error:
                raise ValueError(f"{path} cannot be read as parquet ({error}): write the tables again") from error
            if digests.get(path.name, digest := _digest(path)) != digest:
                raise ValueError(f"{path} is damaged: its checksum is not that of report.json. Write the tables again")
            if parts[-1].schema != parts[0].schema:
                raise ValueError(f"{path} has other columns than the first shard of {name} ({parts[-1].schema}, "
                                 f"{parts[0].schema}): write the tables again")
        frames[name] = pl.concat(parts) if len(parts) > 1 else parts[0]
    return validate(Tables(**frames, report=report, rooms_are_true_lifetimes=true_lifetimes))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_name(table: str, shard: int, shards: int) -> str:
    """Name of one file of a table that is stored in several: interactions-00003-of-00016.parquet, from 0."""
    return f"{table}-{shard:05d}-of-{shards:05d}.parquet"


def _files(folder: Path, name: str) -> list[Path]:
    """The one file of a table, or its shards in their order."""
    whole = folder / f"{name}.parquet"
    found = {path.name for path in folder.glob(f"{name}-*-of-*.parquet")}
    if whole.is_file():
        if found:
            raise ValueError(f"{folder} holds both {whole.name} and {min(found)}: delete what is of another run")
        return [whole]
    if not found:
        raise FileNotFoundError(f"{whole} is missing: write the tables again")
    shards = int(Path(min(found)).stem.rpartition("-of-")[2])
    wanted = [shard_name(name, i, shards) for i in range(shards)]
    missing, others = [shard for shard in wanted if shard not in found], sorted(found.difference(wanted))
    if others:
        raise ValueError(f"{folder} holds both {min(found)} and {others[0]}: delete what is of another run")
    if missing:
        raise FileNotFoundError(f"{folder / missing[0]} is missing: write the tables again")
    return [folder / shard for shard in wanted]


def _check_schema(name: str, frame: pl.DataFrame, schema: dict, nullable: tuple[str, ...] = ()) -> None:
    missing = [column for column in schema if column not in frame.columns]
    if missing:
        raise ValueError(f"{name} lacks the column {missing[0]!r}; it needs {', '.join(schema)}")
    for column, dtype in schema.items():
        if frame.schema[column] != dtype:
            raise ValueError(f"{name}.{column} has type {frame.schema[column]}, {dtype} is needed: cast it")
        if column not in nullable:
            _check_rows(name, column, frame, pl.col(column).is_not_null(), "must not be null")


def _check_range(name: str, column: str, frame: pl.DataFrame, low: int, high: int, what: str) -> None:
    _check_rows(name, column, frame, pl.col(column).is_between(low, high), f"must be {low} … {high} ({what})")


def _check_rows(name: str, column: str, frame: pl.DataFrame, good: pl.Expr, rule: str) -> None:
    bad = frame.select(good.not_().fill_null(True)).to_series().arg_true()
    if len(bad):
        row, value = bad[0], frame[column][bad[0]]
        shown = f"{len(value)} numbers" if isinstance(value, pl.Series) else repr(value)
        raise ValueError(f"{name}.{column}, row {row} (counted from 0): {shown}; {rule}. {len(bad)} such row(s)")


def _check_sorted(name: str, frame: pl.DataFrame, keys: tuple[str, ...], strict: bool) -> None:
    # Row i may follow row i-1 if, at the first key where they differ, it is the greater.
    ordered = pl.lit(not strict)
    for key in reversed(keys):
        now, before = pl.col(key), pl.col(key).shift()
        ordered = (now > before) | ((now == before) & ordered)
    ordered = ordered | (pl.int_range(pl.len()) == 0)
    rule = f"rows must be sorted by ({', '.join(keys)})" + (" without repeats" if strict else "")
    _check_rows(name, keys[0], frame, ordered, rule)


def _check_segments(segments: pl.DataFrame, n_rooms: int) -> None:
    _check_schema("segments", segments, SEGMENTS)
    _check_range("segments", "room_id", segments, 0, n_rooms - 1, "a row of rooms")
    _check_range("segments", "end_ms", segments, 0, LATEST_MS, "milliseconds")
    _check_embedding("segments", segments)
    _check_sorted("segments", segments, ("room_id", "end_ms"), strict=True)


def _check_embedding(name: str, frame: pl.DataFrame) -> None:
    if "embedding" not in frame.columns:
        raise ValueError(f"{name} lacks the column 'embedding'; it needs {', '.join(frame.columns)}, embedding")
    dtype = frame.schema["embedding"]
    if not isinstance(dtype, (pl.Array, pl.List)) or dtype.inner != pl.Float32:
        raise ValueError(f"{name}.embedding has type {dtype}, an array or list of Float32 is needed: cast it")
    _check_rows(name, "embedding", frame, pl.col("embedding").is_not_null(), "must not be null")
    if not len(frame):
        return
    vectors = frame["embedding"]
    if isinstance(dtype, pl.Array):
        width = dtype.size
    else:
        width = len(vectors[0])
        _check_rows(name, "embedding", frame, (pl.col("embedding").list.len() == width) & (width > 0),
                    f"every embedding must have the width of the first, {width} (and at least 1)")
    values = vectors.explode()
    finite = values.is_finite().fill_null(False)
    if not finite.all():
        row = finite.not_().arg_true()[0] // width
        raise ValueError(f"{name}.embedding, row {row} (counted from 0): holds a value that is null or not finite")
