"""People's views in order of time, and the clock they are told by. Axes: V views, U users, R requests."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.log.intervals import check_range, first_not_below
from data_pipelines.log.slicing import DAY_MS, EPOCH_WEEKDAY
from data_pipelines.tables import HOUR_MS, Tables


@dataclass
class Timelines:
    """Watched views, sorted by user and then by start.

    Attributes:
      user_ptr: int64 [U + 1], views of user u are user_ptr[u] … user_ptr[u + 1] − 1.
      author, room: int32 [V]. start_ms, stop_ms: int64 [V].
    """

    user_ptr: np.ndarray
    author: np.ndarray
    room: np.ndarray
    start_ms: np.ndarray
    stop_ms: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Timelines":
        """From the arrays of `store.timeline_arrays` or `store.load_timelines`."""
        return cls(*(arrays[name] for name in ("user_ptr", "author", "room", "start_ms", "stop_ms")))

    @property
    def num_users(self) -> int:
        return self.user_ptr.size - 1

    def users(self) -> np.ndarray:
        """int32 [V], the user of each view."""
        return np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(self.user_ptr))

    @functools.cached_property
    def by_start(self) -> tuple[np.ndarray, np.ndarray]:
        """(author int32 [V], stop_ms int64 [V]) with views sorted by (user, start, author), as histories read them.

        `start_ms` and `user_ptr` are the same in both orders.
        """
        order = np.lexsort((self.author, self.start_ms, self.users()))
        return self.author[order], self.stop_ms[order]

    def where(self, keep: np.ndarray) -> "Timelines":
        """Only the views for which `keep` bool [V] is True; all users stay, some perhaps without a view."""
        ptr = np.concatenate([[0], np.cumsum(keep)])[self.user_ptr].astype(np.int64)
        return Timelines(ptr, self.author[keep], self.room[keep], self.start_ms[keep], self.stop_ms[keep])

    def until(self, time_ms: int) -> "Timelines":
        """Only the views that were over by `time_ms`."""
        return self.where(self.stop_ms <= time_ms)

    def sorted_by(self, start_ms: np.ndarray, stop_ms: np.ndarray) -> "Timelines":
        """The same views with other times, int64 [V], in their order."""
        order = np.lexsort((self.room, stop_ms, start_ms, self.users()))
        return Timelines(self.user_ptr, self.author[order], self.room[order], start_ms[order], stop_ms[order])

    def rows_of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [R] twice: views of each user are first … stop − 1. Raises ValueError for a user not of the log."""
        users = check_range("user", users, self.num_users)
        return self.user_ptr[users], self.user_ptr[users + 1]

    def seen_before(self, users: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """int64 [R]: end of the views of each user that started strictly before the moment (an index into V)."""
        return first_not_below(*self.rows_of(users), self.start_ms, np.asarray(times_ms, np.int64))


def other_timelines(tables: Tables, arrays: Mapping[str, np.ndarray]) -> dict[str, Timelines]:
    """Timelines of gifts (where there is any) and of short videos (where the log has them).

    arrays: of the log's views, from `store.timeline_arrays` or `store.load_timelines`.
    """
    result = {}
    given = arrays["gift_value"] > 0
    if given.any():
        gifts = Timelines.from_arrays(arrays).where(given)
        # The moment of the gift is not logged: that there was one is known for certain when the view is over.
        result["gift"] = gifts.sorted_by(gifts.stop_ms, gifts.stop_ms)
    if tables.videos is not None:
        videos = tables.videos
        start = videos["start_ms"].to_numpy()
        ptr = np.searchsorted(videos["user_id"].to_numpy(), np.arange(len(tables.users) + 1))
        author = videos["author_id"].to_numpy()
        result["video"] = Timelines(ptr, author, np.full(author.size, -1, np.int32), start,
                                    start + videos["watch_ms"].to_numpy())
    return result


def clock(times_ms: np.ndarray, utc_offset_hours: float) -> tuple[np.ndarray, np.ndarray]:
    """Hour of day 0..23 and day of week 0..6 (Monday 0) of int64 times, as int32."""
    local = np.asarray(times_ms, np.int64) + round(utc_offset_hours * HOUR_MS)
    hour = (local // HOUR_MS) % 24
    day = (local // DAY_MS + EPOCH_WEEKDAY) % 7
    return hour.astype(np.int32), day.astype(np.int32)
