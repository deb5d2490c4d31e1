"""Cuts histories out of people's views: the one compiled loop behind training, evaluation and serving.

The same in NumPy would sort every window of views; this walks it once, from the newest view back, and releases the GIL.
Compiled on first use and kept beside this file (numba's cache).

Axes: V views, R requests, T history items, L code levels, F habit features.
"""

from typing import NamedTuple

import numba
import numpy as np

from data_pipelines.log.intervals import lower_bound
from data_pipelines.tables import HOUR_MS

DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
# 1970-01-01 was a Thursday: with Monday as day 0, the epoch is day 3.
EPOCH_WEEKDAY = 3
MAX_WEEKS = 15
HOUR_KERNEL_HOURS = 1.5
KERNEL_REACH_MS = 9 * HOUR_MS  # further than six widths away a view adds less than 1e-7
# What is summed over the views of one author: count, hours, halved per day / week / month, near this hour, near this
# hour of the week.
SUMS = 7
HABITS_MADE = 10  # features that the loop writes, in the order of onelive_jax.batch.HABIT_FEATURES


class Views(NamedTuple):
    """Views of many people; those of one person lie together, sorted by (start, author).

    Views that began together are so told apart by nothing that is known only later. A log's timelines give these
    arrays, and so does a live state that keeps each person's last views in a block of its own.

    Attributes:
      author: int32 [V]. start_ms, stop_ms: int64 [V]; of a view that still goes on, any stop after the request.
      codes: int32 [V, L], the author's semantic id when the view began.
    """

    author: np.ndarray
    start_ms: np.ndarray
    stop_ms: np.ndarray
    codes: np.ndarray


class HistorySettings(NamedTuple):
    """How a history is cut.

    Attributes:
      items: T, the newest are kept. window: views that are looked at (and those that began together with the oldest).
      distinct: one item a distinct author, else one a view.
      effective_ms: a view that had not been watched that long when the request came is passed over.
      utc_offset_ms: local time minus UTC.
    """

    items: int
    window: int
    distinct: bool
    effective_ms: int
    utc_offset_ms: int


class HistoryArrays(NamedTuple):
    """The arrays of an `onelive_jax.batch.History`, [R, T, …], zeroed before they are filled."""

    author: np.ndarray
    codes: np.ndarray
    hour: np.ndarray
    day: np.ndarray
    week: np.ndarray
    habits: np.ndarray
    mask: np.ndarray


@numba.njit(nogil=True, cache=True)
def _near(age_ms, period_ms):
    """A bell over the distance on the circle of `period_ms`."""
    phase = age_ms % period_ms
    distance = min(phase, period_ms - phase)
    if distance > KERNEL_REACH_MS:
        return 0.0
    hours = distance / HOUR_MS / HOUR_KERNEL_HOURS
    return np.exp(-0.5 * hours * hours)


@numba.njit(nogil=True, cache=True)
def slice_histories(views, first_R, stop_R, times_ms, settings, out):
    """Fills `out` (`HistoryArrays`) from `Views`: those of request r are rows first_R[r] … stop_R[r] − 1 (int64 [R]).

    Indices are not checked here: `batches.features.histories` is the door.
    """
    items, levels = settings.items, views.codes.shape[1]
    size = 4
    while size < 4 * items:
        size *= 2
    table_author = np.empty(size, np.int64)  # open addressing: author → habit
    table_habit = np.empty(size, np.int64)
    table_row = np.full(size, -1, np.int64)  # the request that an entry belongs to: no clearing between requests
    sums = np.empty((items, SUMS))
    newest_age = np.empty(items, np.int64)
    item_habit = np.empty(items, np.int64)
    for row in range(times_ms.size):
        first, now = first_R[row], times_ms[row]
        end = lower_bound(views.start_ms, first, stop_R[row], now)
        begin = max(first, end - settings.window)
        if begin < end:  # views that began together are all in the window, or none is
            begin = lower_bound(views.start_ms, first, end, views.start_ms[begin])
        num_items, num_habits, effective = 0, 0, 0
        for view in range(end - 1, begin - 1, -1):
            watched = min(views.stop_ms[view], now) - views.start_ms[view]
            if watched < settings.effective_ms:
                continue
            effective += 1
            who = views.author[view]
            slot = (who * 2654435761) & (size - 1)
            while table_row[slot] == row and table_author[slot] != who:
                slot = (slot + 1) & (size - 1)
            known = table_row[slot] == row
            if num_items == items and not known:
                continue
            age = now - views.start_ms[view]
            if not known:
                table_row[slot], table_author[slot], table_habit[slot] = row, who, num_habits
                sums[num_habits] = 0.0
                newest_age[num_habits] = age
                num_habits += 1
            habit = table_habit[slot]
            if num_items < items and (not settings.distinct or not known):
                item_habit[num_items] = habit
                place = items - 1 - num_items
                out.author[row, place] = who
                for level in range(levels):
                    out.codes[row, place, level] = views.codes[view, level]
                local = views.start_ms[view] + settings.utc_offset_ms
                out.hour[row, place] = (local // HOUR_MS) % 24
                out.day[row, place] = (local // DAY_MS + EPOCH_WEEKDAY) % 7
                out.week[row, place] = min(age // WEEK_MS, MAX_WEEKS)
                out.mask[row, place] = True
                num_items += 1
            month = np.exp2(-age / (28.0 * DAY_MS))
            week = month * month * month * month
            sums[habit, 0] += 1.0
            sums[habit, 1] += watched / HOUR_MS
            sums[habit, 2] += week**7
            sums[habit, 3] += week
            sums[habit, 4] += month
            sums[habit, 5] += _near(age, DAY_MS)
            sums[habit, 6] += _near(age, WEEK_MS)
        for item in range(num_items):  # in the order of batch.HABIT_FEATURES
            habit, place = item_habit[item], items - 1 - item
            out.habits[row, place, 0] = np.log1p(sums[habit, 0])
            out.habits[row, place, 1] = np.log1p(sums[habit, 1])
            out.habits[row, place, 2] = np.log1p(newest_age[habit] / HOUR_MS)
            out.habits[row, place, 3] = np.log1p(sums[habit, 2])
            out.habits[row, place, 4] = np.log1p(sums[habit, 3])
            out.habits[row, place, 5] = np.log1p(sums[habit, 4])
            out.habits[row, place, 6] = np.log1p(sums[habit, 5])
            out.habits[row, place, 7] = np.log1p(sums[habit, 6])
            out.habits[row, place, 8] = sums[habit, 0] / effective
            out.habits[row, place, 9] = np.log1p(float(item))
