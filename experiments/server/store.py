"""What must outlive the process: every event that was acknowledged, and snapshots that spare a restart most of them.

    folder/events.sqlite          every event in the order in which it arrived (SQLite, write-ahead log)
    folder/snapshot-000000123.npz the state after event 123: arrays and JSON, no pickle

An event is on disk before it is acknowledged, so a process that is killed loses none. (SQLite does not wait for the
disk itself: to outlive a power cut as well, set `synchronous`.)
"""

import fcntl
import io
import json
import logging
import sqlite3
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.live import events, snapshots
from data_pipelines.live.state import LiveState
from onelive_jax.files import write_whole

logger = logging.getLogger(__name__)
KEPT = 2  # snapshots
LATEST = 2**63 - 1  # offset
DAMAGED = (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)


class EventLog:
    """An append-only log. Several threads may append; offsets rise in the order of the commits."""

    def __init__(self, folder: Path, synchronous: bool = False):
        """Raises: OSError where the folder cannot be written, or another process serves from it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "events.sqlite"
        self._lock = threading.Lock()
        try:
            # One process alone may write the log: a second one would serve from half of it. Others may read meanwhile.
            self._held = (folder / "events.lock").open("a")
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=1.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if synchronous else 'NORMAL'}")
            self._db.execute("CREATE TABLE IF NOT EXISTS events (at INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE "
                             "NOT NULL, received_ms INTEGER NOT NULL, event TEXT NOT NULL)")
            self._last = self._db.execute("SELECT COALESCE(MAX(at), 0) FROM events").fetchone()[0]
        except (sqlite3.Error, BlockingIOError) as error:
            raise OSError(f"{self.path} cannot be opened ({error}): another server may run on it; stop it, or choose "
                          "another --state") from error

    def append(self, coming: Sequence[events.Event], received_ms: int) -> tuple[list[events.Event], int]:
        """Writes events in one commit. Returns (those that are new, in order; the offset of the log's last event).

        Raises: OSError where the disk is full or fails; none of them is in the log then.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN")
                new, last = [], self._last
                for event in coming:
                    added = self._db.execute("INSERT OR IGNORE INTO events (id, received_ms, event) VALUES (?, ?, ?)",
                                             (event.id, received_ms, json.dumps(events.to_json(event))))
                    if added.rowcount:
                        new.append(event)
                        last = added.lastrowid
                self._db.execute("COMMIT")
                self._last = last
                return new, last
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise OSError(f"{self.path} cannot take more events ({error}): make room on the disk") from error

    def last(self) -> int:
        """The offset of the last event; 0 where there is none."""
        return self._last

    def after(self, offset: int, last: int | None = None) -> Iterator[tuple[int, events.Event]]:
        """(received_ms, event) of every event behind an offset, in order, up to the event `last` (the log's end)."""
        last = LATEST if last is None else last
        while True:
            with self._lock:
                rows = self._db.execute("SELECT at, received_ms, event FROM events WHERE at > ? AND at <= ? "
                                        "ORDER BY at LIMIT 10000", (offset, last)).fetchall()
            if not rows:
                return
            for _, received_ms, event in rows:
                yield received_ms, events.from_json(json.loads(event))
            offset = rows[-1][0]

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._held.close()


def save(arrays: dict[str, np.ndarray], folder: Path, offset: int) -> Path:
    """Writes a snapshot (`snapshots.to_arrays`) after the event `offset`, whole or not at all; keeps one older one."""
    buffer, path = io.BytesIO(), folder / f"snapshot-{offset:09d}.npz"
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())
    for old in sorted(folder.glob("snapshot-*.npz"))[:-KEPT]:
        old.unlink()
    return path


def recover(state: LiveState, log: EventLog) -> tuple[int, int]:
    """Brings a state that was made of the training log to where the process before had it. Events that had arrived when
    the log ended are in it.

    Returns: (offset of the snapshot it began with, or 0; events that were replayed behind it).
    """
    begun, log_end_ms = 0, state.now_ms
    for path in sorted(log.path.parent.glob("snapshot-*.npz"), reverse=True):
        try:
            with np.load(path, allow_pickle=False) as file:
                snapshots.restore(state, {name: file[name] for name in file.files})
            begun = int(path.stem.removeprefix("snapshot-"))
            break
        except DAMAGED as error:
            logger.warning("%s cannot be used (%s); trying an older one", path, error)
    return begun, replay(state, log, begun, 0 if begun else log_end_ms)


def replay(state: LiveState, log: EventLog, offset: int, since_ms: int, last: int | None = None) -> int:
    """Takes in the events behind an offset (up to another) that did not arrive before a moment. Returns how many."""
    count = 0
    for received_ms, event in log.after(offset, last):
        if received_ms >= since_ms:
            state.apply(event, received_ms)
            count += 1
    return count
