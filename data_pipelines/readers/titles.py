"""Title embeddings of KuaiLive: a NumPy file, .npy or .npz, whose row i belongs to live_name_id i; read in parts."""

import contextlib
import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl


@dataclass(frozen=True)
class TitleFile:
    """Where the numbers of a NumPy file are: [rows, width] of dtype, from the byte `start` of the array's stream."""

    path: Path
    rows: int
    width: int
    dtype: np.dtype
    by_column: bool
    start: int


def title_file(path: Path) -> TitleFile:
    """The form of a file of title embeddings.

    Raises:
      ValueError: if it is not one array of numbers with two axes, or is cut short.
    """
    with _array(path) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(stream)
        start = stream.tell()
        size = stream.seek(0, io.SEEK_END) - start
    if dtype.hasobject:
        raise ValueError(f"{path} cannot be read as a NumPy array of numbers (it holds Python objects)")
    if len(shape) != 2 or min(shape) < 0 or not np.issubdtype(dtype, np.number) or dtype.kind == "c":
        raise ValueError(f"{path} holds {dtype} {list(shape)}: numbers with two axes are needed, a row a live_name_id")
    if size < shape[0] * shape[1] * dtype.itemsize:
        raise ValueError(f"{path} cannot be read as a NumPy array of numbers (it is cut short)")
    return TitleFile(path, *shape, dtype, by_column, start)


def titles_in(file: TitleFile, first: int, stop: int) -> pl.DataFrame:
    """The titles table's rows first … stop − 1: title_id int32 and embedding, array of float32 [width].

    An array that is stored by column is read whole.
    """
    begin, end = (0, file.rows) if file.by_column else (first, stop)
    row = file.width * file.dtype.itemsize
    with _array(file.path) as stream:
        stream.seek(file.start + begin * row)
        values = np.frombuffer(stream.read((end - begin) * row), file.dtype)
    values = values.reshape(file.width, -1).T[first:stop] if file.by_column else values.reshape(-1, file.width)
    values = np.ascontiguousarray(values, dtype=np.float32)
    return pl.DataFrame({"title_id": np.arange(first, stop, dtype=np.int32),
                         "embedding": pl.Series(values, dtype=pl.Array(pl.Float32, file.width))})


@contextlib.contextmanager
def _array(path: Path) -> Iterator:
    """The stream of a .npy file, or of the only array in a .npz file."""
    with contextlib.ExitStack() as files:
        try:
            stream = files.enter_context(path.open("rb"))
            if path.suffixes[-1] == ".npz":
                archive = files.enter_context(zipfile.ZipFile(stream))
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                if len(names) != 1:
                    raise ValueError(f"{path} holds {len(names)} arrays ({', '.join(names)}): it must hold one, a row "
                                     "a live_name_id")
                stream = files.enter_context(archive.open(archive.namelist()[0]))
            yield stream
        except (EOFError, OSError, ValueError, SyntaxError, TypeError, tokenize.TokenError, zipfile.BadZipFile,
                zlib.error) as error:  # what NumPy raises for a damaged header, too
            raise ValueError(f"{path} cannot be read as a NumPy array of numbers ({error})") from error
