"""Who is on air at a moment: interval stabbing by time bucket, for many moments at once.

Two kinds of evidence exist. Where the source lists true room lifetimes, an interval is a room. Where it does not,
an interval is somebody's view, and a room is on air for a person only if *other* people's views cover the moment:
the person's own view must not give the answer away. Training, evaluation and feedback all take their candidates here.
"""

import functools
import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.log import draws, intervals
from data_pipelines.log.intervals import NOBODY, Grouped, check_range
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import HOUR_MS, Tables

logger = logging.getLogger(__name__)
BUCKET_MS = 600_000
PLAUSIBLE = 2  # times a long room's life: a room without an end is not on air for longer
NEW_TO_AIR_HOURS = 1.0  # age given to a room that nobody but the asking person was seen in
AT_ONCE = 4_000_000  # (moment, interval) pairs looked at together: bounds the memory of `at`
ANY = 2**31  # more ids than an int32 has


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

    @property
    def moment(self) -> np.ndarray:
        """int64 [n], the moment of each room."""
        return np.repeat(np.arange(self.offsets.size - 1), np.diff(self.offsets))

    def take(self, rooms: np.ndarray) -> "OnAir":
        """Only the rooms at `rooms` int64, ascending positions among the n."""
        return OnAir(np.searchsorted(rooms, self.offsets), self.author[rooms], self.room[rooms], self.viewers[rooms],
                     self.since_ms[rooms])


class Lifetimes(NamedTuple):
    """True lifetimes of rooms, any order: author int32 [I], start_ms and end_ms int64 [I] (on air: start ≤ t < end).

    room int32 [I] is the room's number in the views.
    """

    author: np.ndarray
    start_ms: np.ndarray
    end_ms: np.ndarray
    room: np.ndarray


def true_lifetimes(tables: Tables, log_end_ms: int) -> Lifetimes | None:
    """The lifetimes that the log lists (`room_ends`), in order of start; None where it only shows views."""
    if not tables.rooms_are_true_lifetimes:
        return None
    end_ms, bounded = room_ends(tables, log_end_ms)
    if bounded:
        logger.warning("%d of %d rooms have no end and began too long ago to be on air at the end of the log: they end "
                       "after the longest plausible life, or with their last view", bounded, end_ms.size)
    # Rooms that are on air together lie together: looking at many of them is then quick.
    order = np.lexsort((tables.rooms["room_id"].to_numpy(), tables.rooms["start_ms"].to_numpy()))
    author, start_ms, room = (tables.rooms[name].to_numpy()[order] for name in ("author_id", "start_ms", "room_id"))
    return Lifetimes(author, start_ms, end_ms[order], room)


def room_ends(tables: Tables, log_end_ms: int) -> tuple[np.ndarray, int]:
    """(int64, the end of each room of the table; how many were bounded).

    A room without an end is still on air when the log ends, or its end was lost. So it lives to the end of the log, but
    no longer than is plausible, twice the life that 99.9 % of the other rooms stay below, or than its last view.
    """
    rooms = tables.rooms
    start_ms, end_ms = rooms["start_ms"].to_numpy(), rooms["end_ms"].fill_null(log_end_ms).to_numpy().copy()
    unknown = rooms["end_ms"].is_null().to_numpy()
    if not unknown.any() or unknown.all():
        return end_ms, 0
    longest = PLAUSIBLE * int(np.quantile((end_ms - start_ms)[~unknown], 0.999))
    views = tables.interactions
    last_view_ms = np.full(end_ms.size, np.iinfo(np.int64).min)
    np.maximum.at(last_view_ms, views["room_id"].to_numpy(), (views["start_ms"] + views["watch_ms"]).to_numpy())
    bound = np.maximum(start_ms + longest, last_view_ms)
    lost = unknown & (bound < end_ms)
    end_ms[lost] = bound[lost]
    return end_ms, int(lost.sum())


class Presence:
    """Intervals [start_ms, stop_ms) of authors on air, indexed by buckets of ten minutes.

    Every method raises ValueError for a user or an author out of range.

    Args:
      start_ms, stop_ms: int64 [I]. author, room: int32 [I].
      user: int32 [I], whose view the interval is; NOBODY for true lifetimes.
      viewers: a second Presence made of views, from which people watching are counted when the intervals
        are true lifetimes; None where they are views themselves.
      num_users, num_authors: ids that may be asked about, with or without an interval; by default any id.
    """

    def __init__(self, start_ms, stop_ms, author, room, user, viewers: "Presence | None" = None,
                 num_users: int = ANY, num_authors: int = ANY):
        self.num_users, self.num_authors = num_users, num_authors
        self.start_ms, self.stop_ms = np.asarray(start_ms, np.int64), np.asarray(stop_ms, np.int64)
        self.author, self.room = np.asarray(author, np.int32), np.asarray(room, np.int32)
        self.user = np.ascontiguousarray(np.broadcast_to(np.asarray(user, np.int32), self.author.shape))
        self.viewers = viewers
        seen = [self] if viewers is None else [self, viewers]  # a view may begin before its room's listed start
        self.room_start_ms = np.full(max(int(each.room.max(initial=-1)) for each in seen) + 1, np.iinfo(np.int64).max)
        for each in seen:
            np.minimum.at(self.room_start_ms, each.room, each.start_ms)
        self.origin = int(self.start_ms.min()) // BUCKET_MS if self.start_ms.size else 0
        first = self.start_ms // BUCKET_MS - self.origin
        count = np.maximum((self.stop_ms - 1) // BUCKET_MS - self.origin - first + 1, 0)
        self.num_buckets = int((first + count).max(initial=0))
        self.bucket_ptr, self.interval = intervals.bucket_index(first, count, self.num_buckets)

    @classmethod
    def of(cls, views: Timelines, lifetimes: Lifetimes | None = None, num_authors: int = ANY) -> "Presence":
        """Of true lifetimes, or, where there are none, of the views themselves."""
        watching = cls(views.start_ms, views.stop_ms, views.author, views.room, views.users(), None, views.num_users,
                       num_authors)
        if lifetimes is None:
            return watching
        return cls(lifetimes.start_ms, lifetimes.end_ms, lifetimes.author, lifetimes.room, NOBODY, watching,
                   views.num_users, num_authors)

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

    def at(self, times_ms: np.ndarray, users: np.ndarray, own_rows: bool = False) -> OnAir:
        """Authors on air at each moment, as everybody but the asking user shows them; one room an author.

        Args:
          times_ms: int64 [R]. users: int [R], NOBODY to leave nobody out.
          own_rows: the asking user's own views put a room on air too (the liverec protocol). The numbers beside a room
            still know nothing of them: they would be the answer.
        """
        times_ms, users = np.asarray(times_ms, np.int64), self._users(users)
        if own_rows:
            return self._with_own_rows(times_ms, users)
        load = np.cumsum(np.append(0, self.load(times_ms)))
        parts, low = [], 0
        while low < times_ms.size or not parts:
            high = max(low + 1, int(np.searchsorted(load, load[low] + AT_ONCE, side="right")) - 1)
            parts.append(self._at(times_ms[low:high], users[low:high]))
            low = high
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.offsets) for part in parts]))])
        join = lambda name: np.concatenate([getattr(part, name) for part in parts])  # noqa: E731
        return OnAir(offsets, *(join(name) for name in ("author", "room", "viewers", "since_ms")))

    def _with_own_rows(self, times_ms: np.ndarray, users: np.ndarray) -> OnAir:
        on_air = self.at(times_ms, np.full(times_ms.size, NOBODY))
        moment = on_air.moment
        shown = self._newest(on_air.author, times_ms[moment], users[moment])  # by others; −1 where only by the user
        on_air.viewers, since_ms = self.describe(on_air.author, self.room[shown], times_ms[moment], users[moment])
        on_air.since_ms = np.where(shown >= 0, since_ms, times_ms[moment] - round(NEW_TO_AIR_HOURS * HOUR_MS))
        return on_air

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
        newest, row = interval[first + count - 1], moment[first]
        viewers, since_ms = self.describe(self.author[newest], self.room[newest], times_ms[row], users[row],
                                          count if self.viewers is None else None)
        return OnAir(offsets, self.author[newest], self.room[newest], viewers, since_ms)

    def draw(self, times_ms: np.ndarray, users: np.ndarray, slots: int, targets: np.ndarray,
             rng: np.random.Generator | np.ndarray) -> OnAir:
        """As `at`, but at most `slots` authors a moment, every one as likely as another; never lists them all.

        Args:
          targets: int32 [R], an author who is kept if on air.
          rng: a generator, or a key for each moment (data_pipelines/log/draws.py).

        Returns: rooms in order of (moment, author).
        """
        times_ms, users = np.asarray(times_ms, np.int64), self._users(users)
        out = np.full((times_ms.size, slots), -1, np.int64)
        asked = intervals.Draw(self._bucket(times_ms), times_ms, users, self._authors(targets),
                               draws.seeds(rng, times_ms.size, purpose=1))
        intervals.draw(*self.bucket_authors, self.by_author, self.stop_ms, self.user, asked, out)
        author = np.where(out >= 0, self.author[out] if self.author.size else 0, np.iinfo(np.int32).max)
        out = np.take_along_axis(out, np.argsort(author, axis=1), 1)  # a place must not tell which is the target
        row, slot = np.nonzero(out >= 0)
        offsets = np.concatenate([[0], np.cumsum((out >= 0).sum(1))])
        author, room = self.author[out[row, slot]], self.room[out[row, slot]]
        return OnAir(offsets, author, room, *self.describe(author, room, times_ms[row], users[row]))

    def shows(self, author: np.ndarray, times_ms: np.ndarray, users: np.ndarray) -> np.ndarray:
        """bool [n]: whether `author` int32 [n] is on air at each moment, as everybody but the asking user shows it."""
        return self._newest(self._authors(author), np.asarray(times_ms, np.int64), self._users(users)) >= 0

    def count(self, times_ms: np.ndarray, users: np.ndarray, author: np.ndarray) -> np.ndarray:
        """Other people's views of n authors that cover n moments. All arguments [n]; returns int32 [n]."""
        found, users = np.empty(len(author), np.int32), self._users(users)
        users = np.where(users < self.by_user.ptr.size - 2, users, NOBODY)  # who has no view at all has no own views
        intervals.count_covering(self.by_author, self.by_user, self._authors(author), np.asarray(times_ms, np.int64),
                                 self.author, self.stop_ms, users, found)
        return found

    def describe(self, author: np.ndarray, room: np.ndarray, times_ms: np.ndarray, users: np.ndarray,
                 viewers: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(viewers int32 [n], since_ms int64 [n]) of n rooms at n moments, as `OnAir` has them.

        Args: author, room, users: int [n]; viewers, where they are counted already. A room that nobody was ever seen in
          is new at the moment itself.
        """
        if viewers is None:
            viewers = (self if self.viewers is None else self.viewers).count(times_ms, users, author)
        since_ms = np.append(self.room_start_ms, np.iinfo(np.int64).max)[np.minimum(room, self.room_start_ms.size)]
        return viewers.astype(np.int32, copy=False), np.minimum(since_ms, times_ms)

    def load(self, times_ms: np.ndarray) -> np.ndarray:
        """int64 [R], intervals that `at` has to look at for each moment."""
        bucket = self._bucket(times_ms)
        return np.where(bucket >= 0, self.bucket_ptr[bucket + 1] - self.bucket_ptr[bucket], 0)

    @functools.cached_property
    def largest_load(self) -> int:
        return int(np.diff(self.bucket_ptr).max(initial=0))

    @functools.cached_property
    def bucket_authors(self) -> tuple[np.ndarray, np.ndarray]:
        """`intervals.bucket_keys` of authors."""
        return intervals.bucket_keys(self.bucket_ptr, self.interval, self.author, int(self.author.max(initial=-1)) + 1)

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

    def _users(self, users) -> np.ndarray:
        return check_range("user", users, self.num_users, low=NOBODY)

    def _authors(self, authors) -> np.ndarray:
        return check_range("author", authors, self.num_authors)

    def _newest(self, author, times_ms, users) -> np.ndarray:
        """int64 [n], the interval of each author that began last, as others show it; −1 where none covers it."""
        found = np.empty(len(author), np.int64)
        intervals.newest_of_each(self.by_author, np.asarray(author, np.int64), times_ms, self.stop_ms, self.user, users,
                                 found)
        return found


def expand(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges first[i] … first[i] + count[i] − 1, one after another, and which i each came from."""
    count = np.asarray(count, np.int64)
    owner = np.repeat(np.arange(count.size), count)
    begin = np.cumsum(count) - count
    return np.asarray(first, np.int64)[owner] + np.arange(owner.size) - begin[owner], owner
