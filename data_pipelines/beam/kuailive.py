"""KuaiLive as a Beam pipeline: the same rules as `kuailive.read_kuailive`, a range of rooms or of people at a time.

    room.csv ────── by range of live_id ── one row a room ── dense ids ──┬── rooms
    click.csv, … ── by range of live_id ── rows with their room ─────────┘
                                                    └── by range of people ── views and their events ── interactions

Room ids are ranks in the order of live_id: each range counts its rooms, and the sum over the ranges before it is the
first id of its own.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import polars as pl
from apache_beam import pvalue

from data_pipelines.beam import steps as steps
from data_pipelines.beam.files import StoredFile, files_in, pack, parts_of, unpack, write_shard
from data_pipelines.beam.steps import COUNTS, WRITTEN
from data_pipelines.readers import kuailive, room_logs
from data_pipelines.readers.csv_files import Form, Rows, form_of, parse_part, read_csv, text_ids
from data_pipelines.readers.kuailive import EVENTS, FILES, NO_ROW, ROOM_CATEGORIES, Counts
from data_pipelines.readers.room_logs import World, known_rooms
from data_pipelines.readers.titles import TitleFile, title_file, titles_in

IDS_IN = {"user_id": ("click.csv", "negative.csv"), "streamer_id": ("room.csv",)}  # files whose rows say who there is
PEOPLE = {"user_id": ("users", "user.csv"), "streamer_id": ("authors", "streamer.csv")}


class Plan(NamedTuple):
    """What is known of a folder before a worker starts; small, and carried to every worker.

    Attributes:
      folder, out_dir: addresses. shards: ranges of rooms, and of people. drop_unknown_rooms: as in `read_kuailive`.
      paths: key of FILES → file. forms: of room.csv and of the files of events. texts: id columns that hold text.
      titles: the file of title embeddings, or None. title_shards: shards of its table.
    """

    folder: str
    out_dir: str
    shards: int
    drop_unknown_rooms: bool
    paths: dict[str, StoredFile]
    forms: dict[str, Form]
    texts: frozenset[str]
    titles: TitleFile | None
    title_shards: int

    def write(self, table: str, shard: int, frame: pl.DataFrame) -> Iterator[pvalue.TaggedOutput]:
        """Writes a shard of a table that is stored by ranges, and reports that there is one."""
        write_shard(self.out_dir, table, shard, self.shards, frame)
        yield pvalue.TaggedOutput(WRITTEN, table)


def build(pipeline: beam.Pipeline, folder: str, out_dir: str, shards: int | None, part_bytes: int,
          drop_unknown_rooms: bool) -> None:
    """Adds the steps from a KuaiLive folder to a folder of canonical tables in shards.

    Args:
      folder, out_dir: addresses on file systems that every worker reaches.
      shards: ranges of rooms, and of people; None for one to each `part_bytes` of the files of events.
      part_bytes: how much of a file a worker reads at a time.
      drop_unknown_rooms: as in `read_kuailive`.

    Raises:
      FileNotFoundError, ValueError: as `read_kuailive` does for folders and headers. Other errors arise in a worker.
    """
    sizes = files_in(folder)
    found = kuailive.files_of(folder, set(sizes))
    paths = {name: StoredFile(f"{folder.rstrip('/')}/{file}") for name, file in found.items()}
    texts = text_ids(paths["click.csv"], FILES["click.csv"])
    forms = {name: form_of(paths[name], FILES[name], texts) for name in ("room.csv", *EVENTS) if name in paths}
    if forms["room.csv"].empty:
        raise ValueError(f"{paths['room.csv']}: {NO_ROW}")
    parts = {name: parts_of(name, form, sizes[found[name]], part_bytes) for name, form in forms.items()}
    shards = shards or max(1, sum(len(parts[name]) for name in parts))
    titles = title_file(paths["titles"]) if "titles" in paths else None
    title_shards = 0 if titles is None else 1 + titles.rows * titles.width * 4 // part_bytes
    plan = Plan(folder, out_dir, shards, drop_unknown_rooms, paths, forms, texts, titles, title_shards)

    room_rows = pipeline | "Rooms" >> steps.ReadParts(forms, parts["room.csv"])
    event_parts = [part for name in EVENTS for part in parts.get(name, ())]
    event_rows = pipeline | "Events" >> steps.ReadParts(forms, event_parts)
    ids = {column: _ids(pipeline, column, event_rows if column == "user_id" else room_rows, plan) for column in IDS_IN}
    no_room = parse_part(forms["room.csv"], b"", 0).frame
    kinds = steps.distinct_rows(room_rows | "Kinds of room" >> beam.Map(lambda row: pack(kinds_in(unpack(row[1])))),
                                kinds_in(no_room), "Kinds")
    ranges = steps.range_boundaries(room_rows | "Sample" >> beam.Map(lambda row: steps.sample(
        unpack(row[1])["live_id"])), _empty(plan, "room.csv", "live_id"), shards)

    every_range = pipeline | "Ranges of rooms" >> beam.Create(range(shards))
    none = every_range | "No room" >> beam.Map(lambda key: (key, pack(no_room)))
    by_range = room_rows | "Rooms by range" >> beam.FlatMap(steps.by_room, ranges)
    only_rooms = by_range | "Only rooms" >> beam.MapTuple(lambda key, row: (key, row[1]))
    merged = ((only_rooms, none) | "All rooms" >> beam.Flatten() | "Rooms of a range" >> beam.GroupByKey()
              | "Merge" >> beam.FlatMap(merge_rooms, plan, kinds).with_outputs(COUNTS, main="rooms"))
    first = steps.first_rooms(merged.rooms)
    joined = ({"rooms": merged.rooms, "events": event_rows | "Events by range" >> beam.FlatMap(steps.by_room, ranges)}
              | "Rooms and events" >> beam.CoGroupByKey()
              | "Join" >> beam.FlatMap(join_rooms, plan, first, **ids).with_outputs(COUNTS, WRITTEN, main="events"))
    views = ((joined.events, steps.every_range(pipeline, shards, "people")) | "All events" >> beam.Flatten()
             | "Events of people" >> beam.GroupByKey()
             | "Views" >> beam.FlatMap(views_of_people, plan).with_outputs(COUNTS, WRITTEN, main="none"))
    people = [pipeline | f"{column}: table" >> beam.Create([column]) | f"Write {column}" >> beam.FlatMap(
        people_table, plan, ids[column]).with_outputs(COUNTS, WRITTEN, main="none") for column in PEOPLE]
    written = [joined[WRITTEN], views[WRITTEN], *[part[WRITTEN] for part in people]]
    if titles is not None:
        written.append(pipeline | beam.Create(range(title_shards)) | beam.Reshuffle()
                       | "Write titles" >> beam.Map(write_titles, plan))
    counts = [merged[COUNTS], joined[COUNTS], views[COUNTS], *[part[COUNTS] for part in people]]
    _ = ((counts | "Counts" >> beam.Flatten(), written | "Written" >> beam.Flatten())
         | steps.WriteReport(folder, out_dir))


def _empty(plan: Plan, name: str, column: str) -> pl.DataFrame:
    """No id, as a frame with the column `id` of the type that ids have in a file."""
    return pl.DataFrame(schema={"id": plan.forms[name].types[column]})


def _ids(pipeline, column: str, rows, plan: Plan):
    """Side input: the ids of the people or the authors, in order."""
    table, listed = PEOPLE[column]
    found = (rows | f"{table} of files" >> beam.Filter(lambda row, names: row[0] in names, IDS_IN[column])
             | f"{table} of rows" >> beam.Map(lambda row: pack(_id_column(unpack(row[1]), column))))
    parts = [found]
    if listed in plan.paths:
        parts.append(pipeline | f"{table}: list" >> beam.Create([listed]) | f"{table}: listed" >> beam.Map(
            lambda name: pack(_id_column(read_csv(plan.paths[name], FILES[name], plan.texts).frame, column))))
    return steps.distinct_rows(parts | f"{table}: found" >> beam.Flatten(),
                               _empty(plan, IDS_IN[column][0], column), table)


def _id_column(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    return frame.select(pl.col(column).unique().alias("id"))


def kinds_in(rows: pl.DataFrame) -> pl.DataFrame:
    """The different texts in ROOM_CATEGORIES of a part of room.csv: column, text."""
    return pl.concat([pl.DataFrame(schema={"column": pl.String, "text": pl.String}), *[
        rows.select(pl.lit(name).alias("column"), pl.col(name).alias("text")).unique().drop_nulls()
        for name in ROOM_CATEGORIES if name in rows.columns]])


def merge_rooms(keyed: tuple[int, Iterable[bytes]], plan: Plan, kinds: bytes) -> Iterator:
    """The rows of a range of rooms → (range, packed rooms in order of live_id)."""
    key, parts = keyed
    texts = {name: rows["text"] for (name,), rows in unpack(kinds).partition_by("column", as_dict=True).items()}
    found = pl.concat([unpack(part) for part in parts])
    rows = kuailive.room_rows(Rows(plan.paths["room.csv"], found, len(found)), texts, plan.titles)
    counts = Counts()
    yield key, pack(room_logs.one_row_a_room(plan.paths["room.csv"], rows, counts.notes))
    yield from steps.counted(counts)


def join_rooms(keyed: tuple[int, dict], plan: Plan, first: dict[int, int], user_id: bytes, streamer_id: bytes
               ) -> Iterator:
    """Rooms and events of a range of rooms → (range of people, (file, packed rows with dense ids)).

    Writes the rooms.
    """
    key, groups = keyed
    users, authors = unpack(user_id)["id"], unpack(streamer_id)["id"]
    (packed,) = groups["rooms"]
    rooms = room_logs.number(unpack(packed), "author", authors, "author_id")
    yield from plan.write("rooms", key, room_logs.room_table(rooms, first[key]))
    world = World(known_rooms(rooms, first[key]), users, authors, plan.drop_unknown_rooms)
    for name, part in groups["events"]:
        counts, frame = Counts(), unpack(part)
        events = kuailive.in_rooms(name, Rows(plan.paths[name], frame, len(frame)), world, counts)
        for people, rows in steps.split(events, steps.range_of_person(events["user_id"], len(users), plan.shards)):
            yield people, (name, pack(rows))
        yield from steps.counted(counts)


def views_of_people(keyed: tuple[int, Iterable[tuple[str, bytes]]], plan: Plan) -> Iterator:
    """The events of a range of people → their interactions, which are written."""
    key, groups = keyed
    events: dict[str, list[pl.DataFrame]] = {}
    for name, part in groups:
        if name:
            events.setdefault(name, []).append(unpack(part))
    frames = {name: pl.concat(parts) for name, parts in events.items()}
    counts, shown = Counts(), []
    views = kuailive.views_of(frames["click.csv"] if "click.csv" in frames else _no_clicks(plan), counts)
    for name in EVENTS:
        if name in frames and name != "click.csv":
            views = kuailive.with_events(views, name, frames[name], shown, counts)
    table = kuailive.interactions(views, shown, counts)
    yield from plan.write("interactions", key, table)
    yield from steps.counted(counts, len(table))


def _no_clicks(plan: Plan) -> pl.DataFrame:
    """What `kuailive.in_rooms` returns for a file of clicks without a row."""
    found = parse_part(plan.forms["click.csv"], b"", 0)
    ids = [pl.Series("id", dtype=found.frame.schema[name]) for name in ("user_id", "streamer_id")]
    rooms = pl.DataFrame(schema={"live_id": found.frame.schema["live_id"], "author_id": pl.Int32, "start_ms": pl.Int64,
                                 "end_ms": pl.Int64})
    return kuailive.in_rooms("click.csv", found, World(known_rooms(rooms), *ids, True), Counts())


def people_table(column: str, plan: Plan, ids: bytes) -> Iterator:
    """Writes the table of the people or of the authors, in one shard."""
    table, name = PEOPLE[column]
    key, counts, features = f"{table[:-1]}_id", Counts(), []
    numbered = unpack(ids)["id"]
    if name in plan.paths:
        rows = read_csv(plan.paths[name], FILES[name], plan.texts)
        features = room_logs.side_features(rows, column, FILES[name], numbered, counts.notes)
    write_shard(plan.out_dir, table, 0, 1, room_logs.id_table(key, numbered).with_columns(features))
    yield pvalue.TaggedOutput(WRITTEN, table)
    yield from steps.counted(counts)


def write_titles(shard: int, plan: Plan) -> str:
    """Writes a shard of the titles table; returns the table's name."""
    first, stop = (plan.titles.rows * at // plan.title_shards for at in (shard, shard + 1))
    write_shard(plan.out_dir, "titles", shard, plan.title_shards, titles_in(plan.titles, first, stop))
    return "titles"
