"""KuaiLive-M3 as a Beam pipeline: the same rules as `kuailive_m3.read_kuailive_m3`, a range at a time.

Rooms, views and content meet by range of live_id; views and short videos are then written by range of people. Parquet
files are read a row group at a time; a .csv file of content is read by one worker.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import polars as pl
from apache_beam import pvalue

from data_pipelines.beam import steps as steps
from data_pipelines.beam.files import (
    RowGroup,
    StoredFile,
    files_in,
    first_rows,
    pack,
    parts_of,
    row_groups,
    rows_of,
    unpack,
    write_shard,
)
from data_pipelines.beam.steps import COUNTS, WRITTEN
from data_pipelines.readers import kuailive_m3, room_logs
from data_pipelines.readers.csv_files import Form, form_of, parse_part, read_csv, text_ids
from data_pipelines.readers.kuailive import Counts
from data_pipelines.readers.kuailive_m3 import INTERACTION, PEOPLE
from data_pipelines.readers.room_logs import World, known_rooms

LOG, ROOMS, CONTENT, VIDEOS = "live_interaction.csv", "live_room_meta.parquet", "live_emb_128_ts", "photo_play.parquet"


class Plan(NamedTuple):
    """What is known of a folder before a worker starts; small, and carried to every worker.

    Attributes:
      out_dir: address. shards: ranges of rooms, and of people. drop_unknown_rooms: as in `read_kuailive_m3`.
      paths: key of PLACES → file. form: of live_interaction.csv. texts: id columns that hold text.
      no_room: what `read_rooms` makes of a file without a row.
      width: of the embeddings of content, or None if there is none.
    """

    out_dir: str
    shards: int
    drop_unknown_rooms: bool
    paths: dict[str, StoredFile]
    form: Form
    texts: frozenset[str]
    no_room: bytes
    width: int | None

    def write(self, table: str, shard: int, frame: pl.DataFrame) -> Iterator[pvalue.TaggedOutput]:
        """Writes a shard of a table that is stored by ranges, and reports that there is one."""
        write_shard(self.out_dir, table, shard, self.shards, frame)
        yield pvalue.TaggedOutput(WRITTEN, table)

    def empty_ids(self, column: str) -> pl.DataFrame:
        """No id, as a frame with the column `id` of the type of the ids in a column."""
        return pl.DataFrame(schema={"id": pl.String if column in self.texts else pl.Int64})


def build(pipeline: beam.Pipeline, folder: str, out_dir: str, shards: int | None, part_bytes: int,
          drop_unknown_rooms: bool) -> None:
    """Adds the steps from a KuaiLive-M3 folder to a folder of canonical tables in shards.

    Arguments and errors are those of `beam_kuailive.build`; by default there is a shard for each `part_bytes` of views
    and content.
    """
    sizes = files_in(folder)
    places = kuailive_m3.places_of(folder, lambda place: place in sizes or any(
        name.startswith(f"{place}/") for name in sizes))
    paths = {name: StoredFile(f"{folder}/{place}") for name, place in places.items()}
    content = [name for name in sizes if CONTENT in places and name.startswith(f"{places[CONTENT]}/")
               and name.endswith((".parquet", ".csv"))]
    if CONTENT in places and not content:
        raise FileNotFoundError(f"{paths[CONTENT]} {kuailive_m3.NO_SHARD}")
    groups = [group for i, name in enumerate(content) for group in row_groups(StoredFile(f"{folder}/{name}"), i)]
    texts = text_ids(paths[LOG], INTERACTION, unknown_is_error=False)
    form = form_of(paths[LOG], INTERACTION, texts, unknown_is_error=False)
    parts = parts_of(LOG, form, sizes[places[LOG]], part_bytes)
    shards = shards or max(1, (sizes[places[LOG]] + sum(sizes[name] for name in content)) // part_bytes)
    no_room = pack(kuailive_m3.room_rows(paths[ROOMS], texts, {}, (first_rows(row_groups(paths[ROOMS])[0], 0), 0)))
    plan = Plan(out_dir, shards, drop_unknown_rooms, paths, form, texts, no_room, _width(groups))

    view_rows = pipeline | "Views" >> steps.ReadParts({LOG: form}, parts)
    users = _ids(view_rows | "User ids" >> beam.MapTuple(lambda _, rows: pack(_distinct(unpack(rows), "user_id"))),
                 "user_id", "user_id_set.csv", plan)
    rooms = (pipeline | "Room groups" >> beam.Create(row_groups(paths[ROOMS])) | "Spread rooms" >> beam.Reshuffle()
             | "Rooms" >> beam.FlatMap(read_rooms, plan).with_outputs(COUNTS, main="rows"))
    counts, written = [rooms[COUNTS]], []
    author_ids = [rooms.rows | "Author ids" >> beam.Map(lambda rows: pack(_distinct(unpack(rows), "author")))]
    if VIDEOS in paths:
        videos = (pipeline | "Video groups" >> beam.Create(row_groups(paths[VIDEOS])) | "Spread" >> beam.Reshuffle()
                  | "Videos" >> beam.FlatMap(read_videos, plan, users).with_outputs(COUNTS, main="rows"))
        author_ids.append(videos.rows | "Authors of videos" >> beam.MapTuple(
            lambda _, rows: pack(_distinct(unpack(rows), "author"))))
        counts.append(videos[COUNTS])
    authors = _ids(author_ids | "All author ids" >> beam.Flatten(), "author_id", "author_profile.csv", plan)
    ranges = steps.range_boundaries(rooms.rows | "Sample" >> beam.Map(
        lambda rows: steps.sample(unpack(rows)["live_id"])), plan.empty_ids("live_id"), shards)

    by_range = rooms.rows | "Named" >> beam.Map(lambda rows: (ROOMS, rows)) | "By range" >> beam.FlatMap(
        steps.by_room, ranges)
    merged = ((by_range, steps.every_range(pipeline, shards, "rooms")) | "All rooms" >> beam.Flatten()
              | "Rooms of a range" >> beam.GroupByKey()
              | "Merge" >> beam.FlatMap(merge_rooms, plan).with_outputs(COUNTS, main="rooms"))
    grouped = {"rooms": merged.rooms, "views": view_rows | "Views by range" >> beam.FlatMap(steps.by_room, ranges)}
    if groups:
        segments = (pipeline | "Content" >> beam.Create(groups) | "Spread content" >> beam.Reshuffle()
                    | "Segments" >> beam.FlatMap(read_segments, plan).with_outputs(COUNTS, main="rows"))
        grouped["segments"] = segments.rows | "Segments by range" >> beam.FlatMap(steps.by_room, ranges)
        counts.append(segments[COUNTS])
    joined = (grouped | "Meet" >> beam.CoGroupByKey() | "Join" >> beam.FlatMap(
        join_rooms, plan, steps.first_rooms(merged.rooms), users, authors).with_outputs(COUNTS, WRITTEN, main="views"))
    views = ((joined.views, steps.every_range(pipeline, shards, "views")) | "All views" >> beam.Flatten()
             | "Views of people" >> beam.GroupByKey()
             | "Write views" >> beam.FlatMap(write_views, plan).with_outputs(COUNTS, WRITTEN, main="none"))
    people = (pipeline | "People" >> beam.Create([None])
              | "Write people" >> beam.FlatMap(write_people, plan, users, authors).with_outputs(COUNTS, WRITTEN,
                                                                                              main="none"))
    if VIDEOS in paths:
        named = videos.rows | "Name videos" >> beam.MapTuple(lambda key, rows: (key, (VIDEOS, rows)))
        written.append(((named, steps.every_range(pipeline, shards, "videos")) | "All videos" >> beam.Flatten()
                        | "Videos of people" >> beam.GroupByKey()
                        | "Write videos" >> beam.FlatMap(write_videos, plan, authors).with_outputs(
                            WRITTEN, main="none"))[WRITTEN])
    counts += [merged[COUNTS], joined[COUNTS], views[COUNTS], people[COUNTS]]
    written += [joined[WRITTEN], views[WRITTEN], people[WRITTEN]]
    _ = ((counts | "Counts" >> beam.Flatten(), written | "Written" >> beam.Flatten())
         | steps.WriteReport(folder, out_dir))


def _width(groups: list[RowGroup]) -> int | None:
    """Width of the first embedding of the content, to which every other must be equal."""
    for group in groups:
        rows = kuailive_m3.segment_rows(group.path, True, {}, part=(first_rows(group, 1), group.first))
        if len(rows):
            numbered = rows.with_columns(pl.lit(0, pl.Int32).alias("room_id"))
            return kuailive_m3.embedded(group.path, numbered, None)[1]
    return 128 if groups else None


def _ids(found, column: str, listed: str, plan: Plan):
    """Side input: different ids in order, of packed frames with the column `id` and of a list of people."""
    if listed in plan.paths:
        more = found.pipeline | f"{listed}" >> beam.Create([listed]) | f"Read {listed}" >> beam.Map(
            lambda name: pack(_distinct(read_csv(plan.paths[name], PEOPLE[name], plan.texts,
                                                 unknown_is_error=False).frame, column)))
        found = (found, more) | f"{listed} too" >> beam.Flatten()
    return steps.distinct_rows(found, plan.empty_ids(column), column)


def _distinct(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    return frame.select(pl.col(column).unique().alias("id"))


def read_rooms(group: RowGroup, plan: Plan) -> Iterator:
    """A row group of live_room_meta → packed rows."""
    counts = Counts()
    yield pack(kuailive_m3.room_rows(group.path, plan.texts, counts.notes, rows_of(group)))
    yield from steps.counted(counts)


def read_videos(group: RowGroup, plan: Plan, users: bytes) -> Iterator:
    """A row group of short-video views → (range of people, packed rows)."""
    counts, ids = Counts(), unpack(users)["id"]
    rows = kuailive_m3.video_rows(group.path, plan.texts, ids, counts.notes, rows_of(group))
    for people, part in steps.split(rows, steps.range_of_person(rows["user_id"], len(ids), plan.shards)):
        yield people, pack(part)
    yield from steps.counted(counts)


def read_segments(group: RowGroup, plan: Plan) -> Iterator:
    """A row group of content → (number of its file, packed rows)."""
    counts = Counts()
    rows = kuailive_m3.segment_rows(group.path, "live_id" in plan.texts, counts.notes, part=rows_of(group))
    yield f"{group.file} {group.path}", pack(rows)
    yield from steps.counted(counts)


def merge_rooms(keyed: tuple[int, Iterable[tuple[str, bytes]]], plan: Plan) -> Iterator:
    """The rows of a range of rooms → (range, packed rooms in order of live_id)."""
    key, groups = keyed
    rows = pl.concat([unpack(plan.no_room), *[unpack(part) for name, part in groups if name]])
    counts = Counts()
    yield key, pack(room_logs.one_row_a_room(plan.paths[ROOMS], rows, counts.notes))
    yield from steps.counted(counts)


def join_rooms(keyed: tuple[int, dict], plan: Plan, first: dict[int, int], users: bytes, authors: bytes) -> Iterator:
    """Rooms, views and content of a range of rooms → (range of people, (file, packed views)).

    Writes the rooms and the content.
    """
    key, groups = keyed
    user_ids, author_ids = unpack(users)["id"], unpack(authors)["id"]
    (packed,) = groups["rooms"]
    rooms = room_logs.number(unpack(packed), "author", author_ids, "author_id")
    yield from plan.write("rooms", key, room_logs.room_table(rooms, first[key]))
    world = World(known_rooms(rooms, first[key]), user_ids, author_ids, plan.drop_unknown_rooms)
    for _, part in groups["views"]:
        frame = unpack(part)
        unused = [name for name in plan.form.types if name not in plan.form.columns]
        counts = Counts(len(frame), notes={f"value of the column {name!r} of {LOG}, which is not used": len(frame)
                                           for name in unused})
        views = kuailive_m3.views_in(plan.paths[LOG], frame, world, counts.notes, counts.dropped)
        for people, rows in steps.split(views, steps.range_of_person(views["user_id"], len(user_ids), plan.shards)):
            yield people, (LOG, pack(rows))
        yield from steps.counted(counts)
    if plan.width is None:
        return
    counts, parts = Counts(), []
    for name, part in groups["segments"]:
        file, _, path = name.partition(" ")
        rows = kuailive_m3.in_rooms(unpack(part), world.rooms, counts.notes)
        if len(rows):
            rows = kuailive_m3.embedded(StoredFile(path), rows, plan.width)[0]
            parts.append(rows.with_columns(pl.lit(int(file), pl.Int32).alias("file")))
    content = pl.concat(parts or [_no_segment(plan.width)])
    yield from plan.write("segments", key, kuailive_m3.segment_table(content, counts.notes))
    yield from steps.counted(counts)


def _no_segment(width: int) -> pl.DataFrame:
    return pl.DataFrame(schema={"room_id": pl.Int32, "end_ms": pl.Int64, "segment_id": pl.Int64, "embedding": pl.Array(
        pl.Float32, width), kuailive_m3.RECORD: pl.Int64, "file": pl.Int32})


def write_views(keyed: tuple[int, Iterable[tuple[str, bytes]]], plan: Plan) -> Iterator:
    """The views of a range of people → their interactions, which are written."""
    key, groups = keyed
    parts = [unpack(part) for name, part in groups if name]
    counts = Counts()
    views = kuailive_m3.once(pl.concat(parts or [_no_view(plan)]), counts.notes, counts.dropped)
    yield from plan.write("interactions", key, room_logs.interactions(views))
    yield from steps.counted(counts, len(views))


def _no_view(plan: Plan) -> pl.DataFrame:
    """What `kuailive_m3.views_in` returns for a file without a row."""
    ids = {name: plan.empty_ids(name)["id"] for name in ("user_id", "author_id", "live_id")}
    rooms = pl.DataFrame(schema={"live_id": ids["live_id"].dtype, "author_id": pl.Int32, "start_ms": pl.Int64,
                                 "end_ms": pl.Int64})
    world = World(known_rooms(rooms), ids["user_id"], ids["author_id"], True)
    return kuailive_m3.views_in(plan.paths[LOG], parse_part(plan.form, b"", 0).frame, world, {}, {})


def write_videos(keyed: tuple[int, Iterable[tuple[str, bytes]]], plan: Plan, authors: bytes) -> Iterator:
    """The short-video views of a range of people, which are written."""
    key, groups = keyed
    ids = unpack(authors)["id"]
    none = pl.DataFrame(schema={"user_id": pl.Int32, "author": ids.dtype, "start_ms": pl.Int64, "watch_ms": pl.Int64})
    rows = pl.concat([none, *[unpack(part) for name, part in groups if name]])
    yield from plan.write("videos", key, kuailive_m3.video_table(rows, ids))


def write_people(_, plan: Plan, users: bytes, authors: bytes) -> Iterator:
    """Writes the tables of people and of authors, each in one shard."""
    counts, features, ids = Counts(), [], unpack(authors)["id"]
    name = "author_profile.csv"
    if name in plan.paths:
        rows = read_csv(plan.paths[name], PEOPLE[name], plan.texts, unknown_is_error=False)
        features = room_logs.side_features(rows, "author_id", PEOPLE[name], ids, counts.notes)
    write_shard(plan.out_dir, "authors", 0, 1, room_logs.id_table("author_id", ids).with_columns(features))
    write_shard(plan.out_dir, "users", 0, 1, room_logs.id_table("user_id", unpack(users)["id"]))
    yield from (pvalue.TaggedOutput(WRITTEN, table) for table in ("authors", "users"))
    yield from steps.counted(counts)
