"""People's views in order of time, and the history that a request saw: sliced when a batch is made, never stored.

A history item is, by default, a *distinct author*: the last view of that author, with what is known of the viewer's
habit with them. Sixty views of one streamer are one item with a count, so a short sequence remembers for a long time.
"""

import functools
from dataclasses import dataclass

import numpy as np

from data_pipelines.log.intervals import first_not_below
from data_pipelines.log.presence import HOUR_MS
from data_pipelines.log.slicing import DAY_MS, EPOCH_WEEKDAY, slice_histories
from onelive_jax.batch import HABIT_FEATURES, History


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

    @property
    def num_users(self) -> int:
        return self.user_ptr.size - 1

    def users(self) -> np.ndarray:
        """int32 [V], the user of each view."""
        return np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(self.user_ptr))

    @functools.cached_property
    def start_order(self) -> np.ndarray:
        """int64 [V], views by (user, start, author)."""
        return np.lexsort((self.author, self.start_ms, self.users()))

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

    def seen_before(self, users: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """int64 [R]: end of the views of each user that started strictly before the moment (an index into V)."""
        return first_not_below(self.user_ptr, self.start_ms, np.asarray(users, np.int64),
                               np.asarray(times_ms, np.int64))


def clock(times_ms: np.ndarray, utc_offset_hours: float) -> tuple[np.ndarray, np.ndarray]:
    """Hour of day 0..23 and day of week 0..6 (Monday 0) of int64 times, as int32."""
    local = np.asarray(times_ms, np.int64) + round(utc_offset_hours * HOUR_MS)
    hour = (local // HOUR_MS) % 24
    day = (local // DAY_MS + EPOCH_WEEKDAY) % 7
    return hour.astype(np.int32), day.astype(np.int32)


def histories(views: Timelines, codes_VxL: np.ndarray, users: np.ndarray, times_ms: np.ndarray, *, items: int,
              window: int, unit: str, utc_offset_hours: float, effective_ms: int = 0) -> History:
    """The history of R requests.

    Args:
      views: all watched views; only those that started strictly before the request are seen, and a view still going on
        counts as far as it had been watched.
      codes_VxL: int32 [V, L], the semantic id of each view's author at the moment of the view.
      users: int32 [R]. times_ms: int64 [R].
      items: length T of the sequence, newest kept. window: views that are looked at (and those that began together
        with the oldest of them).
      unit: "authors" (one item a distinct author) or "views".
      utc_offset_hours: local time minus UTC.
      effective_ms: a view that had not been watched that long when the request came is passed over.

    Returns: a `History` of NumPy arrays, right-aligned. What is known of a habit is summed over the window.
    """
    rows, levels = len(users), codes_VxL.shape[1]
    history = History(
        author=np.zeros((rows, items), np.int32), codes=np.zeros((rows, items, levels), np.int32),
        hour=np.zeros((rows, items), np.int32), day=np.zeros((rows, items), np.int32),
        week=np.zeros((rows, items), np.int32), habits=np.zeros((rows, items, len(HABIT_FEATURES)), np.float32),
        mask=np.zeros((rows, items), bool),
    )
    slice_histories(views.user_ptr, views.start_order, views.author, views.start_ms, views.stop_ms, codes_VxL,
                    np.asarray(users, np.int64), np.asarray(times_ms, np.int64), window, unit == "authors",
                    effective_ms, round(utc_offset_hours * HOUR_MS), history.author, history.codes, history.hour,
                    history.day, history.week, history.habits, history.mask)
    return history
