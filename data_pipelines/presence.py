"""Who is on air at a moment: interval stabbing by time bucket, for many moments at once.

Two kinds of evidence exist. Where the source lists true room lifetimes, an interval is a room. Where it does not,
an interval is somebody's view, and a room is on air for a person only if *other* people's views cover the moment:
the person's own view must not give the answer away.
"""

from dataclasses import dataclass

import numpy as np

BUCKET_MS = 600_000
HOUR_MS = 3_600_000
NOBODY = -1


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
        self.user = np.broadcast_to(np.asarray(user, np.int32), self.author.shape)
        self.viewers = viewers
        self.room_start_ms = np.full(int(self.room.max(initial=-1)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(self.room_start_ms, self.room, self.start_ms)
        self.origin = int(self.start_ms.min()) // BUCKET_MS if self.start_ms.size else 0
        first = self.start_ms // BUCKET_MS - self.origin
        count = np.maximum((self.stop_ms - 1) // BUCKET_MS - self.origin - first + 1, 0)
        bucket, interval = expand(first, count)
        order = np.argsort(bucket, kind="stable")
        self.interval = np.arange(self.author.size)[interval][order]
        self.num_buckets = int(bucket.max(initial=-1)) + 1
        self.bucket_ptr = np.searchsorted(bucket[order], np.arange(self.num_buckets + 1))

    def covering(self, times_ms: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All (moment, interval) pairs with start ≤ t < stop whose view is not the asking user's own.

        Args: times_ms int64 [R]; users int32 [R], NOBODY to leave nobody out.
        Returns: moment int64 [n] ascending, interval int64 [n].
        """
        times_ms = np.asarray(times_ms, np.int64)
        bucket = times_ms // BUCKET_MS - self.origin
        inside = (bucket >= 0) & (bucket < self.num_buckets)
        bucket = np.where(inside, bucket, 0)
        low = self.bucket_ptr[bucket] if self.num_buckets else np.zeros_like(bucket)
        high = self.bucket_ptr[bucket + 1] if self.num_buckets else low
        position, moment = expand(low, np.where(inside, high - low, 0))
        interval = self.interval[position]
        t = times_ms[moment]
        keep = (self.start_ms[interval] <= t) & (t < self.stop_ms[interval])
        keep &= (self.user[interval] == NOBODY) | (self.user[interval] != np.asarray(users)[moment])
        return moment[keep], interval[keep]

    def at(self, times_ms: np.ndarray, users: np.ndarray) -> OnAir:
        """Authors on air at each moment, as everybody but the asking user shows them; one room an author."""
        moment, interval = self.covering(times_ms, users)
        author = self.author[interval]
        order = np.lexsort((self.start_ms[interval], author, moment))
        moment, interval, author = moment[order], interval[order], author[order]
        new = np.ones(moment.size, bool)
        new[1:] = (moment[1:] != moment[:-1]) | (author[1:] != author[:-1])
        first = np.flatnonzero(new)
        count = np.diff(np.append(first, moment.size))
        last = first + count - 1
        offsets = np.searchsorted(moment[first], np.arange(len(times_ms) + 1))
        room = self.room[interval[last]]
        # The asking person's own view cannot tell on itself here: it begins at the moment, not before.
        result = OnAir(offsets, author[first], room, count.astype(np.int32), self.room_start_ms[room])
        if self.viewers is not None:
            result.viewers = self.viewers.count(times_ms, users, result)
        return result

    def count(self, times_ms: np.ndarray, users: np.ndarray, on_air: OnAir) -> np.ndarray:
        """Other people's views that cover each (moment, author) of `on_air`. Returns int32 [n]."""
        moment, interval = self.covering(times_ms, users)
        width = int(max(self.author.max(initial=0), on_air.author.max(initial=0))) + 1
        seen, times = np.unique(moment * width + self.author[interval], return_counts=True)
        if not seen.size:
            return np.zeros(on_air.author.size, np.int32)
        key = np.repeat(np.arange(len(times_ms)), np.diff(on_air.offsets)) * width + on_air.author
        at = np.minimum(np.searchsorted(seen, key), seen.size - 1)
        return np.where(seen[at] == key, times[at], 0).astype(np.int32)


def expand(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges first[i] … first[i] + count[i] − 1, one after another, and which i each came from."""
    count = np.asarray(count, np.int64)
    owner = np.repeat(np.arange(count.size), count)
    begin = np.cumsum(count) - count
    return np.asarray(first, np.int64)[owner] + np.arange(owner.size) - begin[owner], owner
