"""The policy is what decoding ranks by; proposals; small functions by hand.

Axes: B batch, G candidates, N rooms, L levels, K codes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.alignment import rollouts
from onelive_jax.batch import LiveRooms
from onelive_jax.config import DecodingConfig
from onelive_jax.decoding import live_index
from onelive_jax.decoding.recommend import make_recommender
from tests.onelive_jax.random_batches import BATCH, CODES, LEVELS, ROOMS, random_batch, random_params, small_model

BATCH_OF_4 = jax.tree.map(jnp.asarray, random_batch())
LIVE = BATCH_OF_4.live
INDEX = jax.jit(live_index.from_rooms, static_argnums=1)(LIVE, CODES)
SLOTS = jnp.broadcast_to(jnp.arange(ROOMS), (BATCH, ROOMS))


@functools.cache
def opened(**changes):
    """(model, parameters, the batch's requests opened)."""
    model = small_model(**changes)
    params = random_params(model, BATCH_OF_4)
    opened = jax.jit(lambda p: model.apply({"params": p}, BATCH_OF_4.request, LIVE, 0.5, method="open"))(params)
    return model, params, opened


def tokens(model, params, first):
    """(log-probabilities, entropies) of every room of the batch, NumPy [B, N, P]."""
    run = jax.jit(functools.partial(rollouts.token_log_probs, model))
    return tuple(np.asarray(x) for x in run(params, first, LIVE, SLOTS))


@pytest.mark.parametrize("mtp", [True, False])
def test_the_policy_is_the_score_that_decoding_ranks_by(mtp):
    model, params, first = opened(mtp=mtp)
    log_prob, entropy = tokens(model, params, first)
    assert log_prob.shape == entropy.shape == (BATCH, ROOMS, LEVELS + 1)
    decoding = DecodingConfig(beams=ROOMS, identity_weight=0.5)
    ranking = make_recommender(model, decoding)(params, BATCH_OF_4.request, INDEX)
    total = log_prob.sum(-1)
    for row in range(BATCH):
        count = int(LIVE.mask[row].sum())
        gap = np.asarray(ranking.score[row, :count]) - total[row, np.asarray(ranking.slot[row, :count])]
        np.testing.assert_allclose(gap, gap[0], atol=1e-4)  # the same number for all rooms of a request


def test_codes_and_rooms_are_distributions_over_what_is_on_air():
    model, params, first = opened()
    log_prob, entropy = tokens(model, params, first)
    for row in range(BATCH):
        on_air = np.flatnonzero(LIVE.mask[row])
        ids = {tuple(LIVE.codes[row, n].tolist()): log_prob[row, n, :LEVELS].sum() for n in on_air}
        np.testing.assert_allclose(np.exp(list(ids.values())).sum(), 1, rtol=1e-4)
        room = log_prob[row, on_air, LEVELS]
        np.testing.assert_allclose(np.exp(room).sum(), 1, rtol=1e-4)
        np.testing.assert_allclose(entropy[row, on_air, LEVELS], -(np.exp(room) * room).sum(), rtol=1e-4)
    whole = np.asarray(jax.jit(functools.partial(rollouts.room_log_probs, model))(params, first, LIVE))
    np.testing.assert_allclose(np.where(LIVE.mask, np.exp(whole), 0).sum(1), 1, rtol=1e-4)
    assert (whole[~np.asarray(LIVE.mask)] < -1e8).all()


def test_without_identity_head_a_candidate_has_only_its_codes():
    model, params, first = opened(identity=False)
    assert first.room_scores is None
    assert tokens(model, params, first)[0].shape == (BATCH, ROOMS, LEVELS)


def test_beam_proposes_what_decoding_ranks_first():
    model, params, first = opened()
    got = jax.jit(lambda p: rollouts.propose(model, p, first, INDEX, 3, beams=ROOMS))(params)
    want = make_recommender(model, DecodingConfig(beams=ROOMS, identity_weight=0.5), k=3)(params, BATCH_OF_4.request,
                                                                                       INDEX)
    np.testing.assert_array_equal(got.slot, want.slot)


def test_gumbel_draws_rooms_by_their_probability_without_replacement():
    model, params, first = opened()

    @jax.jit
    def draw(keys):
        one = lambda key: rollouts.propose(model, params, first, INDEX, 3, sampler="gumbel",  # noqa: E731
                                           beams=ROOMS, key=key).slot
        return jax.lax.map(one, keys, batch_size=100)

    slots = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))  # [draws, B, 3]
    whole = np.exp(jax.jit(functools.partial(rollouts.room_log_probs, model))(params, first, LIVE))
    for row in range(BATCH):
        share = np.bincount(slots[:, row, 0], minlength=ROOMS) / len(slots)
        np.testing.assert_allclose(share, whole[row], atol=0.04)  # 3.5 standard deviations of a share of 1/2
        # Second ranks: p(second = j) = Σ_i p_i p_j / (1 - p_i), as of drawing without putting back.
        p = whole[row]
        second = sum(p[i] / (1 - p[i]) * np.where(np.arange(ROOMS) == i, 0, p) for i in np.flatnonzero(p < 1))
        got = np.bincount(np.maximum(slots[:, row, 1], 0), minlength=ROOMS) / len(slots)
        np.testing.assert_allclose(got, second, atol=0.04)
        valid = np.sort(slots[:, row], 1)
        assert (np.diff(valid, axis=1)[valid[:, 1:] >= 0] > 0).all()
        assert ((slots[0, row] >= 0).sum()) == min(3, int(LIVE.mask[row].sum()))


def test_proposals_refuse_what_they_cannot_do():
    model, params, first = opened()
    with pytest.raises(ValueError, match="sampler='best' is not one of 'beam', 'gumbel'"):
        rollouts.propose(model, params, first, INDEX, 3, sampler="best")
    with pytest.raises(ValueError, match="needs a random key"):
        rollouts.propose(model, params, first, INDEX, 3, sampler="gumbel")


def test_candidates_slots_and_diversity_by_hand():
    live = LiveRooms(author=jnp.array([[7, 5, 7, 9], [1, 2, 0, 0]]), codes=jnp.arange(16).reshape(2, 4, 2),
                     features=jnp.zeros((2, 4, 2)), mask=jnp.array([[True] * 4, [True, True, False, False]]))
    rooms = rollouts.candidates(live, jnp.array([[2, 1, 0], [1, -1, -1]]),
                                jnp.array([[True] * 3, [True, False, False]]))
    np.testing.assert_array_equal(rooms.author, [[7, 5, 7], [2, 0, 0]])
    np.testing.assert_array_equal(rooms.codes[:, 0], [[4, 5], [10, 11]])
    np.testing.assert_array_equal(rooms.mask, [[True] * 3, [True, False, False]])
    np.testing.assert_allclose(rollouts.diversity(rooms), (2 / 3 + 1) / 2, rtol=1e-6)
    # Author 0 fills slots off air: nobody may be found there.
    logged = LiveRooms(author=jnp.array([[9, 7, 4], [2, 0, 1]]), codes=jnp.zeros((2, 3, 2), jnp.int32),
                       features=jnp.zeros((2, 3, 2)), mask=jnp.array([[True] * 3, [True, True, False]]))
    np.testing.assert_array_equal(rollouts.slots_of(logged, live), [[3, 0, -1], [1, -1, -1]])


def test_codes_on_air_behind_by_hand():
    live = LiveRooms(author=jnp.zeros((1, 4), jnp.int32), features=jnp.zeros((1, 4, 2)),
                     codes=jnp.array([[[0, 1], [0, 2], [1, 1], [2, 0]]]), mask=jnp.array([[True, True, True, False]]))
    first, second = rollouts.codes_on_air_behind(live, jnp.array([[[0, 2], [1, 1], [2, 0]]]), 3)
    np.testing.assert_array_equal(first, [[[True, True, False]]])
    np.testing.assert_array_equal(second, [[[False, True, True], [False, True, False], [False] * 3]])
