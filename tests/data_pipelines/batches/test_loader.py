"""The order of training examples: reproducible, resumable, shared out among processes."""

from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.batches.loader import training_batches
from data_pipelines.log import draws

FIRST, SECOND = np.arange(0, 30), np.arange(100, 111)


def views_and_draw(views, keys):
    """Stands for `BatchMaker.batch`: which views, and what is drawn for each."""
    return views, draws.seeds(keys, views.size, purpose=1)


MAKER = SimpleNamespace(batch=views_and_draw)


def loader(groups=(FIRST, SECOND), shares=(0.5, 0.5), batch_size=6, seed=3, **more):
    return training_batches(MAKER, groups, shares, batch_size, seed, **({"workers": 0} | more))


def take(batches, count):
    return [(views.tolist(), drawn.tolist()) for views, drawn in (next(batches) for _ in range(count))]


def views_of(taken):
    return [view for views, _ in taken for view in views]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_seed_gives_the_same_batches_whatever_the_threads(workers):
    expected = take(loader(), 20)
    assert take(loader(workers=workers), 20) == expected
    other = take(loader(seed=4), 20)
    assert views_of(other) != views_of(expected)
    assert [drawn for _, drawn in other] != [drawn for _, drawn in expected]
    assert len({one for _, drawn in expected for one in drawn}) == 120  # every example draws for itself


@pytest.mark.parametrize("share", [0.5, 0.25, 0.9])
def test_groups_fill_their_share_of_every_batch(share):
    in_first = [sum(view < 100 for view in views) for views, _ in take(loader(shares=(share, 1 - share)), 60)]
    assert abs(sum(in_first) - 360 * share) <= 1
    assert max(in_first) - min(in_first) <= 1


def test_an_empty_group_leaves_its_share_to_the_other():
    assert views_of(take(loader((FIRST, FIRST[:0])), 10)) == views_of(take(loader((FIRST,), (0.1,)), 10))
    assert set(views_of(take(loader((FIRST[:0], SECOND)), 4))) == set(SECOND.tolist())


def test_every_example_comes_once_before_any_comes_again_and_in_a_new_order():
    seen = views_of(take(loader((FIRST, SECOND)), 60))
    for group in (FIRST, SECOND):
        mine = [view for view in seen if view in group]
        passes = [mine[low:low + group.size] for low in range(0, len(mine) - group.size + 1, group.size)]
        assert len(passes) >= 6
        assert all(sorted(one) == group.tolist() for one in passes)
        assert len({tuple(one) for one in passes}) == len(passes)
        assert group.tolist() not in passes  # shuffled at all


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 4, 9, 23])
def test_a_saved_state_resumes_exactly(done, workers):
    batches = loader(workers=workers)
    take(batches, done)
    state = batches.get_state()
    expected = take(batches, 12)
    fresh = loader(workers=workers)
    fresh.set_state(state)
    assert take(fresh, 12) == expected
    # Also into an iterator that has moved on already, and back.
    batches.set_state(state)
    assert take(batches, 12) == expected
    assert expected == take(loader(), done + 12)[done:]


@pytest.mark.parametrize("rows", [[[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5]], [[0, 1, 4, 5], [2, 3]]])
def test_processes_together_make_the_batches_of_one(rows):
    """Views and what is drawn for them, however the rows are shared out; so any other sharing goes on from a state."""
    alone = take(loader(), 9)
    iterators = [loader(rows=np.asarray(mine)) for mine in rows]
    parts = [take(batches, 9) for batches in iterators]
    for number, (views, drawn) in enumerate(alone):
        for mine, part in zip(rows, parts, strict=True):
            assert part[number] == ([views[row] for row in mine], [drawn[row] for row in mine])
    states = [batches.get_state() for batches in iterators]
    assert all(state == states[0] for state in states)
    whole = loader()
    whole.set_state(states[0])
    assert take(whole, 5) == take(loader(), 14)[9:]


def test_batches_may_be_larger_than_the_log():
    views, _ = next(loader((SECOND,), (1.0,), batch_size=25))
    assert views.dtype == np.int64
    assert sorted(views[:11].tolist()) == sorted(views[11:22].tolist()) == SECOND.tolist()


@pytest.mark.parametrize("groups,shares,rows,words", [
    ((FIRST[:0], FIRST[:0]), (0.5, 0.5), None, "no example to train on"),
    ((FIRST, SECOND), (1.0, 0.0), None, "shares must be positive"),
    ((FIRST, SECOND), (0.5, 0.5), np.array([5, 6]), r"rows \[5, 6\] are not rows of a batch of 6"),
])
def test_what_cannot_be_shared_out_is_refused(groups, shares, rows, words):
    with pytest.raises(ValueError, match=words):
        loader(groups, shares, rows=rows)
