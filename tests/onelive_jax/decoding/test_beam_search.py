"""Beam search against brute force over every room on air."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onelive_jax.batch import LiveRooms
from onelive_jax.decoding import beam_search, live_index
from onelive_jax.decoding.beam_search import RoomScores, Search

BATCH, CAPACITY, LEVELS, CODES, HASHES = 2, 24, 3, 5, 97

# (normalise, combine or None, lookahead)
VARIANTS = [("live", None, False), ("all", None, False), ("live", "sum", False), ("live", "sum", True),
            ("all", "within", True)]


def walk(prefix):
    """The hash by which the random model tells prefixes apart."""
    value = 1
    for code in prefix:
        value = (value * 31 + int(code) + 7) % HASHES
    return value


def level_logits(tables):
    """A model of random tables [2, B, L, HASHES, K]: one half reads its state, the other the prefix it is given."""
    def model(level, state, previous, prefix):
        if level:
            state = {"walk": (state["walk"] * 31 + previous + 7) % HASHES}
        again = jnp.ones_like(previous)
        for position in range(level):
            again = (again * 31 + prefix[..., position] + 7) % HASHES
        by_example = jax.vmap(lambda table, at: table[at])
        return by_example(tables[0, :, level], state["walk"]) + by_example(tables[1, :, level], again), state
    return model


def search(beams, k, normalise, combine, lookahead):
    def run(rooms, tables, room_score):
        batch = tables.shape[1]
        return beam_search.decode(level_logits(tables), {"walk": jnp.ones((batch, 1), jnp.int32)},
                                  live_index.from_rooms(rooms, CODES),
                                  Search(beams, k, normalise, combine or "sum", lookahead),
                                  RoomScores(None if combine is None else room_score), batch=batch)
    return jax.jit(run)


WIDE = {variant: search(CAPACITY, CAPACITY, *variant) for variant in VARIANTS}
NARROW = {variant: search(2, CAPACITY, *variant) for variant in VARIANTS}


def log_sum(values):
    return np.logaddexp.reduce(np.asarray(values, np.float64))


def brute_force(codes, on_air, tables, room_score, normalise, combine):
    """Score of every slot for one request, float64 [C]; -inf off air. `tables` is [2, L, HASHES, K]."""
    live = {tuple(c[:n]) for c in codes[on_air].tolist() for n in range(LEVELS + 1)}
    scores = np.full(len(codes), -np.inf)
    for slot in np.flatnonzero(on_air):
        path, score = tuple(codes[slot].tolist()), 0.0
        for level in range(LEVELS):
            logits = tables[:, level, walk(path[:level])].astype(np.float64).sum(axis=0)
            among = [c for c in range(CODES) if normalise == "all" or (*path[:level], c) in live]
            score += logits[path[level]] - log_sum(logits[among])
        if combine is not None:
            score += room_score[slot]
        if combine == "within":
            score -= log_sum(room_score[on_air & (codes == codes[slot]).all(axis=1)])
        scores[slot] = score
    return scores


def world(seed, num_rooms, num_ids=CODES**LEVELS):
    """A random catalogue of `num_rooms` rooms in random slots over at most `num_ids` ids, and a random model."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(CODES**LEVELS, size=num_ids, replace=False)[rng.integers(0, num_ids, CAPACITY)]
    on_air = rng.permutation(CAPACITY) < num_rooms
    rooms = LiveRooms(author=rng.permutation(1000)[:CAPACITY].astype(np.int32),
                      codes=np.stack([ids // CODES**2, ids // CODES % CODES, ids % CODES], axis=-1).astype(np.int32),
                      features=np.zeros((CAPACITY, 2), np.float32), mask=on_air)
    tables = rng.normal(size=(2, BATCH, LEVELS, HASHES, CODES)).astype(np.float32)
    return rooms, tables, rng.normal(size=(BATCH, CAPACITY)).astype(np.float32)


def assert_well_formed(ranking, rooms):
    """What holds for every ranking, whatever the width."""
    ranking = jax.tree.map(np.asarray, ranking)
    for row in range(ranking.slot.shape[0]):
        valid = ranking.valid[row]
        slots = ranking.slot[row][valid]
        assert len(set(slots.tolist())) == len(slots)
        assert rooms.mask[slots].all()
        np.testing.assert_array_equal(ranking.author[row][valid], rooms.author[slots])
        np.testing.assert_array_equal(ranking.codes[row][valid], rooms.codes[slots])
        assert not np.any(valid[1:] & ~valid[:-1])  # valid ranks come first
        assert np.all(ranking.score[row][valid][1:] <= ranking.score[row][valid][:-1])
        assert np.all(ranking.score[row][~valid] == -np.inf)
        for array in (ranking.slot, ranking.author, ranking.codes):
            assert np.all(array[row][~valid] == -1)


catalogues = given(seed=st.integers(0, 2**32 - 1), num_rooms=st.integers(0, CAPACITY),
                   num_ids=st.sampled_from([1, 3, 20, CODES**LEVELS]))
few = settings(max_examples=15, deadline=None, derandomize=True)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@few
@catalogues
def test_a_wide_beam_equals_brute_force(variant, seed, num_rooms, num_ids):
    rooms, tables, room_score = world(seed, num_rooms, num_ids)
    ranking = WIDE[variant](rooms, tables, room_score)
    assert_well_formed(ranking, rooms)
    for row in range(BATCH):
        expected = brute_force(rooms.codes, rooms.mask, tables[:, row], room_score[row], *variant[:2])
        assert int(ranking.valid[row].sum()) == num_rooms  # every room on air, each once
        slots = np.asarray(ranking.slot[row, :num_rooms])
        np.testing.assert_allclose(ranking.score[row, :num_rooms], expected[slots], atol=1e-4)
        np.testing.assert_allclose(expected[slots], np.sort(expected[rooms.mask])[::-1], atol=1e-4)
        assert float(ranking.bound[row]) == -np.inf  # nothing was left out


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@few
@catalogues
def test_no_room_that_a_narrow_beam_left_out_scores_above_its_bound(variant, seed, num_rooms, num_ids):
    rooms, tables, room_score = world(seed, num_rooms, num_ids)
    ranking = NARROW[variant](rooms, tables, room_score)
    assert_well_formed(ranking, rooms)
    for row in range(BATCH):
        expected = brute_force(rooms.codes, rooms.mask, tables[:, row], room_score[row], *variant[:2])
        slots = np.asarray(ranking.slot[row])[np.asarray(ranking.valid[row])]
        assert num_rooms == 0 or len(slots) >= 1
        np.testing.assert_allclose(np.asarray(ranking.score[row])[:len(slots)], expected[slots], atol=1e-4)
        left_out = rooms.mask.copy()
        left_out[slots] = False
        assert expected[left_out].max(initial=-np.inf) <= float(ranking.bound[row]) + 1e-4


@few
@catalogues
def test_a_narrow_beam_keeps_the_prefixes_that_a_plain_beam_search_keeps(seed, num_rooms, num_ids):
    rooms, tables, room_score = world(seed, num_rooms, num_ids)
    ranking = NARROW["live", None, False](rooms, tables, room_score)
    live = {tuple(c[:n]) for c in rooms.codes[rooms.mask].tolist() for n in range(LEVELS + 1)}
    for row in range(BATCH):
        beams = [(0.0, ())]
        for level in range(LEVELS):
            grown = []
            for score, prefix in beams:
                logits = tables[:, row, level, walk(prefix)].astype(np.float64).sum(axis=0)
                among = [c for c in range(CODES) if (*prefix, c) in live]
                grown += [(score + logits[c] - log_sum(logits[among]), (*prefix, c)) for c in among]
            beams = sorted(grown, reverse=True)[:2]
        found = np.asarray(ranking.codes[row])[np.asarray(ranking.valid[row])]
        assert {tuple(c) for c in found.tolist()} == {path for _, path in beams}


def test_lookahead_finds_a_great_room_behind_poor_codes():
    rooms, tables, room_score = world(seed=3, num_rooms=CAPACITY)
    plain, ahead = NARROW["live", "sum", False], NARROW["live", "sum", True]
    worst = int(WIDE["live", None, False](rooms, tables, room_score).slot[0, -1])
    room_score[0] = 0.0
    room_score[0, worst] = 50.0
    assert worst not in np.asarray(plain(rooms, tables, room_score).slot[0])
    found = ahead(rooms, tables, room_score)
    assert int(found.slot[0, 0]) == worst
    assert float(found.score[0, 0]) > float(found.bound[0])  # and it knows that no room can beat it


def test_a_request_alone_gets_the_ranking_that_it_gets_in_a_batch():
    rooms, tables, room_score = world(seed=1, num_rooms=17)
    for variant in (("live", "sum", True), ("all", "within", True)):
        together = NARROW[variant](rooms, tables, room_score)
        for row in range(BATCH):
            alone = NARROW[variant](rooms, tables[:, row:row + 1], room_score[row:row + 1])
            np.testing.assert_array_equal(alone.slot[0], together.slot[row])
            np.testing.assert_allclose(alone.score[0], together.score[row], atol=1e-5)


@pytest.mark.parametrize("variant", [("live", None, False), ("all", "within", True)], ids=str)
def test_a_catalogue_for_each_request_gives_what_each_catalogue_gives_alone(variant):
    first, second = world(seed=4, num_rooms=20), world(seed=5, num_rooms=1)
    rooms = jax.tree.map(lambda *x: np.stack(x), first[0], second[0])
    together = WIDE[variant](rooms, first[1], first[2])
    for row, own in enumerate((first[0], second[0])):
        alone = WIDE[variant](own, first[1], first[2])
        np.testing.assert_array_equal(alone.slot[row], together.slot[row])
        np.testing.assert_allclose(alone.score[row], together.score[row], atol=1e-5)
        np.testing.assert_array_equal(alone.author[row], together.author[row])


def test_rooms_of_one_id_are_ranked_by_a_rule_that_reads_only_the_author():
    rooms, tables, room_score = world(seed=6, num_rooms=CAPACITY, num_ids=1)
    ranking = WIDE["live", None, False](rooms, tables, room_score)
    ranks = np.asarray(live_index.tie_rank(ranking.author[0])).astype(np.int64)
    assert len(set(np.asarray(ranking.score[0]).tolist())) == 1
    assert np.all(np.diff(ranks) > 0)
    assert not np.all(np.diff(np.asarray(ranking.author[0])) > 0)  # not simply by number
    moved = np.random.default_rng(0).permutation(CAPACITY)  # the same rooms in other slots
    shuffled = jax.tree.map(lambda x: x[moved], rooms)
    np.testing.assert_array_equal(WIDE["live", None, False](shuffled, tables, room_score).author, ranking.author)


def test_a_code_that_the_model_rules_out_is_never_recommended():
    rooms, tables, room_score = world(seed=7, num_rooms=CAPACITY)
    banned = int(rooms.codes[0, 0])
    tables[0, :, 0, :, banned] = -np.inf
    ranking = WIDE["live", "sum", True](rooms, tables, room_score)
    assert_well_formed(ranking, rooms)
    assert int(ranking.valid[0].sum()) == int((rooms.codes[:, 0] != banned).sum()) < CAPACITY


def test_more_ranks_than_slots_are_padded():
    rooms, tables, room_score = world(seed=8, num_rooms=CAPACITY)
    ranking = search(CAPACITY, CAPACITY + 6, "live", None, False)(rooms, tables, room_score)
    assert ranking.slot.shape == (BATCH, CAPACITY + 6)
    assert ranking.codes.shape == (BATCH, CAPACITY + 6, LEVELS)
    assert_well_formed(ranking, rooms)
    assert int(ranking.valid.sum()) == BATCH * CAPACITY


def test_not_a_number_is_seen_and_not_hidden():
    rooms, tables, room_score = world(seed=9, num_rooms=4)
    tables[:, 0, 0] = np.nan
    assert np.isnan(np.asarray(WIDE["live", None, False](rooms, tables, room_score).score[0])[:4]).all()


@pytest.mark.parametrize("arguments, message", [
    (dict(beams=0), "config.decoding.beams"), (dict(k=0), "k=0"), (dict(normalise="none"), "'live', 'all'"),
    (dict(combine="product"), "'sum', 'within'"),
    (dict(lookahead=True), "bonus_BxC")])
def test_arguments_out_of_range_are_named(arguments, message):
    index = live_index.empty(capacity=4, num_levels=2, num_codes=3)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda index: beam_search.decode(
            lambda level, state, previous, prefix: (jnp.zeros((*previous.shape, 3)), state), (), index,
            Search(**{**dict(beams=2, k=2), **arguments}),
            RoomScores(jnp.zeros((1, 4)) if "combine" in arguments else None), batch=1), index)


@pytest.mark.parametrize("name", ["tie_score_BxC", "room_score_BxC"])
@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (2, 5), (4,), (2, 4, 1)])
@pytest.mark.parametrize("batched", [False, True])
def test_scores_that_are_not_one_a_slot_are_refused(name, shape, batched):
    index = live_index.empty(capacity=4, num_levels=2, num_codes=3)
    if batched:
        index = jax.tree.map(lambda x: jnp.stack([x, x]), index)

    def decode(scores):
        return beam_search.decode(lambda level, state, previous, prefix: (jnp.zeros((*previous.shape, 3)), state), (),
                                  index, Search(beams=2, k=2), RoomScores(**{name: scores}), batch=2)

    rows = "B" if name == "room_score_BxC" and not batched else 2
    message = f"{name} has shape {shape}, [B, C] is {(rows, 4)}: one score for each slot of the index, in slot order"
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(decode, jnp.zeros(shape))
    assert jax.eval_shape(decode, jnp.zeros((2, 4))).slot.shape == (2, 2)


def test_tie_scores_of_another_batch_are_refused():
    index = live_index.empty(capacity=4, num_levels=2, num_codes=3)
    beams = beam_search.Beams(codes=jnp.zeros((2, 1, 2), int), node=jnp.zeros((2, 1), int), score=jnp.zeros((2, 1)),
                              valid=jnp.ones((2, 1), bool), bound=jnp.zeros(2))
    with pytest.raises(ValueError, match=r"tie_score_BxC has shape \(1, 4\), \[B, C\] is \(2, 4\)"):
        beam_search.rank_rooms(index, beams, 2, tie_score_BxC=jnp.zeros((1, 4)))


def test_a_model_with_another_number_of_codes_is_refused():
    index = live_index.empty(capacity=4, num_levels=2, num_codes=3)
    with pytest.raises(ValueError, match=r"\(1, 1, 5\) at level 0; \[B, W, K\] is \(1, 1, 3\)"):
        beam_search.decode(lambda level, state, previous, prefix: (jnp.zeros((*previous.shape, 5)), state), (), index,
                           Search(beams=2, k=2), batch=1)


@partial(jax.jit, static_argnames="k")
def tied(rooms, tables, tie_score, k):
    batch = tables.shape[1]
    return beam_search.decode(level_logits(tables), {"walk": jnp.ones((batch, 1), jnp.int32)},
                              live_index.from_rooms(rooms, CODES), Search(CAPACITY, k),
                              RoomScores(tie_score_BxC=tie_score), batch=batch)


@few
@given(seed=st.integers(0, 2**32 - 1), num_rooms=st.integers(1, CAPACITY), num_ids=st.sampled_from([1, 3, 20]))
def test_rooms_of_one_id_are_told_apart_by_the_tie_score_and_nothing_else_moves(seed, num_rooms, num_ids):
    rooms, tables, tie_score = world(seed, num_rooms, num_ids)
    tie_score[:, ::3] = 0.5  # equal here too: the fixed order decides
    tie_score[:, ~rooms.mask] = np.inf  # not read
    run = tied
    plain, ranking = WIDE["live", None, False](rooms, tables, None), run(rooms, tables, tie_score, k=CAPACITY)
    assert_well_formed(ranking, rooms)
    np.testing.assert_array_equal(ranking.score, plain.score)
    np.testing.assert_array_equal(ranking.codes, plain.codes)
    for row in range(BATCH):
        slot = np.asarray(plain.slot[row, :num_rooms])
        _, run_of_id = np.unique(np.cumsum(np.append(True, (rooms.codes[slot][1:] != rooms.codes[slot][:-1]).any(1))),
                                 return_inverse=True)
        expected = slot[np.lexsort((np.arange(num_rooms), -tie_score[row, slot], run_of_id))]
        np.testing.assert_array_equal(ranking.slot[row, :num_rooms], expected)
    # The rooms of an id that k cuts through are its best.
    for k in (1, 5):
        np.testing.assert_array_equal(run(rooms, tables, tie_score, k=k).slot, ranking.slot[:, :k])
