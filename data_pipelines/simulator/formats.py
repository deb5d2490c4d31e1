"""Writers of canonical tables in the forms of KuaiLive and KuaiLive-M3, as the readers of those forms expect them.

They carry a simulated log to programs that know only those forms, and test the readers on more than a few rows by
hand. What a form has no place for is left out: KuaiLive has no follows, shares, segments, videos, dislikes, positions
and propensities; KuaiLive-M3 has no dislikes, positions, propensities and title embeddings, and counts gifts instead of
pricing them. The same tables give the same bytes.
"""

from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.readers import kuailive
from data_pipelines.tables import Tables

DAY_MS = 86_400_000
# Side features that the tables lack: as plain as the real files have them, and the same for everybody.
CONSTANTS = {
    "age": "24-30", "gender": "M", "country": "China", "device_brand": "APPLE", "device_price": "5000+",
    "reg_timestamp": "2018-02-04", "fans_num": "0-10", "follow_num": "10-100", "live_operation_tag": "Relationship",
    "first_watch_live_timestamp": "2023-05-03", "accu_watch_live_cnt": "0-50000", "first_live_timestamp": "2019-11-30",
    "accu_watch_live_duration": "0-1000000000", "is_live_streamer": "0", "is_photo_author": "0",
    "fans_user_num": "10000-100000", "fans_group_fans_num": "0-10", "follow_user_num": "100-1000",
    "accu_live_cnt": "100-500", "accu_live_duration": "500000000-1000000000", "accu_play_cnt": "100000-500000",
    "accu_play_duration": "50000000000-100000000000", **{f"onehot_feat{i}": "0" for i in range(7)},
}
FAN_EDGES = (1e3, 1e4, 1e5, 1e6, 1e7)
FAN_BINS = ("0-1k", "1k-1w", "1w-10w", "10w-100w", "100w-1000w", "1000w+")  # as KuaiLive-M3 has them
SIMULATED_NAMES = {"fans_user_num": "fans"}  # column of the file → side feature of the simulator that fills it


def write_kuailive(tables: Tables, folder: str | Path) -> None:
    """Writes the folder that `kuailive.read_kuailive` reads; files of the same names are replaced.

    A room on air at midnight stands on one row of room.csv a day, without an end on all but the last. Comments and
    likes are spread over their view. Where a person has several clicks on a room at the same moment, they cannot be
    told apart again.
    """
    folder = _made(folder)
    users, authors = tables.users["source_id"], tables.authors["source_id"]
    lives = _live_ids(tables)
    log = tables.interactions
    names = {"user_id": users.gather(log["user_id"]), "live_id": lives.gather(log["room_id"]),
             "streamer_id": authors.gather(log["author_id"])}
    events = pl.DataFrame(names).with_columns(log.select("room_id", "start_ms", "watch_ms", "click", "comment", "like",
                                                         "gift_value", "negative"))
    # An event at t belongs to the person's last click on the room at or before t.
    clicks = events.filter(pl.col("click")).sort("user_id", "live_id", "start_ms", "watch_ms")
    later = pl.col("start_ms").shift(-1).over("user_id", "live_id") - 1 - pl.col("start_ms")
    clicks = clicks.with_columns(span=pl.min_horizontal("watch_ms", later).clip(0)).sort("start_ms", "user_id",
                                                                                         "live_id")
    form = ("user_id", "live_id", "streamer_id", pl.col("start_ms").alias("timestamp"))
    clicks.select(*form, pl.col("watch_ms").alias("watch_live_time")).write_csv(folder / "click.csv")
    for name in ("comment", "like"):
        _spread(clicks, name).select(*form[:3], "timestamp").write_csv(folder / f"{name}.csv")
    gifts = clicks.filter(pl.col("gift_value") > 0).select(*form, pl.col("gift_value").alias("gift_price"))
    gifts.write_csv(folder / "gift.csv")
    # Rooms that were shown and not clicked, as the publisher names the file.
    events.filter(~pl.col("click")).select(form).sort("timestamp", "user_id", "live_id").write_csv(
        folder / "negative.csv")

    rooms = tables.rooms.select(pl.Series("live_id", lives), pl.Series("streamer_id", authors.gather(
        tables.rooms["author_id"])), pl.lit(1).alias("live_type"), pl.col("start_ms").alias("start_timestamp"),
        pl.col("end_ms").alias("end_timestamp"), pl.col("category").alias("live_content_category"),
        pl.when(pl.col("title_embedding") >= 0).then(pl.col("title_embedding")).alias("live_name_id"))
    _by_day(rooms).write_csv(folder / "room.csv")
    for name, key, people in (("user.csv", "user_id", tables.users), ("streamer.csv", "streamer_id", tables.authors)):
        columns = [column.name for column in kuailive.FILES[name]]
        _people(people, key, columns).write_csv(folder / name)
    if tables.titles is not None:
        np.save(folder / "title_embeddings.npy", tables.titles["embedding"].to_numpy().astype(np.float32))


def write_kuailive_m3(tables: Tables, folder: str | Path) -> None:
    """Writes the folder that `kuailive_m3.read_kuailive_m3` reads; files of the same names are replaced."""
    folder = _made(folder)
    users, authors = tables.users["source_id"], tables.authors["source_id"]
    lives = _live_ids(tables)
    log = tables.interactions.filter(pl.col("click"))
    log.select(
        users.gather(log["user_id"]).alias("user_id"), authors.gather(log["author_id"]).alias("author_id"),
        lives.gather(log["room_id"]).alias("live_id"), pl.col("start_ms").alias("live_play_start_timestamp"),
        (pl.col("start_ms") + pl.col("watch_ms")).alias("live_play_end_timestamp"),
        pl.col("watch_ms").alias("play_duration"), pl.col("like").alias("like_cnt"),
        pl.col("comment").alias("comment_cnt"), (pl.col("gift_value") > 0).cast(pl.Int32).alias("send_gift_cnt"),
        pl.col("follow").alias("follow_author_cnt"), pl.col("share").alias("share_cnt"),
        pl.lit(0).alias("is_auto_play"),
    ).write_csv(folder / "live_interaction.csv")
    if "satisfaction" in log.columns:
        answers = log.with_columns(user=_whole(users).gather(log["user_id"]), live=_whole(lives).gather(
            log["room_id"])).drop_nulls("satisfaction")
        answers.select(
            pl.col("user").alias("user_id"), pl.col("live").alias("live_id"), pl.col("start_ms").alias("timestamp"),
            "satisfaction").write_csv(folder / "live_questionnaire.csv")
    shown = tables.interactions.filter(~pl.col("click"))
    shown.select(_whole(users).gather(shown["user_id"]).alias("user_id"), _whole(lives).gather(
        shown["room_id"]).alias("live_id"), pl.col("start_ms").alias("timestamp")).write_parquet(
            folder / "live_show.parquet")
    tables.users.select(pl.col("source_id").alias("user_id")).write_csv(folder / "user_id_set.csv")
    fans = tables.authors["fans"].to_numpy() if "fans" in tables.authors.columns else np.zeros(len(authors))
    tables.authors.select(
        pl.col("source_id").alias("author_id"), pl.lit(0).alias("is_photo_author"), pl.lit(1).alias("is_live_author"),
        pl.lit("U").alias("gender"), pl.lit("unknown").alias("age_segment"),
        pl.Series("fans_user_num", FAN_BINS).gather(np.digitize(fans, FAN_EDGES, right=True)),
    ).write_csv(folder / "author_profile.csv")
    rooms = tables.rooms
    rooms.select(
        _whole(lives).alias("live_id"), _whole(authors).gather(rooms["author_id"]).alias("author_id"),
        pl.format("room {}", "room_id").alias("live_name"), pl.col("start_ms").alias("start_timestamp"),
        pl.col("end_ms").alias("end_timestamp"), (pl.col("end_ms") - pl.col("start_ms")).alias("live_duration"),
    ).write_parquet(folder / "live_room_meta.parquet")
    if tables.segments is not None:
        shards = _made(folder / "live_emb_128_ts")
        segments = tables.segments
        frame = segments.select(
            _whole(lives).gather(segments["room_id"]).alias("live_stream_id"),
            pl.int_range(pl.len()).over("room_id").alias("segment_id"),
            pl.col("embedding").cast(pl.List(pl.Float32)).alias("feature_128"), pl.col("end_ms").alias("timestamp"))
        half = len(frame) // 2
        for i, part in enumerate((frame[:half], frame[half:])):
            part.write_parquet(shards / f"live_emb_128_ts_part{i:02d}.parquet")
    if tables.videos is not None:
        videos = tables.videos
        videos.select(
            _whole(users).gather(videos["user_id"]).alias("user_id"),
            _whole(authors).gather(videos["author_id"]).alias("author_id"), pl.col("start_ms").alias("enter_timestamp"),
            (pl.col("start_ms") + pl.col("watch_ms")).alias("leave_timestamp")).write_parquet(
                folder / "photo_play.parquet")


def _made(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _live_ids(tables: Tables) -> pl.Series:
    rooms = tables.rooms
    return (rooms["source_id"] if "source_id" in rooms.columns else rooms["room_id"]).cast(pl.String)


def _whole(ids: pl.Series) -> pl.Series:
    """Ids as whole numbers if they all are."""
    numbers = ids.cast(pl.Int64, strict=False)
    return ids if numbers.has_nulls() else numbers


def _spread(clicks: pl.DataFrame, name: str) -> pl.DataFrame:
    """A row for every comment or like, at even distances within the view and before the next click on the room."""
    rows = clicks.filter(pl.col(name) > 0).with_row_index("view")
    rows = rows.select(pl.all().repeat_by(name).explode())
    nth = pl.int_range(1, pl.len() + 1).over("view")
    return rows.with_columns(timestamp=pl.col("start_ms") + pl.col("span") * nth // (pl.col(name).cast(pl.Int64) + 1)
                             ).sort("timestamp", "user_id", "live_id")


def _by_day(rooms: pl.DataFrame) -> pl.DataFrame:
    """A row for every day on which a room is on air: at most two, that of its start and that of its end."""
    day = {name: pl.from_epoch(f"{name}_timestamp", "ms").dt.strftime("%Y%m%d") for name in ("start", "end")}
    rooms = rooms.with_columns(p_date=day["start"], last=day["end"])
    over = pl.col("last").is_not_null() & (pl.col("last") != pl.col("p_date"))
    first = rooms.with_columns(pl.when(~over).then(pl.col("end_timestamp")).alias("end_timestamp"))
    second = rooms.filter(over).with_columns(p_date=pl.col("last"))
    both = pl.concat([first, second]).sort("p_date", "start_timestamp", "live_id")
    return both.select("p_date", pl.exclude("p_date", "last"))


def _people(people: pl.DataFrame, key: str, columns: list[str]) -> pl.DataFrame:
    """A row for each person, with side features of the same names or the constants."""
    made = []
    for name in columns[1:]:
        source = name if name in people.columns else SIMULATED_NAMES.get(name)
        made.append((pl.col(source) if source in people.columns else pl.lit(CONSTANTS[name])).alias(name))
    return people.select(pl.col("source_id").alias(key), *made)
