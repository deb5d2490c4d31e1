"""What readers of logs share: dense ids, one row a room, side features, views and what happened in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from data_pipelines.readers import cells as cell_rules
from data_pipelines.readers.forms import Form
from data_pipelines.readers.rows import Counts
from data_pipelines.readers.text_files import LINE
from data_pipelines.tables import ASKED, INTERACTIONS, LOGGED, ROOMS, sort_interactions

LARGEST = 2**31 - 1
DATES = ("reg_timestamp", "first_watch_live_timestamp", "first_live_timestamp")
CATEGORIES = ("age", "gender", "country", "device_brand", "device_price", "is_live_streamer", "is_photo_author",
              "is_live_author", "age_segment", "live_operation_tag", *[f"onehot_feat{i}" for i in range(7)])
_NUMBER = r"-?\d+(?:\.\d+)?\s*[kKwWmM]?"
# 0-1k, 5000+, [0,10), >5
_RANGE = rf"^(?:[\[(]?{_NUMBER}\s*(?:[-~,]\s*{_NUMBER}\s*[\])]?\s*\+?|\+)|[<>]=?\s*{_NUMBER})$"
_LOWER, _TIMES = r"^[\[(>=]*\s*(-?\d+(?:\.\d+)?)", r"^[\[(>=]*\s*-?\d+(?:\.\d+)?\s*([kKwWmM])"
_UNITS = {"k": 1e3, "w": 1e4, "m": 1e6}


@dataclass
class Known:
    """The rooms and people that rows of views or events may name.

    Attributes:
      rooms: live_id, author_id, room_id (dense), room_start_ms, room_end_ms.
      users, authors: ids in the source, in order. everybody: users before `limit_users`.
    """

    rooms: pl.DataFrame
    users: pl.Series
    authors: pl.Series
    everybody: pl.Series


def beyond(limit: int) -> str:
    """Why a row is left out where only some of the people are wanted."""
    return f"row of a person beyond the first {limit:,} (limit_users)"


def about(forms: Iterable[Form]) -> list[str]:
    """Columns that are not read, and clocks without a zone, as sentences."""
    return [f"{form.label}columns not used: {', '.join(form.unused)}" for form in forms if form.unused]


def compact(ids: pl.Series) -> pl.Series:
    """Ids that are text, as int64 if all are whole numbers without a sign or a zero before them: then they are numbered
    in the order of numbers, not of the alphabet."""
    number = ids.cast(pl.Int64, strict=False)
    odd = (ids.str.starts_with("0") & (ids.str.len_bytes() > 1)) | ids.str.starts_with("+") | ids.str.starts_with("-")
    return ids if number.null_count() > ids.null_count() or odd.any() else number


def all_ids(*columns: pl.Series) -> pl.Series:
    """The different ids of several columns, in the order in which they are numbered."""
    return pl.concat([column.unique() for column in columns]).unique().drop_nulls().sort()


def id_table(key: str, ids: pl.Series) -> pl.DataFrame:
    """A table with the dense id and the source's id as text."""
    return pl.DataFrame([pl.Series(key, np.arange(len(ids), dtype=np.int32)), ids.cast(pl.String).alias("source_id")])


def number(frame: pl.DataFrame, column: str, ids: pl.Series, name: str) -> pl.DataFrame:
    """The frame with the ids in `column` replaced by `name`: int32 places in `ids`, null where an id is not there."""
    places = pl.DataFrame([ids.alias(column), pl.Series(name, np.arange(len(ids), dtype=np.int32))])
    return frame.join(places, on=column, how="left", maintain_order="left").drop(column)


def of_people(frame: pl.DataFrame, known: Known, form: Form, nowhere: str, counts: Counts) -> pl.DataFrame:
    """Rows of the people that are wanted, with dense user_id; `nowhere` says where a stranger is missing."""
    frame = number(frame.with_columns(source_user="user_id"), "user_id", known.users, "dense")
    frame = frame.rename({"dense": "user_id"})
    absent = pl.col("user_id").is_null()
    if len(known.users) < len(known.everybody):
        left = absent & pl.col("source_user").is_in(known.everybody.implode())
        if form.events:
            counts.add("dropped", beyond(len(known.users)), frame.select(left.sum()).item())
        frame = frame.filter(~left)
    frame = counts.keep_good(form, frame, absent, "user_id", f"is a person whom {nowhere} has", "source_user", True)
    return frame.drop("source_user")


def one_row_a_room(form: Form, rooms: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """Rooms sorted by live_id, each once: earliest start, latest end, and everything else of its earliest row.

    A row that names another author than the room's earliest one is left out and counted; an end before the start is not
    known.

    Args:
      form: of the file. rooms: live_id, author, start_ms, end_ms (may be null), others, LINE.
    """
    early = pl.col("end_ms") < pl.col("start_ms")
    counts.remark(form, rooms, early, "end_timestamp", "is before the start of the room, read as unknown", "end_ms",
                  dirt=True)
    rooms = rooms.with_columns(pl.when(~early).then("end_ms")).sort("live_id", "start_ms", LINE)
    again = like_the_row_before(rooms, "live_id")
    if again.any():
        # Of a room with several rows some may have been written before it ended: any end is later than none.
        several = again | again.shift(-1, fill_value=False)
        some = rooms.filter(several)
        other = pl.col("author") != pl.col("author").first().over("live_id")
        some = counts.keep_good(form, some, other, form.columns[1].name, "is another streamer of a room that has one",
                                "author", dirt=True)
        merged = some.group_by("live_id", maintain_order=True).agg(
            pl.exclude("end_ms").first(), pl.col("end_ms").max())
        counts.add("notes", f"{form.path.name}: row of a room that another row names, merged", len(some) - len(merged))
        rooms = pl.concat([rooms.filter(~several), merged.select(rooms.columns)]).sort("live_id")
    empty = (rooms["end_ms"] == rooms["start_ms"]).fill_null(False)
    counts.add("notes", f"{form.path.name}: room that ends when it starts, given one millisecond", empty.sum())
    return rooms.with_columns(pl.col("end_ms") + empty.cast(pl.Int64))


def known_rooms(rooms: pl.DataFrame, first: int = 0) -> pl.DataFrame:
    """`Known.rooms`, from rooms with author_id in order of their live_id; `first` is the dense id of the first."""
    return rooms.select("live_id", "author_id", pl.int_range(first, first + pl.len(), dtype=pl.Int32).alias("room_id"),
                        room_start_ms="start_ms", room_end_ms="end_ms")


def room_table(rooms: pl.DataFrame, first: int = 0) -> pl.DataFrame:
    """The canonical table, and the source's id, from rooms with author_id, category and title_embedding.

    `first` is the dense id of the first, where `rooms` are a part of them all.
    """
    rooms = rooms.with_columns(pl.int_range(first, first + pl.len(), dtype=pl.Int32).alias("room_id"),
                               pl.col("live_id").cast(pl.String).alias("source_id"))
    return rooms.select(*ROOMS, "source_id", *[name for name in ("live_type", "live_name") if name in rooms.columns])


def longest_watch(views: pl.DataFrame) -> pl.DataFrame:
    """Views sorted by (user_id, room_id, start_ms), the longest where several have all three in common."""
    views = views.sort("user_id", "room_id", "start_ms", "watch_ms")
    return views.filter(~like_the_row_before(views, "user_id", "room_id", "start_ms").shift(-1, fill_value=False))


def sizes(log: pl.DataFrame) -> tuple[int, int]:
    """Rows of the interactions table, and views among them."""
    return len(log), int(log["click"].sum())


def once(log: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """The interactions table without rows that repeat another in every column; they are counted."""
    like = like_the_row_before(log, "user_id", "start_ms", "watch_ms", "room_id")
    if not like.any():
        return log
    some = like | like.shift(-1, fill_value=False)
    kept = pl.concat([log.filter(~some), log.filter(some).unique().sort(log.columns)])
    counts.add("dropped", "repeated row", len(log) - len(kept))
    return sort_interactions(kept)


def last_view(events: pl.DataFrame, views: pl.DataFrame, by: Sequence[str] = ("user_id", "room_id"),
              order: Sequence[str] = ()) -> pl.DataFrame:
    """The events with view, view_ms and watch_ms of the person's last view at or before start_ms, or null."""
    views = views.select(*by, "watch_ms", "view", "start_ms", view_ms="start_ms").sort("start_ms", "view")
    return events.sort("start_ms", *order).join_asof(views, on="start_ms", by=list(by), strategy="backward",
                                                     check_sortedness=False)


def total_of_last_view(events: pl.DataFrame, views: pl.DataFrame, name: str, counts: Counts,
                       by: Sequence[str] = ("user_id", "room_id")) -> pl.Series:
    """float64, a view: sum of the `value` of the events whose last view by then it is; counts merged and dropped."""
    # Values of the same moment are added in the same order always: sums of floats depend on it.
    events = last_view(events.select(*by, "start_ms", "value"), views, by, ("value",))
    lost = events["view"].null_count()
    counts.add("dropped", f"{name}: the person has no view of the room before", lost)
    counts.add("merged", f"{name}: row that belongs to a view", len(events) - lost)
    events = events.filter(pl.col("view").is_not_null())
    return pl.Series(np.bincount(events["view"].to_numpy(), events["value"].to_numpy(), minlength=len(views)))


def impressions(events: pl.DataFrame, views: pl.DataFrame, name: str, counts: Counts) -> pl.DataFrame:
    """Rooms that were shown and not clicked, each once; what falls inside a view of the room was clicked, and is it."""
    events = last_view(events.select("user_id", "room_id", "author_id", "start_ms"), views)
    inside = (pl.col("start_ms") <= pl.col("view_ms") + pl.col("watch_ms")).fill_null(False)
    apart = events.filter(~inside).select("user_id", "room_id", "author_id", "start_ms")
    counts.add("merged", f"{name}: row inside a view of the room, which was clicked", len(events) - len(apart))
    once_each = apart.unique(maintain_order=True)
    counts.add("dropped", f"{name}: repeated row", len(apart) - len(once_each))
    return once_each.with_columns(watch_ms=pl.lit(0, pl.Int64), click=pl.lit(False))


def like_the_row_before(frame: pl.DataFrame, *columns: str) -> pl.Series:
    """Whether a row has the same values as the row before it in all of the columns."""
    return frame.select(pl.all_horizontal((pl.col(name) == pl.col(name).shift()).fill_null(False)
                                          for name in columns)).to_series()


def interactions(frame: pl.DataFrame) -> pl.DataFrame:
    """The canonical table; what the source does not tell (like, comment, …, negative) is 0 or False."""
    told = [pl.col(name) if name in frame.columns else pl.lit(None).alias(name) for name in INTERACTIONS]
    logged = [pl.col(name).cast(dtype) for name, dtype in (LOGGED | ASKED).items() if name in frame.columns]
    frame = frame.select(*(column.cast(dtype) for column, dtype in zip(told, INTERACTIONS.values(), strict=True)),
                         *logged)
    facts = [name for name in INTERACTIONS if name not in ("user_id", "room_id", "author_id", "start_ms", "watch_ms")]
    frame = frame.with_columns(pl.col(name).fill_null(False if INTERACTIONS[name] == pl.Boolean else 0)
                               for name in facts)
    if "position" in frame.columns:
        frame = frame.with_columns(pl.col("position").fill_null(-1))
    return sort_interactions(frame)


def is_outside(moment: pl.Expr, start: pl.Expr, end: pl.Expr) -> pl.Expr:
    """Whether a view begins before its room does, or after it has ended (never, where `end` is null)."""
    return (moment < start) | (moment >= end).fill_null(False)


def people_table(key: str, ids: pl.Series, form: Form | None, frame: pl.DataFrame | None, counts: Counts
                 ) -> pl.DataFrame:
    """The canonical table of people: their ids, and what a file (its form and its rows) tells of them, if any."""
    features = [] if form is None or len(form.columns) == 1 else side_features(form, frame, ids, counts)
    return id_table(key, ids).with_columns(features)


def side_features(form: Form, frame: pl.DataFrame, ids: pl.Series, counts: Counts) -> list[pl.Series]:
    """Columns of a table of people, in the order of `ids`: categories as int32 (-1: unknown), numbers as float64.

    The form's first column is the id. A column of counts may hold ranges (100-500, 5000+, 0-1k, [0,10)), which become
    categories in the order of their lower bounds; one of DATES holds days or milliseconds, and becomes milliseconds. A
    cell that is none of these is unknown, and counted.
    """
    key = form.columns[0].name
    kept = frame.unique(key, keep="first", maintain_order=True)
    counts.add("notes", f"{form.path.name}: row of a {key} that another row names, left out", len(frame) - len(kept))
    places = pl.DataFrame([ids.alias(key)]).join(kept.with_columns(at=pl.int_range(pl.len())), on=key, how="left",
                                                 maintain_order="left")["at"]
    result = []
    for column in form.columns[1:]:
        told = kept[column.name]
        if column.name in DATES:
            values, bad = cell_rules.times(told, "ms", 0)
            values, what = values.cast(pl.Float64), "is not a day (2024-12-31) or a time, read as unknown"
        elif column.name in CATEGORIES:
            values, bad = categories(told), None
        else:
            number, ranges = told.cast(pl.Float64, strict=False), told.str.contains(_RANGE).fill_null(False)
            bad = told.is_not_null() & ~number.is_finite().fill_null(False) & ~ranges
            values = categories(cell_rules.only(told, ~bad)) if ranges.any() else cell_rules.only(number, ~bad)
            what = "is not a number, nor a range like 100-500 or 5000+, read as unknown"
        if bad is not None and bad.any():
            counts.remark(form, kept, bad, column.name, what, dirt=True)
        values = values.gather(places)
        result.append((values.fill_null(-1) if values.dtype == pl.Int32 else values).alias(column.name))
    return result


def categories(cells: pl.Series, texts: pl.Series | None = None) -> pl.Series:
    """int32 categories of a column of text; -1 where empty.

    Whole numbers from -1 on stay what they are. Other texts become 0, 1, 2, … in the order of the number that they
    begin with, if any, and then of the alphabet: the same whatever the order of the rows.

    Args:
      cells: the column, or a part of it. texts: what the whole column holds, where `cells` is a part.
    """
    texts = (cells if texts is None else texts).drop_nulls().unique()
    numbers = texts.cast(pl.Float64, strict=False)
    if (numbers.is_finite() & (numbers == numbers.floor()) & numbers.is_between(-1, LARGEST)).fill_null(False).all():
        return cells.cast(pl.Float64).cast(pl.Int32).fill_null(-1)
    lower = texts.str.extract(_LOWER).cast(pl.Float64, strict=False) * texts.str.extract(_TIMES).str.to_lowercase(
        ).replace_strict(_UNITS, default=1.0, return_dtype=pl.Float64).fill_null(1.0)
    order = pl.DataFrame({"text": texts, "lower": lower}).sort("lower", "text", nulls_last=True)["text"]
    return cells.cast(pl.Enum(order)).to_physical().cast(pl.Int32).fill_null(-1)
