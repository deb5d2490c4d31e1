"""The recommender against brute force: every room on air, scored by the model one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from onelive_jax.batch import HABIT_FEATURES, ROOM_FEATURES, Batch, History, LiveRooms, Request
from onelive_jax.config import DecodingConfig, ModelConfig
from onelive_jax.decoding import live_index
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.model.onelive import OneLive, level_logits
from tests.onelive_jax.random_batches import random_related

B, T, L, K, N, A = 2, 4, 3, 3, 9, 11
ALL = DecodingConfig(beams=N, capacity=N)


def model_and_arrays(**settings):
    config = ModelConfig(dim=8, num_layers=1, num_heads=2, num_groups=1, mlp_dim=8, **settings)
    model = OneLive(config, L, K, A, 4)
    rng = np.random.default_rng(0)

    def draw(high, *shape):
        return rng.integers(0, high, shape, dtype=np.int32)

    history = History(draw(A, B, T), draw(K, B, T, L), draw(24, B, T), draw(7, B, T), draw(16, B, T),
                      rng.normal(size=(B, T, len(HABIT_FEATURES))).astype(np.float32), np.ones((B, T), bool))
    request = Request({"live": history}, draw(24, B), draw(7, B), np.zeros(B, np.int32), **random_related(rng, B, A))
    author = np.stack([rng.permutation(A)[:N] for _ in range(B)]).astype(np.int32)
    rooms = LiveRooms(author, draw(K, B, N, L), rng.normal(size=(B, N, len(ROOM_FEATURES))).astype(np.float32),
                      np.arange(N) < np.array([[N], [N - 2]]))
    batch = Batch(request, rooms, rooms.author[:, 0], rooms.codes[:, 0], np.zeros(B, np.int32), np.ones(B, np.float32))
    shapes = jax.eval_shape(lambda: meta.unbox(model.init(jax.random.key(0), batch)["params"]))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    return model, params, request, rooms


def brute_force(model, params, request, rooms, weight):
    """float64 [B, N]: Σ log p over the codes on air behind each prefix, + weight · identity; -inf off air."""
    opened = model.apply({"params": params}, request, rooms, float(weight), method="open")
    decode = level_logits(model, params, opened)
    score = np.where(rooms.mask, 0.0, -np.inf)
    if weight:
        score = score + np.asarray(opened.room_scores, np.float64)
    for n in range(N):
        state, prefix = opened.state, jnp.zeros((B, 1, L), jnp.int32)
        for level in range(L):
            logits, state = decode(level, state, prefix[..., max(level - 1, 0)], prefix)
            for b in range(B):
                alike = rooms.mask[b] & (rooms.codes[b, :, :level] == rooms.codes[b, n, :level]).all(-1)
                live = np.unique(rooms.codes[b, alike, level])
                x = np.asarray(logits[b, 0], np.float64)
                if rooms.mask[b, n]:
                    score[b, n] += x[rooms.codes[b, n, level]] - np.log(np.exp(x[live]).sum())
            prefix = prefix.at[:, 0, level].set(rooms.codes[:, n, level])
    return score


def check(ranking, expected):
    for b in range(B):
        on_air = int(np.isfinite(expected[b]).sum())
        slot = np.asarray(ranking.slot[b])
        assert sorted(slot[:on_air]) == sorted(np.flatnonzero(np.isfinite(expected[b])))
        assert not ranking.valid[b, on_air:].any()
        np.testing.assert_allclose(ranking.score[b, :on_air], expected[b, slot[:on_air]], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ranking.score[b, :on_air], np.sort(expected[b])[::-1][:on_air], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mtp", "weight"), [(True, 1.0), (False, 0.5), (True, 0.0)])
def test_a_catalogue_for_each_request_equals_brute_force(mtp, weight):
    model, params, request, rooms = model_and_arrays(mtp=mtp)
    recommend = make_recommender(model, DecodingConfig(beams=N, capacity=N, identity_weight=weight))
    check(recommend(params, request, live_index.from_rooms(rooms, K)),
          brute_force(model, params, request, rooms, weight))


def test_a_shared_catalogue_equals_the_same_catalogue_for_each_request():
    model, params, request, rooms = model_and_arrays()
    recommend = make_recommender(model, ALL)
    one = jax.tree.map(lambda x: x[0], rooms)
    every = jax.tree.map(lambda x: np.stack([x] * B), one)
    shared = recommend(params, request, live_index.from_rooms(one, K))
    apart = recommend(params, request, live_index.from_rooms(every, K))
    np.testing.assert_array_equal(shared.slot, apart.slot)
    np.testing.assert_allclose(shared.score, apart.score, rtol=1e-5, atol=1e-5)


def test_without_an_identity_head_codes_decide():
    model, params, request, rooms = model_and_arrays(identity=False)
    check(make_recommender(model, ALL)(params, request, live_index.from_rooms(rooms, K)),
          brute_force(model, params, request, rooms, 0.0))


def test_rooms_come_and_go_without_tracing_again():
    model, params, request, rooms = model_and_arrays()
    recommend = make_recommender(model, ALL, k=2)
    first = recommend(params, request, live_index.from_rooms(rooms, K))
    gone = rooms.replace(mask=rooms.mask & (np.arange(N) != np.asarray(first.slot)[:, :1]))
    index = live_index.from_rooms(gone, K)
    jax.config.update("jax_no_tracing", True)
    try:
        second = recommend(params, request, index)
    finally:
        jax.config.update("jax_no_tracing", False)
    assert (np.asarray(second.slot) != np.asarray(first.slot)[:, :1]).all()
    assert second.slot.shape == (B, 2)


def test_rooms_and_their_tie_scores_come_and_go_without_tracing_again():
    model, params, request, rooms = model_and_arrays(identity=False)
    rooms.codes[:] = rooms.codes[:, :1]  # one id: the tie score decides alone
    recommend = make_recommender(model, ALL, k=2)
    tie_score = np.random.default_rng(1).permutation(B * N).reshape(B, N).astype(np.float32)
    index = live_index.from_rooms(rooms, K)
    first = recommend(params, request, index, tie_score)
    gone = live_index.from_rooms(rooms.replace(mask=rooms.mask & (np.arange(N) != np.asarray(first.slot)[:, :1])), K)
    jax.config.update("jax_no_tracing", True)
    try:
        second = recommend(params, request, gone, tie_score)
        other = recommend(params, request, index, -tie_score)
    finally:
        jax.config.update("jax_no_tracing", False)
    for b in range(B):
        order = [slot for slot in np.argsort(-tie_score[b]) if rooms.mask[b, slot]]
        np.testing.assert_array_equal(first.slot[b], order[:2])
        np.testing.assert_array_equal(second.slot[b], order[1:3])
        np.testing.assert_array_equal(other.slot[b], order[:-3:-1])


def test_a_context_that_is_kept_gives_the_same_rooms():
    model, params, request, rooms = model_and_arrays()
    recommend, index = make_recommender(model, ALL), live_index.from_rooms(rooms, K)
    context = jax.jit(lambda: model.apply({"params": params}, request, method="encode"))()
    want, got = recommend(params, request, index), recommend(params, request, index, None, context)
    np.testing.assert_array_equal(got.slot, want.slot)
    # The encoder is compiled apart here and fused with the search there: float32 sums come in another order.
    np.testing.assert_allclose(got.score, want.score, rtol=1e-4, atol=1e-5)


def test_an_index_of_another_tokenizer_is_refused():
    model, params, request, rooms = model_and_arrays()
    with pytest.raises(ValueError, match="3 levels of 5 codes.*3 levels of 3: both must come from one tokenizer"):
        make_recommender(model, ALL)(params, request, live_index.from_rooms(rooms, 5))
