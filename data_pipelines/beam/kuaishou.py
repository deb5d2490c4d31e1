"""KuaiLive and KuaiLive-M3 as a Beam pipeline: the same rules as the readers on one machine, a range at a time.

    rooms ──────────── by range of live_id ── one row a room ── dense ids ──┬── rooms
    views, events, content ── by range of live_id ── rows with their room ──┴── segments
                                                   └── by range of people ── views and their events ── interactions

Room ids are ranks in the order of live_id: each range counts its rooms, and the sum over the ranges before it is the
first id of its own. What a row becomes is decided by the functions of the reader (`readers.kuailive`, `kuailive_m3`).
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import apache_beam as beam
import polars as pl
from apache_beam import pvalue

from data_pipelines.beam import steps
from data_pipelines.beam.files import StoredFile, files_in, pack, parts_of, read_part, unpack, write_shard
from data_pipelines.beam.steps import COUNTS, WRITTEN
from data_pipelines.readers import kuailive, kuailive_m3, room_logs, rows
from data_pipelines.readers.forms import Form
from data_pipelines.readers.kuailive_m3 import CONTENT, VIDEOS
from data_pipelines.readers.room_logs import Known, known_rooms
from data_pipelines.readers.rows import Counts, Options
from data_pipelines.readers.titles import TitleFile, title_file, titles_in

READERS = {"kuailive": kuailive, "kuailive_m3": kuailive_m3}


class Plan(NamedTuple):
    """What is known of a folder before a worker starts; small, and carried to every worker.

    Attributes:
      source: a key of READERS. out_dir: address. shards: ranges of rooms, and of people.
      options: what a person says of the log. forms: of the files, by their keys, and of shards of content by their
        addresses. titles: the file of title embeddings, or None. title_shards: shards of its table.
      width: of the embeddings of content, or None if there is none.
    """

    source: str
    out_dir: str
    shards: int
    options: Options
    forms: dict[str, Form]
    titles: TitleFile | None
    title_shards: int
    width: int | None

    @property
    def reader(self) -> ModuleType:
        return READERS[self.source]

    @property
    def rooms(self) -> Form:
        return self.forms[self.reader.ROOMS]

    def counts(self) -> Counts:
        return Counts(self.options.stop)

    def no_id(self) -> pl.DataFrame:
        """No id, as a frame with the column `id`."""
        return pl.DataFrame(schema={"id": pl.Int64 if self.rooms.whole_ids else pl.String})

    def room_rows(self, frame: pl.DataFrame, counts: Counts, texts: dict[str, pl.Series]) -> pl.DataFrame:
        extra = (texts, self.titles) if self.source == "kuailive" else ()
        return self.reader.room_rows(self.rooms, frame, counts, *extra)

    def write(self, table: str, shard: int, frame: pl.DataFrame) -> Iterator[pvalue.TaggedOutput]:
        """Writes a shard of a table that is stored by ranges, and reports that there is one."""
        write_shard(self.out_dir, table, shard, self.shards, frame)
        yield pvalue.TaggedOutput(WRITTEN, table)


def build(source: str, pipeline: beam.Pipeline, folder: str, out_dir: str, shards: int | None, part_bytes: int,
          options: Options) -> None:
    """Adds the steps from a folder to a folder of canonical tables in shards.

    Args:
      source: a key of READERS. folder, out_dir: addresses on file systems that every worker reaches.
      shards: ranges of rooms, and of people; None for one to each `part_bytes` of events and content.
      part_bytes: how much of a text file a worker reads at a time.

    Raises:
      FileNotFoundError, ValueError: as the reader does for folders and headers. Other errors arise in a worker.
    """
    plan, parts = plan_of(source, folder, out_dir, shards, part_bytes, options)
    reader, forms = plan.reader, plan.forms

    def read(label: str, names: Iterable[str]):
        wanted = [part for name in names for part in parts.get(name, ())]
        found = pipeline | label >> steps.ReadParts(forms, wanted, options.stop)
        counts.append(found[COUNTS])
        return found.rows

    counts, written = [], []
    room_rows, event_rows = read("Rooms", [reader.ROOMS]), read("Events", reader.EVENTS)
    users = _ids(pipeline, plan, "user_id", [event_rows])
    video_rows = None
    if VIDEOS in forms:
        videos = read("Videos", [VIDEOS]) | "Videos of people" >> beam.FlatMap(
            videos_of, plan, users).with_outputs(COUNTS, main="rows")
        video_rows = videos.rows
        counts.append(videos[COUNTS])
    authors = _ids(pipeline, plan, "author_id", [room_rows, *([] if video_rows is None else [
        video_rows | "Authors of videos" >> beam.MapTuple(lambda _, row: (VIDEOS, row))])])
    kinds = steps.distinct_rows(room_rows | "Kinds of room" >> beam.Map(lambda row: pack(kinds_in(unpack(row[1])))),
                                kinds_in(pl.DataFrame()), "Kinds")
    ranges = steps.range_boundaries(room_rows | "Sample" >> beam.Map(lambda row: steps.sample(
        unpack(row[1])["live_id"])), plan.no_id(), plan.shards)

    by_range = (room_rows | "Rooms by range" >> beam.FlatMap(steps.by_room, ranges),
                steps.every_range(pipeline, plan.shards, "rooms"))
    merged = (by_range | "All rooms" >> beam.Flatten() | "Rooms of a range" >> beam.GroupByKey()
              | "Merge" >> beam.FlatMap(merge_rooms, plan, kinds).with_outputs(COUNTS, main="rooms"))
    grouped = {"rooms": merged.rooms, "events": event_rows | "Events by range" >> beam.FlatMap(steps.by_room, ranges)}
    content = [name for name in forms if CONTENT in name]
    if content:
        grouped["content"] = read("Content", content) | "Content by range" >> beam.FlatMap(steps.by_room, ranges)
    joined = (grouped | "Meet" >> beam.CoGroupByKey() | "Join" >> beam.FlatMap(
        join_rooms, plan, steps.first_rooms(merged.rooms), users, authors).with_outputs(COUNTS, WRITTEN, main="events"))
    views = ((joined.events, steps.every_range(pipeline, plan.shards, "people")) | "All events" >> beam.Flatten()
             | "Events of people" >> beam.GroupByKey()
             | "Views" >> beam.FlatMap(views_of_people, plan).with_outputs(COUNTS, WRITTEN, main="none"))
    people = [pipeline | f"{key}: table" >> beam.Create([key]) | f"Write {key}" >> beam.FlatMap(
        people_table, plan, ids).with_outputs(COUNTS, WRITTEN, main="none")
        for key, ids in (("user_id", users), ("author_id", authors))]
    if video_rows is not None:
        named = video_rows | "Name videos" >> beam.MapTuple(lambda key, row: (key, (VIDEOS, row)))
        written.append(((named, steps.every_range(pipeline, plan.shards, "videos")) | "All videos" >> beam.Flatten()
                        | "Videos by range" >> beam.GroupByKey() | "Write videos" >> beam.FlatMap(
                            write_videos, plan, authors).with_outputs(WRITTEN, main="none"))[WRITTEN])
    if plan.titles is not None:
        written.append(pipeline | beam.Create(range(plan.title_shards)) | beam.Reshuffle()
                       | "Write titles" >> beam.Map(write_titles, plan))
    written += [part[WRITTEN] for part in (joined, views, *people)]
    counts += [part[COUNTS] for part in (merged, joined, views, *people)]
    about = room_logs.about([*(form for name, form in forms.items() if CONTENT not in name),
                             *(forms[name] for name in content[:1])])
    _ = ((counts | "Counts" >> beam.Flatten(), written | "Written" >> beam.Flatten())
         | steps.WriteReport(folder, out_dir, about, functools.partial(check_zone, plan.rooms)))


def check_zone(rooms: Form, _, kinds: dict[str, dict]) -> None:
    """Raises ValueError where the content lies outside of its rooms."""
    kuailive_m3.check_zone(kinds.get("zone", {}), rooms)


def plan_of(source: str, folder: str, out_dir: str, shards: int | None, part_bytes: int, options: Options
            ) -> tuple[Plan, dict[str, list]]:
    """The plan, and the parts of each file."""
    reader, sizes = READERS[source], files_in(folder)
    folder = folder.rstrip("/")
    if source == "kuailive":
        places = kuailive.files_of(folder, set(sizes))
    else:
        places = kuailive_m3.places_of(folder, lambda place: place in sizes or any(
            name.startswith(f"{place}/") for name in sizes))
    paths = {name: StoredFile(f"{folder}/{place}") for name, place in places.items()}
    forms = reader.forms_of(paths, options)
    bytes_of = {name: sizes.get(place, 0) for name, place in places.items()}
    if CONTENT in places:
        inside = [StoredFile(f"{folder}/{name}") for name in sizes if name.startswith(f"{places[CONTENT]}/")]
        for form in kuailive_m3.content_forms(paths[CONTENT], inside, forms, options):
            key = f"{CONTENT} {form.path}"
            forms[key], bytes_of[key] = form, sizes[str(form.path)[len(folder) + 1:]]
    parts = {name: parts_of(name, form, bytes_of[name], part_bytes) for name, form in forms.items()
             if name not in reader.LISTS.values()}
    if not any(len(read_part(part, forms[part.name], 0, Counts())) for part in parts[reader.ROOMS][:1]):
        raise ValueError(f"{paths[reader.ROOMS]}: there is a header but no row below it")
    events = sum(bytes_of[name] for name in forms if name in reader.EVENTS or CONTENT in name)
    titles = title_file(paths["titles"]) if "titles" in paths else None
    title_shards = 0 if titles is None else 1 + titles.rows * titles.width * 4 // part_bytes
    content = [form for name, form in forms.items() if CONTENT in name]
    width = kuailive_m3.width_of(content) if content else None
    plan = Plan(source, out_dir, shards or max(1, events // part_bytes), options, forms, titles, title_shards, width)
    return plan, parts


def _ids(pipeline, plan: Plan, key: str, found: list):
    """Side input: the ids of the people or the authors, in order: those of rows, and of the list of them."""
    name = plan.reader.LISTS[key]
    column = plan.forms[name].columns[0].name if name in plan.forms else None
    parts = [part | f"{key} of rows {i}" >> beam.FlatMap(ids_of, plan, key) for i, part in enumerate(found)]
    if column:
        parts.append(pipeline | f"{key}: list" >> beam.Create([name]) | f"{key}: listed" >> beam.Map(
            lambda name: pack(rows.read(plan.forms[name], Counts()).select(pl.col(column).unique().alias("id")))))
    return steps.distinct_rows(parts | f"{key}: found" >> beam.Flatten(), plan.no_id(), key)


def ids_of(row: tuple[str, bytes], plan: Plan, key: str) -> Iterator[bytes]:
    """The different people, or authors, in rows of a file, if its rows say who there is."""
    name, packed = row
    if key == "user_id" and name in plan.reader.PEOPLE_IN:
        yield pack(unpack(packed).select(pl.col("user_id").unique().alias("id")))
    elif key == "author_id":
        frame = unpack(packed)
        column = next(c for c in ("author", "streamer_id", "author_id") if c in frame.columns)
        yield pack(frame.select(pl.col(column).unique().alias("id")))


def people_of(plan: Plan, users: bytes) -> tuple[pl.Series, pl.Series]:
    """(people that are wanted, everybody), in order."""
    everybody = unpack(users)["id"]
    return everybody[:plan.options.limit_users], everybody


def kinds_in(frame: pl.DataFrame) -> pl.DataFrame:
    """The different texts in ROOM_CATEGORIES of rows of rooms: column, text."""
    return pl.concat([pl.DataFrame(schema={"column": pl.String, "text": pl.String}), *[
        frame.select(pl.lit(name).alias("column"), pl.col(name).alias("text")).unique().drop_nulls()
        for name in kuailive.ROOM_CATEGORIES if name in frame.columns]])


def merge_rooms(keyed: tuple[int, Iterable[tuple[str, bytes]]], plan: Plan, kinds: bytes) -> Iterator:
    """The rows of a range of rooms → (range, packed rooms in order of live_id)."""
    key, groups = keyed
    texts = {name: part["text"] for (name,), part in unpack(kinds).partition_by("column", as_dict=True).items()}
    found = pl.concat([pl.DataFrame(schema=plan.rooms.schema), *[unpack(part) for name, part in groups if name]])
    counts = plan.counts()
    yield key, pack(room_logs.one_row_a_room(plan.rooms, plan.room_rows(found, counts, texts), counts))
    yield from steps.counted(counts)


def join_rooms(keyed: tuple[int, dict], plan: Plan, first: dict[int, int], users: bytes, authors: bytes) -> Iterator:
    """Rooms, events and content of a range of rooms → (range of people, (file, packed rows with dense ids)).

    Writes the rooms and the content.
    """
    key, groups = keyed
    wanted, everybody = people_of(plan, users)
    author_ids = unpack(authors)["id"]
    (packed,) = groups["rooms"]
    rooms = room_logs.number(unpack(packed), "author", author_ids, "author_id")
    yield from plan.write("rooms", key, room_logs.room_table(rooms, first[key]))
    known = Known(known_rooms(rooms, first[key]), wanted, author_ids, everybody)
    entered = []
    for name, part in groups["events"]:
        counts = plan.counts()
        events = plan.reader.in_rooms(name, plan.forms[name], unpack(part), known, counts)
        if name == next(iter(plan.reader.EVENTS)):
            entered.append(events["room_id"].unique())
        for people, found in steps.split(events, steps.range_of_person(events["user_id"], len(wanted), plan.shards)):
            yield people, (name, pack(found))
        yield from steps.counted(counts)
    if plan.width is not None:
        chosen = known.rooms
        if len(wanted) < len(everybody):
            chosen = chosen.filter(pl.col("room_id").is_in(pl.concat([rooms_of_none(), *entered]).implode()))
        yield from write_content(key, groups["content"], plan, chosen, known.rooms)


def rooms_of_none() -> pl.Series:
    return pl.Series("room_id", [], pl.Int32)


def write_content(key: int, parts: Iterable[tuple[str, bytes]], plan: Plan, wanted: pl.DataFrame, rooms: pl.DataFrame
                  ) -> Iterator:
    """Writes the content of a range of rooms."""
    counts, found = plan.counts(), [pl.DataFrame(schema={
        "room_id": pl.Int32, "end_ms": pl.Int64, "segment_id": pl.String, "embedding": pl.Array(pl.Float32, plan.width),
        "line": pl.Int64, "file": pl.Int32})]
    order = sorted(name for name in plan.forms if CONTENT in name)
    for name, part in parts:
        frame = kuailive_m3.segments_in(unpack(part), wanted, rooms, counts)
        if len(frame):
            frame = kuailive_m3.embedded(plan.forms[name], frame, plan.width, counts)
            found.append(frame.with_columns(pl.lit(order.index(name), pl.Int32).alias("file")))
    table = kuailive_m3.segment_table(pl.concat(found), counts)
    yield from plan.write("segments", key, table)
    for hours, inside in kuailive_m3.inside_by_shift(table, rooms).items():
        yield pvalue.TaggedOutput(COUNTS, (("zone", hours), inside))
    yield from steps.counted(counts)


def views_of_people(keyed: tuple[int, Iterable[tuple[str, bytes]]], plan: Plan) -> Iterator:
    """The events of a range of people → their interactions, which are written."""
    key, groups = keyed
    found: dict[str, list[pl.DataFrame]] = {name: [no_event(name, plan)] for name in plan.reader.EVENTS
                                            if name in plan.forms}
    for name, part in groups:
        if name:
            found[name].append(unpack(part))
    counts = plan.counts()
    table = plan.reader.table_of({name: pl.concat(parts) for name, parts in found.items()}, counts)
    yield from plan.write("interactions", key, table)
    yield from steps.counted(counts, len(table), int(table["click"].sum()))


def no_event(name: str, plan: Plan) -> pl.DataFrame:
    """What the reader's `in_rooms` returns for a file without a row."""
    ids = plan.no_id()["id"]
    rooms = pl.DataFrame(schema={"live_id": ids.dtype, "author_id": pl.Int32, "start_ms": pl.Int64, "end_ms": pl.Int64})
    form = replace(plan.forms[name], events=False)
    return plan.reader.in_rooms(name, form, pl.DataFrame(schema=form.schema), Known(known_rooms(rooms), ids, ids, ids),
                                Counts())


def videos_of(row: tuple[str, bytes], plan: Plan, users: bytes) -> Iterator:
    """Rows of short-video views → (range of people, packed views of the people that are wanted)."""
    wanted, everybody = people_of(plan, users)
    counts = plan.counts()
    known = Known(pl.DataFrame(), wanted, everybody[:0], everybody)
    videos = kuailive_m3.video_rows(plan.forms[VIDEOS], unpack(row[1]), known, counts)
    for people, part in steps.split(videos, steps.range_of_person(videos["user_id"], len(wanted), plan.shards)):
        yield people, pack(part)
    yield from steps.counted(counts)


def write_videos(keyed: tuple[int, Iterable[tuple[str, bytes]]], plan: Plan, authors: bytes) -> Iterator:
    """The short-video views of a range of people, which are written."""
    key, groups = keyed
    ids = unpack(authors)["id"]
    none = pl.DataFrame(schema={"user_id": pl.Int32, "author": ids.dtype, "start_ms": pl.Int64, "watch_ms": pl.Int64})
    found = pl.concat([none, *[unpack(part) for name, part in groups if name]])
    yield from plan.write("videos", key, kuailive_m3.video_table(found, ids))


def people_table(key: str, plan: Plan, ids: bytes) -> Iterator:
    """Writes the table of the people or of the authors, in one shard."""
    table, counts, form = {"user_id": "users", "author_id": "authors"}[key], plan.counts(), plan.forms.get(
        plan.reader.LISTS[key])
    wanted = people_of(plan, ids)[0] if key == "user_id" else unpack(ids)["id"]
    frame = None if form is None else rows.read(form, counts)
    write_shard(plan.out_dir, table, 0, 1, room_logs.people_table(key, wanted, form, frame, counts))
    yield pvalue.TaggedOutput(WRITTEN, table)
    yield from steps.counted(counts)


def write_titles(shard: int, plan: Plan) -> str:
    """Writes a shard of the titles table; returns the table's name."""
    first, stop = (plan.titles.rows * at // plan.title_shards for at in (shard, shard + 1))
    write_shard(plan.out_dir, "titles", shard, plan.title_shards, titles_in(plan.titles, first, stop))
    return "titles"
