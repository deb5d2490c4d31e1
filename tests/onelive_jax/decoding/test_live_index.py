"""The live index: the trie of the rooms on air."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onelive_jax.batch import LiveRooms
from onelive_jax.decoding import live_index

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
    trie = live_index.from_rooms(rooms, CODES).trie
    assert int(trie.num_rooms) == on_air.sum()
    assert sorted(np.asarray(trie.order).tolist()) == list(range(CAPACITY))
    for level in range(LEVELS):
        assert trie.levels[level].code.shape == (min(CAPACITY, CODES ** (level + 1)),)
        assert paths(trie, level) == sorted({tuple(c[:level + 1]) for c in rooms.codes[on_air].tolist()})
    live = np.asarray(trie.order)[:on_air.sum()]
    assert [paths(trie, LEVELS - 1)[leaf] for leaf in np.asarray(trie.leaf)[:len(live)]] == [
        tuple(c) for c in rooms.codes[live].tolist()]


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="config.decoding.capacity"):
        live_index.empty(capacity=0, num_levels=3, num_codes=4)


def test_the_tie_rank_never_collides_and_does_not_follow_the_author_number():
    ranks = np.asarray(live_index.tie_rank(jnp.arange(20_000, dtype=jnp.int32)))
    assert ranks.dtype == np.uint32
    assert len(np.unique(ranks)) == 20_000
    assert abs(np.corrcoef(np.arange(20_000), ranks.astype(np.float64))[0, 1]) < 0.05
