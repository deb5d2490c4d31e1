"""People's views in order of time, and the history that a request saw: sliced when a batch is made, never stored.

A history item is, by default, a *distinct author*: the last view of that author, with what is known of the viewer's
habit with them. Sixty views of one streamer are one item with a count, so a short sequence remembers for a long time.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.presence import HOUR_MS, expand
from onelive_jax.batch import HABIT_FEATURES, History

DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
# 1970-01-01 was a Thursday: with Monday as day 0, the epoch is day 3.
EPOCH_WEEKDAY = 3
MAX_WEEKS = 15
HOUR_KERNEL_HOURS = 1.5


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

    def where(self, keep: np.ndarray) -> "Timelines":
        """Only the views for which `keep` bool [V] is True; all users stay, some perhaps without a view."""
        ptr = np.concatenate([[0], np.cumsum(keep)])[self.user_ptr].astype(np.int64)
        return Timelines(ptr, self.author[keep], self.room[keep], self.start_ms[keep], self.stop_ms[keep])

    def seen_before(self, users: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """int64 [R]: end of the views of each user that started strictly before the moment (an index into V)."""
        low, high = self.user_ptr[users].copy(), self.user_ptr[np.asarray(users) + 1].copy()
        while (open_ := low < high).any():  # bisection, all requests at once
            middle = (low + high) // 2
            earlier = open_ & (self.start_ms[np.minimum(middle, self.start_ms.size - 1)] < times_ms)
            low = np.where(earlier, middle + 1, low)
            high = np.where(open_ & ~earlier, middle, high)
        return low


def clock(times_ms: np.ndarray, utc_offset_hours: float) -> tuple[np.ndarray, np.ndarray]:
    """Hour of day 0..23 and day of week 0..6 (Monday 0) of int64 times, as int32."""
    local = np.asarray(times_ms, np.int64) + round(utc_offset_hours * HOUR_MS)
    hour = (local // HOUR_MS) % 24
    day = (local // DAY_MS + EPOCH_WEEKDAY) % 7
    return hour.astype(np.int32), day.astype(np.int32)


def histories(views: Timelines, users: np.ndarray, times_ms: np.ndarray, codes_at, *, items: int, window: int,
              unit: str, utc_offset_hours: float) -> History:
    """The history of R requests.

    Args:
      views: all watched views; only those that started strictly before the request are seen, and a view still going on
        counts as far as it had been watched.
      users: int32 [R]. times_ms: int64 [R].
      codes_at: (author int32 [n], time_ms int64 [n]) → int32 [n, L], the semantic ids at the moments of the views.
      items: length T of the sequence, newest kept. window: views that are looked at (and those that began together
        with the oldest of them).
      unit: "authors" (one item a distinct author) or "views".
      utc_offset_hours: local time minus UTC.

    Returns: a `History` of NumPy arrays, right-aligned.
    """
    users, times_ms = np.asarray(users, np.int64), np.asarray(times_ms, np.int64)
    end = views.seen_before(users, times_ms)
    begin = np.maximum(views.user_ptr[users], end - window)
    # Views that began together are stored by their stops. Both may still be going on, and which of them ends first
    # nobody knows yet: the window takes all of them or none, and their order here is by author.
    some = begin < end
    begin[some] = views.seen_before(users[some], views.start_ms[begin[some]])
    view, row = expand(begin, end - begin)
    order = np.lexsort((views.author[view], views.start_ms[view], row))
    view, row = view[order], row[order]
    author, start = views.author[view], views.start_ms[view]
    age = times_ms[row] - start
    watched = np.minimum(views.stop_ms[view], times_ms[row]) - start

    # One habit for each (request, author): sums over that author's views before the request.
    width = int(views.author.max(initial=0)) + 1
    _, habit = np.unique(row * width + author, return_inverse=True)
    total = lambda weight: np.bincount(habit, weights=weight, minlength=1)  # noqa: E731
    count = total(np.ones(view.size))
    newest = np.zeros(count.size, np.int64)
    newest[habit] = np.arange(view.size)  # views ascend in time, and the last write stays
    if unit == "authors":
        item = np.sort(newest[np.unique(habit)])
    else:
        item = np.arange(view.size)
    item_row = row[item]
    # Keep the newest `items` of each row and find their places, the newest rightmost.
    after = np.cumsum(np.bincount(item_row, minlength=users.size))[item_row] - np.arange(item.size) - 1
    kept = after < items
    item, item_row, after = item[kept], item_row[kept], after[kept]
    slot = items - 1 - after

    hours = 1.0 / HOUR_MS
    phase_day, phase_week = age % DAY_MS, age % WEEK_MS
    circle = lambda phase, period: np.minimum(phase, period - phase) * hours  # noqa: E731
    kernel = lambda phase, period: np.exp(-0.5 * (circle(phase, period) / HOUR_KERNEL_HOURS) ** 2)  # noqa: E731
    decay = lambda days: np.exp2(-age / (days * DAY_MS))  # noqa: E731
    sums = {
        "log_views": count,
        "log_watch": total(watched * hours),
        "recent_day": total(decay(1)),
        "recent_week": total(decay(7)),
        "recent_month": total(decay(28)),
        "same_hour": total(kernel(phase_day, DAY_MS)),
        "same_weekday_hour": total(kernel(phase_week, WEEK_MS)),
    }
    h = habit[item]
    features = {name: np.log1p(value[h]) for name, value in sums.items()}
    features["log_gap"] = np.log1p(age[newest[h]] * hours)
    features["share"] = count[h] / np.maximum(end - begin, 1)[item_row]
    features["log_position"] = np.log1p(after)

    num, T = users.size, items
    place = lambda value, dtype, *tail: _place(value, (num, T, *tail), dtype, item_row, slot)  # noqa: E731
    hour, day = clock(start[item], utc_offset_hours)
    codes = codes_at(author[item], start[item])
    return History(
        author=place(author[item], np.int32),
        codes=place(codes, np.int32, codes.shape[-1]),
        hour=place(hour, np.int32),
        day=place(day, np.int32),
        week=place(np.minimum(age[item] // WEEK_MS, MAX_WEEKS), np.int32),
        habits=place(np.stack([features[name] for name in HABIT_FEATURES], -1), np.float32, len(HABIT_FEATURES)),
        mask=place(np.ones(item.size, bool), bool),
    )


def _place(value, shape, dtype, row, slot):
    out = np.zeros(shape, dtype)
    out[row, slot] = value
    return out
