"""Cuts histories out of timelines: one compiled loop over requests, which other threads can run beside.

The same in NumPy would sort every window of views; this walks it once, from the newest view back. Compiled on first
use and kept beside this file (numba's cache).

Axes: V views, R requests, T history items, L code levels, F habit features.
"""

import numba
import numpy as np

from data_pipelines.log.intervals import lower_bound
from data_pipelines.log.presence import HOUR_MS

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
def slice_histories(user_ptr, order, author, start_ms, stop_ms, codes_VxL, users, times_ms, window, distinct,
                    effective_ms, offset_ms, out_author, out_codes, out_hour, out_day, out_week, out_habits, out_mask):
    """Fills the arrays of a `History` [R, T, …], which come zeroed; see `timelines.histories`.

    `order` int64 [V] lists views by (user, start, author): views that began together are told apart by nothing that
    is known only later. `start_ms` is sorted by user, so it is the same in both orders.
    """
    items, levels = out_author.shape[1], codes_VxL.shape[1]
    size = 4
    while size < 4 * items:
        size *= 2
    table_author = np.empty(size, np.int64)  # open addressing: author → habit
    table_habit = np.empty(size, np.int64)
    table_row = np.full(size, -1, np.int64)  # the request that an entry belongs to: no clearing between requests
    sums = np.empty((items, SUMS))
    newest_age = np.empty(items, np.int64)
    item_habit = np.empty(items, np.int64)
    for row in range(users.size):
        user, now = users[row], times_ms[row]
        first = user_ptr[user]
        end = lower_bound(start_ms, first, user_ptr[user + 1], now)
        begin = max(first, end - window)
        if begin < end:  # views that began together are all in the window, or none is
            begin = lower_bound(start_ms, first, end, start_ms[begin])
        num_items, num_habits = 0, 0
        for position in range(end - 1, begin - 1, -1):
            view = order[position]
            watched = min(stop_ms[view], now) - start_ms[view]
            if watched < effective_ms:
                continue
            who = author[view]
            slot = (who * 2654435761) & (size - 1)
            while table_row[slot] == row and table_author[slot] != who:
                slot = (slot + 1) & (size - 1)
            known = table_row[slot] == row
            if num_items == items and not known:
                continue
            age = now - start_ms[view]
            if not known:
                table_row[slot], table_author[slot], table_habit[slot] = row, who, num_habits
                sums[num_habits] = 0.0
                newest_age[num_habits] = age
                num_habits += 1
            habit = table_habit[slot]
            if num_items < items and (not distinct or not known):
                item_habit[num_items] = habit
                place = items - 1 - num_items
                out_author[row, place] = who
                for level in range(levels):
                    out_codes[row, place, level] = codes_VxL[view, level]
                local = start_ms[view] + offset_ms
                out_hour[row, place] = (local // HOUR_MS) % 24
                out_day[row, place] = (local // DAY_MS + EPOCH_WEEKDAY) % 7
                out_week[row, place] = min(age // WEEK_MS, MAX_WEEKS)
                out_mask[row, place] = True
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
            out_habits[row, place, 0] = np.log1p(sums[habit, 0])
            out_habits[row, place, 1] = np.log1p(sums[habit, 1])
            out_habits[row, place, 2] = np.log1p(newest_age[habit] / HOUR_MS)
            out_habits[row, place, 3] = np.log1p(sums[habit, 2])
            out_habits[row, place, 4] = np.log1p(sums[habit, 3])
            out_habits[row, place, 5] = np.log1p(sums[habit, 4])
            out_habits[row, place, 6] = np.log1p(sums[habit, 5])
            out_habits[row, place, 7] = np.log1p(sums[habit, 6])
            out_habits[row, place, 8] = sums[habit, 0] / (end - begin)
            out_habits[row, place, 9] = np.log1p(float(item))
