"""Buffers of views: the histories of a whole log, from what was appended one by one."""

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batches import features
from data_pipelines.live.people import OPEN, Buffers
from data_pipelines.log.slicing import HistorySettings, Views

LEVELS = 2


def random_log(rng, users=4, views=120):
    """(user of each view, user_ptr, views) of short lives: many views of a person begin together."""
    user = np.sort(rng.integers(0, users, views))
    start = rng.integers(0, 40, views) * 600_000
    author = rng.integers(0, 6, views).astype(np.int32)
    stop = start + rng.integers(0, 5, views) * 300_000
    order = np.lexsort((author, start, user))
    codes = rng.integers(0, 9, (views, LEVELS)).astype(np.int32)
    return user, np.searchsorted(user, np.arange(users + 1)), Views(author[order], start[order], stop[order], codes)


def settings_of(window, unit="views", items=5):
    return HistorySettings(items, window, unit == "authors", 0, 5_400_000)


def cut(buffers, people, time, window, **how):
    return features.histories(buffers.views, *buffers.rows_of(people), np.full(len(people), time),
                              settings_of(window, **how))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), window=st.sampled_from([3, 8, 200]), unit=st.sampled_from(["authors", "views"]),
       late=st.booleans(), filled=st.booleans())
def test_histories_are_those_of_the_log(seed, window, unit, late, filled):
    """Views come in order of time, or late by a few; from an empty buffer, or one that was filled from half the log."""
    rng = np.random.default_rng(seed)
    (user, ptr, views), now = random_log(rng), 20 * 600_000
    buffers = Buffers.of(views, ptr, window, now - 1) if filled else Buffers(window, LEVELS)
    order = np.lexsort((views.author, views.start_ms))
    if late:
        order = order[np.argsort(np.arange(order.size) + 3 * rng.random(order.size), kind="stable")]
    for v in order.tolist():
        if not filled or views.start_ms[v] >= now:
            buffers.add(int(user[v]), int(views.author[v]), int(views.start_ms[v]), OPEN, views.codes[v])
    ends = np.argsort(views.stop_ms, kind="stable")
    for v in ends.tolist():
        if not filled or views.stop_ms[v] >= now:
            buffers.close(int(user[v]), int(views.author[v]), int(views.start_ms[v]), int(views.stop_ms[v]))
    last = 50 * 600_000
    if not late or window == 200:  # a late view may find that its place in a short window is gone
        wanted = features.histories(views, ptr[:-1], ptr[1:], np.full(4, last), settings_of(window, unit))
        chex.assert_trees_all_equal(cut(buffers, np.arange(4), last, window, unit=unit), wanted)
    assert (buffers.count <= buffers.largest).all()


def test_a_view_goes_on_until_it_is_closed_and_a_stranger_has_no_history():
    buffers = Buffers(4, LEVELS)
    buffers.add(2, 7, 1000, OPEN, np.array([1, 2]))
    hour = 3_600_000
    watched = lambda now: cut(buffers, [2], now, 4).habits[0, -1, 1]  # noqa: E731
    assert watched(1000 + hour) == pytest.approx(np.log(2), abs=1e-6)
    assert watched(1000 + 3 * hour) == pytest.approx(np.log(4), abs=1e-6)
    buffers.close(2, 7, 1000, 1000 + hour)
    assert watched(1000 + 3 * hour) == pytest.approx(np.log(2), abs=1e-6)
    assert not cut(buffers, [-1, 0, 99], 9000, 4).mask.any()


def test_memory_is_bounded_and_a_snapshot_goes_on_as_the_original():
    rng = np.random.default_rng(0)
    buffers = Buffers(6, LEVELS)
    for i in range(3000):
        buffers.add(int(rng.integers(5)), int(rng.integers(9)), i, i + 1, rng.integers(0, 9, LEVELS))
    assert buffers.to_arrays()["author"].size <= 5 * (8 + 16) + 64
    again = Buffers.from_arrays(buffers.to_arrays(), 6)
    for i in range(3000, 3040):
        for each in (buffers, again):
            each.add(i % 7, i % 9, i, i + 1, np.array([1, 2]))
    chex.assert_trees_all_equal(*(cut(each, np.arange(7), 4000, 6, items=8) for each in (buffers, again)))


def test_a_forgotten_author_is_in_no_history():
    buffers = Buffers(6, LEVELS)
    for i in range(5):
        buffers.add(0, i % 2, i, i + 1, np.zeros(LEVELS, int))
    assert buffers.forget_author(1) == 2
    history = cut(buffers, [0], 100, 6, unit="authors")
    assert history.author[history.mask].tolist() == [0]
