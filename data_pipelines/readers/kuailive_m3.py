"""Reader of KuaiLive-M3 (Hugging Face imgkkk2004/KuaiLive-M3): live views, rooms, their content and short videos.

live_interaction.csv and live_room_meta.parquet are needed; the content (live_emb_128_ts/), the short-video history
(photo_play.parquet) and the lists of people (user_id_set.csv, author_profile.csv) are used where they are there. The
files may lie side by side or in live/ and short_video/, as the publisher packs them. Times are milliseconds since 1970,
or dates with a clock, which are read as UTC. Columns beyond those named here are not used, and counted in the notes.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl
from tqdm import tqdm

from data_pipelines.readers import room_logs
from data_pipelines.readers.csv_files import RECORD, Column, check_times, clock_ms, ids_in, read_csv, refuse, text_ids
from data_pipelines.readers.room_logs import World, known_rooms
from data_pipelines.tables import ReadReport, Tables, validate

AUTHOR = Column("author_id", "id", also=("streamer_id",))
COUNTS = {"like_cnt": "like", "comment_cnt": "comment", "follow_author_cnt": "follow", "share_cnt": "share"}
INTERACTION = (
    Column("user_id", "id"), AUTHOR, Column("live_id", "id"), Column("live_play_start_timestamp", "time"),
    Column("live_play_end_timestamp", "end", needed=False, empty=True), Column("play_duration", "end", empty=True),
    *[Column(name, "whole", needed=False, empty=True) for name in (*COUNTS, "send_gift_cnt")])
ROOM = {"live_id": True, "author_id": True, "live_name": False, "start_timestamp": True, "end_timestamp": True,
        "live_duration": False}  # column → whether it is needed
SEGMENT = dict.fromkeys(("live_stream_id", "segment_id", "feature_128", "timestamp"), True)
# Columns of the lists of people, which are side features and, like the lists, need not be there.
PEOPLE = {"user_id_set.csv": (Column("user_id", "id"),),
          "author_profile.csv": (AUTHOR, *[Column(name, "text", needed=False, empty=True) for name in (
              "is_photo_author", "is_live_author", "gender", "age_segment", "fans_user_num")])}
VIDEO = dict.fromkeys(("user_id", "author_id", "enter_timestamp", "leave_timestamp"), True)
PLACES = {"live_interaction.csv": "live", "live_room_meta.parquet": "live", "live_emb_128_ts": "live",
          "photo_play.parquet": "short_video", "user_id_set.csv": "", "author_profile.csv": ""}
NO_SHARD = "holds no .parquet and no .csv file: download its shards, or remove it"


def read_kuailive_m3(folder: str | Path, limit_users: int | None = None, progress: bool = True,
                     drop_unknown_rooms: bool = False) -> Tables:
    """Canonical tables of a KuaiLive-M3 folder.

    Every row of live_interaction.csv is a view (click=True) of play_duration milliseconds, or, where that is empty,
    of the time between its start and its end. gift_value is the number of gifts: M3 has no prices. Views of a room
    that live_room_meta does not have are left out and counted.

    Args:
      folder: as it was downloaded. limit_users: keep the first so many people in the order of their ids, and only the
        content of rooms that they entered; the content of everything is 45 GB.
      progress: show a bar on a terminal, file by file.
      drop_unknown_rooms: also leave out and count, rather than refuse, views with gifts for an unknown room.

    Raises:
      FileNotFoundError: if the folder or a needed file is missing.
      ValueError: with file, row and column, for a cell of the wrong type, an impossible time, or a gift for a room
        that does not exist.
    """
    if limit_users is not None and limit_users < 1:
        raise ValueError(f"limit_users={limit_users} must be at least 1")
    folder = Path(folder)
    paths = _find(folder)
    shards = _shards(paths)
    notes: dict[str, int] = {}
    dropped: dict[str, int] = {}
    with tqdm(total=len(paths) - bool(shards) + len(shards), desc="KuaiLive-M3", unit="file",
              disable=None if progress else True) as bar:
        file = paths["live_interaction.csv"]
        texts = text_ids(file, INTERACTION, unknown_is_error=False)
        people = {}
        for name in PEOPLE:
            if name in paths:
                people[name] = read_csv(paths[name], PEOPLE[name], texts, unknown_is_error=False)
                bar.update()
        listed = [people["user_id_set.csv"].frame["user_id"]] if "user_id_set.csv" in people else []
        users = room_logs.all_ids(ids_in(file, INTERACTION, "user_id", texts, unknown_is_error=False), *listed)
        only = users[:limit_users] if limit_users is not None and limit_users < len(users) else None
        users = users if only is None else only

        file_of_rooms = paths["live_room_meta.parquet"]
        rooms = room_logs.one_row_a_room(file_of_rooms, room_rows(file_of_rooms, texts, notes), notes)
        bar.update()
        videos = None
        if "photo_play.parquet" in paths:
            videos = video_rows(paths["photo_play.parquet"], texts, users, notes)
            bar.update()
        profiles = people.get("author_profile.csv")
        authors = room_logs.all_ids(rooms["author"], *([] if videos is None else [videos["author"]]),
                                   *([] if profiles is None else [profiles.frame["author_id"]]))
        rooms = room_logs.number(rooms, "author", authors, "author_id")

        rows = read_csv(file, INTERACTION, texts, only, unknown_is_error=False)
        notes |= {f"value of the column {name!r} of {file.name}, which is not used": rows.total for name in rows.unused}
        if only is not None:
            dropped[f"row of a person beyond the first {len(only):,} (limit_users)"] = rows.total - len(rows.frame)
        world = World(known_rooms(rooms), users, authors, drop_unknown_rooms)
        views = once(views_in(file, rows.frame, world, notes, dropped), notes, dropped)
        bar.update()
        segments = None
        if shards:
            wanted = rooms["live_id"] if only is None else rooms["live_id"].gather(views["room_id"].unique().sort())
            segments = _segments(shards, rooms["live_id"], wanted, notes, bar)
    table = room_logs.interactions(views)
    if videos is not None:
        videos = video_table(videos, authors)
    features = [] if profiles is None else room_logs.side_features(profiles, "author_id", PEOPLE["author_profile.csv"],
                                                                  authors, notes)
    report = ReadReport(str(folder), rows.total, len(table), {k: v for k, v in dropped.items() if v},
                        {k: v for k, v in notes.items() if v})
    author_table = room_logs.id_table("author_id", authors).with_columns(features)
    return validate(Tables(table, room_logs.room_table(rooms), author_table, room_logs.id_table("user_id", users),
                           report, segments=segments, videos=videos, rooms_are_true_lifetimes=True))


def _find(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Give the folder of the downloaded data set")
    return {name: folder / place for name, place in places_of(folder, lambda place: (folder / place).exists()).items()}


def places_of(folder: str | Path, exists: Callable[[str], bool]) -> dict[str, str]:
    """Key of PLACES → where it is in the folder, of which `exists` tells what is there."""
    found = {}
    for name, inner in PLACES.items():
        place = next((p for p in (name, f"{inner}/{name}") if exists(p)), None)
        if place is not None:
            found[name] = place
        elif name in ("live_interaction.csv", "live_room_meta.parquet"):
            raise FileNotFoundError(f"{folder}/{name} is missing (nor is it in {inner}/); a KuaiLive-M3 folder has at "
                                    "least live_interaction.csv and live_room_meta.parquet")
    return found


def _shards(paths: dict[str, Path]) -> list[Path]:
    if "live_emb_128_ts" not in paths:
        return []
    folder = paths["live_emb_128_ts"]
    shards = sorted(p for p in folder.rglob("*") if p.suffix in (".parquet", ".csv"))
    if not shards:
        raise FileNotFoundError(f"{folder} {NO_SHARD}")
    return shards


def _frame(path: Path, columns: dict[str, bool], notes: dict[str, int], keep: pl.Expr | None = None,
           part: tuple[pl.LazyFrame, int] | None = None) -> pl.DataFrame:
    """The known columns of a parquet (or CSV) file, times as int64 ms, with RECORD.

    `part` is some of the file's rows and the number of rows before them, or None for the whole file.
    """
    try:
        scan, first = part or (pl.scan_parquet(path) if path.suffix == ".parquet" else pl.scan_csv(path), 0)
        schema = scan.collect_schema()
        if "author_id" in columns and "author_id" not in schema and "streamer_id" in schema:
            scan, schema = scan.rename({"streamer_id": "author_id"}), schema | {"author_id": None}
        missing = [name for name, needed in columns.items() if needed and name not in schema]
        if missing:
            raise ValueError(f"{path} lacks the column {missing[0]!r}; found {', '.join(schema)}")
        unused = [name for name in schema if name not in columns and name != "streamer_id"]
        scan = scan.select(name for name in columns if name in schema).with_row_index(RECORD, first)
        frame = (scan if keep is None else scan.filter(keep)).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): download it again") from error
    for name in unused:
        reason = f"value of the column {name!r} of {path.name}, which is not used"
        notes[reason] = notes.get(reason, 0) + len(frame)
    for name in frame.columns:
        if not name.endswith("timestamp"):
            continue
        if frame.schema[name] == pl.String:
            clock = pl.coalesce(pl.col(name).cast(pl.Int64, strict=False), clock_ms(pl.col(name)))
            refuse(path, frame, name, pl.col(name).is_not_null() & clock.is_null(), "is not a time")
            frame = frame.with_columns(clock.alias(name))
        elif isinstance(frame.schema[name], pl.Datetime):
            frame = frame.with_columns(pl.col(name).dt.epoch("ms"))
        if frame.schema[name].is_float():
            frame = frame.with_columns(pl.col(name).fill_nan(None))
        elif not frame.schema[name].is_integer():
            raise ValueError(f"{path}, column {name}: holds {frame.schema[name]}; times in milliseconds are needed")
        check_times(path, frame, name)
        frame = frame.with_columns(pl.col(name).cast(pl.Int64))
    for name in columns:
        if name in frame.columns and columns[name] and name != "end_timestamp":
            refuse(path, frame, name, pl.col(name).is_null(), "is empty; every row needs a value there")
    return frame


def _typed(path: Path, frame: pl.DataFrame, column: str, is_text: bool) -> pl.DataFrame:
    """Ids as in live_interaction.csv: text, or whole numbers."""
    dtype = pl.String if is_text else pl.Int64
    ids = pl.col(column).cast(dtype, strict=False)
    refuse(path, frame, column, ids.is_null(), "is not a whole number, like the ids of live_interaction.csv")
    return frame.with_columns(ids)


def room_rows(path: Path, texts: frozenset[str], notes: dict[str, int],
              part: tuple[pl.LazyFrame, int] | None = None) -> pl.DataFrame:
    """Rows of live_room_meta, or of a part of it (see `_frame`), as `indexing.one_row_a_room` takes them."""
    frame = _frame(path, ROOM, notes, part=part)
    for name in ("live_id", "author_id"):
        frame = _typed(path, frame, name, name in texts)
    if "live_duration" in frame.columns:
        differs = (pl.col("end_timestamp") - pl.col("start_timestamp") - pl.col("live_duration")).abs() > 1000
        notes[f"{path.name}: live_duration is more than a second off its start and end, which are believed"] = int(
            frame.select(differs.sum()).item())
    frame = frame.drop("live_duration", strict=False).rename(
        {"author_id": "author", "start_timestamp": "start_ms", "end_timestamp": "end_ms"})
    return frame.with_columns(pl.lit(-1, pl.Int32).alias(name) for name in ("category", "title_embedding"))


def views_in(path: Path, frame: pl.DataFrame, world: World, notes: dict[str, int], dropped: dict[str, int]
             ) -> pl.DataFrame:
    """Views of rooms that there are, from rows of live_interaction.csv or of a part of it.

    Returns:
      columns of the interactions table, and `outside`: whether the view begins outside of the room's life.
    """
    start, end = pl.col("live_play_start_timestamp"), pl.col("live_play_end_timestamp")
    if "live_play_end_timestamp" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, pl.Int64).alias("live_play_end_timestamp"))
    refuse(path, frame, "live_play_end_timestamp", end < start, "is before the start of the view; correct or remove "
           "the row")
    refuse(path, frame, "play_duration", pl.col("play_duration").is_null() & end.is_null(), "is empty, and so is "
           "live_play_end_timestamp; one of them is needed")
    for name in (*COUNTS, "send_gift_cnt"):
        if name in frame.columns:
            refuse(path, frame, name, pl.col(name) < 0, "is negative; a count is 0 or more")
        else:
            frame = frame.with_columns(pl.lit(0).alias(name))
    off = (end - start - pl.col("play_duration")).abs() > 1000
    notes["view whose play_duration is more than a second off its start and end (play_duration is believed)"] = int(
        frame.select(off.sum()).item())
    rooms = world.rooms.rename({"author_id": "owner"})
    frame = frame.join(rooms, on="live_id", how="left", maintain_order="left")
    unknown = pl.col("room_id").is_null()
    if not world.drop_unknown_rooms:
        refuse(path, frame, "live_id", unknown & (pl.col("send_gift_cnt") > 0), "is a room that live_room_meta does "
               "not have, yet a gift was sent there. Add the room, remove the row, or prepare the folder with "
               "--drop_unknown_rooms, which leaves such rows out and counts them")
    dropped["room that live_room_meta does not have"] = frame["room_id"].null_count()
    frame = room_logs.number(frame.filter(~unknown), "user_id", world.users, "user").rename({"user": "user_id"})
    notes["author_id differs from live_room_meta, which is believed"] = int(
        (frame["author_id"] != world.authors.gather(frame["owner"])).sum())
    return frame.select(
        "user_id", "room_id", pl.col("owner").alias("author_id"), start.alias("start_ms"),
        pl.coalesce("play_duration", end - start).alias("watch_ms"), pl.lit(True).alias("click"),
        *[pl.col(name).fill_null(0).alias(target) for name, target in COUNTS.items()],
        pl.col("send_gift_cnt").fill_null(0).cast(pl.Float32).alias("gift_value"),
        room_logs.is_outside(start, pl.col("room_start_ms"), pl.col("room_end_ms")).alias("outside"))


def once(views: pl.DataFrame, notes: dict[str, int], dropped: dict[str, int]) -> pl.DataFrame:
    """The views of some people, all of each of them, without those that repeat person, room and time of another."""
    kept = room_logs.longest_watch(views)
    dropped["repeats person, room and time of another row (the longest watch is kept)"] = len(views) - len(kept)
    notes["view that begins before its room does, or after its end"] = int(kept["outside"].sum())
    return kept


def _segments(shards: list[Path], live_ids: pl.Series, wanted: pl.Series, notes: dict[str, int], bar) -> pl.DataFrame:
    """Segments of the wanted rooms, sorted by (room_id, end_ms)."""
    numbered = pl.DataFrame([live_ids.alias("live_id")]).with_row_index("room_id").cast({"room_id": pl.Int32})
    keep = None if len(wanted) == len(live_ids) else pl.col("live_stream_id").cast(wanted.dtype, strict=False).is_in(
        wanted.implode())
    parts, width = [], None
    for i, path in enumerate(shards):
        frame = in_rooms(segment_rows(path, live_ids.dtype == pl.String, notes, keep), numbered, notes)
        if len(frame):
            frame, width = embedded(path, frame, width)
            parts.append(frame.with_columns(pl.lit(i, pl.Int32).alias("file")))
        bar.update()
    if not parts:
        return pl.DataFrame(schema={"room_id": pl.Int32, "end_ms": pl.Int64, "embedding": pl.Array(pl.Float32, 128)})
    return segment_table(pl.concat(parts), notes)


def segment_rows(path: Path, is_text: bool, notes: dict[str, int], keep: pl.Expr | None = None,
                 part: tuple[pl.LazyFrame, int] | None = None) -> pl.DataFrame:
    """Rows of a file of content, or of a part of it (see `_frame`), with the room under live_id."""
    frame = _typed(path, _frame(path, SEGMENT, notes, keep, part), "live_stream_id", is_text)
    return frame.rename({"live_stream_id": "live_id"})


def in_rooms(rows: pl.DataFrame, rooms: pl.DataFrame, notes: dict[str, int]) -> pl.DataFrame:
    """Rows with the room_id of their live_id, without those of a room that `rooms` (live_id, room_id) lack."""
    frame = rows.join(rooms.select("live_id", "room_id"), on="live_id", how="left", maintain_order="left")
    reason = "segment of a room that live_room_meta does not have, left out"
    notes[reason] = notes.get(reason, 0) + frame["room_id"].null_count()
    return frame.drop("live_id").filter(pl.col("room_id").is_not_null())


def segment_table(rows: pl.DataFrame, notes: dict[str, int]) -> pl.DataFrame:
    """The canonical table from all segments of some rooms: room_id, end_ms, segment_id, embedding, file, RECORD."""
    frame = rows.sort("room_id", "end_ms", "segment_id", "file", RECORD)
    again = room_logs.like_the_row_before(frame, "room_id", "end_ms")
    notes["segment that ends with another of its room, left out"] = int(again.sum())
    return frame.filter(~again).select("room_id", "end_ms", "embedding")


def embedded(path: Path, frame: pl.DataFrame, width: int | None) -> tuple[pl.DataFrame, int]:
    """Segments with `embedding`, an array of float32 [width]; feature_128 is a list, an array, or a text with commas.

    `width` is that of every other segment, or None if these are the first. Returns also the width.
    """
    cells = pl.col("feature_128")
    if frame.schema["feature_128"] == pl.String:
        parts = cells.str.strip_chars("[] ").str.replace_all(r"[,\s]+", ",").str.split(",")
        frame = frame.with_columns(parts.list.eval(pl.element().cast(pl.Float32, strict=False)).alias("feature_128"))
    elif isinstance(frame.schema["feature_128"], pl.Array):
        frame = frame.with_columns(cells.arr.to_list())
    elif not isinstance(frame.schema["feature_128"], pl.List):
        raise ValueError(f"{path}, column feature_128: holds {frame.schema['feature_128']}; lists of numbers are "
                         "needed")
    width = width or int(frame["feature_128"].list.len()[0])
    size = pl.col("feature_128").list.len()
    refuse(path, frame.with_columns(size=size), "feature_128", (size != width) | (size == 0),
           f"numbers are there; every segment needs {width}", "size")
    numbers = pl.col("feature_128").list.eval(pl.element().is_finite().fill_null(False)).list.all()
    refuse(path, frame.with_columns(size=size), "feature_128", ~numbers, "numbers are there, one of which is not "
           "finite or not a number", "size")
    vectors = pl.col("feature_128").cast(pl.Array(pl.Float32, width)).alias("embedding")
    return frame.select("room_id", pl.col("timestamp").alias("end_ms"), "segment_id", vectors, RECORD), width


def video_rows(path: Path, texts: frozenset[str], users: pl.Series, notes: dict[str, int],
               part: tuple[pl.LazyFrame, int] | None = None) -> pl.DataFrame:
    """Short-video views, all or a part (see `_frame`), of the people that are kept.

    Returns:
      user_id (dense), author (as in the source), start_ms, watch_ms.
    """
    keep = pl.col("user_id").cast(users.dtype, strict=False).is_in(users.implode())
    frame = _typed(path, _frame(path, VIDEO, notes, keep, part), "author_id", "author_id" in texts)
    refuse(path, frame, "leave_timestamp", pl.col("leave_timestamp") < pl.col("enter_timestamp"),
           "is before enter_timestamp; correct or remove the row")
    frame = room_logs.number(_typed(path, frame, "user_id", "user_id" in texts), "user_id", users, "user")
    return frame.select(pl.col("user").alias("user_id"), pl.col("author_id").alias("author"),
                        pl.col("enter_timestamp").alias("start_ms"),
                        (pl.col("leave_timestamp") - pl.col("enter_timestamp")).alias("watch_ms"))


def video_table(rows: pl.DataFrame, authors: pl.Series) -> pl.DataFrame:
    """The canonical table from `video_rows` of some people, all of each of them."""
    return room_logs.number(rows, "author", authors, "author_id").select(
        "user_id", "author_id", "start_ms", "watch_ms").sort("user_id", "start_ms", "author_id", "watch_ms")
