"""What readers of logs with room lifetimes share: dense ids, one row a room, side features, one row a view."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.readers.csv_files import RECORD, Column, Rows, clock_ms, refuse
from data_pipelines.tables import INTERACTIONS, ROOMS, sort_interactions

LARGEST = 2**31 - 1
DATES = ("reg_timestamp", "first_watch_live_timestamp", "first_live_timestamp")
CATEGORIES = ("age", "gender", "country", "device_brand", "device_price", "is_live_streamer", "is_photo_author",
              "is_live_author", "age_segment", "live_operation_tag", *[f"onehot_feat{i}" for i in range(7)])
_RANGE = r"^-?\d+(\.\d+)?\s*(\+|[-~]\s*\d+(\.\d+)?\s*\+?)$"  # 100-500, 5000+
_LOWER = r"^(-?\d+(?:\.\d+)?)"


@dataclass
class World:
    """What the rows of a file of views or events are joined with.

    Attributes:
      rooms: live_id, author_id, room_id (dense), room_start_ms, room_end_ms: every room that the rows may name.
      users, authors: ids in the source, in order.
      drop_unknown_rooms: leave out, rather than refuse, what names a room that there is not.
    """

    rooms: pl.DataFrame
    users: pl.Series
    authors: pl.Series
    drop_unknown_rooms: bool


def all_ids(*columns: pl.Series) -> pl.Series:
    """The different ids of several columns, in the order in which they are numbered."""
    return pl.concat([column.unique() for column in columns]).unique().sort()


def id_table(key: str, ids: pl.Series) -> pl.DataFrame:
    """A table with the dense id and the source's id as text."""
    return pl.DataFrame([pl.Series(key, np.arange(len(ids), dtype=np.int32)), ids.cast(pl.String).alias("source_id")])


def number(frame: pl.DataFrame, column: str, ids: pl.Series, name: str) -> pl.DataFrame:
    """The frame with the ids in `column` replaced by `name`: int32 places in `ids`, null where an id is not there."""
    places = pl.DataFrame([ids.alias(column), pl.Series(name, np.arange(len(ids), dtype=np.int32))])
    return frame.join(places, on=column, how="left", maintain_order="left").drop(column)


def one_row_a_room(path: Path, rooms: pl.DataFrame, notes: dict[str, int]) -> pl.DataFrame:
    """Rooms sorted by live_id, each once: earliest start, latest end, and everything else of its earliest row.

    Args:
      path: the file, for errors. rooms: live_id, author, start_ms, end_ms (may be null), others, RECORD.
      notes: to which the merged rows and the rooms without length are added.

    Raises:
      ValueError: for a room that ends before it starts, or that two authors claim.
    """
    refuse(path, rooms, "end_timestamp", pl.col("end_ms") < pl.col("start_ms"),
           "is before the start of the room; a room must end after it starts, or have an empty end", "end_ms")
    rooms = rooms.sort("live_id", "start_ms", RECORD)
    again = like_the_row_before(rooms, "live_id")
    if again.any():
        other = again & (rooms["author"] != rooms["author"].shift()).fill_null(False)
        refuse(path, rooms.with_columns(other=other), "live_id", pl.col("other"), "is claimed by two streamers; a room "
               "has one: correct or remove one of its rows")
        # Of a room with several rows some may have been written before it ended: any end is later than none.
        several = again | again.shift(-1, fill_value=False)
        merged = rooms.filter(several).group_by("live_id", maintain_order=True).agg(
            pl.exclude("end_ms").first(), pl.col("end_ms").max())
        rooms = pl.concat([rooms.filter(~several), merged.select(rooms.columns)]).sort("live_id")
        notes[f"{path.name}: row of a room that another row names, merged"] = int(again.sum())
    empty = int((rooms["end_ms"] == rooms["start_ms"]).sum())
    if empty:
        notes[f"{path.name}: room that ends when it starts, given one millisecond"] = empty
        rooms = rooms.with_columns(pl.when(pl.col("end_ms") == pl.col("start_ms")).then(pl.col("end_ms") + 1)
                                   .otherwise(pl.col("end_ms")).alias("end_ms"))
    return rooms


def known_rooms(rooms: pl.DataFrame, first: int = 0) -> pl.DataFrame:
    """`World.rooms`, from rooms with author_id in order of their live_id; `first` is the dense id of the first."""
    return rooms.select("live_id", "author_id", pl.int_range(first, first + pl.len(), dtype=pl.Int32).alias("room_id"),
                        room_start_ms="start_ms", room_end_ms="end_ms")


def room_table(rooms: pl.DataFrame, first: int = 0) -> pl.DataFrame:
    """The canonical table, and the source's id, from rooms with author_id, category and title_embedding.

    `first` is the dense id of the first, where `rooms` are a part of them all.
    """
    rooms = rooms.with_columns(pl.int_range(first, first + pl.len(), dtype=pl.Int32).alias("room_id"),
                               pl.col("live_id").alias("source_id"))
    return rooms.select(*ROOMS, "source_id", *[name for name in ("live_type", "live_name") if name in rooms.columns])


def longest_watch(views: pl.DataFrame) -> pl.DataFrame:
    """Views sorted by (user_id, room_id, start_ms), the longest where several have all three in common."""
    views = views.sort("user_id", "room_id", "start_ms", "watch_ms")
    return views.filter(~like_the_row_before(views, "user_id", "room_id", "start_ms").shift(-1, fill_value=False))


def like_the_row_before(frame: pl.DataFrame, *columns: str) -> pl.Series:
    """Whether a row has the same values as the row before it in all of the columns."""
    return frame.select(pl.all_horizontal((pl.col(name) == pl.col(name).shift()).fill_null(False)
                                          for name in columns)).to_series()


def interactions(frame: pl.DataFrame) -> pl.DataFrame:
    """The canonical table; what the source does not tell (like, comment, …, negative) is 0 or False."""
    told = [pl.col(name) if name in frame.columns else pl.lit(None).alias(name) for name in INTERACTIONS]
    frame = frame.select(column.cast(dtype) for column, dtype in zip(told, INTERACTIONS.values(), strict=True))
    facts = [name for name in INTERACTIONS if name not in ("user_id", "room_id", "author_id", "start_ms", "watch_ms")]
    return sort_interactions(frame.with_columns(
        pl.col(name).fill_null(False if INTERACTIONS[name] == pl.Boolean else 0) for name in facts))


def is_outside(moment: pl.Expr, start: pl.Expr, end: pl.Expr) -> pl.Expr:
    """Whether a view begins before its room does, or after it has ended (never, where `end` is null)."""
    return (moment < start) | (moment >= end).fill_null(False)


def side_features(rows: Rows, key: str, columns: tuple[Column, ...], ids: pl.Series, notes: dict[str, int]
                  ) -> list[pl.Series]:
    """Columns of a table of people, in the order of `ids`: categories as int32 (-1: unknown), numbers as float64.

    A column of counts may hold ranges (100-500, 5000+), which become categories in the order of their lower
    bounds; one of DATES holds days or milliseconds, and becomes milliseconds.

    Raises:
      ValueError: with file, line and column, for a cell that is none of these.
    """
    frame = rows.frame
    kept = frame.unique(key, keep="first", maintain_order=True)
    if len(kept) < len(frame):
        notes[f"{rows.path.name}: row of a {key} that another row names, left out"] = len(frame) - len(kept)
    places = pl.DataFrame([ids.alias(key)]).join(kept.with_columns(at=pl.int_range(pl.len())), on=key, how="left",
                                                 maintain_order="left")["at"]
    result = []
    for column in columns:
        if column.name == key or column.name not in kept.columns:
            continue
        cells = kept[column.name].str.strip_chars()
        if column.name in DATES:
            text = pl.col(column.name).str.strip_chars()
            day = text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("ms")).dt.epoch("ms")
            values = kept.select(pl.coalesce(text.cast(pl.Float64, strict=False), day, clock_ms(text)).cast(
                pl.Float64)).to_series()
            refuse(rows.path, kept.with_columns(bad=cells.is_not_null() & values.is_null()), column.name, pl.col("bad"),
                   "is not a day (2024-12-31) or a time in milliseconds")
            result.append(values.gather(places).alias(column.name))
        elif column.name in CATEGORIES:
            result.append(categories(cells).gather(places).fill_null(-1).alias(column.name))
        else:
            values = cells.cast(pl.Float64, strict=False)
            ranges = cells.str.contains(_RANGE)
            bad = cells.is_not_null() & ~values.is_finite().fill_null(False) & ~ranges.fill_null(False)
            refuse(rows.path, kept.with_columns(bad=bad), column.name, pl.col("bad"),
                   "is not a number, nor a range like 100-500 or 5000+")
            if ranges.any():
                result.append(categories(cells).gather(places).fill_null(-1).alias(column.name))
            else:
                result.append(values.gather(places).alias(column.name))
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
    order = pl.DataFrame({"text": texts, "lower": texts.str.extract(_LOWER).cast(pl.Float64, strict=False)})
    order = order.sort("lower", "text", nulls_last=True)["text"]
    return cells.cast(pl.Enum(order)).to_physical().cast(pl.Int32).fill_null(-1)
