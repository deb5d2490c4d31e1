"""The live index: fixed shapes, updates in place, and the host-side catalogue around it."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onelive_jax.batch import LiveRooms
from onelive_jax.decoding import beam_search, live_index

CAPACITY, LEVELS, CODES, FEATURES = 12, 3, 4, 2


def random_rooms(rng, size=CAPACITY):
    return dict(author=rng.integers(0, 50, size).astype(np.int32),
                codes=rng.integers(0, CODES, (size, LEVELS)).astype(np.int32),
                features=rng.normal(size=(size, FEATURES)).astype(np.float32), on_air=rng.random(size) < 0.6)


def paths(trie, level):
    """The prefixes of a level, read back from the nodes."""
    nodes = [(node, ()) for node in range(int(trie.levels[level].size))]
    for at in range(level, -1, -1):
        nodes = [(int(trie.levels[at].parent[node]), (int(trie.levels[at].code[node]), *path)) for node, path in nodes]
    return [path for _, path in nodes]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_trie_holds_the_prefixes_on_air_in_order(seed, share):
    rng = np.random.default_rng(seed)
    values = random_rooms(rng)
    on_air = rng.random(CAPACITY) < share
    rooms = LiveRooms(author=values["author"], codes=values["codes"], features=values["features"], mask=on_air)
    trie = live_index.rebuild(live_index.empty(CAPACITY, LEVELS, CODES, FEATURES).replace(
        author=jnp.asarray(rooms.author), codes=jnp.asarray(rooms.codes), on_air=jnp.asarray(on_air))).trie
    assert int(trie.num_rooms) == on_air.sum()
    assert sorted(np.asarray(trie.order).tolist()) == list(range(CAPACITY))
    for level in range(LEVELS):
        assert trie.levels[level].code.shape == (min(CAPACITY, CODES ** (level + 1)),)
        assert paths(trie, level) == sorted({tuple(c[:level + 1]) for c in rooms.codes[on_air].tolist()})
    live = np.asarray(trie.order)[:on_air.sum()]
    assert [paths(trie, LEVELS - 1)[leaf] for leaf in np.asarray(trie.leaf)[:len(live)]] == [
        tuple(c) for c in rooms.codes[live].tolist()]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_an_update_equals_an_index_built_from_scratch(seed):
    rng = np.random.default_rng(seed)
    before, rows = random_rooms(rng), random_rooms(rng, size=5)
    slots = rng.choice(CAPACITY, size=5, replace=False).astype(np.int32)
    slots[3:] = [CAPACITY, CAPACITY + 7]  # padding: dropped
    index = live_index.update(live_index.empty(CAPACITY, LEVELS, CODES, FEATURES),
                              np.arange(CAPACITY, dtype=np.int32), **before)
    updated = live_index.update(index, slots, **rows)
    after = {name: value.copy() for name, value in before.items()}
    for name, value in after.items():
        value[slots[:3]] = rows[name][:3]
    scratch = live_index.from_rooms(LiveRooms(author=jnp.asarray(after["author"]), codes=jnp.asarray(after["codes"]),
                                              features=jnp.asarray(after["features"]),
                                              mask=jnp.asarray(after["on_air"])), CODES)
    chex.assert_trees_all_equal(updated, scratch)
    np.testing.assert_array_equal(index.author, before["author"])  # the index before is still readable


def compilations(caplog):
    return [record.message for record in caplog.records if record.message.startswith("Compiling")]


def test_rooms_go_on_and_off_air_without_any_compilation(caplog):
    traced_levels = []

    def level_logits(level, state, previous, prefix):
        traced_levels.append(level)
        return jnp.zeros((*previous.shape, CODES)), state

    @jax.jit
    def recommend(index):
        return beam_search.decode(level_logits, (), index, batch=1, beams=4, k=6)

    def play(catalogue, rng):
        """Opens, moves and closes rooms; returns how many rooms each ranking held, and how many it should have."""
        found = []
        for room in range(30):
            if len(catalogue) == catalogue.capacity or (len(catalogue) and rng.random() < 0.4):
                catalogue.take_off_air(next(r for r in range(room) if r in catalogue))
            catalogue.put_on_air(room, author=room, codes=[room % CODES, 0, 0], features=[0.0, 0.0])
            catalogue.change_features(room, [1.0, 0.5])
            if room % 5 == 0:
                catalogue.change_codes(room, [0, 1, room % CODES])
            if room % 3 == 0:
                ranking = recommend(catalogue.snapshot().index)
                found.append((int(ranking.valid.sum()), len(catalogue)))
        return found

    def catalogue(capacity):
        return live_index.LiveCatalogue(capacity, LEVELS, CODES, FEATURES, update_size=3)

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        recommend(catalogue(CAPACITY).snapshot().index)
        play(catalogue(CAPACITY), np.random.default_rng(0))
        assert compilations(caplog)  # the log does show compilations
        caplog.clear()
        for valid, on_air in play(catalogue(CAPACITY), np.random.default_rng(1)):
            assert valid == min(on_air, 6)
        assert compilations(caplog) == []
        assert traced_levels == list(range(LEVELS))  # one trace of the search, from an empty catalogue to a full one
        recommend(catalogue(CAPACITY + 1).snapshot().index)
        assert compilations(caplog)
        assert len(traced_levels) == 2 * LEVELS


def small_catalogue():
    return live_index.LiveCatalogue(capacity=2, num_levels=LEVELS, num_codes=CODES, num_features=FEATURES)


def test_a_snapshot_is_not_changed_by_what_comes_after_it():
    catalogue = small_catalogue()
    catalogue.put_on_air(70, author=7, codes=[1, 2, 3], features=[0.5, 0.25])
    before = catalogue.snapshot()
    slot = int(np.flatnonzero(before.room == 70)[0])
    catalogue.take_off_air(70)
    catalogue.put_on_air(80, author=8, codes=[3, 2, 1], features=[0.0, 0.0])
    after = catalogue.snapshot()
    assert after is catalogue.snapshot()
    assert int(np.flatnonzero(after.room == 80)[0]) == slot  # the slot is used again
    assert (int(before.index.author[slot]), int(after.index.author[slot])) == (7, 8)
    np.testing.assert_array_equal(before.room_ids([slot, -1]), [70, -1])
    np.testing.assert_array_equal(after.room_ids([slot, -1]), [80, -1])
    np.testing.assert_array_equal(before.index.features[slot], [0.5, 0.25])
    np.testing.assert_array_equal(after.index.codes[slot], [3, 2, 1])


def test_more_changes_than_an_update_holds_all_arrive():
    catalogue = live_index.LiveCatalogue(40, LEVELS, CODES, FEATURES, update_size=7)
    for room in range(40):
        catalogue.put_on_air(room, author=room + 100, codes=[room % 4, room // 4 % 4, 0], features=[room, 0.0])
    snapshot = catalogue.snapshot()
    assert bool(snapshot.index.on_air.all())
    np.testing.assert_array_equal(np.asarray(snapshot.index.author) - 100, snapshot.room)
    np.testing.assert_array_equal(snapshot.index.features[:, 0], snapshot.room)
    np.testing.assert_array_equal(snapshot.index.codes[:, 0], snapshot.room % 4)


def test_a_full_catalogue_says_how_large_it_is_and_what_to_change():
    catalogue = small_catalogue()
    for room in range(2):
        catalogue.put_on_air(room, author=room, codes=[0, 0, 0], features=[0.0, 0.0])
    with pytest.raises(ValueError, match=r"room 2 .*holds 2 rooms.*config\.decoding\.capacity"):
        catalogue.put_on_air(2, author=2, codes=[0, 0, 0], features=[0.0, 0.0])
    assert len(catalogue) == 2
    assert 2 not in catalogue
    catalogue.take_off_air(0)
    catalogue.put_on_air(2, author=2, codes=[0, 0, 0], features=[0.0, 0.0])
    assert sorted(catalogue.snapshot().room.tolist()) == [1, 2]


@pytest.mark.parametrize("change, message", [
    (lambda c: c.put_on_air(5, 1, [0, 0, 0], [0.0, 0.0]), "room 5 is on air already"),
    (lambda c: c.put_on_air(-1, 1, [0, 0, 0], [0.0, 0.0]), "room -1: a room id must be 0 or more"),
    (lambda c: c.put_on_air(6, -1, [0, 0, 0], [0.0, 0.0]), "room 6: author -1"),
    (lambda c: c.put_on_air(6, 1, [0, 0, CODES], [0.0, 0.0]), r"room 6: codes \[0, 0, 4\] are outside 0 … 3"),
    (lambda c: c.put_on_air(6, 1, [0, 0], [0.0, 0.0]), "room 6: codes must be 3 whole numbers"),
    (lambda c: c.put_on_air(6, 1, [0, 0, 0.5], [0.0, 0.0]), "room 6: codes must be 3 whole numbers"),
    (lambda c: c.put_on_air(6, 1, [0, 0, 0], [0.0, np.nan]), "room 6: features must be 2 finite numbers"),
    (lambda c: c.put_on_air(6, 1, [0, 0, 0], [0.0]), "room 6: features must be 2 finite numbers"),
    (lambda c: c.change_codes(5, [-1, 0, 0]), r"room 5: codes \[-1, 0, 0\] are outside"),
    (lambda c: c.change_codes(6, [0, 0, 0]), "room 6 is not on air"),
    (lambda c: c.change_features(6, [0.0, 0.0]), "room 6 is not on air"),
    (lambda c: c.take_off_air(6), "room 6 is not on air")])
def test_a_refused_change_names_the_room_and_changes_nothing(change, message):
    catalogue = small_catalogue()
    catalogue.put_on_air(5, author=1, codes=[1, 1, 1], features=[0.0, 0.0])
    before = catalogue.snapshot()
    with pytest.raises(ValueError, match=message):
        change(catalogue)
    assert catalogue.snapshot() is before
    assert len(catalogue) == 1


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="config.decoding.capacity"):
        live_index.empty(capacity=0, num_levels=3, num_codes=4)
    with pytest.raises(ValueError, match="update_size=0"):
        live_index.LiveCatalogue(4, LEVELS, CODES, update_size=0)


def test_the_tie_rank_never_collides_and_does_not_follow_the_author_number():
    ranks = np.asarray(live_index.tie_rank(jnp.arange(20_000, dtype=jnp.int32)))
    assert ranks.dtype == np.uint32
    assert len(np.unique(ranks)) == 20_000
    assert abs(np.corrcoef(np.arange(20_000), ranks.astype(np.float64))[0, 1]) < 0.05
