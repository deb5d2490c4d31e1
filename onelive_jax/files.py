"""Files that every stage writes: whole or not at all, JSON, and the hash by which an artifact knows its source.

And what is shown to a person: sentences of errors, text without control characters.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# What the system says where nothing more can be written: a full disk, a quota, a limit on the size of files.
FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
JOINERS = "\u200c\u200d"  # of emoji and of some scripts; harmless
TOLD = "Make room (or raise the limit) and type the same command again"
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file in one move: a reader sees the old content or the new, never a part. Text is UTF-8.

    Raises: OSError, with the room that is left where the disk is full.
    """
    draft = path.with_name(path.name + ".tmp")
    with explain_full_disk(path.parent, path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of a JSON value, indented."""
    write_whole(path, json.dumps(value, indent=1))


def sha256(*arrays: np.ndarray) -> str:
    """Hexadecimal hash of the bytes of arrays, one after the other. Shapes and dtypes do not count."""
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def disk_trouble(error: BaseException) -> str | None:
    """A sentence for an error of any library that means a full or a read-only disk; None for another error."""
    if isinstance(error, OSError) and TOLD in (error.strerror or ""):
        return error.strerror
    if isinstance(error, OSError) and error.errno in DENIED:
        return (f"{error.filename or 'a file'} cannot be opened or written: {error.strerror}. Choose another folder, "
                "or correct its permissions")
    if full := next((text for code, text in FULL.items() if text in str(error)
                     or (isinstance(error, OSError) and error.errno == code)), None):
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"{full}{where}. {TOLD}"
    return None


@contextlib.contextmanager
def explain_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Turns an error that means a full disk (the system's, or a library's that quotes it) into a sentence.

    Raises: OSError with `what` could not be written, the folder, and the room that is left there.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        code = next((code for code, text in FULL.items() if text in str(error) or number == code), None)
        if code is None:
            raise
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(code, f"{FULL[code]}: {what} could not be written to {folder}, where {free:,.1f} MiB are free. "
                      f"{TOLD}") from error


def json_damage(file: Path) -> str | None:
    """What keeps a file from being read as JSON, or None."""
    try:
        json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"{file.name}: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """Of an error's message; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str, kept: str = "\n") -> str:
    """Text whose control characters (a terminal's escapes, changes of direction) are written out as \\x1b; `kept` stay.

    Names of people and rooms are written by strangers.
    """
    return "".join(char if char in kept or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
                   or char in JOINERS else char.encode("unicode_escape").decode() for char in text)
