"""Buffers of views: the histories of a whole log, from what was appended one by one."""

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.live.people import OPEN, Buffers
from data_pipelines.log.timelines import Timelines, histories

LEVELS = 2


def random_log(rng, users=4, views=120):
    """Timelines of short lives: many views of a person begin together."""
    user = np.sort(rng.integers(0, users, views))
    start = rng.integers(0, 40, views) * 600_000
    stop = start + rng.integers(0, 5, views) * 300_000
    author = rng.integers(0, 6, views).astype(np.int32)
    order = np.lexsort((author, stop, start, user))
    ptr = np.searchsorted(user[order], np.arange(users + 1))
    codes = rng.integers(0, 9, (views, LEVELS)).astype(np.int32)
    return Timelines(ptr, author[order], author[order], start[order], stop[order]), codes


def wanted(views, codes, time, **how):
    """What a batch of the log holds, had it ended at that moment."""
    users = np.arange(views.num_users)
    return histories(views, codes, users, np.full(users.size, time), items=5, utc_offset_hours=1.5, **how)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), window=st.sampled_from([3, 8, 200]), unit=st.sampled_from(["authors", "views"]),
       late=st.booleans(), filled=st.booleans())
def test_histories_are_those_of_the_log(seed, window, unit, late, filled):
    """Views come in order of time, or late by a few; from an empty buffer, or one that was filled from half the log."""
    rng = np.random.default_rng(seed)
    views, codes = random_log(rng)
    user, now = views.users(), 20 * 600_000
    buffers = Buffers.of(views, codes, window, now - 1) if filled else Buffers(window, LEVELS)
    order = np.lexsort((views.author, views.start_ms))
    if late:
        order = order[np.argsort(np.arange(order.size) + 3 * rng.random(order.size), kind="stable")]
    for v in order.tolist():
        if not filled or views.start_ms[v] >= now:
            buffers.add(int(user[v]), int(views.author[v]), int(views.start_ms[v]), OPEN, codes[v])
    ends = np.argsort(views.stop_ms, kind="stable")
    how = dict(window=window, unit=unit, effective_ms=0)
    for v in ends.tolist():
        if not filled or views.stop_ms[v] >= now:
            buffers.close(int(user[v]), int(views.author[v]), int(views.start_ms[v]), int(views.stop_ms[v]))
    last = 50 * 600_000
    found = buffers.histories(np.arange(4), np.full(4, last), items=5, utc_offset_hours=1.5, unit=unit, effective_ms=0)
    if not late or window == 200:  # a late view may find that its place in a short window is gone
        chex.assert_trees_all_equal(found, wanted(views, codes, last, **how))
    assert (buffers.count <= buffers.largest).all()


def test_a_view_goes_on_until_it_is_closed_and_a_stranger_has_no_history():
    buffers = Buffers(4, LEVELS)
    buffers.add(2, 7, 1000, OPEN, np.array([1, 2]))
    how = dict(items=3, unit="authors", utc_offset_hours=0.0, effective_ms=0)
    hour = 3_600_000
    watched = lambda now: buffers.histories(  # noqa: E731
        np.array([2]), np.array([now]), **how).habits[0, -1, 1]
    assert watched(1000 + hour) == pytest.approx(np.log(2), abs=1e-6)
    assert watched(1000 + 3 * hour) == pytest.approx(np.log(4), abs=1e-6)
    buffers.close(2, 7, 1000, 1000 + hour)
    assert watched(1000 + 3 * hour) == pytest.approx(np.log(2), abs=1e-6)
    assert not buffers.histories(np.array([-1, 0, 99]), np.full(3, 9000), **how).mask.any()


def test_memory_is_bounded_and_a_snapshot_goes_on_as_the_original():
    rng = np.random.default_rng(0)
    buffers = Buffers(6, LEVELS)
    for i in range(3000):
        buffers.add(int(rng.integers(5)), int(rng.integers(9)), i, i + 1, rng.integers(0, 9, LEVELS))
    assert buffers.to_arrays()["author"].size <= 5 * (8 + 16) + 64
    again = Buffers.from_arrays(buffers.to_arrays(), 6)
    how = dict(items=8, unit="views", utc_offset_hours=0.0, effective_ms=0)
    for i in range(3000, 3040):
        for each in (buffers, again):
            each.add(i % 7, i % 9, i, i + 1, np.array([1, 2]))
    asked = np.arange(7), np.full(7, 4000)
    chex.assert_trees_all_equal(buffers.histories(*asked, **how), again.histories(*asked, **how))


def test_a_forgotten_author_is_in_no_history():
    buffers = Buffers(6, LEVELS)
    for i in range(5):
        buffers.add(0, i % 2, i, i + 1, np.zeros(LEVELS, int))
    assert buffers.forget_author(1) == 2
    history = buffers.histories(np.array([0]), np.array([100]), items=4, unit="authors", utc_offset_hours=0.0,
                                effective_ms=0)
    assert history.author[history.mask].tolist() == [0]
