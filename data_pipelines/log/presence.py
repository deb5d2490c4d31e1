"""Who is on air at a moment: interval stabbing by time bucket, for many moments at once.

Two kinds of evidence exist. Where the source lists true room lifetimes, an interval is a room. Where it does not,
an interval is somebody's view, and a room is on air for a person only if *other* people's views cover the moment:
the person's own view must not give the answer away.
"""

import functools
from dataclasses import dataclass

import numpy as np

from data_pipelines.log import draws, intervals
from data_pipelines.log.intervals import NOBODY, Grouped

BUCKET_MS = 600_000
HOUR_MS = 3_600_000
AT_ONCE = 4_000_000  # (moment, interval) pairs looked at together: bounds the memory of `at`


@dataclass
class OnAir:
    """Rooms on air at R moments, flat, in order of (moment, author).

    Attributes:
      offsets: int64 [R + 1], rooms of moment r are offsets[r] … offsets[r + 1] − 1.
      author, room: int32 [n]. viewers: int32 [n], other people's views that cover the moment (1 if unknown).
      since_ms: int64 [n], when the room was first seen on air, by whomever (at the latest at the moment itself).
    """

    offsets: np.ndarray
    author: np.ndarray
    room: np.ndarray
    viewers: np.ndarray
    since_ms: np.ndarray


class Presence:
    """Intervals [start_ms, stop_ms) of authors on air, indexed by buckets of ten minutes.

    Args:
      start_ms, stop_ms: int64 [I]. author, room: int32 [I].
      user: int32 [I], whose view the interval is; NOBODY for true lifetimes.
      viewers: a second Presence made of views, from which people watching are counted when the intervals
        are true lifetimes; None where they are views themselves.
    """

    def __init__(self, start_ms, stop_ms, author, room, user, viewers: "Presence | None" = None):
        self.start_ms, self.stop_ms = np.asarray(start_ms, np.int64), np.asarray(stop_ms, np.int64)
        self.author, self.room = np.asarray(author, np.int32), np.asarray(room, np.int32)
        self.user = np.ascontiguousarray(np.broadcast_to(np.asarray(user, np.int32), self.author.shape))
        self.viewers = viewers
        self.room_start_ms = np.full(int(self.room.max(initial=-1)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(self.room_start_ms, self.room, self.start_ms)
        self.origin = int(self.start_ms.min()) // BUCKET_MS if self.start_ms.size else 0
        first = self.start_ms // BUCKET_MS - self.origin
        count = np.maximum((self.stop_ms - 1) // BUCKET_MS - self.origin - first + 1, 0)
        self.num_buckets = int((first + count).max(initial=0))
        self.bucket_ptr, self.interval = intervals.bucket_index(first, count, self.num_buckets)

    def covering(self, times_ms: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All (moment, interval) pairs with start ≤ t < stop whose view is not the asking user's own.

        Args: times_ms int64 [R]; users int32 [R], NOBODY to leave nobody out.
        Returns: moment int64 [n] ascending, interval int64 [n].
        """
        times_ms = np.asarray(times_ms, np.int64)
        position, moment = expand(self.bucket_ptr[self._bucket(times_ms)], self.load(times_ms))
        interval = self.interval[position]
        t = times_ms[moment]
        keep = (self.start_ms[interval] <= t) & (t < self.stop_ms[interval])
        keep &= (self.user[interval] == NOBODY) | (self.user[interval] != np.asarray(users)[moment])
        return moment[keep], interval[keep]

    def at(self, times_ms: np.ndarray, users: np.ndarray) -> OnAir:
        """Authors on air at each moment, as everybody but the asking user shows them; one room an author."""
        times_ms, users = np.asarray(times_ms, np.int64), np.asarray(users, np.int32)
        load = np.cumsum(np.append(0, self.load(times_ms)))
        parts, low = [], 0
        while low < times_ms.size or not parts:
            high = max(low + 1, int(np.searchsorted(load, load[low] + AT_ONCE, side="right")) - 1)
            parts.append(self._at(times_ms[low:high], users[low:high]))
            low = high
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.offsets) for part in parts]))])
        join = lambda name: np.concatenate([getattr(part, name) for part in parts])  # noqa: E731
        return OnAir(offsets, *(join(name) for name in ("author", "room", "viewers", "since_ms")))

    def _at(self, times_ms: np.ndarray, users: np.ndarray) -> OnAir:
        moment, interval = self.covering(times_ms, users)
        author = self.author[interval]
        order = np.lexsort((self.start_ms[interval], author, moment))
        moment, interval, author = moment[order], interval[order], author[order]
        new = np.ones(moment.size, bool)
        new[1:] = (moment[1:] != moment[:-1]) | (author[1:] != author[:-1])
        first = np.flatnonzero(new)
        count = np.diff(np.append(first, moment.size))
        offsets = np.searchsorted(moment[first], np.arange(len(times_ms) + 1))
        # The asking person's own view cannot tell on itself here: it begins at the moment, not before.
        return self._describe(offsets, interval[first + count - 1], count, times_ms, users)

    def draw(self, times_ms: np.ndarray, users: np.ndarray, slots: int, targets: np.ndarray,
             rng: np.random.Generator | np.ndarray) -> OnAir:
        """As `at`, but at most `slots` authors a moment, drawn at random; never enumerates them all.

        Args:
          targets: int32 [R], an author who is kept if on air. Where an author has several rooms on air, the target's
            is the one that began last, another author's any of them.
          rng: a generator, or a key for each moment (data_pipelines/log/draws.py).

        Returns: rooms in order of (moment, author).
        """
        times_ms, users = np.asarray(times_ms, np.int64), np.asarray(users, np.int32)
        out = np.full((times_ms.size, slots), -1, np.int64)
        seeds = draws.seeds(rng, times_ms.size, purpose=1)
        intervals.draw(self.bucket_ptr, self.interval, self._bucket(times_ms), self.by_author, self.packed,
                       self.stop_ms, self.user, times_ms, users, np.asarray(targets, np.int32), seeds,
                       slots, out)
        kept = out >= 0
        author = np.where(kept, self.author[out] if self.author.size else 0, np.iinfo(np.int32).max)
        out = np.take_along_axis(out, np.argsort(author, axis=1), 1)  # a place must not tell which is the target
        kept = out >= 0
        offsets = np.concatenate([[0], np.cumsum(kept.sum(1))])
        return self._describe(offsets, out[kept], None, times_ms, users)

    def shows(self, author: np.ndarray, times_ms: np.ndarray, users: np.ndarray) -> np.ndarray:
        """bool [n]: whether `author` int32 [n] is on air at each moment, as everybody but the asking user shows it."""
        found = np.empty(len(author), np.int64)
        intervals.newest_of_each(self.by_author, np.asarray(author, np.int32), np.asarray(times_ms, np.int64),
                                 self.stop_ms, self.user, np.asarray(users, np.int32), found)
        return found >= 0

    def count(self, times_ms: np.ndarray, users: np.ndarray, author: np.ndarray) -> np.ndarray:
        """Other people's views of n authors that cover n moments. All arguments [n]; returns int32 [n]."""
        found = np.empty(len(author), np.int32)
        users = np.where(users < self.by_user.ptr.size - 2, users, NOBODY)  # who has no view at all has no own views
        intervals.count_covering(self.by_author, self.by_user, np.asarray(author, np.int32),
                                 np.asarray(times_ms, np.int64), self.author, self.stop_ms,
                                 np.asarray(users, np.int32), found)
        return found

    def load(self, times_ms: np.ndarray) -> np.ndarray:
        """int64 [R], intervals that `at` has to look at for each moment."""
        bucket = self._bucket(times_ms)
        return np.where(bucket >= 0, self.bucket_ptr[bucket + 1] - self.bucket_ptr[bucket], 0)

    @functools.cached_property
    def largest_load(self) -> int:
        return int(np.diff(self.bucket_ptr).max(initial=0))

    @functools.cached_property
    def packed(self) -> np.ndarray:
        """int64 [I, 4]: start, stop, author and user of each interval."""
        return np.stack([self.start_ms, self.stop_ms, self.author, self.user], 1).astype(np.int64)

    @functools.cached_property
    def by_author(self) -> Grouped:
        return intervals.group_by(self.author, self.start_ms, self.stop_ms, int(self.author.max(initial=-1)) + 1)

    @functools.cached_property
    def by_user(self) -> Grouped:
        """Intervals of people; nobody's come under an extra key, the last."""
        users = int(self.user.max(initial=-1)) + 1
        key = np.where(self.user == NOBODY, users, self.user)
        return intervals.group_by(key, self.start_ms, self.stop_ms, users + 1)

    def _bucket(self, times_ms: np.ndarray) -> np.ndarray:
        """int64 [R], the bucket of each moment; −1 outside the log."""
        bucket = np.asarray(times_ms, np.int64) // BUCKET_MS - self.origin
        return np.where((bucket >= 0) & (bucket < self.num_buckets), bucket, -1)

    def _describe(self, offsets, interval, count, times_ms, users) -> OnAir:
        """The rooms of `interval` int64 [n]; `count` says how many views show each, where that is known."""
        author, room = self.author[interval], self.room[interval]
        if count is None or self.viewers is not None:
            row = np.repeat(np.arange(times_ms.size), np.diff(offsets))
            watching = self if self.viewers is None else self.viewers
            count = watching.count(times_ms[row], users[row], author)
        return OnAir(offsets, author, room, count.astype(np.int32), self.room_start_ms[room])


def expand(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges first[i] … first[i] + count[i] − 1, one after another, and which i each came from."""
    count = np.asarray(count, np.int64)
    owner = np.repeat(np.arange(count.size), count)
    begin = np.cumsum(count) - count
    return np.asarray(first, np.int64)[owner] + np.arange(owner.size) - begin[owner], owner
