"""Who is on air, against a search over all intervals. Axes: I intervals, R moments."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.log.presence import BUCKET_MS, NOBODY, Presence, expand, room_ends
from data_pipelines.tables import AUTHORS, INTERACTIONS, ROOMS, USERS, ReadReport, Tables

# Times around the edges of buckets are as frequent as times within them.
EDGES = [bucket * BUCKET_MS + beside for bucket in range(6) for beside in (-1, 0, 1)]
TIMES = st.one_of(st.integers(0, 5 * BUCKET_MS), st.sampled_from(EDGES))
INTERVAL = st.tuples(TIMES, st.integers(0, 3 * BUCKET_MS), st.integers(0, 4), st.integers(0, 9), st.integers(-1, 3))
MOMENT = st.tuples(TIMES, st.integers(-1, 3))


def make(intervals, viewers=None):
    """Presence of (start, length, author, room, user) tuples."""
    start, length, author, room, user = np.array(intervals, np.int64).reshape(-1, 5).T
    return Presence(start, start + length, author, room, user, viewers)


def covers(interval, time, user):
    start, length, _, _, owner = interval
    return start <= time < start + length and (owner == NOBODY or owner != user)


def rooms_of(on_air, moment):
    part = slice(on_air.offsets[moment], on_air.offsets[moment + 1])
    return [tuple(row) for row in np.column_stack(
        [on_air.author[part], on_air.room[part], on_air.viewers[part], on_air.since_ms[part]]).tolist()]


@settings(max_examples=200, deadline=None)
@given(st.lists(INTERVAL, max_size=25), st.lists(MOMENT, min_size=1, max_size=8))
def test_the_index_finds_what_a_search_over_all_intervals_finds(intervals, moments):
    presence = make(intervals)
    times, users = np.array(moments, np.int64).T
    moment, interval = presence.covering(times, users)
    found = sorted(zip(moment.tolist(), interval.tolist(), strict=True))
    assert (np.diff(moment) >= 0).all()
    assert found == [(r, i) for r, (time, user) in enumerate(moments)
                     for i, one in enumerate(intervals) if covers(one, time, user)]

    on_air = presence.at(times, users)
    assert on_air.offsets.size == len(moments) + 1
    for r, (time, user) in enumerate(moments):
        by_author = {}
        for one in sorted(intervals):
            if covers(one, time, user):
                by_author.setdefault(one[2], []).append(one)
        rooms = rooms_of(on_air, r)
        assert [(author, count) for author, _, count, _ in rooms] == [
            (author, len(shown)) for author, shown in sorted(by_author.items())]
        for author, room, _, since in rooms:  # of the interval that began last; any of several that began together
            newest = max(one[0] for one in by_author[author])
            assert room in {one[3] for one in by_author[author] if one[0] == newest}
            assert since == min(one[0] for one in intervals if one[3] == room)


@settings(max_examples=100, deadline=None)
@given(st.lists(INTERVAL.map(lambda i: (*i[:4], NOBODY)), min_size=1, max_size=12), st.lists(INTERVAL, max_size=20),
       st.lists(MOMENT, min_size=1, max_size=6))
def test_beside_true_lifetimes_the_viewers_are_other_peoples_views(lifetimes, views, moments):
    times, users = np.array(moments, np.int64).T
    on_air = make(lifetimes, viewers=make(views)).at(times, users)
    for r, (time, user) in enumerate(moments):
        expected = {one[2] for one in lifetimes if covers(one, time, NOBODY)}
        rooms = rooms_of(on_air, r)
        assert [author for author, *_ in rooms] == sorted(expected)
        for author, _, count, _ in rooms:
            assert count == sum(covers(one, time, user) for one in views if one[2] == author)


@pytest.mark.parametrize("start", [0, 1, BUCKET_MS - 1, BUCKET_MS, 7 * BUCKET_MS + 5, 1_746_316_800_123])
@pytest.mark.parametrize("length", [1, BUCKET_MS - 1, BUCKET_MS, BUCKET_MS + 1, 3 * BUCKET_MS])
def test_an_interval_holds_its_start_and_not_its_stop(start, length):
    presence = make([(start, length, 3, 7, 0)])
    times = np.array([start - 1, start, start + length - 1, start + length])
    assert np.diff(presence.at(times, np.full(4, 1)).offsets).tolist() == [0, 1, 1, 0]


def test_own_views_are_left_out_only_for_their_own_person():
    presence = make([(0, 100, 5, 50, 0), (10, 100, 5, 51, 1), (20, 100, 6, 60, 0)])
    on_air = presence.at(np.full(4, 30), np.array([0, 1, 2, NOBODY]))
    assert rooms_of(on_air, 0) == [(5, 51, 1, 10)]
    assert rooms_of(on_air, 1) == [(5, 50, 1, 0), (6, 60, 1, 20)]
    assert rooms_of(on_air, 2) == [(5, 51, 2, 10), (6, 60, 1, 20)]
    assert rooms_of(on_air, 3) == rooms_of(on_air, 2)


def test_a_room_is_on_air_since_anybody_saw_it_first():
    views = [(0, 10, 5, 50, 0), (40, 60, 5, 50, 1), (20, 30, 5, 50, 2), (45, 60, 5, 51, 1)]
    on_air = make(views[:3]).at(np.array([42]), np.array([0]))
    assert rooms_of(on_air, 0) == [(5, 50, 2, 0)]
    # A new room of the same author begins anew, and what comes later cannot make a room older.
    on_air = make([*views, (90, 60, 5, 51, 3)]).at(np.array([48]), np.array([0]))
    assert rooms_of(on_air, 0) == [(5, 51, 3, 45)]


def test_a_view_that_begins_at_the_moment_does_not_tell_on_itself():
    others = [(20, 100, 5, 50, 1), (5, 100, 6, 60, 2)]
    for views in (others, [*others, (30, 9, 5, 50, 0)]):
        on_air = make(views).at(np.array([30]), np.array([0]))
        assert rooms_of(on_air, 0) == [(5, 50, 1, 20), (6, 60, 1, 5)]


def test_a_room_that_was_watched_before_its_listed_start_is_as_old_as_its_first_view():
    rooms = make([(100, 50, 2, 20, NOBODY)], viewers=make([(40, 80, 2, 20, 4), (60, 80, 2, 20, 5)]))
    assert rooms_of(rooms.at(np.array([110]), np.array([7])), 0) == [(2, 20, 2, 40)]
    times = np.array([90, 30])  # what was shown, in a log of slates, may not be on air by its lifetime
    assert rooms.describe(np.array([2, 2]), np.array([20, 20]), times, np.array([7, 7]))[1].tolist() == [40, 30]


def test_a_lifetime_is_nobodys_view_and_is_never_left_out():
    rooms = make([(0, 100, 2, 20, NOBODY)], viewers=make([(0, 50, 2, 20, 4)]))
    on_air = rooms.at(np.full(2, 40), np.array([4, NOBODY]))
    assert rooms_of(on_air, 0) == [(2, 20, 0, 0)]
    assert rooms_of(on_air, 1) == [(2, 20, 1, 0)]


@pytest.mark.parametrize("intervals", [[], [(5, 0, 1, 1, 0)], [(BUCKET_MS, 0, 1, 1, 0), (9, -9, 1, 1, 0)]])
def test_without_any_interval_of_a_positive_length_nobody_is_on_air(intervals):
    times = np.array([0, 5, BUCKET_MS, 10**12])
    for presence in (make(intervals), make(intervals, viewers=make([]))):
        on_air = presence.at(times, np.full(4, NOBODY))
        assert on_air.offsets.tolist() == [0] * 5
        assert on_air.author.size == on_air.viewers.size == on_air.since_ms.size == 0


def test_lifetimes_that_nobody_watches_have_no_viewer():
    on_air = make([(0, 100, 2, 20, NOBODY)], viewers=make([])).at(np.array([40]), np.array([0]))
    assert rooms_of(on_air, 0) == [(2, 20, 0, 0)]


def test_times_outside_the_log_find_nobody():
    presence = make([(10 * BUCKET_MS, 10, 1, 1, 0), (12 * BUCKET_MS, 10, 1, 1, 0)])
    times = np.array([-10**12, -1, 0, 10 * BUCKET_MS - 1, 11 * BUCKET_MS, 13 * BUCKET_MS, 10**15])
    assert presence.at(times, np.full(7, NOBODY)).author.size == 0


def test_no_moment_at_all_is_an_empty_answer():
    on_air = make([(0, 100, 2, 20, 0)]).at(np.zeros(0, np.int64), np.zeros(0, np.int32))
    assert on_air.offsets.tolist() == [0]
    assert on_air.author.size == 0


def test_a_lost_end_is_bounded_by_a_plausible_life_and_the_last_view():
    def ends(*rooms, views=()):
        rows = [(room, 0, start, end, -1, -1) for room, (start, end) in enumerate(rooms)]
        seen = [(0, room, 0, start, watch, True, 0, 0, 0, 0, 0.0, False) for room, start, watch in views]
        made = room_ends(Tables(*(pl.DataFrame(part, schema=schema, orient="row") for part, schema in (
            (seen, INTERACTIONS), (rows, ROOMS), ([], AUTHORS), ([], USERS))), ReadReport("test", 0, 0)), 1000)
        return made[0].tolist(), made[1]

    assert ends((0, 50), (100, None), (960, None)) == ([50, 200, 1000], 1)
    assert ends((0, 50), (100, None), views=[(1, 300, 25), (1, 120, 5)]) == ([50, 325], 1)
    assert ends((0, 50), (100, 170)) == ([50, 170], 0)
    assert ends((0, None), (100, None)) == ([1000, 1000], 0)  # nothing is known of how long rooms live


def test_expand():
    values, owner = expand(np.array([5, 0, 7, 2]), np.array([2, 0, 1, 3]))
    assert values.tolist() == [5, 6, 7, 2, 3, 4]
    assert owner.tolist() == [0, 0, 2, 3, 3, 3]


@settings(max_examples=100, deadline=None)
@given(st.lists(INTERVAL, max_size=25), st.lists(MOMENT, min_size=1, max_size=6), st.integers(0, 4),
       st.integers(1, 6), st.integers(0, 99))
def test_a_draw_is_a_part_of_what_is_on_air_and_keeps_the_target(intervals, moments, target, slots, seed):
    presence = make(intervals)
    times, users = np.array(moments, np.int64).T
    targets = np.full(times.size, target)
    drawn = presence.draw(times, users, slots, targets, np.random.default_rng(seed))
    everything = presence.at(times, users)
    shown = presence.shows(targets, times, users)
    for r in range(times.size):
        whole = {author: row for author, *row in rooms_of(everything, r)}
        part = {author: row for author, *row in rooms_of(drawn, r)}
        assert list(part) == sorted(part)
        assert len(part) == min(len(whole), slots)
        assert shown[r] == (target in whole) == (target in part)
        for author, row in part.items():
            assert row == whole[author]


# 40 authors: in one room each; with 1 to 40 viewers; with true lifetimes, of which the last 20 authors have two.
MANY_WAYS = {"rooms": [(0, 100, author, author, NOBODY) for author in range(40)],
             "views": [(i, 100, author, author, 1 + i) for author in range(40) for i in range(1 + author)],
             "two rooms": [(i, 100, author, 40 * i + author, NOBODY) for author in range(40)
                           for i in range(1 + author // 20)]}


@pytest.mark.parametrize("intervals", MANY_WAYS.values(), ids=MANY_WAYS)
def test_every_author_on_air_is_drawn_as_often_as_another(intervals):
    presence = make(intervals)
    times = np.full(4000, 50)
    drawn = presence.draw(times, np.zeros(4000), 10, np.full(4000, 7), np.random.default_rng(0))
    counts = np.bincount(drawn.author, minlength=40)
    assert counts[7] == 4000
    expected = 4000 * 9 / 39
    np.testing.assert_allclose(np.delete(counts, 7), expected, atol=5 * np.sqrt(expected))
    again = presence.draw(times, np.zeros(4000), 10, np.full(4000, 7), np.random.default_rng(0))
    np.testing.assert_array_equal(again.author, drawn.author)


def test_a_large_query_is_answered_in_parts_as_a_small_one(monkeypatch):
    rng = np.random.default_rng(0)
    start = rng.integers(0, 10**7, 300)
    presence = Presence(start, start + rng.integers(1, 10**6, 300), rng.integers(20, size=300), np.arange(300),
                        rng.integers(9, size=300))
    times, users = rng.integers(0, 10**7, 50), rng.integers(9, size=50)
    whole = presence.at(times, users)
    monkeypatch.setattr("data_pipelines.log.presence.AT_ONCE", 40)
    parts = presence.at(times, users)
    for name in ("offsets", "author", "room", "viewers", "since_ms"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    assert whole.author.size > 200
