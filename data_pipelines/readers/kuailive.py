"""Reader of KuaiLive (arXiv 2508.05633): the unzipped folder becomes canonical tables.

click.csv and room.csv are needed; comment.csv, like.csv, gift.csv, negative.csv, user.csv, streamer.csv and the title
embeddings are used where they are there (.csv.gz and .csv.zip too). A click is a view. A comment, a like and a gift
belong to the same person's last click on the same room at or before them. negative.csv holds rooms that were shown and
not clicked: each is a row of its own, click=False. Dislikes do not exist in this set.
"""

import functools
from dataclasses import replace
from pathlib import Path

import polars as pl
from tqdm import tqdm

from data_pipelines.readers import forms as forms_lib
from data_pipelines.readers import room_logs, rows
from data_pipelines.readers.forms import Column, Form
from data_pipelines.readers.room_logs import Known, known_rooms
from data_pipelines.readers.rows import DEFAULTS, Counts, Options
from data_pipelines.readers.text_files import LINE
from data_pipelines.readers.titles import TitleFile, title_file, titles_in
from data_pipelines.tables import Tables, validate

USER, LIVE = Column("user_id", "id"), Column("live_id", "id")
STREAMER = Column("streamer_id", "id", also=("author_id",))
EVENT = (USER, LIVE, STREAMER, Column("timestamp", "time"))


def _features(*names: str) -> tuple[Column, ...]:
    renamed = {"is_live_streamer": ("is_live_author",)}
    return tuple(Column(name, "category", needed=False, empty=True, also=renamed.get(name, ()))
                 for name in (*names, *(f"onehot_feat{i}" for i in range(7))))


FILES = {
    "room.csv": (
        LIVE, STREAMER, Column("start_timestamp", "time"), Column("end_timestamp", "end", empty=True),
        Column("live_type", "category", needed=False, empty=True),
        Column("live_content_category", "category", needed=False, empty=True),
        Column("live_name_id", "index", needed=False, empty=True)),
    "click.csv": (*EVENT, Column("watch_live_time", "length", unit="ms")),
    "comment.csv": EVENT,
    "like.csv": EVENT,
    "gift.csv": (*EVENT, Column("gift_price", "real")),
    "negative.csv": EVENT,
    "user.csv": (USER, *_features(
        "age", "gender", "country", "device_brand", "device_price", "reg_timestamp", "fans_num", "follow_num",
        "first_watch_live_timestamp", "accu_watch_live_cnt", "accu_watch_live_duration", "is_live_streamer",
        "is_photo_author")),
    "streamer.csv": (STREAMER, *_features(
        "gender", "age", "country", "device_brand", "device_price", "live_operation_tag", "fans_user_num",
        "fans_group_fans_num", "follow_user_num", "first_live_timestamp", "accu_live_cnt", "accu_live_duration",
        "accu_play_cnt", "accu_play_duration", "reg_timestamp")),
}
NEEDED = ("click.csv", "room.csv")
ROOMS = "room.csv"
LISTS = {"user_id": "user.csv", "author_id": "streamer.csv"}  # of people, with what is known of them
PEOPLE_IN = ("click.csv", "negative.csv")  # files whose rows say who there is
# File of events → column of the interactions table that they fill, where they belong to a view.
EVENTS = {"click.csv": "", "comment.csv": "comment", "like.csv": "like", "gift.csv": "gift_value", "negative.csv": ""}
ROOM_CATEGORIES = {"live_type": "live_type", "live_content_category": "category"}  # in the file → in the table
NO_ROW = "there is a header but no row below it"
OTHER_NAMES = {"room.csv": "mapped_room.csv", "streamer.csv": "author.csv"}  # of older copies


def read_kuailive(folder: str | Path, options: Options = DEFAULTS) -> Tables:
    """Canonical tables of a KuaiLive folder; times are milliseconds since 1970.

    Rows of a room that room.csv does not have are left out and counted. A room with several rows becomes one, from its
    earliest start to its latest end, of the streamer of its earliest row. An end that is missing, no date, or before
    the start is not known.

    Raises:
      FileNotFoundError: if the folder, click.csv or room.csv is missing.
      ValueError: with file, line and column, for a missing column or a file that cannot be read.
    """
    folder = Path(folder)
    paths = _find(folder)
    forms = forms_of(paths, options)
    counts = Counts(options.stop)
    with tqdm(total=len(paths), desc="KuaiLive", unit="file", disable=None) as bar:
        people = {name: rows.read(forms[name], counts) for name in ("user.csv", "streamer.csv") if name in forms}
        listed = [people["user.csv"]["user_id"]] if "user.csv" in people else []
        everybody = room_logs.all_ids(*listed, *(rows.ids_in(forms[name], "user_id") for name in PEOPLE_IN
                                                if name in forms))
        users = everybody[:options.limit_users]
        bar.update(len(people))

        titles = title_file(paths["titles"]) if "titles" in paths else None
        found = rows.read(forms["room.csv"], counts)
        if not len(found):
            raise ValueError(f"{paths['room.csv']}: {NO_ROW}")
        found = room_rows(forms["room.csv"], found, counts, {}, titles)
        rooms = room_logs.one_row_a_room(forms["room.csv"], found, counts)
        bar.update(1 + (titles is not None))
        streamers = [people["streamer.csv"]["streamer_id"]] if "streamer.csv" in people else []
        authors = room_logs.all_ids(rooms["author"], *streamers)
        rooms = room_logs.number(rooms, "author", authors, "author_id")
        known = Known(known_rooms(rooms), users, authors, everybody)
        events = {}
        for name in EVENTS:
            if name in forms:
                events[name] = rows.read(forms[name], counts, functools.partial(
                    in_rooms, name, forms[name], known=known, counts=counts))
                bar.update()
    table = table_of(events, counts)
    made = {}
    for key, ids in (("user_id", users), ("author_id", authors)):
        name = LISTS[key]
        made[key] = room_logs.people_table(key, ids, forms.get(name), people.get(name), counts)
    report = counts.report(str(folder), room_logs.sizes(table), room_logs.about(forms.values()))
    return validate(Tables(table, room_logs.room_table(rooms), made["author_id"], made["user_id"], report,
                           titles=None if titles is None else titles_in(titles, 0, titles.rows),
                           rooms_are_true_lifetimes=True))


def forms_of(paths: dict[str, Path], options: Options) -> dict[str, Form]:
    """Key of FILES → form of the file, for those that are there; ids are whole numbers in all files, or text in all."""
    forms = {name: forms_lib.form_of(path, FILES[name], name in EVENTS, f"{name}: ", options.offset_ms)
             for name, path in paths.items() if name in FILES}
    whole = all(form.whole_ids for form in forms.values())
    return {name: replace(form, whole_ids=whole) for name, form in forms.items()}


def table_of(events: dict[str, pl.DataFrame], counts: Counts) -> pl.DataFrame:
    """The canonical interactions of some people, from all of their events: file → rows that `in_rooms` returns."""
    clicks = events["click.csv"].rename({"watch_live_time": "watch_ms"})
    views = room_logs.longest_watch(clicks)
    counts.add("dropped", "click.csv: repeats person, room and time of another row (the longest watch is kept)",
               len(clicks) - len(views))
    views = views.with_columns(pl.int_range(pl.len()).alias("view"), click=pl.lit(True))
    for name, column in EVENTS.items():
        if name in events and column:
            value = pl.col("gift_price") if name == "gift.csv" else pl.lit(1.0)
            views = views.with_columns(room_logs.total_of_last_view(events[name].with_columns(value=value), views, name,
                                                                    counts).alias(column))
    counts.add("notes", rows.OUTSIDE, int(views["outside"].sum()))
    counts.add("notes", "view of zero watch time", int((views["watch_ms"] == 0).sum()))
    shown = [room_logs.impressions(events["negative.csv"], views, "negative.csv", counts)
             ] if "negative.csv" in events else []
    return room_logs.interactions(pl.concat([views, *shown], how="diagonal"))


def _find(folder: Path) -> dict[str, Path]:
    """name → path of the files that are there; title embeddings under "titles"."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Give the folder that KuaiLive.zip unpacks to")
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and (child / "click.csv").exists())
    found = files_of(folder, {path.name for path in folder.iterdir() if path.is_file()},
                     f". It is in {inside[0]}: give that folder" if inside else "")
    return {name: folder / file for name, file in found.items()}


def files_of(folder: str | Path, files: set[str], hint: str = "") -> dict[str, str]:
    """Key of FILES, or "titles" → its name among the names of the folder's files; `hint` ends an error's sentence."""
    found = {}
    for name in FILES:
        names = [f"{n}{packed}" for n in (name, OTHER_NAMES.get(name, name)) for packed in ("", ".gz", ".zip")]
        file = next((n for n in names if n in files), None)
        if file is not None:
            found[name] = file
        elif name in NEEDED:
            raise FileNotFoundError(f"{folder}/{name} is missing; a KuaiLive folder has at least "
                                    f"{' and '.join(NEEDED)}{hint}")
    titles = sorted(n for n in files if n.startswith("title_embeddings") and n.endswith((".npy", ".npz")))
    if len(titles) > 1:
        raise ValueError(f"{folder} has several files of title embeddings ({', '.join(titles)}): keep one of them")
    return found | ({"titles": titles[0]} if titles else {})


def room_rows(form: Form, frame: pl.DataFrame, counts: Counts, texts: dict[str, pl.Series], titles: TitleFile | None
              ) -> pl.DataFrame:
    """Rows of room.csv, or of a part of it, as `room_logs.one_row_a_room` takes them.

    Args:
      texts: column of ROOM_CATEGORIES → what it holds in the whole file, where `frame` is a part.
      titles: that live_name_id points to, or None.
    """
    for name, target in ROOM_CATEGORIES.items():
        if name in frame.columns:
            frame = frame.with_columns(room_logs.categories(frame[name], texts.get(name)).alias(name)).rename(
                {name: target})
    title = pl.lit(-1, pl.Int32)
    if "live_name_id" in frame.columns and titles is not None:
        beyond = pl.col("live_name_id") >= titles.rows
        counts.remark(form, frame, beyond, "live_name_id", f"has no row in {titles.path.name}, read as unknown",
                      dirt=True)
        title = pl.when(~beyond).then("live_name_id").fill_null(-1).cast(pl.Int32)
    if "category" not in frame.columns:
        frame = frame.with_columns(pl.lit(-1, pl.Int32).alias("category"))
    frame = frame.with_columns(title.alias("title_embedding")).drop("live_name_id", strict=False)
    return frame.rename({"streamer_id": "author", "start_timestamp": "start_ms", "end_timestamp": "end_ms"})


def in_rooms(name: str, form: Form, frame: pl.DataFrame, known: Known, counts: Counts) -> pl.DataFrame:
    """Rows of a file of events, or of a part of it, that name a room and a person that there are.

    Returns:
      user_id, room_id, author_id (dense), start_ms, `outside` (whether it is outside of the room's life) and the
      file's own columns.
    """
    frame = frame.join(known.rooms, on="live_id", how="left", maintain_order="left")
    frame = counts.keep_good(form, frame, pl.col("room_id").is_null(), "live_id", "is a room that room.csv does not "
                             "have", dirt=name == "click.csv")
    counts.add("notes", f"{form.label}streamer_id differs from room.csv, which is believed",
               (frame["streamer_id"] != known.authors.gather(frame["author_id"])).sum())
    frame = frame.with_columns(room_logs.is_outside(
        pl.col("timestamp"), pl.col("room_start_ms"), pl.col("room_end_ms")).alias("outside"))
    frame = room_logs.of_people(frame, known, form, "neither user.csv nor click.csv", counts)
    return frame.drop("live_id", "streamer_id", "room_start_ms", "room_end_ms", LINE).rename({"timestamp": "start_ms"})
