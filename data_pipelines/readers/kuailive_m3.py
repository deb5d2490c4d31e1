"""Reader of KuaiLive-M3 (Hugging Face imgkkk2004/KuaiLive-M3): live views, rooms, their content and short videos.

live_interaction and live_room_meta are needed; all else is used where it is there: rooms that were shown and not
entered (live_show), comments, likes and shares as events, answers to a questionnaire, the content (live_emb_128_ts/),
short videos (photo_play) and the lists of people. Each is a .csv (.gz, .zip) or a .parquet file, side by side or in
live/ and short_video/, as the publisher packs them. Times are milliseconds since 1970, or clocks.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from data_pipelines.readers import forms as forms_lib
from data_pipelines.readers import room_logs, rows
from data_pipelines.readers.forms import Column, Form, first_rows
from data_pipelines.readers.room_logs import Known, known_rooms
from data_pipelines.readers.rows import DEFAULTS, Counts, Options
from data_pipelines.readers.text_files import LINE, is_parquet, layout_of
from data_pipelines.tables import Tables, validate

USER, AUTHOR = Column("user_id", "id"), Column("author_id", "id", also=("streamer_id",))
LIVE = Column("live_id", "id", also=("live_stream_id",))
EVENT = (USER, LIVE, Column("timestamp", "time", also=("time_ms", "time", "event_timestamp", "show_timestamp",
                                                       "impression_timestamp", "exposure_timestamp")))
COUNTS = {"like_cnt": "like", "comment_cnt": "comment", "follow_author_cnt": "follow", "share_cnt": "share"}
FILES = {
    "live_interaction": (
        USER, AUTHOR, LIVE, Column("live_play_start_timestamp", "time"),
        Column("live_play_end_timestamp", "end", needed=False, empty=True),
        Column("play_duration", "length", empty=True, unit="ms"),
        *[Column(name, "whole", needed=False, empty=True) for name in (*COUNTS, "send_gift_cnt")]),
    "live_room_meta": (
        LIVE, AUTHOR, Column("live_name", "text", needed=False, empty=True), Column("start_timestamp", "time"),
        Column("end_timestamp", "end", empty=True),
        Column("live_duration", "length", needed=False, empty=True, unit="ms")),
    "live_show": EVENT,
    "live_comment": EVENT,
    "live_like": EVENT,
    "live_share": EVENT,
    "live_questionnaire": (
        USER, LIVE, replace(EVENT[2], needed=False, empty=True),
        Column("satisfaction", "real", also=("satisfaction_score", "score", "answer", "rating", "option"))),
    "photo_play": (USER, AUTHOR, Column("enter_timestamp", "time"), Column("leave_timestamp", "end")),
    "user_id_set": (USER,),
    "author_profile": (AUTHOR, *[Column(name, "category", needed=False, empty=True) for name in (
        "is_photo_author", "is_live_author", "gender", "age_segment", "fans_user_num")]),
}
SEGMENT = (LIVE, Column("segment_id", "text", needed=False, empty=True), Column("feature_128", "any"),
           Column("timestamp", "time"))
NEEDED = ("live_interaction", "live_room_meta")
ROOMS, CONTENT, VIDEOS = "live_room_meta", "live_emb_128_ts", "photo_play"
LISTS = {"user_id": "user_id_set", "author_id": "author_profile"}  # of people, with what is known of them
PEOPLE_IN = ("live_interaction",)  # files whose rows say who there is
# File of events → column of the interactions table that they fill, where they belong to a view.
EVENTS = {"live_interaction": "", "live_comment": "comment", "live_like": "like", "live_share": "share",
          "live_show": "", "live_questionnaire": ""}
NO_SHARD = "holds no .parquet and no .csv file: download its shards, or remove it"
NOWHERE = "neither live_interaction nor user_id_set"
ZONE_SLACK_MS = 120_000  # a segment that ends so long after its room lies in it all the same
ALWAYS = 2**62  # later than any time: an answer without a time is about the last view


def read_kuailive_m3(folder: str | Path, options: Options = DEFAULTS) -> Tables:
    """Canonical tables of a KuaiLive-M3 folder.

    Every row of live_interaction is a view (click=True) of play_duration milliseconds, or, where that is missing, of
    the time between its start and its end. gift_value is the number of gifts: M3 has no prices. Rows of a room that
    live_room_meta does not have are left out and counted. With `options.limit_users` only the content of rooms that
    those people entered is read; the content of everything is 45 GB.

    Raises:
      FileNotFoundError: if the folder or a needed file is missing.
      ValueError: with file, row and column, for a missing column or a file that cannot be read; and where the content
        lies outside of its rooms: then clocks without a zone are of another one (`options.utc_offset_hours`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Give the folder of the downloaded data set")
    places = places_of(folder, lambda place: (folder / place).exists())
    paths = {name: folder / place for name, place in places.items()}
    forms = forms_of(paths, options)
    content = []
    if CONTENT in paths:
        content = content_forms(paths[CONTENT], sorted(paths[CONTENT].rglob("*")), forms, options)
    counts = Counts(options.stop)
    with tqdm(total=len(forms) + len(content), desc="KuaiLive-M3", unit="file", disable=None) as bar:
        people = {name: rows.read(forms[name], counts) for name in ("user_id_set", "author_profile") if name in forms}
        listed = [people["user_id_set"]["user_id"]] if "user_id_set" in people else []
        everybody = room_logs.all_ids(rows.ids_in(forms["live_interaction"], "user_id"), *listed)
        users = everybody[:options.limit_users]
        found = room_rows(forms["live_room_meta"], rows.read(forms["live_room_meta"], counts), counts)
        rooms = room_logs.one_row_a_room(forms["live_room_meta"], found, counts)
        bar.update(1 + len(people))
        videos = None
        if "photo_play" in forms:
            known = Known(pl.DataFrame(), users, everybody[:0], everybody)
            videos = rows.read(forms["photo_play"], counts, functools.partial(
                video_rows, forms["photo_play"], known=known, counts=counts))
            bar.update()
        authors = room_logs.all_ids(rooms["author"], *([] if videos is None else [videos["author"]]),
                                    *([people["author_profile"]["author_id"]] if "author_profile" in people else []))
        rooms = room_logs.number(rooms, "author", authors, "author_id")
        known = Known(known_rooms(rooms), users, authors, everybody)
        events = {}
        for name in EVENTS:
            if name in forms:
                events[name] = rows.read(forms[name], counts, functools.partial(
                    in_rooms, name, forms[name], known=known, counts=counts))
                bar.update()
        table = table_of(events, counts)
        segments, zone = None, {}
        if content:
            wanted = known.rooms
            if len(users) < len(everybody):
                entered = events["live_interaction"]["room_id"].unique()
                wanted = wanted.filter(pl.col("room_id").is_in(entered.implode()))
            parts, width = [], width_of(content)
            for i, form in enumerate(content):
                for part in rows.parts(form, counts):
                    part = segments_in(part, wanted, known.rooms, counts)
                    parts.append(embedded(form, part, width, counts).with_columns(pl.lit(i, pl.Int32).alias("file")))
                bar.update()
            segments = segment_table(pl.concat(parts), counts)
            zone = inside_by_shift(segments, known.rooms)
            check_zone(zone, forms["live_room_meta"])
    if videos is not None:
        videos = video_table(videos, authors)
    author_table = room_logs.people_table("author_id", authors, forms.get("author_profile"),
                                          people.get("author_profile"), counts)
    report = counts.report(str(folder), room_logs.sizes(table), room_logs.about([*forms.values(), *content[:1]]))
    return validate(Tables(table, room_logs.room_table(rooms), author_table, room_logs.id_table("user_id", users),
                           report, segments=segments, videos=videos, rooms_are_true_lifetimes=True))


def places_of(folder: str | Path, exists: Callable[[str], bool]) -> dict[str, str]:
    """Key of FILES, or CONTENT → where it is in the folder, of which `exists` tells what is there."""
    found = {}
    for name in (*FILES, CONTENT):
        endings = ("",) if name == CONTENT else (".csv", ".parquet", ".csv.gz", ".csv.zip")
        places = [f"{inner}{name}{ending}" for inner in ("", "live/", "short_video/") for ending in endings]
        place = next((place for place in places if exists(place)), None)
        if place is not None:
            found[name] = place
        elif name in NEEDED:
            raise FileNotFoundError(f"{folder}/{name}.csv (or .parquet) is missing, nor is it in live/; a KuaiLive-M3 "
                                    f"folder has at least {' and '.join(NEEDED)}")
    return found


def forms_of(paths: dict[str, Path], options: Options) -> dict[str, Form]:
    """Key of FILES → form of the file, for those that are there; ids are whole numbers in all files, or text in all."""
    labels = {name: "" if name == "live_interaction" else f"{path.name}: " for name, path in paths.items()}
    forms = {name: forms_lib.form_of(path, FILES[name], name in EVENTS, labels[name], options.offset_ms)
             for name, path in paths.items() if name != CONTENT}
    whole = all(form.whole_ids for form in forms.values())
    return {name: replace(form, whole_ids=whole) for name, form in forms.items()}


def content_forms(folder: Path, files: Iterable[Path], forms: dict[str, Form], options: Options) -> list[Form]:
    """Forms of the shards of content among some files. Raises: FileNotFoundError: if there is none."""
    shards = [path for path in files if is_parquet(path) or path.name.lower().endswith(".csv")]
    if not shards:
        raise FileNotFoundError(f"{folder} {NO_SHARD}")
    return [replace(forms_lib.form_of(path, SEGMENT, False, f"{path.name}: ", options.offset_ms),
                    whole_ids=forms["live_room_meta"].whole_ids) for path in shards]


def room_rows(form: Form, frame: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """Rows of live_room_meta, or of a part of it, as `room_logs.one_row_a_room` takes them."""
    if "live_duration" in frame.columns:
        differs = (pl.col("end_timestamp") - pl.col("start_timestamp") - pl.col("live_duration")).abs() > 1000
        counts.add("notes", f"{form.label}live_duration is more than a second off its start and end, which are "
                   "believed", frame.select(differs.sum()).item())
    frame = frame.drop("live_duration", strict=False).rename(
        {"author_id": "author", "start_timestamp": "start_ms", "end_timestamp": "end_ms"})
    return frame.with_columns(pl.lit(-1, pl.Int32).alias(name) for name in ("category", "title_embedding"))


def in_rooms(name: str, form: Form, frame: pl.DataFrame, known: Known, counts: Counts) -> pl.DataFrame:
    """Rows of a file of EVENTS, or of a part of it, that name a room and a person that there are.

    Returns:
      user_id, room_id, author_id (dense) and start_ms; of live_interaction also the columns of the interactions table
      and `outside` (whether it is outside of the room's life), of live_questionnaire also satisfaction.
    """
    frame = frame.join(known.rooms.rename({"author_id": "owner"}), on="live_id", how="left", maintain_order="left")
    frame = counts.keep_good(form, frame, pl.col("room_id").is_null(), "live_id", "is a room that live_room_meta does "
                             "not have", dirt=True)
    frame = room_logs.of_people(frame, known, form, NOWHERE, counts)
    if name == "live_interaction":
        return _views(form, frame, known, counts)
    time = pl.col("timestamp").fill_null(ALWAYS) if "timestamp" in frame.columns else pl.lit(ALWAYS, pl.Int64)
    return frame.select("user_id", "room_id", pl.col("owner").alias("author_id"), time.alias("start_ms"),
                        *[column for column in ("satisfaction",) if column in frame.columns])


def _views(form: Form, frame: pl.DataFrame, known: Known, counts: Counts) -> pl.DataFrame:
    start, end, told = (pl.col(name) for name in ("live_play_start_timestamp", "live_play_end_timestamp",
                                                  "play_duration"))
    if "live_play_end_timestamp" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, pl.Int64).alias("live_play_end_timestamp"))
    counts.remark(form, frame, end < start, "live_play_end_timestamp", "is before the start of the view, read as "
                  "unknown", dirt=True, kind="notes")
    frame = frame.with_columns(pl.when(end >= start).then(end).alias("live_play_end_timestamp"))
    frame = counts.keep_good(form, frame, told.is_null() & end.is_null(), "play_duration", "is missing, and so is "
                             "live_play_end_timestamp", dirt=True)
    counts.add("notes", "view whose play_duration is more than a second off its start and end (play_duration is "
               "believed)", frame.select(((end - start - told).abs() > 1000).sum()).item())
    counts.add("notes", "author_id differs from live_room_meta, which is believed",
               (frame["author_id"] != known.authors.gather(frame["owner"])).sum())
    absent = [name for name in (*COUNTS, "send_gift_cnt") if name not in frame.columns]
    frame = frame.with_columns(pl.lit(0).alias(name) for name in absent)
    return frame.select(
        "user_id", "room_id", pl.col("owner").alias("author_id"), start.alias("start_ms"),
        pl.coalesce(told, end - start).alias("watch_ms"), pl.lit(True).alias("click"),
        *[pl.col(name).fill_null(0).cast(pl.Int32).alias(target) for name, target in COUNTS.items()],
        pl.col("send_gift_cnt").fill_null(0).cast(pl.Float32).alias("gift_value"),
        room_logs.is_outside(start, pl.col("room_start_ms"), pl.col("room_end_ms")).alias("outside"))


def table_of(events: dict[str, pl.DataFrame], counts: Counts) -> pl.DataFrame:
    """The canonical interactions of some people, from all of their events: file → rows that `in_rooms` returns."""
    views = room_logs.longest_watch(events["live_interaction"])
    counts.add("dropped", "repeats person, room and time of another row (the longest watch is kept)",
               len(events["live_interaction"]) - len(views))
    counts.add("notes", rows.OUTSIDE, int(views["outside"].sum()))
    views = views.with_columns(pl.int_range(pl.len()).alias("view"))
    for name, column in EVENTS.items():
        if name in events and column:  # the counts of live_interaction may hold the same events
            total = room_logs.total_of_last_view(events[name].with_columns(value=1.0), views, name, counts)
            views = views.with_columns(pl.max_horizontal(column, total.cast(pl.Int32)).alias(column))
    if "live_questionnaire" in events:
        answers = room_logs.last_view(events["live_questionnaire"].drop("author_id"), views, order=("satisfaction",))
        lost = answers["view"].null_count()
        answers = answers.drop_nulls("view").group_by("view").agg(pl.col("satisfaction").last().cast(pl.Float32))
        counts.add("dropped", "live_questionnaire: the person has no view of the room before", lost)
        counts.add("merged", "live_questionnaire: row that belongs to a view", len(events["live_questionnaire"]) - lost)
        views = views.join(answers, on="view", how="left", maintain_order="left")
    shown = [room_logs.impressions(events["live_show"], views, "live_show", counts)] if "live_show" in events else []
    return room_logs.interactions(pl.concat([views, *shown], how="diagonal"))


def segments_in(frame: pl.DataFrame, wanted: pl.DataFrame, rooms: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """Segments of the wanted rooms, of some rows of content, with their room_id; `rooms` are all that there are."""
    frame = frame.join(rooms.select("live_id", "room_id"), on="live_id", how="left", maintain_order="left")
    counts.add("notes", "segment of a room that live_room_meta does not have, left out", frame["room_id"].null_count())
    frame = frame.drop_nulls("room_id")
    return frame if len(wanted) == len(rooms) else frame.filter(pl.col("room_id").is_in(wanted["room_id"].implode()))


def segment_table(frame: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """The canonical table from all segments of some rooms: room_id, end_ms, segment_id, embedding, file, LINE."""
    frame = frame.sort("room_id", "end_ms", "segment_id", "file", LINE)
    again = room_logs.like_the_row_before(frame, "room_id", "end_ms")
    counts.add("notes", "segment that ends with another of its room, left out", int(again.sum()))
    return frame.filter(~again).select("room_id", "end_ms", "embedding")


def width_of(content: Sequence[Form]) -> int:
    """Width of most embeddings in the head of the first file of content that has a row."""
    for form in content:
        place = next(place for c, place in zip(form.columns, form.places, strict=True) if c.name == "feature_128")
        if form.layout is None:
            head = first_rows(form.path, 1000)[place]
        else:
            head = pl.Series([row[place] for row in layout_of(form.path)[1]], dtype=pl.String)
        if len(head):
            return int(_lists(form, head).list.len().mode().max() or 1)
    return 128


def embedded(form: Form, frame: pl.DataFrame, width: int, counts: Counts) -> pl.DataFrame:
    """Segments with `embedding`, an array of float32 [width]; feature_128 is a list, an array, or a text with commas.

    Raises: ValueError: for content that is no list of numbers.
    """
    frame = frame.with_columns(_lists(form, frame["feature_128"]).alias("feature_128"))
    vectors = pl.col("feature_128")
    frame = frame.with_columns(size=vectors.list.len().fill_null(0))
    frame = counts.keep_good(form, frame, pl.col("size") != width, "feature_128", f"numbers are there, where {width} "
                             "are needed", "size")
    finite = vectors.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    frame = counts.keep_good(form, frame, ~finite, "feature_128", "numbers are there, one of which is not finite",
                             "size")
    if "segment_id" not in frame.columns:
        frame = frame.with_columns(segment_id=pl.lit(None, pl.String))
    made = vectors.cast(pl.Array(pl.Float32, width)).alias("embedding")
    return frame.select("room_id", pl.col("timestamp").alias("end_ms"), "segment_id", made, LINE)


def _lists(form: Form, vectors: pl.Series) -> pl.Series:
    if vectors.dtype == pl.String:
        parts = vectors.str.strip_chars("[] ").str.replace_all(r"[,\s]+", ",").str.split(",")
        return parts.list.eval(pl.element().cast(pl.Float32, strict=False))
    if isinstance(vectors.dtype, pl.Array):
        vectors = vectors.arr.to_list()
    if not isinstance(vectors.dtype, pl.List) or not vectors.dtype.inner.is_numeric():
        raise ValueError(f"{form.path}, column feature_128: holds {vectors.dtype}; lists of numbers are needed")
    return vectors.cast(pl.List(pl.Float32))


def inside_by_shift(segments: pl.DataFrame, rooms: pl.DataFrame) -> dict[str, int]:
    """Rooms that hold their first segment if their clocks are h hours further ahead than taken for: "h" → rooms.

    "all" → rooms with a segment. Of some rooms (room_id, room_start_ms, room_end_ms) and all segments of them.
    """
    first = segments.group_by("room_id").agg(pl.col("end_ms").min()).join(rooms, on="room_id")
    end = pl.col("room_end_ms").fill_null(pl.col("room_start_ms") + 86_400_000) + ZONE_SLACK_MS
    hours = np.arange(-28, 29) / 2
    made = first.select(
        (pl.col("end_ms") + round(h * 3_600_000)).is_between(pl.col("room_start_ms"), end).sum().alias(f"{h:g}")
        for h in hours)
    return {"all": len(first)} | made.row(0, named=True)


def check_zone(inside: dict[str, int], form: Form) -> None:
    """Raises ValueError where most rooms do not hold their own content, with the offset that would fit, if any."""
    total = inside.get("all", 0)
    if 2 * inside.get("0", 0) >= total:
        return
    best = max((h for h in inside if h != "all"), key=lambda h: (inside[h], -abs(float(h))))
    said = f"{form.path}: {inside['0']:,} of {total:,} rooms hold their first segment of content"
    if 2 * inside[best] < total or form.medians["start_timestamp"] is not None:
        raise ValueError(f"{said}, whatever the zone of their clocks: rooms and content are not of the same log, or a "
                         "time is in another unit")
    raise ValueError(f"{said}; {inside[best]:,} would if clocks without a zone are those of UTC"
                     f"{form.offset_ms / 3_600_000 + float(best):+g}: give --utc_offset_hours="
                     f"{form.offset_ms / 3_600_000 + float(best):g}")


def video_rows(form: Form, frame: pl.DataFrame, known: Known, counts: Counts) -> pl.DataFrame:
    """Short-video views, all or a part, of the people that are kept: user_id (dense), author (as in the source),
    start_ms, watch_ms."""
    frame = room_logs.number(frame, "user_id", known.users, "user").drop_nulls("user")
    frame = counts.keep_good(form, frame, pl.col("leave_timestamp") < pl.col("enter_timestamp"), "leave_timestamp",
                             "is before enter_timestamp", dirt=True)
    return frame.select(pl.col("user").alias("user_id"), pl.col("author_id").alias("author"),
                        pl.col("enter_timestamp").alias("start_ms"),
                        (pl.col("leave_timestamp") - pl.col("enter_timestamp")).alias("watch_ms"))


def video_table(frame: pl.DataFrame, authors: pl.Series) -> pl.DataFrame:
    """The canonical table from `video_rows` of some people, all of each of them."""
    return room_logs.number(frame, "author", authors, "author_id").select(
        "user_id", "author_id", "start_ms", "watch_ms").sort("user_id", "start_ms", "author_id", "watch_ms")
