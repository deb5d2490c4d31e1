"""What a --workdir records: which stages are finished, with which settings, and which command writes it now."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from onelive_jax.config import Config, to_json
from onelive_jax.files import explain_full_disk, write_json, write_whole
from onelive_jax.settings import differing

logger = logging.getLogger(__name__)
DONE, LOCK = "done.json", ".lock"
HEURISTIC_ARMS = ("random", "viewers", "own_counts", "logging", "oracle")  # of A/B tests, beside trained workdirs
# Settings that say how a run is watched, kept and computed. They do not decide its result (model.* only by rounding),
# so they may change while it is resumed and after it is done, and no stage records them.
WATCHING = ("training.profile_at", "training.profile_steps", "training.log_every", "training.checkpoint_every",
            "training.keep_checkpoints", "model.remat", "model.attention", "reward.log_every",
            "reward.checkpoint_every", "alignment.log_every", "alignment.checkpoint_every")


def flat(config: Config, *sections: str) -> dict:
    """The settings of some sections that decide a result (all but `WATCHING`), as {"section.field": value}."""
    result = {}
    for section in sections:
        node = getattr(config, section)
        for name, value in (dataclasses.asdict(node).items() if dataclasses.is_dataclass(node) else [("", node)]):
            result[f"{section}.{name}".rstrip(".")] = value
    return {name: value for name, value in result.items() if name not in WATCHING}


def is_done(folder: Path, settings: dict) -> bool:
    """Whether the stage that writes `folder` is finished.

    Raises: ValueError if it was finished with other settings, with the fields that differ.
    """
    file = folder / DONE
    if not file.is_file():
        return False
    if changed := differing(read_record(file, folder), settings):
        other = "name another policy (--out=NAME)" if folder.name.startswith("policy") else "choose another --workdir"
        raise ValueError(f"{folder} was made with other settings ({changed}): {other}, or delete {folder} and the "
                         "stages after it")
    return True


def remake(folder: Path) -> str:
    """The command that makes the stage that writes `folder` anew, for a message."""
    workdir, name = folder.parent, folder.name
    command = {"data": "train_tokenizer", "tokenizer": "train_tokenizer", "supervised": "train_supervised",
               "reward": "train_reward"}.get(name, "train_policy")
    flags = [f"--workdir={workdir}"]
    if command in ("train_tokenizer", "train_supervised"):
        flags.append(f"--config=experiments/configs/saved.py:{workdir}")
    if name.startswith("policy_"):
        flags.append(f"--out={name.removeprefix('policy_')}")
    parts = ("rm", "-r", str(folder)), ("python", "-m", f"experiments.{command}", *flags)
    return f"Make it anew: {' && '.join(map(shlex.join, parts))}"


def read_record(file: Path, folder: Path, *fields: str) -> dict:
    """A JSON object that the stage of `folder` wrote, with these fields at least.

    Raises: ValueError where it is damaged, with the command that makes the stage anew.
    """
    try:
        record = json.loads(file.read_text("utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}, not an object")
        if missing := [field for field in fields if field not in record]:
            raise ValueError(f"{missing[0]} is missing")
        if not isinstance(record.get("chosen_step", 0), int):
            raise ValueError(f"chosen_step={record['chosen_step']!r} is not a whole number")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}). {remake(folder)}") from error
    return record


def mark_done(folder: Path, settings: dict) -> None:
    """Records that the stage that writes `folder` is finished; its last file."""
    write_json(folder / DONE, settings)


def save_config(config: Config, workdir: Path) -> None:
    """Writes WORKDIR/config.json, from which later commands on the workdir take their settings."""
    write_whole(workdir / "config.json", to_json(config))


@contextlib.contextmanager
def locked(workdir: Path, command: str) -> Iterator[None]:
    """Makes a workdir, and keeps other commands from writing it meanwhile.

    The system frees the lock when the process ends, however it ends; the file W/.lock, which names the holder, stays.

    Raises: OSError where the workdir cannot be made or written; ValueError, with who holds it, where another command
      does.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with explain_full_disk(workdir, LOCK):
            file = (workdir / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise OSError(f"--workdir={workdir} cannot be made or written: {error.strerror or error}. Choose another "
                      "folder, or correct its permissions") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"{workdir} is in use by {_holder(file.read())}. Wait for it to end, or choose another "
                             "--workdir") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logger.warning("%s lies on a file system without locks: run one command at a time on it", workdir)
        with explain_full_disk(workdir, LOCK):
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": command,
                                   "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds")}))
            file.flush()
        yield


def _holder(record: str) -> str:
    try:
        held = json.loads(record)
        return f"process {held['pid']} on {held['host']} since {held['since']}: {held['command']}"
    except (ValueError, KeyError, TypeError):  # it has not written it yet
        return "another command"


def command_line(name: str) -> str:
    """How this process was started, for a person."""
    return shlex.join([name, *sys.argv[1:]])


def phase_of(path: str | Path, others: Sequence[str] = ()) -> tuple[Path, Path]:
    """(workdir, folder of the phase) of a workdir, whose supervised model is meant, or of the folder of a phase.

    Raises: FileNotFoundError where it is neither, with `others`, the names that could have stood there too.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder, folder / "supervised"
    if (folder.parent / "config.json").is_file() and folder.is_dir():
        return folder.parent, folder
    names = f", nor one of {', '.join(others)}" if others else ""
    raise FileNotFoundError(f"{path} is neither a trained workdir nor the folder of a phase of one (W/policy){names}")
