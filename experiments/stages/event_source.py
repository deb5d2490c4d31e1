"""Where a stream of events comes from, each with a position that a checkpoint can name and a reader can go on from.

A position is a JSON value. `after(position)` gives (position, received_ms, event) of what follows it; None in between
says that nothing is there right now and more may come.
"""

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import tables as tables_lib
from data_pipelines.batches.training import BatchMaker
from data_pipelines.live import events
from data_pipelines.live.replay import events_after
from data_pipelines.log.audiences import nothing
from data_pipelines.log.presence import Presence, true_lifetimes
from data_pipelines.log.split import split_times
from data_pipelines.log.store import timeline_arrays
from data_pipelines.log.timelines import Timelines, other_timelines
from experiments.common.log import Log
from onelive_jax.config import Config
from onelive_jax.tokenizer.semantic_ids import IdTable

AT_ONCE, WAIT_S = 10_000, 1.0
SQLITE = "events.sqlite"
Coming = Iterator[tuple[Any, int, events.Event] | None]


class LogSource:
    """The events of a log behind a moment, played in order of time; each arrives as it happens."""

    def __init__(self, log: Log, config: Config, from_ms: int, until_ms: int | None = None):
        """until_ms: the last moment that is played; None for all that the log has."""
        self.log, self._from_ms, self._until_ms = log, from_ms, until_ms
        self._segments = config.tokenizer.follow_content
        # Names, times and rooms are all that the events need: nobody's codes.
        nobody = IdTable.static(np.zeros((log.num_authors, config.tokenizer.levels), np.int32))
        self._maker = BatchMaker(log.views, log.presence, nobody, config.data, log.others)

    def after(self, position: int) -> Coming:
        coming = events_after(self._from_ms, self.log.tables, self.log.split.end_ms, self._maker, self._until_ms,
                              self._segments)
        for number, event in enumerate(coming, 1):
            if number > position:
                yield number, event.at, event

    first = 0


class FolderSource:
    """Events that are kept in a folder: a server's events.sqlite, or *.jsonl in order of their names.

    A line is an event, or {"received_ms": …, "event": {…}}; without a time of arrival an event arrived when it says
    that it happened, or with the latest before it.
    """

    first = 0

    def __init__(self, folder: Path, follow: bool = False):
        """follow: waits for more at the end (of events.sqlite).

        Raises: FileNotFoundError where the folder holds no events.
        """
        self._file, self._follow = folder / SQLITE, follow
        self._lines = sorted(folder.glob("*.jsonl"))
        if not self._file.is_file() and not self._lines:
            raise FileNotFoundError(f"{folder} holds neither {SQLITE} nor *.jsonl: name the folder that a server keeps "
                                    "its events in (W/serving), or one with events as lines of JSON")
        if follow and not self._file.is_file():
            raise ValueError(f"--follow needs the {SQLITE} of a server: *.jsonl in {folder} end where they end")

    def after(self, position: int) -> Coming:
        return self._of_sqlite(position) if self._file.is_file() else self._of_lines(position)

    def _of_sqlite(self, position: int) -> Coming:
        try:
            with sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=5.0) as database:
                while True:
                    rows = database.execute("SELECT at, received_ms, event FROM events WHERE at > ? ORDER BY at "
                                            "LIMIT ?", (position, AT_ONCE)).fetchall()
                    for position, received_ms, event in rows:
                        yield position, received_ms, events.from_json(json.loads(event))
                    if not rows and not self._follow:
                        return
                    if not rows:
                        yield None
                        time.sleep(WAIT_S)
        except sqlite3.Error as error:
            raise OSError(f"{self._file} cannot be read ({error})") from error

    def _of_lines(self, position: int) -> Coming:
        number, latest = 0, 0
        for file in self._lines:
            with file.open(encoding="utf-8") as lines:
                for row, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    number += 1
                    try:
                        value = json.loads(line)
                        arrived = value.get("received_ms") if isinstance(value, dict) and "event" in value else None
                        event = events.from_json(value if arrived is None else value["event"])
                        if arrived is not None and (not isinstance(arrived, int) or isinstance(arrived, bool)):
                            raise ValueError(f"received_ms={arrived!r} is not a whole number of milliseconds")
                    except ValueError as error:
                        raise ValueError(f"{file}, line {row}: {error}") from error
                    latest = max(latest, event.at if arrived is None else arrived)
                    if number > position:
                        yield number, latest, event


class RedisSource:
    """The stream of several replicas (experiments.serve --bus=redis://…)."""

    first = "0-0"

    def __init__(self, url: str, follow: bool = False):
        from experiments.server.redis_bus import RedisBus  # the client is needed for it alone

        self._bus, self._follow = RedisBus(url), follow

    def after(self, position: str) -> Coming:
        while True:
            found = self._bus.read(position)
            for position, received_ms, event in found:
                yield position, received_ms, event
            if not found and not self._follow:
                return
            if not found:
                yield None


def open_source(name: str, config: Config, log: Log, follow: bool) -> tuple[Any, int]:
    """(the source, the moment from which it is played): --source of experiments.train_stream.

    "" is the workdir's own log behind its training period; redis://… a bus; a folder of canonical tables a log that
    goes on where the workdir's ends; any other folder is one of events, behind the end of the workdir's log.

    Raises: FileNotFoundError, ValueError for what is none of these.
    """
    if not name:
        return LogSource(log, config, log.split.p1_ms), log.split.p1_ms
    end_ms = log.split.end_ms
    if name.startswith("redis://"):
        return RedisSource(name, follow), end_ms
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"--source={name} is no folder: give a folder of canonical tables, one of events "
                                "(W/serving, or *.jsonl), or redis://HOST:PORT")
    if (folder / SQLITE).is_file() or list(folder.glob("*.jsonl")):
        return FolderSource(folder, follow), end_ms
    return LogSource(longer_log(folder), config, end_ms), end_ms


def longer_log(folder: Path) -> Log:
    """A log of canonical tables, as events need it."""
    tables = tables_lib.load(folder)
    split = split_times(tables, 0.0, 0.0)
    arrays = timeline_arrays(tables)
    views, lifetimes = Timelines.from_arrays(arrays), true_lifetimes(tables, split.end_ms)
    authors = len(tables.authors)
    return Log(tables, views, Presence.of(views, lifetimes, authors), split, lifetimes, nothing(),
               other_timelines(tables, arrays))
