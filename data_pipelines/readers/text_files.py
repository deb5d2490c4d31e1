"""Text files of rows: unpacked, decoded, cut into blocks of whole lines, and every row checked for its width.

A Path may also be a file on another file system: it has `open`, `name`, `suffixes`, and its address as its text
(`beam.files.StoredFile`). A block is what one worker of the Beam pipeline reads, and one step of a reader here.
"""

import codecs
import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

LINE = "line"  # int64 column: the line of a text file, or the row of any other, from 1
BLOCK = 16 * 2**20  # bytes
HEAD = 2**19  # bytes from which a file's layout and units are told
DELIMITERS = ",;\t|\x01"  # the last: Hive
LONGEST_ROW = 2**20  # bytes: a quote that stays open for longer was never one
# What a packed file may unpack to: a log of digits packs 4 to 20 times.
MAX_RATIO, FREE_BYTES = 100, 2**30
# The first bytes of files that are no text, and what to do with them.
OTHER_FORMATS = {
    b"PAR1": "is a parquet file: give it a name that ends in .parquet",
    b"ARROW1": "is an Arrow file: save it as parquet",
    b"BZh": "is packed with bzip2: unpack it", b"\xfd7zXZ": "is packed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "is packed with Zstandard: unpack it", b"7z\xbc\xaf": "is packed with 7-Zip: unpack it",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet: save it as CSV",
    b"SQLite format 3": "is a database: export the table as CSV",
    b"\x89HDF": "is an HDF5 file: save it as parquet", b"Obj\x01": "is an Avro file: save it as parquet",
    b"ORC": "is an ORC file: save it as parquet", b"%PDF": "is a PDF"}
JSON = "is JSON: make a table of it, in Python pl.read_ndjson(FILE).write_parquet(FILE) or pl.read_json"
OTHER_TEXTS = {"{": JSON, "[{": JSON, "<html": "is a web page", "<!doctype": "is a web page",
               "<?xml": "is XML, not a table",
               "version https://git-lfs": "is only a pointer to the file: git lfs pull brings it"}
NOT_TEXT = (UnicodeDecodeError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError, csv.Error,
            pl.exceptions.PolarsError)
PARQUET = (".parquet", ".pq", ".parq")
# Names of files of text, packed or not.
ENDINGS = tuple(f".{kind}{pack}" for kind in ("csv", "tsv", "txt") for pack in ("", ".gz", ".zip")) + (".zip",)


@dataclass(frozen=True)
class Layout:
    """How a file's bytes become rows.

    Attributes:
      path: the file. delimiter: between the cells of a row. header: the names in the first line, stripped.
      has_header: False where the first line is a row. cr: lines end with CR alone.
    """

    path: Path
    delimiter: str
    header: tuple[str, ...]
    has_header: bool
    cr: bool


class _Guarded(io.RawIOBase):
    """An unpacked stream that stops where it has unpacked to far more than a log can."""

    def __init__(self, stream, path: Path, packed: int):
        super().__init__()
        self._stream, self._path, self._left = stream, path, max(packed * MAX_RATIO, FREE_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"{self._path}: unpacks to more than {MAX_RATIO} times its size, which no log does: "
                             "unpack it yourself and look at it")
        buffer[:len(data)] = data
        return len(data)


def open_unpacked(path: Path):
    """A binary stream of a file's text in UTF-8 without a byte order mark; .gz and .zip are unpacked, UTF-16 decoded.

    Raises: ValueError: for an archive of several files.
    """
    raw = path.open("rb")
    magic = raw.read(16)
    other = next((said for sign, said in OTHER_FORMATS.items() if magic.startswith(sign)), None)
    if other:
        raise ValueError(f"{path} {other}")
    magic = magic[:4]
    if magic[:2] == b"\x1f\x8b" or magic == b"PK\x03\x04":
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        if magic[:2] == b"\x1f\x8b":
            inner = gzip.GzipFile(fileobj=raw)
        else:
            archive = zipfile.ZipFile(raw)
            names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if "xl/workbook.xml" in names:
                raise ValueError(f"{path} is a spreadsheet: save it as CSV")
            if len(names) != 1:
                raise ValueError(f"{path} holds {len(names)} files: unpack it and give the folder or one of them")
            inner = archive.open(names[0])
        raw = io.BufferedReader(_Guarded(inner, path, size), 2**20)
        magic = raw.peek(4)[:4]
    else:
        raw.seek(0)
    if magic[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return codecs.EncodedFile(raw, "utf-8", "utf-16")
    for wide, name in ((magic[1::2], "utf-16-le"), (magic[::2], "utf-16-be")):
        if len(magic) == 4 and wide == b"\0\0" and magic.count(0) == 2:  # UTF-16 of plain letters, without its mark
            return codecs.EncodedFile(raw, "utf-8", name)
    if magic[:3] == codecs.BOM_UTF8:
        raw.read(3)
    return raw


def is_parquet(path: Path) -> bool:
    """Whether a file is of parquet, by its name."""
    return path.name.lower().endswith(PARQUET)


def layout_of(path: Path, has_header: bool = True) -> tuple[Layout, list[tuple[str, ...]]]:
    """How a file is laid out, and the first of its rows.

    Raises: ValueError: if the file is empty or is not text.
    """
    try:
        with open_unpacked(path) as stream:
            head = stream.read(HEAD)
        cr = b"\n" not in head and b"\r" in head
        head = _line_ends(head, cr)
        if len(head) >= HEAD:  # the last line may be cut
            head = head[:head.rfind(b"\n") + 1] or head
        text = head[header_start(head):].decode()
        other = next((said for sign, said in OTHER_TEXTS.items() if text[:100].lstrip().lower().startswith(sign)), None)
        if other:
            raise ValueError(f"{path} {other}")
        lines = [line for line in text.split("\n")[:50] if line.strip()]
        if not lines:
            raise ValueError(f"{path}: the file is empty")
        delimiter = _delimiter(lines)
        rows = [tuple(cell.strip() for cell in row) for row in csv.reader(io.StringIO(text, newline=""),
                                                                          delimiter=delimiter) if any(row)]
    except NOT_TEXT as error:
        raise ValueError(not_text(path, error)) from error
    layout = Layout(path, delimiter, rows[0], has_header, cr)
    return layout, [row for row in rows[int(has_header):] if len(row) == len(rows[0])]


def not_text(path: Path, error: Exception) -> str:
    """A sentence about a file that cannot be read as text."""
    if isinstance(error, UnicodeDecodeError):
        return (f"{path}: not a CSV file in UTF-8 ({error.reason} at byte {error.start:,}): save it as UTF-8 (iconv -f "
                "LATIN1 -t UTF-8, or -f GB18030)")
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile)):
        return f"{path}: the packed file is damaged or cut short ({error}): copy or download it again"
    return f"{path}: not a CSV file in UTF-8 ({error})"


def blocks(layout: Layout, size: int = BLOCK) -> Iterator[tuple[bytes, int]]:
    """Whole lines below the header, about `size` bytes at a time, and the line of the first; lines end with LF."""
    line, kept, skip = 1, b"", layout.has_header
    try:
        with open_unpacked(layout.path) as stream:
            while True:
                data = stream.read(size)
                if data.endswith(b"\r"):
                    data += stream.read(1)
                more = bool(data)
                data = kept + _line_ends(data, layout.cr)
                end = _whole_lines(data) if more else len(data)
                data, kept = data[:end], data[end:]
                if skip and data:
                    end = header_end(data)
                    line, data, skip = line + data.count(b"\n", 0, end), data[end:], False
                if data:
                    yield data, line
                    line += data.count(b"\n")
                if not more:
                    return
    except NOT_TEXT as error:
        raise ValueError(not_text(layout.path, error)) from error


def cells_of(layout: Layout, block: bytes, line: int, columns: list[int]) -> tuple[pl.DataFrame, list[tuple[int, int]]]:
    """The cells of a block as text, and its rows of another width than the first line.

    Args:
      block: whole lines. line: of the first of them. columns: places of the columns that are wanted.

    Returns:
      columns "0", "1", … of text and LINE, without blank rows; and (line, cells) of rows that are too short or too
      long, which the frame leaves out.
    """
    if b'"' in block:
        return _quoted(layout, block, line, columns)
    width, wrong, lines = len(layout.header), [], None  # lines: where they are not simply one after another
    block = block if block.endswith(b"\n") else block + b"\n"
    data = np.frombuffer(block, np.uint8)
    marks = np.flatnonzero((data == ord(layout.delimiter)) | (data == 10))  # the ends of cells
    ends = np.flatnonzero(data[marks] == 10)
    if len(marks) != len(ends) * width or (data[marks[width - 1::width]] != 10).any():
        found = np.diff(ends, prepend=-1)
        blank = np.diff(marks[ends], prepend=-1) == 1
        good = (found == width) & ~blank
        wrong = [(line + int(i), int(found[i])) for i in np.flatnonzero(~good & ~blank)]
        rows = block.split(b"\n")
        block = b"".join(rows[i] + b"\n" for i in np.flatnonzero(good))
        lines = line + np.flatnonzero(good)
    names = [str(i) for i in range(width)]
    wanted = [str(i) for i in columns]
    if not block:
        return pl.DataFrame(schema=dict.fromkeys(wanted, pl.String) | {LINE: pl.Int64}), wrong
    try:
        frame = pl.scan_csv(block, has_header=False, schema=dict.fromkeys(names, pl.String), quote_char=None,
                            separator=layout.delimiter).select(wanted).collect()
    except pl.exceptions.PolarsError as error:
        if "utf-8" in str(error):
            raise ValueError(_where_not_utf8(layout, block, line)) from error
        return _quoted(layout, block, line, columns)
    lines = pl.int_range(line, line + pl.len(), dtype=pl.Int64) if lines is None else pl.Series(lines, dtype=pl.Int64)
    return _without_blank(frame.select(wanted).with_columns(lines.alias(LINE)), wanted), wrong


def _quoted(layout, block, line, columns):
    """As `cells_of`, row by row: quoted cells may hold delimiters and line breaks."""
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        raise ValueError(_where_not_utf8(layout, block, line)) from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=layout.delimiter)
    width, wrong, found, lines, at = len(layout.header), [], [[] for _ in columns], [], line
    try:
        for cells in reader:
            if len(cells) == width:
                for column, place in zip(found, columns, strict=True):
                    column.append(cells[place])
                lines.append(at)
            elif cells:
                wrong.append((at, len(cells)))
            at = line + reader.line_num
    except csv.Error as error:
        raise ValueError(f"{layout.path}, line {at}: {error}") from error
    names = [str(i) for i in columns]
    frame = pl.DataFrame([pl.Series(name, cells, pl.String) for name, cells in zip(names, found, strict=True)])
    return _without_blank(frame.with_columns(pl.Series(LINE, lines, pl.Int64)), names), wrong


def _without_blank(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    first = frame[names[0]]
    if not (first.is_null() | (first == "")).any():
        return frame
    return frame.filter(~pl.all_horizontal(pl.col(name).is_null() | (pl.col(name).str.strip_chars() == "")
                                           for name in names))


def _where_not_utf8(layout: Layout, block: bytes, line: int) -> str:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        line += block.count(b"\n", 0, error.start)
        return f"{layout.path}, line {line}: not a CSV file in UTF-8 ({error.reason}): save it as UTF-8"
    return f"{layout.path}: not a CSV file in UTF-8"


def _line_ends(data: bytes, cr: bool) -> bytes:
    if b"\r" not in data:
        return data
    data = data.replace(b"\r\n", b"\n")
    return data.replace(b"\r", b"\n") if cr else data


def _whole_lines(data: bytes) -> int:
    """Where the last whole line ends; a line break in an open quote is none (unless the quote stays open too long)."""
    end = data.rfind(b"\n") + 1
    if data.count(b'"', 0, end) % 2 == 0:
        return end
    quote = data.rfind(b'"', 0, end)
    before = data.rfind(b"\n", 0, quote) + 1
    return before if end - before < LONGEST_ROW else end


def header_start(data: bytes) -> int:
    """Where the header begins: below blank lines, comments (# without a delimiter) and Excel's sep=;."""
    start = 0
    while True:
        end = data.find(b"\n", start) + 1
        line = data[start:end].strip()
        comment = line.startswith(b"#") and not any(mark.encode() in line for mark in DELIMITERS)
        if not end or line and not comment and not re.fullmatch(rb'"?sep=.?"?', line):
            return start
        start = end


def header_end(data: bytes) -> int:
    """Where the header ends, quoted line breaks included."""
    end = header_start(data)
    while True:
        end = data.find(b"\n", end) + 1 or len(data)
        if end == len(data) or data.count(b'"', 0, end) % 2 == 0:
            return end


def _delimiter(lines: list[str]) -> str:
    """The delimiter that cuts the most lines as it cuts the first; of several, the one that makes the most cells."""
    best, result = (0.0, 1), ","
    for mark in DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=mark)]
        if widths and widths[0] > 1:
            alike = sum(width == widths[0] for width in widths) / len(widths)
            if (alike, widths[0]) > best:
                best, result = (alike, widths[0]), mark
    return result
