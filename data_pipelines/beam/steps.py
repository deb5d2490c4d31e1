"""Steps of the Beam pipeline that every source shares.

What workers hold. A frame of rows never grows with the log: files are read in parts, rows are keyed by a range of room
ids or of people, and each range is a frame of its own. Side inputs, which every worker holds whole, are: the ids of
people and of authors (up to about a million of each: 100 MB), the texts of categorical columns, and a number for each
part and each range.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import apache_beam as beam
import polars as pl
from apache_beam import pvalue

from data_pipelines.beam.files import Part, lines_of, pack, read_part, unpack, write_file
from data_pipelines.readers import rows
from data_pipelines.readers.forms import Form
from data_pipelines.readers.rows import Counts
from data_pipelines.tables import ReadReport

COUNTS, WRITTEN = "counts", "written"  # side outputs: ((kind, reason), rows or examples), and (table, shards)
SAMPLE = 256  # ids of a part from which the ranges are chosen


class ReadParts(beam.PTransform):
    """Parts of files → (name of the file, packed rows), typed and checked, with their lines, and COUNTS."""

    def __init__(self, forms: dict[str, Form], parts: list[Part], stop: bool):
        super().__init__()
        self._forms, self._parts, self._stop = forms, parts, stop

    def expand(self, begin):
        parts = begin | beam.Create(self._parts) | beam.Reshuffle()
        before = (parts | "CountLines" >> beam.Map(count_lines, self._forms) | beam.combiners.ToList()
                  | "LinesBefore" >> beam.Map(lines_before))
        return parts | "Parse" >> beam.FlatMap(parse, self._forms, pvalue.AsSingleton(before), self._stop).with_outputs(
            COUNTS, main="rows")


def count_lines(part: Part, forms: dict[str, Form]) -> tuple[str, int, int]:
    """(name, number of the part, lines that begin in it)."""
    part = Part(*part)
    if forms[part.name].layout is None:
        return part.name, part.number, 0
    lines = lines_of(forms[part.name].path, part)
    return part.name, part.number, lines.count(b"\n") + (not lines.endswith(b"\n") and bool(lines))


def lines_before(counts: list[tuple[str, int, int]]) -> dict[tuple[str, int], int]:
    """(name, number of a part) → lines of the file below the header and before the part."""
    before, total, last = {}, 0, None
    for name, number, count in sorted(counts):
        total = total if name == last else 0
        before[name, number] = total
        total, last = total + count, name
    return before


def parse(part: Part, forms: dict[str, Form], before: dict[tuple[str, int], int], stop: bool) -> Iterator:
    """A part → (name, packed rows), and its counts."""
    part, counts = Part(*part), Counts(stop)
    yield part.name, pack(read_part(part, forms[part.name], before[part.name, part.number], counts))
    yield from counted(counts)


def distinct(frames: Iterable[bytes]) -> bytes:
    """The different rows of packed frames, sorted: what becomes of ids in a combine, packed itself."""
    rows = pl.concat([unpack(frame) for frame in frames]).unique()
    return pack(rows.sort(rows.columns))


def distinct_rows(frames, empty: pl.DataFrame, label: str):
    """Side input: the different rows of a PCollection of packed frames. `empty` has their columns."""
    seed = frames.pipeline | f"{label}: none" >> beam.Create([pack(empty)])
    return pvalue.AsSingleton((frames, seed) | f"{label}: all" >> beam.Flatten()
                              | f"{label}: distinct" >> beam.CombineGlobally(distinct))


def sample(ids: pl.Series) -> bytes:
    """Ids at even distances of the sorted different ids, packed."""
    ids = ids.unique().sort()
    every = max(1, len(ids) // SAMPLE)
    return pack(pl.DataFrame([ids.gather_every(every, every // 2).alias("id")]))


def boundaries(samples: list[bytes], ranges: int) -> bytes:
    """The ids at which the 2nd, 3rd, … of the ranges begin: about as many ids in each; packed."""
    ids = pl.concat([unpack(data) for data in samples])["id"].sort()
    places = [len(ids) * i // ranges for i in range(1, ranges)] if len(ids) else []
    return pack(pl.DataFrame([ids.gather(places)]))


def range_boundaries(samples, empty: pl.DataFrame, ranges: int):
    """Side input: `boundaries` of a PCollection of samples. `empty` has one column, id."""
    seed = samples.pipeline | "Ranges: none" >> beam.Create([pack(empty)])
    return pvalue.AsSingleton((samples, seed) | "Ranges: all" >> beam.Flatten() | beam.combiners.ToList()
                              | "Ranges" >> beam.Map(boundaries, ranges))


def split(frame: pl.DataFrame, ranges: pl.Series) -> Iterator[tuple[int, pl.DataFrame]]:
    """(range, its rows in their order) for the range of each row."""
    for (key,), part in frame.with_columns(ranges.alias("range")).partition_by(
            "range", maintain_order=True, include_key=False, as_dict=True).items():
        yield int(key), part


def range_of(ids: pl.Series, begins: pl.Series) -> pl.Series:
    """The range of each id, for ranges that begin at the ids that `boundaries` returns."""
    return begins.search_sorted(ids, side="right")


def range_of_person(users: pl.Series, people: int, ranges: int) -> pl.Series:
    """The range of each dense user id: as many people in each."""
    return users.cast(pl.Int64) * ranges // max(people, 1)


def every_range(pipeline: beam.Pipeline, ranges: int, label: str):
    """(range, ("", b"")) for every range, so that one without a row of the log has a shard too."""
    return pipeline | f"Ranges of {label}" >> beam.Create(range(ranges)) | f"No {label}" >> beam.Map(
        lambda key: (key, ("", b"")))


def first_ids(sizes: list[tuple[int, int]]) -> dict[int, int]:
    """Range → rows in the ranges before it, from (range, rows)."""
    before, total = {}, 0
    for key, size in sorted(sizes):
        before[key] = total
        total += size
    return before


def first_rooms(merged):
    """Side input: range of rooms → dense id of its first, for (range, packed rooms)."""
    return pvalue.AsSingleton(merged | "Size" >> beam.MapTuple(lambda key, rooms: (key, unpack(rooms).height))
                              | "Sizes" >> beam.combiners.ToList() | "First ids" >> beam.Map(first_ids))


def by_room(row: tuple[str, bytes], ranges: bytes) -> Iterator[tuple[int, tuple[str, bytes]]]:
    """Packed rows → (range of live_id, (file, packed rows))."""
    frame = unpack(row[1])
    for key, part in split(frame, range_of(frame["live_id"], unpack(ranges)["id"])):
        yield key, (row[0], pack(part))


def counted(counts: Counts, kept: int = 0, views: int = 0) -> Iterator[pvalue.TaggedOutput]:
    """The counts of a part of the log, for COUNTS."""
    kinds = {"rows_read": {"": counts.rows_read}, "rows_kept": {"": kept}, "views": {"": views}}
    kinds |= {kind: getattr(counts, kind) for kind in ("dropped", "notes", "merged", "examples")}
    for kind, reasons in kinds.items():
        for reason, found in reasons.items():
            if found:
                yield pvalue.TaggedOutput(COUNTS, ((kind, reason), found))


def total(found: Iterable) -> int | list:
    """The sum of numbers of rows, or the first examples of all."""
    found = list(found)
    if found and not isinstance(found[0], int):
        return sorted(tuple(example) for examples in found for example in examples)[:rows.EXAMPLES]
    return sum(found)


class WriteReport(beam.PTransform):
    """Counts and the names of the written tables → report.json, which is written last."""

    def __init__(self, source: str, folder: str, about: Sequence[str], check: Callable[[ReadReport, dict], None],
                 true_lifetimes: bool = True):
        super().__init__()
        self._meta = (source, folder, list(about), check, true_lifetimes)

    def expand(self, outputs):
        counts, written = outputs
        totals = counts | "Sum" >> beam.CombinePerKey(total)
        return (totals.pipeline | "Report" >> beam.Create([None]) | "WriteReport" >> beam.Map(
            write_report, pvalue.AsList(totals), pvalue.AsList(written), *self._meta))


def write_report(_, found: list[tuple[tuple[str, str], int | list]], written: list[str], source: str, folder: str,
                 about: list[str], check: Callable[[ReadReport, dict], None], true_lifetimes: bool) -> None:
    """Writes report.json as `tables.save` does, unless the log is refused; reasons are in the order of the alphabet.

    check: raises ValueError for a report and counts of other kinds that are not those of a log.
    """
    kinds: dict[str, dict] = {}
    for (kind, reason), value in sorted(found, key=lambda pair: pair[0]):
        kinds.setdefault(kind, {})[reason] = value
    read, kept, views = (kinds.get(kind, {}).get("", 0) for kind in ("rows_read", "rows_kept", "views"))
    counts = Counts(False, read, **{kind: kinds.get(kind, {}) for kind in ("dropped", "notes", "merged", "examples")})
    report = counts.report(source, (kept, views), about)
    try:
        rows.require_most(report)
        check(report, kinds)
    except ValueError as error:
        raise ValueError(str(error).replace("\n", "; ")) from error  # runners hand on one line
    meta = {"report": asdict(report), "tables": sorted(set(written)), "rooms_are_true_lifetimes": true_lifetimes}
    write_file(folder, "report.json", json.dumps(meta, indent=2).encode())
