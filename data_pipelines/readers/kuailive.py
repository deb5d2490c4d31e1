"""Reader of KuaiLive (arXiv 2508.05633): the unzipped folder becomes canonical tables.

click.csv and room.csv are needed; comment.csv, like.csv, gift.csv, negative.csv, user.csv, streamer.csv and the title
embeddings are used where they are there. A click is a view. A comment, a like and a gift belong to the same person's
last click on the same room at or before them. A row of negative.csv that falls inside a view marks the view; any other
is a room that was shown and not entered: a row of its own, click=False and negative=True.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from data_pipelines.readers import room_logs
from data_pipelines.readers.csv_files import RECORD, Column, Rows, ids_in, read_csv, refuse, text_ids
from data_pipelines.readers.room_logs import World, known_rooms
from data_pipelines.readers.titles import TitleFile, title_file, titles_in
from data_pipelines.tables import ReadReport, Tables, validate

USER, LIVE = Column("user_id", "id"), Column("live_id", "id")
STREAMER = Column("streamer_id", "id", also=("author_id",))
TIME = Column("timestamp", "time")
EVENT = (USER, LIVE, STREAMER, TIME)
_FEATURES = tuple(Column(f"onehot_feat{i}", "text", needed=False, empty=True) for i in range(7))


def _features(*names: str) -> tuple[Column, ...]:
    renamed = {"is_live_streamer": ("is_live_author",)}
    return tuple(Column(name, "text", needed=False, empty=True, also=renamed.get(name, ())) for name in names)


FILES = {
    "room.csv": (
        Column("p_date", "text", needed=False, empty=True), LIVE, STREAMER,
        Column("live_type", "text", needed=False, empty=True),
        Column("start_timestamp", "time"), Column("end_timestamp", "end", empty=True),
        Column("live_content_category", "text", needed=False, empty=True),
        Column("live_name_id", "whole", needed=False, empty=True)),
    "click.csv": (*EVENT, Column("watch_live_time", "time")),
    "comment.csv": EVENT,
    "like.csv": EVENT,
    "gift.csv": (*EVENT, Column("gift_price", "real")),
    "negative.csv": EVENT,
    "user.csv": (USER, *_features(
        "age", "gender", "country", "device_brand", "device_price", "reg_timestamp", "fans_num", "follow_num",
        "first_watch_live_timestamp", "accu_watch_live_cnt", "accu_watch_live_duration", "is_live_streamer",
        "is_photo_author"), *_FEATURES),
    "streamer.csv": (STREAMER, *_features(
        "gender", "age", "country", "device_brand", "device_price", "live_operation_tag", "fans_user_num",
        "fans_group_fans_num", "follow_user_num", "first_live_timestamp", "accu_live_cnt", "accu_live_duration",
        "accu_play_cnt", "accu_play_duration", "reg_timestamp"), *_FEATURES),
}
NEEDED = ("click.csv", "room.csv")
# File of events → column of the interactions table that they fill.
EVENTS = {"click.csv": "click", "comment.csv": "comment", "like.csv": "like", "gift.csv": "gift_value",
          "negative.csv": "negative"}
ROOM_CATEGORIES = {"live_type": "live_type", "live_content_category": "category"}  # in the file → in the table
NO_ROW = "there is a header but no row below it"
OTHER_NAMES = {"room.csv": "mapped_room.csv", "streamer.csv": "author.csv"}  # of older copies


@dataclass
class Counts:
    """Rows by reason, of a log or of a part of it; as in ReadReport."""

    rows_read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    merged: dict[str, int] = field(default_factory=dict)


def read_kuailive(folder: str | Path, limit_users: int | None = None, progress: bool = True,
                  drop_unknown_rooms: bool = False) -> Tables:
    """Canonical tables of a KuaiLive folder; times are milliseconds since 1970.

    Clicks on a room that room.csv does not have are left out and counted. A room with several rows becomes one, from
    its earliest start to its latest end. An empty end means that the room was still on air.

    Args:
      folder: of the CSV files. limit_users: keep the first so many people in the order of their ids, or everybody.
      progress: show a bar on a terminal, file by file.
      drop_unknown_rooms: also leave out and count, rather than refuse, comments, likes, gifts and negative rows of a
        room that room.csv does not have.

    Raises:
      FileNotFoundError: if the folder, click.csv or room.csv is missing.
      ValueError: with file, line and column, for an unknown column, a cell of the wrong type, an impossible time, a
        gift for a room that does not exist, or a title without an embedding.
    """
    if limit_users is not None and limit_users < 1:
        raise ValueError(f"limit_users={limit_users} must be at least 1")
    paths = _find(Path(folder))
    with tqdm(total=sum(path.stat().st_size for path in paths.values()), desc="KuaiLive", unit="B", unit_scale=True,
              disable=None if progress else True) as bar:
        return _read(Path(folder), paths, limit_users, drop_unknown_rooms, bar)


def _read(folder: Path, paths: dict[str, Path], limit: int | None, drop_unknown_rooms: bool, bar) -> Tables:
    texts = text_ids(paths["click.csv"], FILES["click.csv"])
    counts = Counts()
    notes = counts.notes
    people = {name: read_csv(paths[name], FILES[name], texts) for name in ("user.csv", "streamer.csv") if name in paths}
    users, only = _users(paths, people.get("user.csv"), texts, limit)

    bar.set_postfix_str("room.csv")
    found = read_csv(paths["room.csv"], FILES["room.csv"], texts)
    if not len(found.frame):
        raise ValueError(f"{found.path}: {NO_ROW}")
    titles = title_file(paths["titles"]) if "titles" in paths else None
    rows = room_rows(found, {}, titles)
    rooms = room_logs.one_row_a_room(found.path, rows, notes)
    del found, rows
    _step(bar, paths, "user.csv", "streamer.csv", "room.csv", "titles")
    streamers = [people["streamer.csv"].frame["streamer_id"]] if "streamer.csv" in people else []
    authors = room_logs.all_ids(rooms["author"], *streamers)
    rooms = room_logs.number(rooms, "author", authors, "author_id")
    world = World(known_rooms(rooms), users, authors, drop_unknown_rooms)
    views, shown = None, []
    for name in EVENTS:
        if name in paths:
            bar.set_postfix_str(name)
            rows = read_csv(paths[name], FILES[name], texts, only)
            if only is not None:
                reason = f"row of a person beyond the first {len(only):,} (limit_users)"
                counts.dropped[reason] = counts.dropped.get(reason, 0) + rows.total - len(rows.frame)
            events = in_rooms(name, rows, world, counts)
            del rows
            if name == "click.csv":
                views = views_of(events, counts)
            else:
                views = with_events(views, name, events, shown, counts)
            _step(bar, paths, name)
    table = interactions(views, shown, counts)
    tables = []
    for key, ids, name, column in (("user_id", users, "user.csv", "user_id"),
                                   ("author_id", authors, "streamer.csv", "streamer_id")):
        features = room_logs.side_features(people[name], column, FILES[name], ids, notes) if name in people else []
        tables.append(room_logs.id_table(key, ids).with_columns(features))
    dropped, notes, merged = ({reason: count for reason, count in part.items() if count}
                              for part in (counts.dropped, counts.notes, counts.merged))
    report = ReadReport(str(folder), counts.rows_read, len(table), dropped, notes, merged)
    return validate(Tables(table, room_logs.room_table(rooms), tables[1], tables[0], report,
                           titles=None if titles is None else titles_in(titles, 0, titles.rows),
                           rooms_are_true_lifetimes=True))


def views_of(clicks: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """A row a view, from the clicks of some people that `in_rooms` returns: all of the clicks of each of them."""
    clicks = clicks.rename({"timestamp": "start_ms", "watch_live_time": "watch_ms"})
    views = room_logs.longest_watch(clicks.select("user_id", "room_id", "author_id", "start_ms", "watch_ms", "outside"))
    counts.dropped["click.csv: repeats person, room and time of another row (the longest watch is kept)"] = (
        len(clicks) - len(views))
    return views.with_columns(pl.int_range(pl.len()).alias("view"), click=pl.lit(True))


def with_events(views: pl.DataFrame, name: str, events: pl.DataFrame, shown: list[pl.DataFrame], counts: Counts
                ) -> pl.DataFrame:
    """The views with the column that the events of one file fill.

    Args:
      views: of some people, from `views_of`. name: of the file. events: of the same people, from `in_rooms`.
      shown: to which the rooms that were shown and not entered are added, where the file tells of them.
    """
    target = EVENTS[name]
    events = _last_click(events, views)
    if target == "negative":
        inside = (pl.col("timestamp") <= pl.col("start_ms") + pl.col("watch_ms")).fill_null(False)
        events = events.with_columns(pl.when(inside).then(pl.col("view")).alias("view"))
        apart = events.filter(pl.col("view").is_null()).select("user_id", "room_id", "author_id", "timestamp",
                                                               "outside")
        once = apart.unique(maintain_order=True)
        shown.append(once.rename({"timestamp": "start_ms"}).with_columns(
            pl.lit(0, pl.Int64).alias("watch_ms"), click=pl.lit(False), negative=pl.lit(True)))
        counts.dropped[f"{name}: repeated row"] = len(apart) - len(once)
    else:
        counts.dropped[f"{name}: the person has no click on the room before"] = events["view"].null_count()
    events = events.filter(pl.col("view").is_not_null())
    counts.merged[f"{name}: row that belongs to a view"] = len(events)
    weights = events["gift_price"].to_numpy() if target == "gift_value" else None
    total = np.bincount(events["view"].to_numpy(), weights, minlength=len(views))
    return views.with_columns(pl.Series(target, total > 0 if target == "negative" else total))


def interactions(views: pl.DataFrame, shown: list[pl.DataFrame], counts: Counts) -> pl.DataFrame:
    """The canonical table of some people, from their views and the rooms that they were shown."""
    rows = pl.concat([views.drop("view"), *shown], how="diagonal")
    counts.notes["view that begins before its room does, or after its end"] = int(rows["outside"].sum())
    counts.notes["view of zero watch time"] = int((rows["click"] & (rows["watch_ms"] == 0)).sum())
    return room_logs.interactions(rows)


def _find(folder: Path) -> dict[str, Path]:
    """name → path of the files that are there; title embeddings under "titles"."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Give the folder that KuaiLive.zip unpacks to")
    inside = sorted(child.parent for child in folder.glob("*/click.csv"))
    found = files_of(folder, {path.name for path in folder.iterdir() if path.is_file()},
                     f". It is in {inside[0]}: give that folder" if inside else "")
    return {name: folder / file for name, file in found.items()}


def files_of(folder: str | Path, files: set[str], hint: str = "") -> dict[str, str]:
    """Key of FILES, or "titles" → its name among the names of the folder's files; `hint` ends an error's sentence."""
    found = {}
    for name in FILES:
        file = next((n for n in (name, OTHER_NAMES.get(name, name)) if n in files), None)
        if file is not None:
            found[name] = file
        elif name in NEEDED:
            raise FileNotFoundError(f"{folder}/{name} is missing; a KuaiLive folder has at least "
                                    f"{' and '.join(NEEDED)}{hint}")
    titles = sorted(n for n in files if n.startswith("title_embeddings") and n.endswith((".npy", ".npz")))
    if len(titles) > 1:
        raise ValueError(f"{folder} has several files of title embeddings ({', '.join(titles)}): keep one of them")
    return found | ({"titles": titles[0]} if titles else {})


def _step(bar, paths: dict[str, Path], *names: str) -> None:
    bar.update(sum(paths[name].stat().st_size for name in names if name in paths))


def _users(paths, people: Rows | None, texts: frozenset[str], limit: int | None) -> tuple[pl.Series, pl.Series | None]:
    """(ids of the people to keep, in order; the same if rows must be filtered by them, else None)."""
    columns = [people.frame["user_id"]] if people is not None else []
    for name in ("click.csv", "negative.csv"):
        if name in paths:
            columns.append(ids_in(paths[name], FILES[name], "user_id", texts))
    users = room_logs.all_ids(*columns)
    return (users, None) if limit is None or limit >= len(users) else (users[:limit], users[:limit])


def room_rows(found: Rows, texts: dict[str, pl.Series], titles: TitleFile | None) -> pl.DataFrame:
    """Rows of room.csv, or of a part of it, as `indexing.one_row_a_room` takes them.

    Args:
      found: the rows. texts: column of ROOM_CATEGORIES → what it holds in the whole file, where `found` is a part.
      titles: that live_name_id points to, or None.
    """
    frame, path = found.frame, found.path
    if "p_date" in frame.columns:
        dates = frame["p_date"].unique().drop_nulls()
        plain = dates.str.replace_all("-", "").str.to_date("%Y%m%d", strict=False)
        refuse(path, frame, "p_date", pl.col("p_date").is_in(dates.filter(plain.is_null()).implode()),
               "is not a day like 20250504 or 2025-05-04")
    frame = frame.drop("p_date", strict=False)
    for name, target in ROOM_CATEGORIES.items():
        if name in frame.columns:
            frame = frame.with_columns(room_logs.categories(frame[name], texts.get(name)).alias(name)).rename(
                {name: target})
    title = pl.lit(-1, pl.Int32)
    if "live_name_id" in frame.columns and titles is not None:
        refuse(path, frame, "live_name_id", pl.col("live_name_id") >= titles.rows,
               f"has no row in {titles.path.name}, which has {titles.rows:,} (from 0)")
        title = pl.max_horizontal(pl.col("live_name_id").fill_null(-1), -1).cast(pl.Int32)
    if "category" not in frame.columns:
        frame = frame.with_columns(pl.lit(-1, pl.Int32).alias("category"))
    frame = frame.with_columns(title.alias("title_embedding")).drop("live_name_id", strict=False)
    return frame.rename({"streamer_id": "author", "start_timestamp": "start_ms", "end_timestamp": "end_ms"})


def in_rooms(name: str, rows: Rows, world: World, counts: Counts) -> pl.DataFrame:
    """Rows of a file of events, or of a part of it, that name a room and a person that there are.

    Returns:
      user_id, room_id, author_id (dense), timestamp, `outside` (whether it is outside of the room's life) and the
      file's own columns.

    Raises:
      ValueError: for a wrong price, or an event of an unknown room, as in `read_kuailive`.
    """
    path = rows.path
    if name == "gift.csv":
        refuse(path, rows.frame, "gift_price", ~(pl.col("gift_price").is_finite() & (pl.col("gift_price") >= 0)),
               "is not a price; a finite number, 0 or more, is needed")
    counts.rows_read += rows.total
    frame = rows.frame.join(world.rooms, on="live_id", how="left", maintain_order="left")
    unknown = pl.col("room_id").is_null()
    if name != "click.csv" and not world.drop_unknown_rooms:
        refuse(path, frame, "live_id", unknown, "is a room that room.csv does not have. Add the room there, remove the "
               "row, or prepare the folder with --drop_unknown_rooms, which leaves such rows out and counts them")
    count = int(frame["room_id"].null_count())
    counts.dropped[f"{name}: room that room.csv does not have"] = count
    outside = room_logs.is_outside(pl.col("timestamp"), pl.col("room_start_ms"), pl.col("room_end_ms"))
    frame = (frame.filter(~unknown) if count else frame).with_columns(outside=outside).drop(
        "live_id", RECORD, "room_start_ms", "room_end_ms")
    counts.notes[f"{name}: streamer_id differs from room.csv, which is believed"] = int(
        (frame["streamer_id"] != world.authors.gather(frame["author_id"])).sum())
    frame = room_logs.number(frame.drop("streamer_id"), "user_id", world.users, "user").rename({"user": "user_id"})
    strangers = frame["user_id"].null_count()
    counts.dropped[f"{name}: person whom neither user.csv nor click.csv has"] = strangers
    return frame.filter(pl.col("user_id").is_not_null()) if strangers else frame


def _last_click(events: pl.DataFrame, views: pl.DataFrame) -> pl.DataFrame:
    """The events with view, start_ms and watch_ms of the person's last click on the room at or before them, or null."""
    # Prices of the same moment are added in the same order always: sums of floats depend on it.
    return events.sort("timestamp", *[name for name in ("gift_price",) if name in events.columns]).join_asof(
        views.select("user_id", "room_id", "start_ms", "watch_ms", "view").sort("start_ms"), left_on="timestamp",
        right_on="start_ms", by=["user_id", "room_id"], strategy="backward", coalesce=False, check_sortedness=False)
