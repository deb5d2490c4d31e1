import numpy as np
import pytest

from data_pipelines.log import tasks
from data_pipelines.log.presence import Lifetimes, Presence
from data_pipelines.log.tasks import is_repeat
from data_pipelines.log.timelines import Timelines


def timelines(*users):
    """A log from one list of (author, start, stop) a user, already in order."""
    rows = [row for views in users for row in views]
    author, start, stop = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    return Timelines(user_ptr=np.cumsum([0, *map(len, users)]), author=author.astype(np.int32),
                     room=author.astype(np.int32), start_ms=start, stop_ms=stop)


def strict_targets(log, *period, lifetimes=None, **draw):
    return tasks.strict_targets(log, Presence.of(log, lifetimes), *period, **draw)


def liverec_targets(log, *period, lifetimes=None, **draw):
    return tasks.liverec_targets(log, Presence.of(log, lifetimes), *period, **draw)


def candidates(task):
    return [task.candidates[a:b].tolist() for a, b in zip(task.offsets[:-1], task.offsets[1:], strict=True)]


def viewers(task):
    return [task.viewers[a:b].tolist() for a, b in zip(task.offsets[:-1], task.offsets[1:], strict=True)]


# From 100 on: user 0 opens author 1, which user 1 watches too, then author 3, which nobody else watches.
LOG = timelines([(0, 0, 10), (1, 100, 110), (3, 120, 130)],
                [(1, 90, 105), (2, 105, 200)],
                [(2, 50, 200)])


def test_strict_leaves_out_what_only_the_own_row_shows():
    task = strict_targets(LOG, 100)
    # User 0's view of author 3 is no target; user 1's view of author 2 is: user 2 watches it.
    assert task.user.tolist() == [0, 1]
    assert task.target.tolist() == [1, 2]
    assert task.time_ms.tolist() == [100, 105]
    assert task.view.tolist() == [1, 4]
    # User 1's row of author 1 ends at 105, and an end is exclusive; user 0's row covers 105.
    assert candidates(task) == [[1, 2], [1, 2]]
    assert viewers(task) == [[1, 1], [1, 1]]
    assert task.position.tolist() == [0, 1]
    assert task.dropped == {"the user's first view": 0, "nobody else shows the author on air": 1}


def test_liverec_takes_the_last_view_and_counts_the_own_row():
    task = liverec_targets(LOG, 100)
    assert task.user.tolist() == [0, 1]
    assert task.target.tolist() == [3, 2]
    assert candidates(task) == [[2, 3], [1, 2]]
    # Viewers never count the one who asks, even where their row puts the author on air.
    assert viewers(task) == [[2, 0], [1, 1]]
    assert task.position.tolist() == [1, 1]
    assert task.dropped["not the user's last view"] == 1
    assert task.dropped["nobody else shows the author on air"] == 0


def test_the_period_is_half_open_and_everything_is_counted():
    task = strict_targets(LOG, 90, 105)
    assert task.time_ms.tolist() == [100]
    assert task.dropped == {"the user's first view": 1, "nobody else shows the author on air": 0}
    empty = strict_targets(LOG, 1000)
    assert empty.offsets.tolist() == [0]
    assert len(empty.user) == len(empty.candidates) == 0


def test_a_users_first_view_is_no_target_even_beside_another_of_the_same_start():
    log = timelines([(1, 100, 110), (2, 100, 110)], [(1, 50, 200), (2, 60, 200)])
    task = strict_targets(log, 100)
    assert task.view.tolist() == [1]
    assert task.dropped["the user's first view"] == 1


def test_true_lifetimes_decide_who_is_on_air():
    rooms = Lifetimes(author=np.array([3, 1, 2, 4]), start_ms=np.array([100, 95, 0, 121]),
                      end_ms=np.array([200, 100, 1000, 300]), room=np.array([40, 41, 42, 43]))
    task = strict_targets(LOG, 100, lifetimes=rooms)
    # Author 1's room has ended at 100; author 3 is on air though nobody else watches; author 4 begins too late.
    assert task.target.tolist() == [3, 2]
    assert candidates(task) == [[2, 3], [2, 3]]
    assert viewers(task) == [[2, 0], [1, 0]]
    assert task.dropped == {"the user's first view": 0, "author has no room on air": 1}


def test_protocols_agree_under_true_lifetimes():
    rooms = Lifetimes(np.arange(4), np.zeros(4, np.int64), np.full(4, 1000), np.arange(4) + 40)
    strict, liverec = strict_targets(LOG, 100, lifetimes=rooms), liverec_targets(LOG, 100, lifetimes=rooms)
    shared = np.isin(strict.view, liverec.view)
    assert liverec.view.tolist() == strict.view[shared].tolist()
    assert candidates(liverec) == [row for row, kept in zip(candidates(strict), shared, strict=True) if kept]


def test_candidates_equal_a_plain_count():
    rng = np.random.default_rng(0)
    users = []
    for _ in range(12):
        starts = np.sort(rng.integers(0, 300, 15))
        users.append([(int(rng.integers(6)), int(s), int(s + rng.integers(1, 25))) for s in starts])
    log = timelines(*users)
    task = strict_targets(log, 100, 250)
    owner = log.users()
    expected, first = [], set(log.user_ptr.tolist())
    for view, (user, t) in enumerate(zip(owner, log.start_ms, strict=True)):
        covering = (log.start_ms <= t) & (t < log.stop_ms) & (owner != user)
        if 100 <= t < 250 and view not in first and log.author[view] in log.author[covering]:
            expected.append((view, np.unique(log.author[covering]).tolist()))
    assert list(zip(task.view.tolist(), candidates(task), strict=True)) == expected
    assert len(expected) > 50
    assert (task.candidates[task.offsets[:-1] + task.position] == task.target).all()


def test_a_draw_of_targets_is_seeded_and_counted():
    log = timelines([(1, 0, 5)] + [(1, 100 + i, 110 + i) for i in range(20)], [(1, 0, 1000)])
    task = strict_targets(log, 100, max_targets=7, seed=3)
    assert len(task.user) == 7
    assert task.dropped["not drawn (max_targets)"] == 13
    assert task.view.tolist() == strict_targets(log, 100, max_targets=7, seed=3).view.tolist()
    assert task.view.tolist() != strict_targets(log, 100, max_targets=7, seed=4).view.tolist()


def test_repeat_looks_at_the_last_sixteen_views_that_began_earlier():
    other_views = [(9, 10 + i, 11 + i) for i in range(16)]
    log = timelines([(1, 0, 5), *other_views, (1, 100, 110)],       # 17 views ago: new
                    [(1, 0, 5), *other_views[:15], (1, 100, 110)],  # 16 views ago: repeat
                    [(1, 100, 110), (1, 100, 120)],                 # begins together: not earlier, new
                    [(5, 0, 3), (1, 100, 110)])                     # user 2's views are not user 3's
    assert is_repeat(log, log.user_ptr[1:] - 1).tolist() == [False, True, False, False]
    assert is_repeat(log, log.user_ptr[1:2] - 1, window=17).tolist() == [True]


@pytest.mark.parametrize("build", [strict_targets, liverec_targets])
def test_the_repeat_flag_of_a_task(build):
    log = timelines([(1, 0, 5), (1, 100, 110)], [(2, 0, 5), (1, 101, 110)], [(1, 50, 200)])
    assert build(log, 100).repeat.tolist() == [True, False]
