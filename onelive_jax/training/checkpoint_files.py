"""Checkpoints as files, whatever wrote them: damage, full disks, and the state of an iterator as text."""

import base64
import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What the system says where nothing more can be written: a full disk, a quota, a limit on the size of files.
FULL = {code: text for code, text in ((errno.ENOSPC, "No space left on device"), (errno.EDQUOT, "Disk quota exceeded"),
                                      (errno.EFBIG, "File too large"))}


@contextlib.contextmanager
def told_of_a_full_disk(folder: Path, what: str = "a checkpoint") -> Iterator[None]:
    """Within it, an error (of the system or of orbax) that means a full disk becomes an OSError that says so: with the
    folder, the room that is left and the checkpoints there are."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        code = next((code for code, text in FULL.items() if text in str(error) or number == code), None)
        if code is None:
            raise
        free = shutil.disk_usage(folder).free / 2**20
        kept = ", ".join(map(str, sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())))
        raise OSError(code, f"{FULL[code]}: {what} could not be written to {folder}, where {free:,.1f} MiB are "
                      f"free. Checkpoints that are there: {kept or 'none'}. Make room (or raise the limit) and type "
                      "the same command again: it goes on from the newest") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON item of a checkpoint that lies in the folder `path`."""
    return json.loads((path / "metadata").read_text("utf-8"))


def json_damage(file: Path) -> str | None:
    """What keeps a file from being read as JSON, or None."""
    try:
        json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"{file.name}: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """Of its message; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def set_aside(folder: Path, step: int) -> None:
    """Gives a step a name under which it is no checkpoint any more, nor in the way of the next one of that step."""
    aside = folder / f"{step}.damaged"
    shutil.rmtree(aside, ignore_errors=True)
    (folder / str(step)).rename(aside)


def encode(data: Any) -> str:
    """An iterator's state as text; bytes and JSON values come back as what they were."""
    if isinstance(data, bytes):
        return json.dumps({"bytes": base64.b64encode(data).decode()})
    return json.dumps({"json": data})


def decode(text: str) -> Any:
    """What `encode` was given."""
    kind, value = next(iter(json.loads(text).items()))
    return base64.b64decode(value) if kind == "bytes" else value
