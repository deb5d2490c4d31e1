"""Files of the Beam pipeline, on any file system that Beam knows: read in parts, written in shards.

Between workers a frame travels as bytes in Arrow's IPC format, which every runner can carry and nobody has to pickle.
"""

import contextlib
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

from data_pipelines.readers.csv_files import Form
from data_pipelines.tables import shard_name

READ_AHEAD = 2**20  # bytes


@dataclass(frozen=True)
class StoredFile:
    """A file by its address (gs://…, hdfs://…, s3://… or a path), with what `csv_files` asks of a Path."""

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


class Part(NamedTuple):
    """The lines of a file that begin at its bytes start … stop − 1: its part with this number, from 0."""

    name: str
    number: int
    start: int
    stop: int


class RowGroup(NamedTuple):
    """A row group of a parquet file, or a whole file of another form (`group` is −1), and the rows before it.

    `file` is the number of the file among those of its kind.
    """

    path: StoredFile
    file: int
    group: int
    first: int


def files_in(folder: str) -> dict[str, int]:
    """Place in the folder (a.csv, live/b.csv) → bytes of the files below it, in order; empty if there is no folder."""
    folder = folder.rstrip("/")
    found = FileSystems.match([f"{folder}/**"])[0].metadata_list
    sizes = {file.path[len(folder) + 1:]: file.size_in_bytes for file in found}
    return dict(sorted(sizes.items()))


def row_groups(path: StoredFile, file: int = 0) -> list[RowGroup]:
    """The parts of a parquet file, at least one, or the only one of another file.

    Raises: ValueError: if the file cannot be read as parquet.
    """
    if path.suffixes[-1] != ".parquet":
        return [RowGroup(path, file, -1, 0)]
    try:
        with path.open("rb") as stream:
            metadata = parquet.read_metadata(stream)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): download it again") from error
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] or [0]
    return [RowGroup(path, file, i, sum(sizes[:i])) for i in range(len(sizes))]


def rows_of(part: RowGroup) -> tuple[pl.LazyFrame, int]:
    """The rows of a part and the number of rows before them.

    Raises: ValueError: if the file cannot be read.
    """
    with _readable(part) as stream:
        if part.group < 0:
            rows = pl.read_csv(stream.read())
        else:
            file = parquet.ParquetFile(stream)
            rows = pl.from_arrow(file.read_row_group(part.group) if file.num_row_groups else file.read())
    return rows.lazy(), part.first


def first_rows(part: RowGroup, count: int) -> pl.LazyFrame:
    """The first so many rows of the file of a part, whatever the part; their columns where there is no row.

    Raises: ValueError: if the file cannot be read.
    """
    with _readable(part) as stream:
        if part.group < 0:
            return pl.read_csv(stream.read(), n_rows=count).lazy()
        file = parquet.ParquetFile(stream)
        batches = [next(file.iter_batches(batch_size=count), None)] if count else []
        table = pyarrow.Table.from_batches([batch for batch in batches if batch is not None], file.schema_arrow)
        return pl.from_arrow(table).lazy()


@contextlib.contextmanager
def _readable(part: RowGroup):
    try:
        with part.path.open("rb") as stream:
            yield stream
    except (pyarrow.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{part.path} cannot be read ({error}): download it again") from error


def parts_of(name: str, form: Form, size: int, part_bytes: int) -> list[Part]:
    """The parts into which workers read a CSV file of `size` bytes; a file without a row has none.

    Raises:
      ValueError: if the file is packed: only a file that can be read from the middle can be shared out.
    """
    if form.empty:
        return []
    with form.path.open("rb") as file:
        head = file.read(READ_AHEAD)
    if head[:2] == b"\x1f\x8b":
        raise ValueError(f"{form.path} is packed with gzip, so that workers cannot read it in parts: unpack it")
    start = head.find(b"\n") + 1
    return [Part(name, i, at, min(at + part_bytes, size)) for i, at in enumerate(range(start, size, part_bytes))]


def lines_of(path: StoredFile, part: Part) -> bytes:
    """The whole lines that begin in a part. A line that begins in it and ends beyond it belongs to it."""
    with path.open("rb") as file:
        file.seek(part.start - 1)  # the byte before says whether a line begins here; above the first is the header
        text = file.read(part.stop - part.start + 1)
        begin = text.find(b"\n", 0, len(text) - 1) + 1
        if not begin:
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
