"""Compiled loops over intervals [start, stop): who covers a moment, how many, and a draw of them.

Intervals are grouped by a key (the author, or the person whose view it is) and sorted by start within a group;
`latest` is the running maximum of the stops of a group, so that a search backwards ends as soon as nothing before it
can still be going on. Compiled on first use and kept beside this file (numba's cache).

Axes: I intervals, R moments, n (moment, author) pairs.
"""

from typing import NamedTuple

import numba
import numpy as np

NOBODY = -1


def check_range(name: str, values, count: int, low: int = 0) -> np.ndarray:
    """`values` as int64. Raises ValueError where one is outside low … count − 1: compiled loops do not check."""
    values = np.asarray(values, np.int64)
    if values.size and (values.min() < low or values.max() >= count):
        wrong = values[(values < low) | (values >= count)].flat[0]
        raise ValueError(f"{name} {wrong} is out of range: allowed are {low} … {count - 1}")
    return values


class Grouped(NamedTuple):
    """Intervals by key. ptr int64 [keys + 1]; interval, start_ms, latest int64 [I], sorted by (key, start); stop_ms
    int64 [I], sorted by (key, stop): as many had stopped by a moment as lie before it."""

    ptr: np.ndarray
    interval: np.ndarray
    start_ms: np.ndarray
    latest: np.ndarray
    stop_ms: np.ndarray


def group_by(key: np.ndarray, start_ms: np.ndarray, stop_ms: np.ndarray, num_keys: int) -> Grouped:
    """Groups intervals by `key` int [I], 0 … num_keys − 1."""
    order = np.lexsort((start_ms, key))
    ptr = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=num_keys))]).astype(np.int64)
    latest = stop_ms[order].copy()
    _running_maximum(ptr, latest)
    return Grouped(ptr, order.astype(np.int64), start_ms[order], latest, stop_ms[np.lexsort((stop_ms, key))])


@numba.njit(nogil=True, cache=True)
def bucket_index(first, count, num_buckets):
    """Intervals by the buckets that they touch: interval i touches first[i] … first[i] + count[i] − 1.

    Returns: ptr int64 [buckets + 1], interval int32 [ptr[-1]], ascending within a bucket.
    """
    ptr = np.zeros(num_buckets + 1, np.int64)
    for i in range(first.size):
        for bucket in range(first[i], first[i] + count[i]):
            ptr[bucket + 1] += 1
    for bucket in range(num_buckets):
        ptr[bucket + 1] += ptr[bucket]
    out, place = np.empty(ptr[num_buckets], np.int32), ptr[:-1].copy()
    for i in range(first.size):
        for bucket in range(first[i], first[i] + count[i]):
            out[place[bucket]] = i
            place[bucket] += 1
    return ptr, out


@numba.njit(nogil=True, cache=True)
def lower_bound(values, low, high, wanted):
    """First index in [low, high) whose value is not below `wanted`; `high` if there is none."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True, cache=True)
def first_not_below(first, stop, values, wanted):
    """int64 [n]: the first index in first[i] … stop[i] of `values` that is not below wanted[i]; stop[i] if none is."""
    out = np.empty(wanted.size, np.int64)
    for i in range(wanted.size):
        out[i] = lower_bound(values, first[i], stop[i], wanted[i])
    return out


@numba.njit(nogil=True, cache=True)
def _running_maximum(ptr, values):
    for key in range(ptr.size - 1):
        for i in range(ptr[key] + 1, ptr[key + 1]):
            values[i] = max(values[i], values[i - 1])


@numba.njit(nogil=True, cache=True)
def newest_covering(groups, key, time_ms, stop_ms, owner, user):
    """The interval of `key` that began last and covers the moment, not owned by `user`; −1 if there is none.

    stop_ms, owner: [I], of every interval, in the order of the log. Nobody's intervals count for everybody.
    """
    if key < 0 or key >= groups.ptr.size - 1:
        return -1
    first = groups.ptr[key]
    position = lower_bound(groups.start_ms, first, groups.ptr[key + 1], time_ms + 1) - 1
    while position >= first and groups.latest[position] > time_ms:
        interval = groups.interval[position]
        if stop_ms[interval] > time_ms and (owner[interval] == NOBODY or owner[interval] != user):
            return interval
        position -= 1
    return -1


@numba.njit(nogil=True, cache=True)
def newest_of_each(groups, keys, times_ms, stop_ms, owner, users, out):
    """`newest_covering` for n (key, moment, user) at once."""
    for i in range(keys.size):
        out[i] = newest_covering(groups, keys[i], times_ms[i], stop_ms, owner, users[i])


@numba.njit(nogil=True, cache=True)
def count_covering(groups, by_user, keys, times_ms, author, stop_ms, users, out):
    """How many intervals of each key cover the moment, those of the asking user left out (int32 [n])."""
    for i in range(keys.size):
        key, now, user = keys[i], times_ms[i], users[i]
        if key < 0 or key >= groups.ptr.size - 1:
            out[i] = 0
            continue
        first, last = groups.ptr[key], groups.ptr[key + 1]
        begun = lower_bound(groups.start_ms, first, last, now + 1) - first
        ended = lower_bound(groups.stop_ms, first, last, now + 1) - first
        count = begun - ended
        if count > 0 and user >= 0 and user < by_user.ptr.size - 1:
            own = by_user.ptr[user]
            position = lower_bound(by_user.start_ms, own, by_user.ptr[user + 1], now + 1) - 1
            while position >= own and by_user.latest[position] > now:
                interval = by_user.interval[position]
                if author[interval] == key and stop_ms[interval] > now:
                    count -= 1
                position -= 1
        out[i] = count


@numba.njit(nogil=True, cache=True)
def bucket_keys(ptr, interval, key, num_keys):
    """The keys of the intervals in each bucket, every key once: ptr int64 [buckets + 1], key int32 [ptr[-1]].

    ptr, interval: from `bucket_index`. key: [I], 0 … num_keys − 1.
    """
    last = np.full(num_keys, -1, np.int64)  # the bucket that a key was last seen in
    out_ptr, out = np.zeros(ptr.size, np.int64), np.empty(interval.size, np.int32)
    count = 0
    for bucket in range(ptr.size - 1):
        for i in range(ptr[bucket], ptr[bucket + 1]):
            who = key[interval[i]]
            if last[who] != bucket:
                last[who] = bucket
                out[count] = who
                count += 1
        out_ptr[bucket + 1] = count
    return out_ptr, out[:count].copy()


class Draw(NamedTuple):
    """R draws. bucket: int64 [R], −1 outside the log; time_ms, user, target: int64 [R]; seed: uint64 [R]."""

    bucket: np.ndarray
    time_ms: np.ndarray
    user: np.ndarray
    target: np.ndarray
    seed: np.ndarray


@numba.njit(nogil=True, cache=True)
def draw(key_ptr, bucket_key, groups, stop_ms, owner, asked, out):
    """Keys that cover each moment, every one as likely, without replacement: their newest intervals, int64 [R, slots].

    The target comes first, if it covers the moment. `out` comes filled with −1. A row's seed decides its draw, whatever
    the other rows are. key_ptr, bucket_key: from `bucket_keys`; groups, stop_ms, owner: as in `newest_covering`.
    """
    slots, largest = out.shape[1], 1
    for bucket in asked.bucket:
        if bucket >= 0:
            largest = max(largest, key_ptr[bucket + 1] - key_ptr[bucket])
    place = np.arange(largest)  # a permutation, put back after every row
    swapped = np.empty(largest, np.int64)
    for row in range(asked.time_ms.size):
        if asked.bucket[row] < 0:
            continue
        now, user, target, state = asked.time_ms[row], asked.user[row], asked.target[row], asked.seed[row]
        low = key_ptr[asked.bucket[row]]
        count = key_ptr[asked.bucket[row] + 1] - low
        kept, drawn = 0, 0
        interval = newest_covering(groups, target, now, stop_ms, owner, user)
        if interval >= 0:
            out[row, 0] = interval
            kept = 1
        while kept < slots and drawn < count:
            state += np.uint64(0x9E3779B97F4A7C15)  # splitmix64
            mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
            other = drawn + np.int64(mixed >> np.uint64(11)) % (count - drawn)
            place[drawn], place[other] = place[other], place[drawn]
            swapped[drawn] = other
            who = bucket_key[low + place[drawn]]
            drawn += 1
            if who == target:
                continue
            interval = newest_covering(groups, who, now, stop_ms, owner, user)
            if interval >= 0:
                out[row, kept] = interval
                kept += 1
        for back in range(drawn - 1, -1, -1):
            other = swapped[back]
            place[back], place[other] = place[other], place[back]
