"""Requests, rooms on air and training batches, against direct computation. Axes: R requests, N slots."""

import chex
import jax
import numpy as np
import pytest

from data_pipelines.batches.training import BatchMaker
from data_pipelines.log.presence import NOBODY, Lifetimes, Presence
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import HOUR_MS
from onelive_jax.batch import ROOM_FEATURES
from onelive_jax.config import DataConfig
from onelive_jax.tokenizer.semantic_ids import IdTable

USERS, AUTHORS, VIEWS = 8, 12, 150


def random_views(seed: int) -> Timelines:
    rng = np.random.default_rng(seed)
    user, start = np.sort(rng.integers(USERS, size=VIEWS)), rng.integers(0, 30 * HOUR_MS, VIEWS)
    start = start // 900_000 * 900_000  # many begin together
    stop, author = start + rng.integers(1, 4 * HOUR_MS, VIEWS), rng.integers(AUTHORS, size=VIEWS).astype(np.int32)
    order = np.lexsort((stop, start, user))
    ptr = np.searchsorted(user[order], np.arange(USERS + 1))
    return Timelines(ptr, author[order], 100 + author[order], start[order], stop[order])


def id_table() -> IdTable:
    """Codes (author % 3, 0), and (author % 3, 1) from hour 15 on for even authors."""
    base = np.stack([np.arange(AUTHORS) % 3, np.zeros(AUTHORS, int)], -1)
    even = np.arange(0, AUTHORS, 2)
    return IdTable.dynamic(base, even, np.full(even.size, 15 * HOUR_MS), np.stack([even % 3, np.ones_like(even)], -1))


def make(seed: int = 0, slots: int = 32, lifetimes: bool = False) -> BatchMaker:
    views = random_views(seed)
    rooms = None
    if lifetimes:  # every author except the last is on air all the time in hours 5 … 25
        start, author = np.full(AUTHORS - 1, 5 * HOUR_MS), np.arange(AUTHORS - 1)
        rooms = Lifetimes(author, start, start + 20 * HOUR_MS, 100 + author)
    config = DataConfig(history_items=6, history_window=40, live_slots=slots)
    return BatchMaker(views, Presence.of(views, rooms, AUTHORS), id_table(), config)


def shown(views: Timelines, time: int, user: int) -> dict[int, list[int]]:
    """Author → views of other people that cover the moment, by brute force."""
    users, result = views.users(), {}
    for view in range(views.author.size):
        if users[view] != user and views.start_ms[view] <= time < views.stop_ms[view]:
            result.setdefault(int(views.author[view]), []).append(view)
    return result


def features(count: int, since: int, time: int) -> list[float]:
    return [np.log(max(count, 1)), np.log1p((time - since) / HOUR_MS)]


ALL = np.arange(VIEWS)


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_says_what_others_show_and_where_the_target_is(seed):
    maker = make(seed)
    batch = maker.batch(ALL, np.random.default_rng(0))
    for r, user in enumerate(maker.views.users()):
        time, target = int(maker.views.start_ms[r]), int(maker.views.author[r])
        expected = shown(maker.views, time, user)
        mask = batch.live.mask[r]
        assert batch.live.author[r][mask].tolist() == sorted(expected)
        assert mask[:len(expected)].all()
        for author, codes, values in zip(batch.live.author[r], batch.live.codes[r][mask], batch.live.features[r][mask],
                                         strict=False):
            since = int(maker.views.start_ms[maker.views.author == author].min())  # an author has one room here
            np.testing.assert_allclose(values[:2], features(len(expected[author]), since, time), rtol=1e-5)
            assert codes.tolist() == [author % 3, int(author % 2 == 0 and time >= 15 * HOUR_MS)]
        assert batch.target_slot[r] == (sorted(expected).index(target) if target in expected else -1)
        assert batch.target_codes[r].tolist() == [target % 3, int(target % 2 == 0 and time >= 15 * HOUR_MS)]
    np.testing.assert_array_equal(batch.target_author, maker.views.author)
    assert batch.weight.tolist() == [1.0] * VIEWS
    assert 0.1 < (batch.target_slot >= 0).mean() < 0.9  # both kinds are there


def test_fields_have_the_shapes_and_dtypes_that_the_model_expects():
    batch = make().batch(ALL[:5], np.random.default_rng(0))
    chex.assert_shape([batch.live.author, batch.live.mask], (5, 32))
    chex.assert_shape(batch.live.codes, (5, 32, 2))
    chex.assert_shape(batch.live.features, (5, 32, len(ROOM_FEATURES)))
    chex.assert_shape(batch.target_codes, (5, 2))
    chex.assert_shape([batch.target_author, batch.target_slot, batch.weight, batch.request.hour], (5,))
    chex.assert_shape(batch.request.histories["live"].codes, (5, 6, 2))
    kinds = {leaf.dtype for leaf in jax.tree.leaves(batch)}
    assert kinds == {np.dtype(np.int32), np.dtype(np.float32), np.dtype(bool)}
    assert not batch.request.week.any()
    for padding in (batch.live.author, batch.live.codes, batch.live.features):
        assert not padding[~batch.live.mask].any()


@pytest.mark.parametrize("slots", [2, 3])
def test_with_fewer_slots_than_rooms_the_target_stays_and_the_others_are_drawn(slots):
    few, whole = make(slots=slots), make()
    everything = whole.batch(ALL, np.random.default_rng(0))
    counts = everything.live.mask.sum(1)
    assert (counts > slots).sum() > 20
    seen = [set() for _ in ALL]
    for seed in range(25):
        batch = few.batch(ALL, np.random.default_rng(seed))
        np.testing.assert_array_equal(batch.target_slot >= 0, everything.target_slot >= 0)
        np.testing.assert_array_equal(batch.live.mask.sum(1), np.minimum(counts, slots))
        for r in ALL:
            rooms = batch.live.author[r][batch.live.mask[r]].tolist()
            assert rooms == sorted(set(rooms))
            mask = everything.live.mask[r]
            known = dict(zip(everything.live.author[r][mask].tolist(), everything.live.features[r][mask].tolist(),
                             strict=True))
            for author, values in zip(rooms, batch.live.features[r].tolist(), strict=False):
                assert known[author] == values
            if batch.target_slot[r] >= 0:
                assert rooms[batch.target_slot[r]] == batch.target_author[r]
            seen[r] |= set(rooms)
    # In 25 draws every room had its turn (the rarest has a chance of 1 in 11 or more each time).
    whole_sets = [set(everything.live.author[r][everything.live.mask[r]].tolist()) for r in ALL]
    assert sum(len(one) for one in seen) > 0.97 * sum(len(one) for one in whole_sets)


@pytest.mark.parametrize("lifetimes", [False, True])
def test_two_ways_to_the_same_negatives_have_one_distribution(lifetimes):
    """Listing all rooms on air and leaving some out, or drawing authors: an author's viewers or rooms weigh nothing."""
    n, slots, target = 4000, 4, 2
    watched = [(user, author) for author in range(AUTHORS) for user in range(0 if author % 3 else USERS - 1, USERS)]
    user, author = np.array(sorted(watched)).T  # author 0, 3, … have one viewer, the others all
    zeros = np.zeros(user.size, np.int64)
    views = Timelines(np.searchsorted(user, np.arange(USERS + 1)), author.astype(np.int32), author, zeros, zeros + 100)
    twice = np.concatenate([np.arange(AUTHORS), np.arange(0, AUTHORS, 3)])
    rooms = Lifetimes(twice, np.zeros(twice.size, int), np.full(twice.size, 100), np.arange(twice.size))
    presence = Presence.of(views, rooms if lifetimes else None, AUTHORS)
    maker = BatchMaker(views, presence, id_table(), DataConfig(live_slots=slots))
    times, users, targets = np.full(n, 50), np.zeros(n, int), np.full(n, target)
    listed, _ = maker.live_rooms(maker.on_air(users, times), times, slots, targets, np.random.default_rng(0))
    drawn, _ = maker.live_rooms(presence.draw(times, users, slots, targets, np.random.default_rng(0)), times, slots)
    expected = n * (slots - 1) / (AUTHORS - 1)
    for way in (listed, drawn):
        count = np.bincount(way.author.ravel(), minlength=AUTHORS)
        assert count[target] == n
        np.testing.assert_allclose(np.delete(count, target), expected, atol=5 * np.sqrt(expected))


def test_the_draw_depends_on_the_generator_alone():
    maker = make(slots=2)
    first, again, other = (maker.batch(ALL, np.random.default_rng(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first.live.author, other.live.author)


def test_viewers_never_count_the_person_who_asks():
    maker = make()
    users = maker.views.users()
    times = maker.views.start_ms + 60_000  # a minute in: the own view covers the moment
    for lifetimes in (False, True):
        on_air = make(lifetimes=lifetimes).on_air(users, times)
        for r in range(VIEWS):
            others = shown(maker.views, int(times[r]), users[r])
            part = slice(on_air.offsets[r], on_air.offsets[r + 1])
            assert on_air.viewers[part].tolist() == [len(others.get(int(a), [])) for a in on_air.author[part]]


def test_own_rows_put_a_room_on_air_and_say_nothing_else():
    """Whatever the asking person watches, and since when, moves no number beside any room."""
    maker = make()
    users, times = maker.views.users(), maker.views.start_ms + 30 * 60_000
    strict, own = maker.on_air(users, times), maker.on_air(users, times, own_rows=True)
    more = 0
    for r in range(VIEWS):
        by_others = {int(a): (int(v), int(s)) for a, v, s in zip(*(
            x[strict.offsets[r]:strict.offsets[r + 1]] for x in (strict.author, strict.viewers, strict.since_ms)),
            strict=True)}
        part = slice(own.offsets[r], own.offsets[r + 1])
        everybody = shown(maker.views, int(times[r]), NOBODY)
        assert own.author[part].tolist() == sorted(everybody)
        for author, viewers, since in zip(own.author[part], own.viewers[part], own.since_ms[part], strict=True):
            # The same pair of numbers for every room that only the asking person was seen in.
            assert (viewers, since) == by_others.get(int(author), (0, times[r] - HOUR_MS))
            more += int(author) not in by_others
    assert more > 20


def test_own_rows_where_nobody_else_watches_anything():
    views = Timelines(np.array([0, 2]), np.array([3, 4], np.int32), np.array([1, 2], np.int32), np.array([0, 50]),
                      np.array([100, 100]))
    maker = BatchMaker(views, Presence.of(views), id_table(), DataConfig(live_slots=4))
    on_air = maker.on_air(np.array([0, 0]), np.array([60, 200]), own_rows=True)
    assert on_air.author.tolist() == [3, 4]
    assert on_air.viewers.tolist() == [0, 0]
    assert on_air.since_ms.tolist() == [60 - HOUR_MS] * 2
    assert maker.on_air(np.array([0]), np.array([60])).author.size == 0
    assert maker.shown_by_others(np.arange(2)).tolist() == [False, False]
    assert not maker.batch(np.arange(2), np.random.default_rng(0)).live.mask.any()


def test_own_rows_change_nothing_beside_true_lifetimes():
    maker = make(lifetimes=True)
    users, times = maker.views.users(), maker.views.start_ms
    chex.assert_trees_all_equal(vars(maker.on_air(users, times))["viewers"],
                                vars(maker.on_air(users, times, own_rows=True))["viewers"])
    batch = maker.batch(ALL, np.random.default_rng(0))
    during = (times >= 5 * HOUR_MS) & (times < 25 * HOUR_MS)
    np.testing.assert_array_equal(batch.target_slot >= 0, during & (maker.views.author < AUTHORS - 1))
    assert (batch.live.mask.sum(1) == np.where(during, AUTHORS - 1, 0)).all()


def test_shown_by_others_equals_brute_force():
    maker = make(1)
    users = maker.views.users()
    expected = [int(maker.views.author[v]) in shown(maker.views, int(maker.views.start_ms[v]), users[v]) for v in ALL]
    assert maker.shown_by_others(ALL).tolist() == expected
    part = np.array([140, 3, 77, 3])
    assert maker.shown_by_others(part).tolist() == [expected[v] for v in part]
    assert maker.shown_by_others(np.zeros(0, np.int64)).size == 0


def test_no_target_given_means_no_slot():
    maker = make()
    times = np.array([10 * HOUR_MS])
    rooms, slot = maker.live_rooms(maker.on_air(np.array([0]), times), times, 32)
    assert rooms.mask.any()
    assert slot.tolist() == [-1]


def test_codes_are_those_of_the_moment():
    maker = make(lifetimes=True)
    times = np.array([15 * HOUR_MS - 1, 15 * HOUR_MS])
    rooms, _ = maker.live_rooms(maker.on_air(np.array([0, 0]), times), times, 32)
    assert rooms.codes[:, 2].tolist() == [[2, 0], [2, 1]]
    assert rooms.codes[:, 3].tolist() == [[0, 0], [0, 0]]
    # History items keep the codes of the moment of their view, whenever the request comes.
    history = maker.request(np.arange(USERS), np.full(USERS, 29 * HOUR_MS)).histories["live"]
    assert set(np.unique(history.codes[..., 1][history.mask & (history.author % 2 == 0)])) == {0, 1}
