"""What people watched, in bounded buffers: a view is appended in O(1), and the slicing kernel of training reads them as
they lie.

Axes: P places of all buffers, U people, L code levels, R requests.
"""

import numpy as np

from data_pipelines.log.intervals import first_not_below
from data_pipelines.log.slicing import Views

OPEN = np.iinfo(np.int64).max  # stop of a view that goes on
SMALLEST = 8  # views of a new person's buffer


class Buffers:
    """The last views of each person, sorted by (start, author); one stretch of the arrays a person.

    A stretch doubles when it is full. At twice the window it keeps its newest `window` views (and those that began
    together with the oldest of them, as the kernel wants it) and goes on: a person costs at most 2 · window places.

    Attributes:
      author: int32 [P]. start_ms, stop_ms: int64 [P], `OPEN` while a view goes on. codes: int32 [P, L].
      begin: int64 [U], count, size: int32 [U]: person u's views are begin[u] … begin[u] + count[u] − 1.
    """

    VIEWS = ("author", "start_ms", "stop_ms", "codes")

    def __init__(self, window: int, levels: int):
        self.window = window
        self.largest = max(SMALLEST, 1 << (2 * window - 1).bit_length())
        self.author = np.zeros(1024, np.int32)
        self.start_ms, self.stop_ms = np.zeros(1024, np.int64), np.zeros(1024, np.int64)
        self.codes = np.zeros((1024, levels), np.int32)
        self.begin, self.count, self.size = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32)
        self._used = 0
        self._free: dict[int, list[int]] = {}

    def add(self, person: int, author: int, start_ms: int, stop_ms: int, codes: np.ndarray) -> None:
        """A view begins (or is known whole). In order of time it costs O(1); a late one is put where it belongs."""
        if person >= self.begin.size:
            more = max(person + 1, 2 * self.begin.size) - self.begin.size
            self.begin, self.count, self.size = (np.append(x, np.zeros(more, x.dtype))
                                                 for x in (self.begin, self.count, self.size))
        if self.count[person] == self.size[person]:
            self._make_room(person)
        first, end = int(self.begin[person]), int(self.begin[person] + self.count[person])
        at = end
        while at > first and (self.start_ms[at - 1], self.author[at - 1]) > (start_ms, author):
            at -= 1
        for values, new in ((self.author, author), (self.start_ms, start_ms), (self.stop_ms, stop_ms),
                            (self.codes, codes)):
            if at < end:
                values[at + 1:end + 1] = values[at:end].copy()
            values[at] = new
        self.count[person] += 1

    def close(self, person: int, author: int, start_ms: int, stop_ms: int) -> None:
        """The end of an open view; nothing where the buffer has dropped it already."""
        for at in range(int(self.begin[person] + self.count[person]) - 1, int(self.begin[person]) - 1, -1):
            if self.start_ms[at] == start_ms and self.author[at] == author and self.stop_ms[at] == OPEN:
                self.stop_ms[at] = stop_ms
                return
            if self.start_ms[at] < start_ms:
                return

    def forget_author(self, author: int) -> int:
        """No history shows views of this author any more (its row goes to another). Returns how many there were."""
        at = np.flatnonzero(self.author[:self._used] == author)
        at = at[self.stop_ms[at] >= self.start_ms[at]]
        self.stop_ms[at] = self.start_ms[at] - 1  # watched for less than nothing: the kernel passes it over
        return at.size

    def place(self, person: int) -> slice:
        """Where a person's views lie, newest last; empty for somebody unknown."""
        if not 0 <= person < self.begin.size:
            return slice(0, 0)
        return slice(int(self.begin[person]), int(self.begin[person] + self.count[person]))

    def rows_of(self, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [R] twice: views of people int [R] are rows first … stop − 1 of `views`; none of somebody unknown."""
        people = np.asarray(people, np.int64)
        known = (people >= 0) & (people < self.begin.size)
        first, stop = np.zeros((2, people.size), np.int64)
        first[known] = self.begin[people[known]]
        stop[known] = first[known] + self.count[people[known]]
        return first, stop

    @property
    def views(self) -> Views:
        """What `features.histories` reads."""
        return Views(self.author, self.start_ms, self.stop_ms, self.codes)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Copies, for a snapshot."""
        arrays = {name: getattr(self, name).copy() for name in ("begin", "count", "size")}
        free = [(size, first) for size, stretches in self._free.items() for first in stretches]
        return arrays | {name: getattr(self, name)[:self._used].copy() for name in self.VIEWS} | {
            "free": np.array(free, np.int64).reshape(-1, 2)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], window: int) -> "Buffers":
        """The inverse of `to_arrays`, also where the window is another now."""
        made = cls(window, arrays["codes"].shape[1])
        for name in (*cls.VIEWS, "begin", "count", "size"):
            setattr(made, name, arrays[name].copy())
        made._used = made.author.size
        for size, first in arrays["free"].tolist():
            made._free.setdefault(size, []).append(first)
        return made

    @classmethod
    def of(cls, views: Views, user_ptr: np.ndarray, window: int, until_ms: int) -> "Buffers":
        """The views of a log that had begun by a moment; user_ptr: int64 [U + 1], whose they are."""
        made = cls(window, views.codes.shape[1])
        end = first_not_below(user_ptr[:-1], user_ptr[1:], views.start_ms, np.full(user_ptr.size - 1, until_ms + 1))
        count = np.minimum(end - user_ptr[:-1], made.largest)
        size = np.where(count, 1 << np.ceil(np.log2(np.maximum(count, SMALLEST))).astype(np.int64), 0)
        made.begin, made.count, made.size = np.cumsum(size) - size, count.astype(np.int32), size.astype(np.int32)
        made._used = int(size.sum())
        made._grow()
        to = np.repeat(made.begin - (np.cumsum(count) - count), count) + np.arange(count.sum())
        view = np.repeat(end - np.cumsum(count), count) + np.arange(count.sum())
        made.author[to], made.start_ms[to], made.codes[to] = views.author[view], views.start_ms[view], views.codes[view]
        made.stop_ms[to] = np.where(views.stop_ms[view] > until_ms, OPEN, views.stop_ms[view])
        return made

    def _make_room(self, person: int) -> None:
        first, count, size = int(self.begin[person]), int(self.count[person]), int(self.size[person])
        kept = count
        if size >= self.largest:
            kept = min(self.window, count)
            while kept < size - 1 and self.start_ms[first + count - kept - 1] == self.start_ms[first + count - kept]:
                kept += 1
            to = first
        else:
            to = self._stretch(max(SMALLEST, 2 * size))
            if size:
                self._free.setdefault(size, []).append(first)
            self.begin[person], self.size[person] = to, max(SMALLEST, 2 * size)
        for name in self.VIEWS:
            values = getattr(self, name)
            values[to:to + kept] = values[first + count - kept:first + count].copy()
        self.count[person] = kept

    def _stretch(self, size: int) -> int:
        """A free stretch of the arrays, which grow when there is none."""
        if self._free.get(size):
            return self._free[size].pop()
        first, self._used = self._used, self._used + size
        self._grow()
        return first

    def _grow(self) -> None:
        if self._used > self.author.size:
            more = max(self._used, 2 * self.author.size) - self.author.size
            for name in self.VIEWS:
                values = getattr(self, name)
                setattr(self, name, np.concatenate([values, np.zeros((more, *values.shape[1:]), values.dtype)]))
