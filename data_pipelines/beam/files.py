"""Files of the Beam pipeline, on any file system that Beam knows: read in parts, written in shards.

Between workers a frame travels as bytes in Arrow's IPC format, which every runner can carry and nobody has to pickle.
"""

import contextlib
import glob
import io
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import polars as pl
import pyarrow
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from pyarrow import parquet

from data_pipelines.readers import rows, text_files
from data_pipelines.readers.forms import Form
from data_pipelines.readers.rows import Counts
from data_pipelines.tables import UNREADABLE, shard_name

READ_AHEAD = 2**20  # bytes


@dataclass(frozen=True)
class StoredFile:
    """A file by its address (gs://…, hdfs://…, s3://… or a path), with what the readers ask of a Path."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.url).suffixes

    def open(self, mode: str = "rb"):
        """A stream of its bytes, as they are stored."""
        assert mode == "rb", mode
        return FileSystems.open(self.url, compression_type=CompressionTypes.UNCOMPRESSED)

    def first_rows(self, count: int | None) -> pl.DataFrame:
        """The first so many rows of a parquet file, or all. Raises: ValueError: if it cannot be read."""
        with self.parquet() as file:
            if count is None:
                return pl.from_arrow(file.read())
            batches = [batch for batch in [next(file.iter_batches(batch_size=count), None)] if batch is not None]
            return pl.from_arrow(pyarrow.Table.from_batches(batches, file.schema_arrow))

    @contextlib.contextmanager
    def parquet(self):
        """The open parquet file. Raises: ValueError: if it cannot be read."""
        try:
            with self.open() as stream:
                yield parquet.ParquetFile(stream)
        except (pyarrow.ArrowException, *UNREADABLE) as error:
            raise ValueError(f"{self} cannot be read ({error}): copy or download it again") from error


class Part(NamedTuple):
    """A part of a file that one worker reads at a time: its `number`-th, from 0.

    Of a text file, the lines that begin at its bytes start … stop − 1; `before` is the lines above the first part. Of a
    parquet file, row group `start`, with `before` rows before it.
    """

    name: str
    number: int
    start: int
    stop: int
    before: int


def files_in(folder: str) -> dict[str, int]:
    """Place in the folder (a.csv, live/b.csv) → bytes of the files below it, in order; empty if there is no folder.

    Of a file, "" → its bytes.
    """
    folder = folder.rstrip("/")
    found = FileSystems.match([f"{glob.escape(folder)}/**"])[0].metadata_list
    if not found:
        found = [file for file in FileSystems.match([glob.escape(folder)])[0].metadata_list if file.path == folder
                 and not FileSystems.exists(f"{folder}/")]
    sizes = {file.path[len(folder) + 1:]: file.size_in_bytes for file in found}
    return dict(sorted(sizes.items()))


def parts_of(name: str, form: Form, size: int, part_bytes: int) -> list[Part]:
    """The parts in which workers read a file of `size` bytes.

    Raises:
      ValueError: for text that is packed, in UTF-16 or with CR line ends: only a file that can be read from the middle
        can be shared out.
    """
    if form.layout is None:
        with form.path.parquet() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        return [Part(name, i, i, i + 1, sum(sizes[:i])) for i in range(len(sizes))]
    with form.path.open("rb") as file:
        head = file.read(READ_AHEAD)
    for sign, how in ((b"\x1f\x8b", "packed with gzip"), (b"PK", "packed with zip"), (b"\xff\xfe", "in UTF-16"),
                      (b"\xfe\xff", "in UTF-16")):
        if head.startswith(sign):
            raise ValueError(f"{form.path} is {how}, so that workers cannot read it in parts: unpack or convert it, or "
                             "use python -m data_pipelines.prepare")
    if form.layout.cr:
        raise ValueError(f"{form.path} ends its lines with CR, so that workers cannot read it in parts: convert it, or "
                         "use python -m data_pipelines.prepare")
    start = text_files.header_end(head) if form.layout.has_header else 0
    before = head.count(b"\n", 0, start)
    return [Part(name, i, at, min(at + part_bytes, size), before)
            for i, at in enumerate(range(start, size, part_bytes))]


def read_part(part: Part, form: Form, lines_before: int, counts: Counts) -> pl.DataFrame:
    """The typed rows of a part. `lines_before`: of a text file, from its first part to this one.

    Raises:
      ValueError: as `rows.parse_block`, and for a quoted cell that holds a line break: it may begin in another part.
    """
    if form.layout is None:
        with form.path.parquet() as file:
            group = pl.from_arrow(file.read_row_group(part.start))
        return rows.parquet_part(form, group.lazy(), part.before, counts)
    lines = lines_of(form.path, part).replace(b"\r\n", b"\n")
    line = 1 + part.before + lines_before
    if b'"' in lines:
        for i, text in enumerate(lines.split(b"\n")):
            if text.count(b'"') % 2:
                raise ValueError(f"{form.path}, line {line + i}: a quoted cell holds a line break, so that the file "
                                 "cannot be read in parts: remove it, or use python -m data_pipelines.prepare")
    if not lines.strip(b"\n"):
        return pl.DataFrame(schema=form.schema)
    return rows.parse_block(form, lines, line, counts)


def lines_of(path: StoredFile, part: Part) -> bytes:
    """The whole lines that begin in a part. A line that begins in it and ends beyond it belongs to it."""
    with path.open("rb") as file:
        before = min(part.start, 1)  # the byte before says whether a line begins here
        file.seek(part.start - before)
        text = file.read(part.stop - part.start + before)
        begin = text.find(b"\n", 0, len(text) - 1) + 1 if before else 0
        if before and not begin:
            return b""
        pieces = [text[begin:]]
        while pieces[-1] and not pieces[-1].endswith(b"\n"):
            more = file.read(READ_AHEAD)
            pieces.append(more[:more.find(b"\n") + 1] or more)
    return b"".join(pieces)


def pack(frame: pl.DataFrame) -> bytes:
    """The frame as bytes."""
    stream = io.BytesIO()
    frame.write_ipc(stream, compression="lz4")
    return stream.getvalue()


def unpack(data: bytes) -> pl.DataFrame:
    """The inverse of `pack`."""
    return pl.read_ipc(io.BytesIO(data))


def write_shard(folder: str, table: str, shard: int, shards: int, frame: pl.DataFrame) -> None:
    """Writes one parquet file of a table; a second attempt replaces it by the same."""
    stream = io.BytesIO()
    frame.write_parquet(stream)
    write_file(folder, shard_name(table, shard, shards), stream.getvalue())


def write_file(folder: str, name: str, data: bytes) -> None:
    """Writes a file that is there as a whole or not at all, though two workers may try at once."""
    unfinished = FileSystems.join(folder, f"{name}.unfinished-{uuid.uuid4().hex}")
    with FileSystems.create(unfinished, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write(data)
    FileSystems.rename([unfinished], [FileSystems.join(folder, name)])
