"""Histories by hand, and that nothing of them comes from the future."""

import numpy as np
import pytest

from data_pipelines.batches import features
from data_pipelines.log.slicing import DAY_MS, MAX_WEEKS, WEEK_MS, HistorySettings, Views
from data_pipelines.log.timelines import Timelines, clock
from data_pipelines.tables import HOUR_MS
from onelive_jax.batch import HABIT_FEATURES

MONDAY_MS = 4 * DAY_MS  # 1970-01-05, 00:00 UTC
FIELDS = ("author", "codes", "hour", "day", "week", "habits", "mask")
SETTINGS = HistorySettings(items=6, window=100, distinct=True, effective_ms=0, utc_offset_ms=0)


def timelines(*views, users: int) -> Timelines:
    """Of (user, author, start, stop) tuples in any order; the room is 100 + author."""
    views = sorted(views, key=lambda view: (view[0], view[2], view[3], view[1]))
    user, author, start, stop = np.array(views, np.int64).reshape(-1, 4).T
    return Timelines(np.searchsorted(user, np.arange(users + 1)), author.astype(np.int32),
                     (100 + author).astype(np.int32), start, stop)


def codes_at(author, time_ms):
    """Two codes that betray the author and the moment that were asked for."""
    return np.stack([author, (np.asarray(time_ms) // HOUR_MS) % 1000], -1).astype(np.int32)


def history(views, user, time_ms, **changes):
    return many(views, np.array([user]), np.array([time_ms]), **changes)


def many(views, users, times_ms, **changes):
    author, stop_ms = views.by_start
    arrays = Views(author, views.start_ms, stop_ms, codes_at(author, views.start_ms))
    return features.histories(arrays, *views.rows_of(users), times_ms, SETTINGS._replace(**changes))


def habit(made, slot, name):
    return float(made.habits[0, slot, HABIT_FEATURES.index(name)])


def hours(*values):
    """(user, author, start, stop) with start and stop in hours after the Monday."""
    return [(user, author, round(MONDAY_MS + start * HOUR_MS), round(MONDAY_MS + stop * HOUR_MS))
            for user, author, start, stop in values]


def at(hour):
    return round(MONDAY_MS + hour * HOUR_MS)


# Person 0 watches 7, 5, 7, 9, 5; person 1 has views of their own.
VIEWS = timelines(*hours((0, 7, 0, 1), (0, 5, 2, 2.5), (0, 7, 20, 20.5), (0, 9, 24, 26), (0, 5, 26, 27),
                         (1, 3, 1, 2), (1, 7, 25, 26)), users=3)


def test_items_are_distinct_authors_by_last_view_the_newest_rightmost():
    made = history(VIEWS, 0, at(30))
    assert made.mask[0].tolist() == [False] * 3 + [True] * 3
    assert made.author[0].tolist() == [0, 0, 0, 7, 9, 5]
    assert made.codes[0].tolist() == [[0, 0]] * 3 + [[7, 96 + 20], [9, 96 + 24], [5, 96 + 26]]
    assert made.hour[0, 3:].tolist() == [20, 0, 2]
    assert made.day[0, 3:].tolist() == [0, 1, 1]
    assert not made.habits[0, :3].any()
    dtypes = dict.fromkeys(FIELDS, np.int32) | {"habits": np.float32, "mask": bool}
    assert all(getattr(made, name).dtype == dtype for name, dtype in dtypes.items())


def test_views_unit_keeps_every_view():
    made = history(VIEWS, 0, at(30), distinct=False)
    assert made.mask[0].tolist() == [False] + [True] * 5
    assert made.author[0, 1:].tolist() == [7, 5, 7, 9, 5]
    assert made.hour[0, 1:].tolist() == [0, 2, 20, 0, 2]
    # The habit is the viewer's with that author, so both views of one author carry the same.
    position = HABIT_FEATURES.index("log_position")
    same = np.delete(made.habits[0], position, axis=1)
    np.testing.assert_array_equal(same[1], same[3])
    np.testing.assert_array_equal(same[2], same[5])


def test_items_cut_the_oldest_authors_and_leave_the_habits_whole():
    whole, cut = history(VIEWS, 0, at(30)), history(VIEWS, 0, at(30), items=2)
    assert cut.author[0].tolist() == [9, 5]
    np.testing.assert_array_equal(cut.habits[0], whole.habits[0, -2:])
    assert history(VIEWS, 0, at(30), items=1).author.tolist() == [[5]]
    assert history(VIEWS, 0, at(30), items=2, distinct=False).author.tolist() == [[9, 5]]


def test_window_forgets_the_views_before_it():
    made = history(VIEWS, 0, at(30), window=3)  # 7 at 20 h, 9, 5
    assert made.author[0, 3:].tolist() == [7, 9, 5]
    assert habit(made, 3, "log_views") == pytest.approx(np.log(2))
    assert habit(made, 3, "share") == pytest.approx(1 / 3)
    assert history(VIEWS, 0, at(30), window=1).mask[0].tolist() == [False] * 5 + [True]


def test_habit_features_by_hand():
    made = history(VIEWS, 0, at(30))
    slot = 3  # author 7: watched an hour from 0 h, half an hour from 20 h; asked at 30 h
    bell = lambda distance: np.exp(-0.5 * (distance / 1.5) ** 2)  # noqa: E731
    expected = {
        "log_views": np.log(3), "log_watch": np.log(1 + 1.5), "log_gap": np.log(1 + 10),
        "recent_day": np.log(1 + 2 ** (-30 / 24) + 2 ** (-10 / 24)),
        "recent_week": np.log(1 + 2 ** (-30 / 168) + 2 ** (-10 / 168)),
        "recent_month": np.log(1 + 2 ** (-30 / 672) + 2 ** (-10 / 672)),
        "same_hour": np.log(1 + bell(6) + bell(10)),  # 0 h and 20 h seen from 6 h
        "same_weekday_hour": np.log(1 + bell(30) + bell(10)),
        "share": 2 / 5, "log_position": np.log(1 + 2),
    }
    assert set(expected) == set(HABIT_FEATURES)
    for name, value in expected.items():
        assert habit(made, slot, name) == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_hours_of_day_and_week_are_circles():
    views = timelines(*hours((0, 1, 0, 1)), users=1)
    near = lambda hour, name: np.expm1(habit(history(views, 0, at(hour)), -1, name))  # noqa: E731
    assert near(24 - 0.5, "same_hour") == pytest.approx(near(0.5, "same_hour"))
    assert near(24 + 0.5, "same_hour") == pytest.approx(near(0.5, "same_hour"))
    assert near(24.5, "same_weekday_hour") < 1e-6 < near(24.5, "same_hour")
    assert near(168 - 0.5, "same_weekday_hour") == pytest.approx(near(0.5, "same_weekday_hour"))


def test_a_view_still_going_on_counts_as_far_as_it_had_been_watched():
    views = timelines(*hours((0, 4, 10, 20)), users=1)
    assert habit(history(views, 0, at(10.5)), -1, "log_watch") == pytest.approx(np.log(1.5))
    assert habit(history(views, 0, at(20)), -1, "log_watch") == pytest.approx(np.log(11))
    assert habit(history(views, 0, at(40)), -1, "log_watch") == pytest.approx(np.log(11))


def test_only_views_that_began_strictly_earlier_are_seen():
    views = timelines(*hours((0, 1, 0, 1), (0, 2, 5, 6), (0, 3, 5, 7), (0, 4, 5, 5.5), (0, 5, 9, 10)), users=1)
    assert history(views, 0, at(5)).author[0].tolist() == [0, 0, 0, 0, 0, 1]
    assert history(views, 0, at(5) + 1).mask[0].tolist() == [False] * 2 + [True] * 4
    assert not history(views, 0, at(0)).mask.any()
    times = np.array([at(0), at(5), at(5) + 1, at(99)])
    assert views.seen_before(np.zeros(4, np.int64), times).tolist() == [0, 1, 4, 5]


def test_of_views_that_began_together_the_order_does_not_tell_which_will_last():
    def authors(first, second, **changes):
        views = timelines(*hours((0, 2, 5, first), (0, 1, 5, second), (0, 3, 6, 7)), users=1)
        return history(views, 0, at(8), **changes).author[0, 3:].tolist()

    for distinct in (True, False):
        assert authors(10, 9, distinct=distinct) == authors(9, 10, distinct=distinct) == [1, 2, 3]
    # The window cuts between moments, never between views that began together.
    assert authors(10, 9, window=2) == authors(9, 10, window=2) == [1, 2, 3]
    assert authors(10, 9, window=1) == [0, 0, 3]


def test_people_without_history_have_an_empty_mask_and_zeros():
    made = many(VIEWS, np.array([2, 0, 1]), np.array([at(30), at(0), at(1)]))
    assert not made.mask.any()
    for values in (made.author, made.codes, made.hour, made.day, made.week, made.habits):
        assert not values.any()
    nobody = timelines(users=2)
    assert not history(nobody, 1, at(5)).mask.any()
    assert many(VIEWS, np.zeros(0, np.int64), np.zeros(0, np.int64)).mask.shape == (0, 6)


def test_a_log_of_one_person():
    made = history(timelines(*hours((0, 0, 1, 2)), users=1), 0, at(3))
    assert made.mask[0].tolist() == [False] * 5 + [True]
    assert habit(made, -1, "share") == 1.0


def test_requests_of_a_batch_do_not_see_each_other():
    users, times = np.array([0, 1, 0, 2, 1]), np.array([at(30), at(30), at(21), at(30), at(2)])
    together = many(VIEWS, users, times)
    for r, (user, time) in enumerate(zip(users, times, strict=True)):
        alone = history(VIEWS, user, time)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(together, name)[r], getattr(alone, name)[0], err_msg=name)


def test_weeks_are_whole_and_clipped():
    views = timelines((0, 1, 0, 1), users=1)
    weeks = [int(history(views, 0, time).week[0, -1]) for time in (1, WEEK_MS - 1, WEEK_MS, 15 * WEEK_MS, 99 * WEEK_MS)]
    assert weeks == [0, 0, 1, MAX_WEEKS, MAX_WEEKS]


@pytest.mark.parametrize("offset,hour,day", [(0.0, 23, 6), (1.0, 0, 0), (-24.0, 23, 5), (0.5, 23, 6), (5.75, 5, 0)])
def test_clock_is_local(offset, hour, day):
    sunday_23h_15 = MONDAY_MS - 45 * 60_000
    assert [value.tolist() for value in clock(np.array([sunday_23h_15]), offset)] == [[hour], [day]]
    views = timelines((0, 1, sunday_23h_15, sunday_23h_15 + 1), users=1)
    made = history(views, 0, at(9), utc_offset_ms=round(offset * HOUR_MS))
    assert (made.hour[0, -1], made.day[0, -1]) == (hour, day)


def test_clock_knows_a_real_date():
    # 2025-05-04 13:00 UTC was a Sunday.
    assert [int(value) for value in clock(np.int64(1_746_363_600_000), 0.0)] == [13, 6]


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_comes_from_the_future(distinct, seed):
    """What begins at or after the request, and how long a view goes on after it, changes no history."""
    rng = np.random.default_rng(seed)
    views = [(int(user), int(author), int(start), int(start + watch)) for user, author, start, watch in zip(
        rng.integers(4, size=120), rng.integers(9, size=120), rng.integers(40, size=120) * HOUR_MS,
        rng.integers(1, 9, size=120) * HOUR_MS, strict=True)]
    now = 20 * HOUR_MS
    ask = lambda log: many(timelines(*log, users=4), np.arange(4), np.full(4, now), items=5,  # noqa: E731
                           window=12, distinct=distinct)
    before = [view for view in views if view[2] < now]
    changed = [(user, author, start, stop if stop <= now else now + int(rng.integers(1, 10**9)))
               for user, author, start, stop in before]
    for _ in range(60):
        start = now + int(rng.integers(5 * HOUR_MS)) * int(rng.integers(2))
        changed.append((int(rng.integers(4)), int(rng.integers(30)), start, start + 5))
    past, told, deleted = ask(views), ask(changed), ask(before)
    assert past.mask.sum() > 10
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(told, name), getattr(past, name), err_msg=name)
        np.testing.assert_array_equal(getattr(deleted, name), getattr(past, name), err_msg=name)
    # The same check notices what begins one millisecond before the request.
    assert not np.array_equal(ask([*before, (0, 8, now - 1, now + 9)]).habits, past.habits)


def test_where_keeps_some_views_and_every_user():
    views = Timelines(user_ptr=np.array([0, 2, 2, 3]), author=np.array([5, 6, 7], np.int32),
                      room=np.array([1, 2, 3], np.int32), start_ms=np.array([10, 20, 30]),
                      stop_ms=np.array([11, 21, 31]))
    kept = views.where(np.array([False, True, False]))
    assert kept.user_ptr.tolist() == [0, 1, 1, 1]
    assert (kept.author.tolist(), kept.room.tolist()) == ([6], [2])
    assert (kept.start_ms.tolist(), kept.stop_ms.tolist()) == ([20], [21])


@pytest.mark.parametrize("distinct", [True, False])
def test_a_view_counts_once_it_had_been_watched_long_enough(distinct):
    views = timelines(*hours((0, 1, 0, 0.1), (0, 2, 1, 9), (0, 3, 2, 2.5)), users=1)
    short = dict(effective_ms=HOUR_MS // 2, distinct=distinct)
    assert history(views, 0, at(5), **short).author[0, -2:].tolist() == [2, 3]
    assert history(views, 0, at(1.4), **short).mask.sum() == 0  # nobody knows yet that it will go on
    assert history(views, 0, at(1.5), **short).author[0, -1] == 2


def test_a_share_is_of_the_views_that_count():
    views = timelines(*hours((0, 1, 0, 1), (0, 2, 1, 2), (0, 3, 2, 2.1), (0, 3, 3, 3.1), (0, 3, 4, 4.1)), users=1)
    made = history(views, 0, at(9), effective_ms=HOUR_MS // 2)
    assert made.author[0, -2:].tolist() == [1, 2]
    assert [habit(made, slot, "share") for slot in (-2, -1)] == [0.5, 0.5]


def test_until_and_sorted_by():
    views = timelines(*hours((0, 1, 0, 9), (0, 2, 1, 2), (1, 3, 5, 6)), users=2)
    assert views.until(at(8)).author.tolist() == [2, 3]
    by_stop = views.sorted_by(views.stop_ms, views.stop_ms)
    assert by_stop.author.tolist() == [2, 1, 3]
    assert (by_stop.start_ms == by_stop.stop_ms).all()
