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

from data_pipelines import indexing
from data_pipelines.csv_files import RECORD, Column, Rows, ids_in, read_csv, refuse, text_ids
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
# File of events that belong to views → column of the interactions table.
EVENTS = {"comment.csv": "comment", "like.csv": "like", "gift.csv": "gift_value", "negative.csv": "negative"}
OTHER_NAMES = {"room.csv": "mapped_room.csv", "streamer.csv": "author.csv"}  # of older copies


@dataclass
class _Log:
    """What the files of a folder are turned into on the way; counts are reason → rows."""

    rooms: pl.DataFrame  # live_id (sorted), author_id, start_ms, …
    users: pl.Series  # ids in the source, in order; so are authors
    authors: pl.Series
    only: pl.Series | None
    drop_unknown_rooms: bool
    notes: dict[str, int]
    dropped: dict[str, int] = field(default_factory=dict)
    merged: dict[str, int] = field(default_factory=dict)
    rows_read: int = 0


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
    notes: dict[str, int] = {}
    people = {name: read_csv(paths[name], FILES[name], texts) for name in ("user.csv", "streamer.csv") if name in paths}
    users, only = _users(paths, people.get("user.csv"), texts, limit)

    bar.set_postfix_str("room.csv")
    found = read_csv(paths["room.csv"], FILES["room.csv"], texts)
    rooms, titles = _rooms(found, paths.get("titles"), notes)
    _step(bar, paths, "user.csv", "streamer.csv", "room.csv", "titles")
    streamers = [people["streamer.csv"].frame["streamer_id"]] if "streamer.csv" in people else []
    authors = indexing.all_ids(rooms["author"], *streamers)
    rooms = indexing.number(rooms, "author", authors, "author_id")
    log = _Log(rooms, users, authors, only, drop_unknown_rooms, notes)
    table = indexing.interactions(_views(log, paths, texts, bar))
    notes["view that begins before its room does, or after its end"] = indexing.outside_life(table, rooms)
    notes["view of zero watch time"] = int((table["click"] & (table["watch_ms"] == 0)).sum())
    tables = []
    for key, ids, name, column in (("user_id", users, "user.csv", "user_id"),
                                   ("author_id", authors, "streamer.csv", "streamer_id")):
        features = indexing.side_features(people[name], column, FILES[name], ids, notes) if name in people else []
        tables.append(indexing.id_table(key, ids).with_columns(features))
    counts = ({reason: count for reason, count in part.items() if count} for part in (log.dropped, notes, log.merged))
    report = ReadReport(str(folder), log.rows_read, len(table), *counts)
    return validate(Tables(table, indexing.room_table(rooms), tables[1], tables[0], report, titles=titles,
                           rooms_are_true_lifetimes=True))


def _views(log: _Log, paths: dict[str, Path], texts: frozenset[str], bar) -> pl.DataFrame:
    """Clicks with what came of them, and rooms that were shown and not entered; in no order."""
    bar.set_postfix_str("click.csv")
    clicks = _events(log, paths["click.csv"], texts).rename({"timestamp": "start_ms", "watch_live_time": "watch_ms"})
    views = indexing.longest_watch(clicks.select("user_id", "room_id", "author_id", "start_ms", "watch_ms"))
    log.dropped["click.csv: repeats person, room and time of another row (the longest watch is kept)"] = (
        len(clicks) - len(views))
    views = views.with_columns(pl.int_range(pl.len()).alias("view"), click=pl.lit(True))
    _step(bar, paths, "click.csv")
    shown = []
    for name, target in EVENTS.items():
        if name not in paths:
            continue
        bar.set_postfix_str(name)
        events = _last_click(_events(log, paths[name], texts), views)
        if target == "negative":
            inside = (pl.col("timestamp") <= pl.col("start_ms") + pl.col("watch_ms")).fill_null(False)
            events = events.with_columns(pl.when(inside).then(pl.col("view")).alias("view"))
            apart = events.filter(pl.col("view").is_null()).select("user_id", "room_id", "author_id", "timestamp")
            once = apart.unique(maintain_order=True)
            shown.append(once.rename({"timestamp": "start_ms"}).with_columns(
                pl.lit(0, pl.Int64).alias("watch_ms"), click=pl.lit(False), negative=pl.lit(True)))
            log.dropped[f"{name}: repeated row"] = len(apart) - len(once)
        else:
            log.dropped[f"{name}: the person has no click on the room before"] = events["view"].null_count()
        events = events.filter(pl.col("view").is_not_null())
        log.merged[f"{name}: row that belongs to a view"] = len(events)
        weights = events["gift_price"].to_numpy() if target == "gift_value" else None
        total = np.bincount(events["view"].to_numpy(), weights, minlength=len(views))
        views = views.with_columns(pl.Series(target, total > 0 if target == "negative" else total))
        _step(bar, paths, name)
    return pl.concat([views.drop("view"), *shown], how="diagonal")


def _find(folder: Path) -> dict[str, Path]:
    """name → path of the files that are there; title embeddings under "titles"."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Give the folder that KuaiLive.zip unpacks to")
    paths = {}
    for name in FILES:
        path = next((folder / n for n in (name, OTHER_NAMES.get(name, name)) if (folder / n).is_file()), None)
        if path is not None:
            paths[name] = path
        elif name in NEEDED:
            inside = sorted(child.parent for child in folder.glob(f"*/{name}"))
            hint = f". It is in {inside[0]}: give that folder" if inside else ""
            raise FileNotFoundError(f"{folder / name} is missing; a KuaiLive folder has at least "
                                    f"{' and '.join(NEEDED)}{hint}")
    titles = sorted(path for path in folder.glob("title_embeddings*") if path.suffix in (".npy", ".npz"))
    if len(titles) > 1:
        raise ValueError(f"{folder} has several files of title embeddings ({', '.join(p.name for p in titles)}): keep "
                         "one of them")
    return paths | ({"titles": titles[0]} if titles else {})


def _step(bar, paths: dict[str, Path], *names: str) -> None:
    bar.update(sum(paths[name].stat().st_size for name in names if name in paths))


def _users(paths, people: Rows | None, texts: frozenset[str], limit: int | None) -> tuple[pl.Series, pl.Series | None]:
    """(ids of the people to keep, in order; the same if rows must be filtered by them, else None)."""
    columns = [people.frame["user_id"]] if people is not None else []
    for name in ("click.csv", "negative.csv"):
        if name in paths:
            columns.append(ids_in(paths[name], FILES[name], "user_id", texts))
    users = indexing.all_ids(*columns)
    return (users, None) if limit is None or limit >= len(users) else (users[:limit], users[:limit])


def _rooms(found: Rows, titles_path: Path | None, notes: dict[str, int]) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """(rooms sorted by live_id, titles or None)."""
    frame, path = found.frame, found.path
    if not len(frame):
        raise ValueError(f"{path}: there is a header but no row below it")
    if "p_date" in frame.columns:
        dates = frame["p_date"].unique().drop_nulls()
        plain = dates.str.replace_all("-", "").str.to_date("%Y%m%d", strict=False)
        refuse(path, frame, "p_date", pl.col("p_date").is_in(dates.filter(plain.is_null()).implode()),
               "is not a day like 20250504 or 2025-05-04")
    frame = frame.drop("p_date", strict=False)
    for name, target in (("live_type", "live_type"), ("live_content_category", "category")):
        if name in frame.columns:
            frame = frame.with_columns(indexing.categories(frame[name]).alias(name)).rename({name: target})
    titles = None if titles_path is None else _titles(titles_path)
    title = pl.lit(-1, pl.Int32)
    if "live_name_id" in frame.columns and titles is not None:
        refuse(path, frame, "live_name_id", pl.col("live_name_id") >= len(titles),
               f"has no row in {titles_path.name}, which has {len(titles):,} (from 0)")
        title = pl.max_horizontal(pl.col("live_name_id").fill_null(-1), -1).cast(pl.Int32)
    if "category" not in frame.columns:
        frame = frame.with_columns(pl.lit(-1, pl.Int32).alias("category"))
    frame = frame.with_columns(title.alias("title_embedding")).drop("live_name_id", strict=False)
    frame = frame.rename({"streamer_id": "author", "start_timestamp": "start_ms", "end_timestamp": "end_ms"})
    return indexing.one_row_a_room(path, frame, notes), titles


def _titles(path: Path) -> pl.DataFrame:
    """title_id and embedding of a NumPy file whose rows are live_name_ids."""
    try:
        values = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if path.suffix == ".npz":
            names = values.files
            if len(names) != 1:
                raise ValueError(f"{path} holds {len(names)} arrays ({', '.join(names)}): it must hold one, a row a "
                                 "live_name_id")
            values = values[names[0]]
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a NumPy array of numbers ({error})") from error
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"{path} holds {values.dtype} {list(values.shape)}: numbers with two axes are needed, a row a "
                         "live_name_id")
    values = np.ascontiguousarray(values, dtype=np.float32)
    return pl.DataFrame({"title_id": np.arange(len(values), dtype=np.int32),
                         "embedding": pl.Series(values, dtype=pl.Array(pl.Float32, values.shape[1]))})


def _events(log: _Log, path: Path, texts: frozenset[str]) -> pl.DataFrame:
    """Rows of a file of events by people that are kept: user_id, room_id, author_id (dense), timestamp and others."""
    name = path.name
    rows = read_csv(path, FILES[name], texts, log.only)
    if name == "gift.csv":
        refuse(path, rows.frame, "gift_price", ~(pl.col("gift_price").is_finite() & (pl.col("gift_price") >= 0)),
               "is not a price; a finite number, 0 or more, is needed")
    log.rows_read += rows.total
    if log.only is not None:
        reason = f"row of a person beyond the first {len(log.only):,} (limit_users)"
        log.dropped[reason] = log.dropped.get(reason, 0) + rows.total - len(rows.frame)
    known = pl.DataFrame([log.rooms["live_id"], log.rooms["author_id"],
                          pl.Series("room_id", np.arange(len(log.rooms), dtype=np.int32))])
    frame = rows.frame.join(known, on="live_id", how="left", maintain_order="left")
    unknown = pl.col("room_id").is_null()
    if name != "click.csv" and not log.drop_unknown_rooms:
        refuse(path, frame, "live_id", unknown, "is a room that room.csv does not have. Add the room there, remove the "
               "row, or prepare the folder with --drop_unknown_rooms, which leaves such rows out and counts them")
    count = int(frame["room_id"].null_count())
    log.dropped[f"{name}: room that room.csv does not have"] = count
    frame = (frame.filter(~unknown) if count else frame).drop("live_id", RECORD)
    log.notes[f"{name}: streamer_id differs from room.csv, which is believed"] = int(
        (frame["streamer_id"] != log.authors.gather(frame["author_id"])).sum())
    frame = indexing.number(frame.drop("streamer_id"), "user_id", log.users, "user").rename({"user": "user_id"})
    strangers = frame["user_id"].null_count()
    log.dropped[f"{name}: person whom neither user.csv nor click.csv has"] = strangers
    return frame.filter(pl.col("user_id").is_not_null()) if strangers else frame


def _last_click(events: pl.DataFrame, views: pl.DataFrame) -> pl.DataFrame:
    """The events with view, start_ms and watch_ms of the person's last click on the room at or before them, or null."""
    return events.sort("timestamp").join_asof(
        views.select("user_id", "room_id", "start_ms", "watch_ms", "view").sort("start_ms"), left_on="timestamp",
        right_on="start_ms", by=["user_id", "room_id"], strategy="backward", coalesce=False, check_sortedness=False)
