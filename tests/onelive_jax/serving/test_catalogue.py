"""The rooms on air on the host: changes, what is refused, snapshots that equal an index made from nothing."""

import functools
import logging
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onelive_jax.batch import LiveRooms
from onelive_jax.decoding import beam_search, live_index
from onelive_jax.serving.catalogue import LiveCatalogue

CAPACITY, LEVELS, CODES, AUTHORS = 12, 3, 4, 50
two_features = functools.partial(LiveCatalogue, num_features=2)
from_rooms = jax.jit(live_index.from_rooms, static_argnums=1)


def change_at_random(catalogue, rng, room):
    """Opens, moves or closes a room."""
    there = [r for r in range(room) if r in catalogue]
    action = rng.random()
    if len(catalogue) == catalogue.capacity or (there and action < 0.3):
        catalogue.take_off_air(rng.choice(there))
    elif there and action < 0.5:
        catalogue.change_codes(rng.choice(there), rng.integers(0, CODES, LEVELS))
    elif there and action < 0.6:
        catalogue.change_features(rng.choice(there), rng.normal(size=2))
    else:
        catalogue.put_on_air(room, rng.integers(AUTHORS), rng.integers(0, CODES, LEVELS), rng.normal(size=2))


def live_part(index):
    """An index without what is free to differ: rows of slots off air."""
    rooms, n = int(index.trie.num_rooms), np.asarray(index.on_air)
    assert sorted(np.asarray(index.trie.order).tolist()) == list(range(CAPACITY))
    return [np.asarray(index.trie.order)[:rooms], *(jax.tree.leaves(index.trie)[1:]), n,
            *(np.asarray(x)[n] for x in (index.author, index.codes, index.features))]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), many=st.sampled_from([1, 4, 30]))
def test_a_snapshot_equals_an_index_built_from_nothing(seed, many):
    """Author 0 in slot 0 with codes of 0 has the lowest key there is; it is among those drawn."""
    rng = np.random.default_rng(seed)
    catalogue = two_features(CAPACITY, LEVELS, CODES, AUTHORS)
    catalogue.put_on_air(1000, 0, [0, 0, 0])
    for step in range(8):
        for room in range(step * many, (step + 1) * many):
            change_at_random(catalogue, rng, room)
        index = catalogue.snapshot().index
        scratch = from_rooms(LiveRooms(index.author, index.codes, index.features, index.on_air), CODES)
        chex.assert_trees_all_equal(live_part(index), live_part(scratch))
        assert int(index.on_air.sum()) == len(catalogue)


def compilations(caplog):
    return [record.message for record in caplog.records if record.message.startswith("Compiling")]


def test_rooms_go_on_and_off_air_without_any_compilation(caplog):
    traced_levels = []

    def level_logits(level, state, previous, prefix):
        traced_levels.append(level)
        return jnp.zeros((*previous.shape, CODES)), state

    @jax.jit
    def recommend(index):
        return beam_search.decode(level_logits, (), index, beam_search.Search(beams=4, k=6), batch=1)

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
        return two_features(capacity, LEVELS, CODES, AUTHORS)

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
    return two_features(capacity=2, num_levels=LEVELS, num_codes=CODES, num_authors=AUTHORS)


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
    (lambda c: c.put_on_air(-1, 1, [0, 0, 0], [0.0, 0.0]), "room -1: a room id must be 0"),
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


@pytest.mark.parametrize("room, author", [(2**63, 0), (1, AUTHORS), (1, 5000), (-1, 0)])
def test_a_number_out_of_range_is_refused_and_no_slot_is_lost(room, author):
    catalogue = two_features(1, LEVELS, CODES, AUTHORS)
    with pytest.raises(ValueError, match=f"room {room}"):
        catalogue.put_on_air(room, author, [0, 0, 0])
    catalogue.put_on_air(2**63 - 1, AUTHORS - 1, [0, 0, 0])
    assert catalogue.snapshot().room.tolist() == [2**63 - 1]


def test_a_room_that_is_no_whole_number_is_refused():
    catalogue = two_features(1, LEVELS, CODES, AUTHORS)
    with pytest.raises(TypeError):
        catalogue.put_on_air(1.5, 0, [0, 0, 0])
    assert len(catalogue) == 0


def test_snapshots_of_several_threads_are_each_whole():
    """Every snapshot lists exactly the rooms that its own trie holds, whoever asks for it while rooms change."""
    catalogue, wrong, stop = two_features(CAPACITY, LEVELS, CODES, AUTHORS), [], threading.Event()

    def read():
        while not stop.is_set():
            snapshot = catalogue.snapshot()
            on_air = np.flatnonzero(snapshot.room >= 0)
            live = np.asarray(snapshot.index.trie.order)[:int(snapshot.index.trie.num_rooms)]
            if sorted(live.tolist()) != on_air.tolist() or not np.array_equal(snapshot.author, snapshot.index.author):
                wrong.append(snapshot)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    rng = np.random.default_rng(0)
    try:
        for room in range(400):
            change_at_random(catalogue, rng, room)
    finally:
        stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert int(catalogue.snapshot().index.trie.num_rooms) == len(catalogue)
