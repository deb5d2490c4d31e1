"""The platform's own ids, and the dense rows that arrays are indexed by."""

import hashlib
from dataclasses import dataclass

import numpy as np


class Names:
    """Ids of people: each new one gets the next row."""

    def __init__(self, names: list[str] = ()):
        self.names = list(names)
        self._row = {name: row for row, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def row(self, name: str) -> int:
        """−1 where nobody has that id."""
        return self._row.get(name, -1)

    def add(self, name: str) -> int:
        """The row of an id, a new one where it has none."""
        row = self._row.setdefault(name, len(self.names))
        if row == len(self.names):
            self.names.append(name)
        return row


class AuthorRows:
    """Ids of authors: those of the training log have their rows for good; new ones share `spare` rows behind them.

    Where no spare row is left, the one that has been silent longest is taken from its author. `used` says when each row
    was last heard of; a row in `busy` is never taken.

    Attributes: names: of all rows, "" where a spare row is nobody's. used: int64 [A + spare], milliseconds.
    """

    def __init__(self, names: list[str], spare: int):
        self.trained, self.names = len(names), [*names, *[""] * spare]
        self.used = np.zeros(len(self.names), np.int64)
        self._row = {name: row for row, name in enumerate(self.names) if name}
        self._free = list(range(len(names), len(self.names)))[::-1]

    def __len__(self) -> int:
        return len(self.names)

    def row(self, name: str) -> int:
        """−1 where nobody has that id."""
        return self._row.get(name, -1)

    def add(self, name: str, busy) -> tuple[int, str]:
        """(row, id of the author who lost it or "") of a new author; row −1 where all spare rows are busy.

        busy: (row) → whether it is in use now: its author is on air.
        """
        lost = ""
        if self._free:
            row = self._free.pop()
        else:
            silent = np.argsort(self.used[self.trained:], kind="stable") + self.trained
            row = next((int(row) for row in silent if not busy(int(row))), -1)
            if row < 0:
                return -1, ""
            lost = self.names[row]
            del self._row[lost]
        self.names[row], self._row[name] = name, row
        return row, lost

    def put(self, row: int, name: str) -> None:
        """Gives a free spare row to an author, as a snapshot says."""
        self._free.remove(row)
        self.names[row], self._row[name] = name, row


class KnownIds:
    """The last so many ids of events, by which each event counts once. (64 bits of a hash stand for an id.)"""

    def __init__(self, most: int, known: np.ndarray = ()):
        self.most, self._known = most, dict.fromkeys(np.asarray(known, np.uint64).tolist())

    def add(self, name: str) -> bool:
        """False where the id was known."""
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        if key in self._known:
            return False
        self._known[key] = None
        if len(self._known) > self.most:
            del self._known[next(iter(self._known))]
        return True

    def to_array(self) -> np.ndarray:
        """uint64, oldest first."""
        return np.array(list(self._known), np.uint64)


@dataclass(slots=True)
class Room:
    """number: of the platform's id `name`, never used again. since_ms: when it was first seen: its start, or a view
    before it. end_ms: None while on air (or shown by views)."""

    number: int
    name: str
    author: int
    start_ms: int
    since_ms: int
    end_ms: int | None = None
    segment_ms: int = -1  # end of the last segment
