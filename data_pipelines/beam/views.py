"""Anybody's log, and Twitch's, as a Beam pipeline: the rules of `readers.log`, a range at a time.

    rows ─ (of events: by person, paired) ─ views ── by range of rooms ── rooms with dense ids ──┬── rooms
                                                                                                 └── by range of people
    likes, gifts, … ──────────────────────────────────────────────────────────────────────────────── interactions

Rooms with an id are shared out by it, and rows without one by their streamer: ranges 0 … S − 1 and S … 2 S − 1 of S
shards. Room ids are ranks: each range counts its rooms, and the sum over the ranges before it is the first id of its
own.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

import apache_beam as beam
import polars as pl
from apache_beam import pvalue

from data_pipelines.beam import steps
from data_pipelines.beam.files import StoredFile, files_in, pack, parts_of, unpack, write_shard
from data_pipelines.beam.steps import COUNTS, WRITTEN
from data_pipelines.readers import log, room_logs, text_files, twitch
from data_pipelines.readers.forms import TYPES, Form
from data_pipelines.readers.rows import Counts, Options
from data_pipelines.readers.text_files import LINE
from data_pipelines.tables import ROOMS, ReadReport

SOURCES = ("log", "twitch")
VIEWS, OTHERS = "views", "others"  # rows of a person: views, and events that belong to them
NO_ID = pl.DataFrame(schema={"id": pl.String})


class Plan(NamedTuple):
    """What is known of a log before a worker starts.

    Attributes: source: of SOURCES. out_dir: address. shards: ranges of people. options: what a person says of the log.
      forms: of its files, in order.
    """

    source: str
    out_dir: str
    shards: int
    options: Options
    forms: list[Form]

    @property
    def drop_empty(self) -> bool:
        return self.source == "twitch"

    @property
    def schema(self) -> dict:
        """Of views: every column that one of the files has."""
        known = {c.name: TYPES[c.kind] for form in self.forms for c in form.columns}
        absent = ("watch", "stop", "event", "click")
        return {name: dtype for name, dtype in known.items() if name not in absent} | {
            "room": pl.String, "click": pl.Boolean, "watch_ms": pl.Int64}

    @property
    def event_schema(self) -> dict:
        """Of rows of events, before they are paired."""
        known = {c.name: TYPES[c.kind] for form in self.forms for c in form.columns}
        return known | {LINE: pl.Int64, "file": pl.Int32, "kind": pl.String}

    def no_views(self) -> pl.DataFrame:
        """A frame of no view, with the numbers of its person and streamer."""
        kept = {name: dtype for name, dtype in self.schema.items() if name not in ("user", "author")}
        return pl.DataFrame(schema=kept | {"user_id": pl.Int32, "author_id": pl.Int32})

    def counts(self) -> Counts:
        return Counts(self.options.stop)


def build(source: str, pipeline: beam.Pipeline, path: str, out_dir: str, shards: int | None, part_bytes: int,
          options: Options) -> None:
    """Adds the steps from a log to a folder of canonical tables in shards; arguments as `kuaishou.build`."""
    sizes = {name: size for name, size in files_in(path).items() if not name or is_log(name)}
    if source == "twitch":
        sizes = dict(list(sizes.items())[:1])
    if not sizes:
        raise ValueError(f"{path} holds no .csv, .tsv or .parquet file: give the log, or the folder that holds it")
    files = [StoredFile(f"{path}/{name}" if name else path) for name in sizes]
    forms = [twitch.form_of(files[0])] if source == "twitch" else log.forms_of(files, options)
    parts = [part for i, form in enumerate(forms) for part in parts_of(str(i), form, list(sizes.values())[i],
                                                                       part_bytes)]
    plan = Plan(source, out_dir, shards or max(1, sum(sizes.values()) // part_bytes), options, forms)
    counts, written = [], []
    read = pipeline | steps.ReadParts({str(i): form for i, form in enumerate(forms)}, parts, options.stop)
    counts.append(read[COUNTS])
    others = None
    if log.has_events(forms):
        kinds = read.rows | "Kinds" >> beam.FlatMap(kinds_of, plan).with_outputs(COUNTS, main="rows")
        made = kinds.rows | "Rows of people" >> beam.GroupByKey() | "Pair" >> beam.FlatMap(pair, plan).with_outputs(
            COUNTS, OTHERS, main=VIEWS)
        counts.append(kinds[COUNTS])
        others = made[OTHERS]
    else:
        made = read.rows | "Lengths" >> beam.FlatMap(lengths_of, plan).with_outputs(COUNTS, main=VIEWS)
    counts.append(made[COUNTS])
    views = made[VIEWS]
    users, authors = (steps.distinct_rows(views | f"{name}: ids" >> beam.Map(ids_of, name), NO_ID, name)
                      for name in ("user", "author"))
    whole = pvalue.AsSingleton(views | "Kind of ids" >> beam.Map(rooms_are_whole) | beam.CombineGlobally(all))
    samples = views | "Sample" >> beam.Map(lambda packed: steps.sample(unpack(packed)["room"].drop_nulls()))
    ranges = pvalue.AsSingleton(samples | beam.combiners.ToList() | "Ranges" >> beam.Map(
        room_boundaries, whole, plan.shards))
    by_range = (views | "By room" >> beam.FlatMap(by_room, plan, users, authors, whole, ranges),
                pipeline | "Ranges of rooms" >> beam.Create(range(2 * plan.shards)) | "No room" >> beam.Map(
                    lambda key: (key, b"")))
    placed = (by_range | "All rooms" >> beam.Flatten() | "Rows of rooms" >> beam.GroupByKey() | "Rooms" >> beam.FlatMap(
        rooms_of, plan, authors, whole).with_outputs(COUNTS, main="rooms"))
    categories = steps.distinct_rows(placed.rooms | "Categories" >> beam.MapTuple(categories_in), NO_ID,
                                     "Kinds of room")
    first = steps.first_rooms(placed.rooms | "Found" >> beam.MapTuple(lambda key, rooms, _: (key, rooms)))
    joined = placed.rooms | "Number" >> beam.FlatMap(number_rooms, plan, first, categories, users).with_outputs(
        WRITTEN, main="rows")
    people = [joined.rows, steps.every_range(pipeline, plan.shards, "people")]
    if others is not None:
        people.append(others | "Others by person" >> beam.FlatMap(others_of, plan, users))
    tables = (people | "All of people" >> beam.Flatten() | "By person" >> beam.GroupByKey()
              | "Interactions" >> beam.FlatMap(interactions_of, plan, users, authors).with_outputs(
                  COUNTS, WRITTEN, main="none"))
    counts += [placed[COUNTS], tables[COUNTS]]
    written += [joined[WRITTEN], tables[WRITTEN], *(
        pipeline | f"{key}: table" >> beam.Create([key]) | f"Write {key}" >> beam.Map(write_ids, plan, ids)
        for key, ids in (("user_id", users), ("author_id", authors)))]
    about = log.about(forms)
    if source == "log":
        about += log.not_read([PurePosixPath(name) for name in files_in(path)], [PurePosixPath(name) for name in sizes])
    _ = ((counts | "Counts" >> beam.Flatten(), written | "Written" >> beam.Flatten()) | steps.WriteReport(
        path, out_dir, about, functools.partial(check_lengths, plan, path), log.has_lifetimes(forms)))


def is_log(name: str) -> bool:
    """Whether a file beside others is one of the log."""
    return "/" not in name and not name.startswith((".", "_")) and name.lower().endswith(
        (*text_files.ENDINGS, *text_files.PARQUET))


def check_lengths(plan: Plan, path: str, report: ReadReport, kinds: dict[str, dict]) -> None:
    """Raises ValueError where most views are longer than views are."""
    long = kinds.get("long", {}).get("", 0)
    if plan.source == "twitch":
        twitch.check_lengths(plan.forms[0], long, report.views)
    else:
        log.check_lengths(path, long, report.views)


def aligned(frame: pl.DataFrame, schema: dict) -> pl.DataFrame:
    """The frame with all of the columns, and no others."""
    return frame.select(pl.col(name) if name in frame.columns else pl.lit(None, dtype).alias(name)
                        for name, dtype in schema.items())


def lengths_of(row: tuple[str, bytes], plan: Plan) -> Iterator:
    """Typed rows of a file → packed views."""
    counts = plan.counts()
    frame = log.with_length(plan.forms[int(row[0])], unpack(row[1]), counts, plan.options, plan.drop_empty)
    yield pack(aligned(frame, plan.schema))
    yield from steps.counted(counts)


def kinds_of(row: tuple[str, bytes], plan: Plan) -> Iterator:
    """Typed rows of a file → (range of people, packed rows with their kind)."""
    counts, file = plan.counts(), int(row[0])
    frame = aligned(log.with_kind(plan.forms[file], file, unpack(row[1]), counts), plan.event_schema)
    for key, part in steps.split(frame, frame["user"].hash(0) % plan.shards):  # any range will do, as they are not kept
        yield key, pack(part)
    yield from steps.counted(counts)


def pair(keyed: tuple[int, Iterable[bytes]], plan: Plan) -> Iterator:
    """All rows of some people → packed views, and OTHERS: packed rows of likes, gifts, …"""
    counts = plan.counts()
    frame = pl.concat([unpack(part) for part in keyed[1]])
    views, others = log.views_of_events(plan.forms, frame, counts, plan.options, plan.drop_empty)
    yield pack(aligned(views, plan.schema))
    yield pvalue.TaggedOutput(OTHERS, pack(others))
    yield from steps.counted(counts)


def ids_of(packed: bytes, column: str) -> bytes:
    """The different ids in a column of packed rows, packed."""
    return pack(unpack(packed).select(pl.col(column).unique().alias("id")))


def in_order(packed: bytes) -> pl.Series:
    """Ids as text, in the order in which they are numbered."""
    return room_logs.compact(unpack(packed)["id"]).sort().cast(pl.String)


def rooms_are_whole(packed: bytes) -> bool:
    """Whether all ids of rooms are whole numbers."""
    return room_logs.compact(unpack(packed)["room"].unique()).dtype != pl.String


def room_boundaries(samples: list[bytes], whole: bool, ranges: int) -> bytes:
    """`steps.boundaries` of ids of rooms, in their order."""
    kind = pl.Int64 if whole else pl.String
    typed = [pack(unpack(data).with_columns(pl.col("id").cast(kind))) for data in samples]
    return steps.boundaries([*typed, pack(pl.DataFrame(schema={"id": kind}))], ranges)


def by_room(packed: bytes, plan: Plan, users: bytes, authors: bytes, whole: bool, ranges: bytes) -> Iterator:
    """Packed views → (range of rooms, packed views with user_id and author_id)."""
    frame, streamers = unpack(packed), in_order(authors)
    frame = room_logs.number(frame, "user", in_order(users), "user_id")
    frame = room_logs.number(frame, "author", streamers, "author_id")
    named = frame.drop_nulls("room")
    for key, part in steps.split(named, steps.range_of(named["room"].cast(pl.Int64 if whole else pl.String),
                                                       unpack(ranges)["id"])):
        yield key, pack(part)
    unnamed = frame.filter(pl.col("room").is_null())
    for key, part in steps.split(unnamed, steps.range_of_person(unnamed["author_id"], len(streamers), plan.shards)):
        yield plan.shards + key, pack(part)


def rooms_of(keyed: tuple[int, Iterable[bytes]], plan: Plan, authors: bytes, whole: bool) -> Iterator:
    """The views of a range of rooms → (range, packed rooms, packed views with room_id from 0)."""
    key, parts = keyed
    counts = plan.counts()
    frame = pl.concat([plan.no_views(), *(unpack(part) for part in parts if part)])
    views, rooms = log.with_rooms(frame, in_order(authors), counts, plan.options, whole)
    yield key, pack(rooms), pack(views)
    yield from steps.counted(counts)


def categories_in(_, rooms: bytes, __) -> bytes:
    """The different categories of packed rooms, packed."""
    frame = unpack(rooms)
    return pack(frame.select(pl.col("category").unique().alias("id")) if "category" in frame.columns else NO_ID)


def number_rooms(found: tuple[int, bytes, bytes], plan: Plan, first: dict[int, int], categories: bytes, users: bytes
                 ) -> Iterator:
    """`rooms_of` → (range of people, (VIEWS, packed views with their room's id)). Writes the rooms."""
    key, packed, views = found
    shift = pl.col("room_id").cast(pl.Int32) + first[key]
    rooms = log.room_table(unpack(packed), unpack(categories)["id"]).with_columns(shift.cast(pl.Int32))
    write_shard(plan.out_dir, "rooms", key, 2 * plan.shards, rooms.cast(dict(ROOMS)))
    yield pvalue.TaggedOutput(WRITTEN, "rooms")
    frame, people = unpack(views).with_columns(shift.cast(pl.Int32)), unpack(users).height
    for person, part in steps.split(frame, steps.range_of_person(frame["user_id"], people, plan.shards)):
        yield person, (VIEWS, pack(part))


def others_of(packed: bytes, plan: Plan, users: bytes) -> Iterator:
    """Packed rows of likes, gifts, … → (range of people, (OTHERS, packed rows)); of people without a view, range 0."""
    frame, people = unpack(packed), in_order(users)
    person = room_logs.number(frame.select("user"), "user", people, "id")["id"].fill_null(0)
    for key, part in steps.split(frame, steps.range_of_person(person, len(people), plan.shards)):
        yield key, (OTHERS, pack(part))


def interactions_of(keyed: tuple[int, Iterable[tuple[str, bytes]]], plan: Plan, users: bytes, authors: bytes
                    ) -> Iterator:
    """All rows of a range of people → their interactions, which are written."""
    key, parts = keyed
    none, _ = log.with_rooms(plan.no_views(), pl.Series([], dtype=pl.String), Counts(), plan.options, True)
    found = {VIEWS: [none], OTHERS: []}
    for kind, part in parts:
        if kind:
            found[kind].append(unpack(part))
    counts, others = plan.counts(), pl.concat(found[OTHERS]) if found[OTHERS] else None
    table = log.table_of(pl.concat(found[VIEWS]), others, in_order(users), in_order(authors), counts, plan.options)
    write_shard(plan.out_dir, "interactions", key, plan.shards, table)
    yield pvalue.TaggedOutput(WRITTEN, "interactions")
    least = twitch.LONG_ROUNDS * twitch.ROUND_MS if plan.source == "twitch" else log.DAY_MS
    if long := log.long_views(table, least):
        yield pvalue.TaggedOutput(COUNTS, (("long", ""), long))
    yield from steps.counted(counts, len(table), int(table["click"].sum()))


def write_ids(key: str, plan: Plan, ids: bytes) -> str:
    """Writes the table of the people or of the authors, in one shard; returns its name."""
    table, wanted = {"user_id": "users", "author_id": "authors"}[key], in_order(ids)
    if key == "user_id":
        wanted = wanted[:plan.options.limit_users]
    write_shard(plan.out_dir, table, 0, 1, room_logs.id_table(key, wanted))
    return table
