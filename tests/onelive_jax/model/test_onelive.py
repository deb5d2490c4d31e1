"""The whole model: causality, masks, time, one decoding step after another against the teacher-forced pass, switches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta

from onelive_jax.config import ModelConfig
from onelive_jax.decoding.beam_search import decode
from onelive_jax.decoding.live_index import from_rooms
from onelive_jax.model.context import ContextProjector
from onelive_jax.training.supervised import losses
from tests.onelive_jax.random_batches import (
    AUTHORS,
    BATCH,
    CODES,
    LEVELS,
    ROOMS,
    SWITCHES,
    paths,
    random_batch,
    random_params,
    small_config,
    small_model,
    with_history,
)


class Setup:
    """A model with random parameters, and its methods compiled once."""

    def __init__(self, **changes):
        self.batch = random_batch()
        self.model = small_model(num_layers=2, **changes)
        self.params = random_params(self.model, self.batch)
        self.call = jax.jit(lambda params, batch: self.model.apply({"params": params}, batch))
        self.levels_alone = jax.jit(self._levels_alone)
        self.prefixes = jax.jit(self._prefixes)

    def apply(self, method, *args, params=None):
        return self.model.apply({"params": self.params if params is None else params}, *args, method=method)

    def logits(self, context, codes_BxL, params=None):
        return self.apply("training_logits", context, self.batch.request, codes_BxL, params=params)[0]

    def _levels_alone(self, codes_BxWxL):
        """Logits of `decode`, level by level, behind W given prefixes: [B, W, L, K]."""
        context, state = self.apply("encode", self.batch.request), self.apply("begin", self.batch.request)
        width, out = codes_BxWxL.shape[1], []
        for level in range(LEVELS):
            prefix = jnp.where(jnp.arange(LEVELS) < level, codes_BxWxL, 0)
            if level == 0:
                prefix = prefix[:, :1]
            logits, state = self.apply("decode", level, state, prefix[..., max(level - 1, 0)], prefix, context)
            if level == 0:
                logits, state = jax.tree.map(lambda x: jnp.repeat(x, width, 1), (logits, state))
            out.append(logits)
        return jnp.stack(out, 2)

    def _prefixes(self, codes_BxWxL):
        """The same logits from the teacher-forced pass, a prefix at a time."""
        context = self.apply("encode", self.batch.request)
        out = []
        for w in range(codes_BxWxL.shape[1]):
            modules = self.logits(context, codes_BxWxL[:, w])
            out.append(jnp.stack([modules[level][0] if self.model.config.mtp else modules[0][level]
                                  for level in range(LEVELS)], 1))
        return jnp.stack(out, 1)


@pytest.fixture(scope="module")
def with_mtp():
    return Setup()


@pytest.fixture(scope="module")
def without_mtp():
    return Setup(mtp=False)


@pytest.fixture(params=["with_mtp", "without_mtp"])
def setup(request):
    return request.getfixturevalue(request.param)


# Causality.


def test_no_logits_depend_on_the_code_they_predict_or_a_later_one(setup):
    """By gradient with respect to the embeddings of the codes: exactly zero at a level and behind it, not before."""
    codes = setup.batch.target_codes
    context = jax.jit(lambda: setup.apply("encode", setup.batch.request))()
    direction = np.random.default_rng(0).normal(size=CODES).astype(np.float32)

    @jax.jit
    def gradients(table):
        def along(table):
            modules = setup.logits(context, codes, {**setup.params, "code_table": table})
            return jnp.stack([logits @ direction for module in modules for logits in module])  # [predictions, B]

        rows = jnp.arange(LEVELS)[:, None]
        return jnp.abs(jax.jacrev(along)(table)[:, :, rows, codes.T]).max(-1)  # [predictions, B, L, B]

    got = gradients(setup.params["code_table"])
    predictions = [(k, level) for k in range(LEVELS if setup.model.config.mtp else 1) for level in range(k, LEVELS)]
    assert len(got) == len(predictions)
    for (k, level), grad in zip(predictions, got, strict=True):
        own = np.stack([grad[b, :, b] for b in range(BATCH)])  # [B, L]
        np.testing.assert_array_equal(own[:, level:] > 0, shared_codes(codes)[:, level:] & False, f"{k, level}")
        assert (own[:, :level] > 0).all(), (k, level)


def shared_codes(codes):
    return np.ones_like(codes, bool)


def test_no_logits_change_with_the_code_they_predict_or_a_later_one(setup):
    """By value, which includes the copy path: its prefixes are whole numbers and have no gradient."""
    context = setup.apply("encode", setup.batch.request)
    logits = jax.jit(lambda codes: setup.logits(context, codes))
    codes = setup.batch.target_codes
    base = logits(codes)
    for level in range(LEVELS):
        other = codes.copy()
        other[:, level] = (codes[:, level] + 1) % CODES
        for k, module in enumerate(logits(other)):
            for predicted, values in enumerate(module, start=k):
                moved = np.abs(values - base[k][predicted - k]).max()
                assert (moved > 1e-4) == (predicted > level), (level, k, predicted)
                assert predicted > level or moved == 0.0


# What a request is made of.


def outputs_move(setup, other) -> np.ndarray:
    """Largest change of code logits and room scores of every row, [B]."""
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(axis=1), setup.call(setup.params, setup.batch),
                         setup.call(setup.params, other))
    return np.max(jax.tree.leaves(moves), axis=0)


def test_masked_history_items_do_not_matter(setup):
    history = setup.batch.request.histories["live"]
    rng = np.random.default_rng(1)

    def elsewhere(values, high):
        mask = history.mask.reshape(history.mask.shape + (1,) * (values.ndim - 2))
        return np.where(mask, values, rng.integers(0, high, values.shape)).astype(values.dtype)

    other = with_history(setup.batch, author=elsewhere(history.author, AUTHORS), codes=elsewhere(history.codes, CODES),
                         hour=elsewhere(history.hour, 24), day=elsewhere(history.day, 7),
                         week=elsewhere(history.week, 16), habits=elsewhere(history.habits, 9))
    assert not history.mask.all()
    np.testing.assert_array_equal(outputs_move(setup, other), 0.0)
    # The same change at an item that is there matters to its own row alone.
    codes = history.codes.copy()
    codes[0, 0, 0] = (codes[0, 0, 0] + 1) % CODES
    moved = outputs_move(setup, with_history(setup.batch, codes=codes))
    assert moved[0] > 1e-4
    np.testing.assert_array_equal(moved[1:], 0.0)


def test_masked_history_items_have_no_gradient(with_mtp):
    batch = with_mtp.batch
    history = batch.request.histories["live"]

    @jax.jit
    @jax.grad
    def gradient(habits):
        outputs = with_mtp.model.apply({"params": with_mtp.params}, with_history(batch, habits=habits))
        return losses(*outputs, batch, with_mtp.model.config)[0]

    grad = np.abs(gradient(history.habits)).max(-1)
    np.testing.assert_array_equal(grad > 0, history.mask)


def test_an_empty_history_is_answered(with_mtp):
    batch = with_history(with_mtp.batch, mask=np.zeros_like(with_mtp.batch.request.histories["live"].mask))
    out = with_mtp.call(with_mtp.params, batch)
    chex.assert_tree_all_finite(out)
    assert np.abs(out[0][0][0]).max() < 1e3


def test_time_matters_where_its_switch_is_on(with_mtp):
    batch, history = with_mtp.batch, with_mtp.batch.request.histories["live"]
    off = Setup(item_time=False, request_time=False)
    for field, size in (("hour", 24), ("day", 7), ("week", 16)):
        item = with_history(batch, **{field: (getattr(history, field) + 1) % size})
        asked = batch.replace(request=batch.request.replace(
            **{field: (getattr(batch.request, field) + 1) % size}))
        for other in (item, asked):
            assert outputs_move(with_mtp, other).min() > 1e-5, field
            np.testing.assert_array_equal(outputs_move(off, other), 0.0)


# One context, one decoding step after another.


def test_the_context_is_computed_once(setup):
    calls = []

    def count(call, args, kwargs, context):
        if isinstance(context.module, ContextProjector):
            calls.append(context.method_name)
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        jax.eval_shape(setup._levels_alone, jnp.zeros((BATCH, 2, LEVELS), jnp.int32))
        assert calls == ["__call__"]
        jax.eval_shape(lambda: setup.model.apply({"params": setup.params}, setup.batch))
        assert calls == ["__call__"] * 2


def test_decoding_step_by_step_equals_the_teacher_forced_pass(setup):
    codes = np.random.default_rng(2).integers(0, CODES, (BATCH, 5, LEVELS)).astype(np.int32)
    # Prefixes that occur in the history, so that something is copied, and prefixes that branch.
    codes[:, 0] = setup.batch.request.histories["live"].codes[:, -1]
    codes[:, 1] = codes[:, 0]
    codes[:, 1, 1] = (codes[:, 1, 1] + 1) % CODES
    got, want = setup.levels_alone(codes), setup.prefixes(codes)
    chex.assert_shape(got, (BATCH, 5, LEVELS, CODES))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want[:, 0, 1] - want[:, 2, 1]).max() > 1e-2


def test_the_first_hidden_state_is_the_one_that_training_reads(setup):
    @jax.jit
    def states():
        context = setup.apply("encode", setup.batch.request)
        _, trained = setup.apply("training_logits", context, setup.batch.request, setup.batch.target_codes)
        first = jnp.zeros((BATCH, 1, LEVELS), jnp.int32)
        _, state = setup.apply("decode", 0, setup.apply("begin", setup.batch.request), first[..., 0], first, context)
        return trained, setup.apply("first_hidden", setup.batch.request, context), state["hidden"][:, 0]

    trained, first, decoded = states()
    np.testing.assert_allclose(first, trained, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decoded, trained, rtol=1e-4, atol=1e-5)


def log_softmax(x, allowed):
    return x - np.log(np.sum(np.exp(x[allowed])))


def brute_force(setup, b: int) -> np.ndarray:
    """log p of every room on air of request b by the teacher-forced pass: float64 [N], -inf where there is none."""
    live = setup.batch.live
    logits = np.asarray(setup.prefixes(live.codes), np.float64)[b]  # [N, L, K]: every room is a prefix
    score = np.full(ROOMS, -np.inf)
    for n in np.flatnonzero(live.mask[b]):
        path, on_air, score[n] = live.codes[b, n], live.mask[b].copy(), 0.0
        for level in range(LEVELS):
            allowed = np.unique(live.codes[b, on_air, level])
            score[n] += log_softmax(logits[n, level], allowed)[path[level]]
            on_air &= live.codes[b, :, level] == path[level]
    return score


@pytest.mark.parametrize("combine", ["sum", "within"])
def test_beam_search_equals_scoring_every_room_on_air(setup, combine):
    live = setup.batch.live

    @jax.jit
    def search():
        context = setup.apply("encode", setup.batch.request)
        hidden = setup.apply("first_hidden", setup.batch.request, context)
        room_score = setup.apply("room_scores", hidden, context, live)

        def level_logits(level, state, previous, prefix):
            return setup.apply("decode", level, state, previous, prefix, context)

        return decode(level_logits, setup.apply("begin", setup.batch.request), from_rooms(live, CODES), batch=BATCH,
                      beams=ROOMS, k=ROOMS, room_score_BxC=room_score, combine=combine)

    ranking = search()
    room_score = np.asarray(setup.call(setup.params, setup.batch)[1], np.float64)
    for b in range(BATCH):
        want = brute_force(setup, b)
        of_id = np.array([[np.array_equal(x, y) for y in live.codes[b]] for x in live.codes[b]]) & live.mask[b]
        # p is a distribution over the ids on air.
        np.testing.assert_allclose(np.sum((np.exp(want) / of_id.sum(1).clip(1))[live.mask[b]]), 1.0, rtol=1e-4)
        for n in np.flatnonzero(live.mask[b]):
            want[n] += room_score[b, n]
            if combine == "within":
                want[n] -= np.log(np.sum(np.exp(room_score[b, of_id[n]])))
        best = [n for n in np.argsort(-want) if live.mask[b, n]]
        np.testing.assert_array_equal(ranking.valid[b], np.arange(ROOMS) < len(best))
        np.testing.assert_array_equal(ranking.slot[b, :len(best)], best)
        np.testing.assert_allclose(ranking.score[b, :len(best)], want[best], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(ranking.author[b, :len(best)], live.author[b, best])


# Switches.


@pytest.mark.parametrize("off", [None, *SWITCHES])
def test_every_switch_can_be_off(off):
    batch = random_batch()
    model = small_model(**({off: False} if off else {}))

    @jax.jit
    def start(key):
        params = meta.unbox(model.init(key, batch)["params"])
        modules, rooms, authors = model.apply({"params": params}, batch)
        return params, losses(modules, rooms, authors, batch, model.config)[0], rooms, authors

    params, loss, rooms, authors = start(jax.random.key(0))
    chex.assert_tree_all_finite((params, loss))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    if off == "identity":
        assert rooms is None
        assert authors is None
    else:
        chex.assert_shape(rooms, (BATCH, ROOMS))
        chex.assert_shape(authors, (BATCH, AUTHORS))
    if off:
        everything = set(paths(random_params(small_model(), batch)))
        assert set(paths(params)) < everything  # fewer parameters, and none by another name


def test_both_author_switches_off_leave_no_author_table():
    names = paths(random_params(small_model(identity=False, author_items=False), random_batch()))
    assert "author_table" not in names
    assert ModelConfig().identity
    assert small_config().author_items


@pytest.mark.parametrize("off", ["gate", "qk_norm", "copy"])
def test_a_switch_without_inputs_of_its_own_changes_the_answer(off, with_mtp):
    """With the parameters that are left, the model without the part says something else."""
    other = small_model(num_layers=2, **{off: False})
    kept = paths(random_params(other, with_mtp.batch))

    def prune(tree, path=()):
        return {name: prune(value, (*path, name)) if isinstance(value, dict) else value
                for name, value in tree.items()
                if any(known.startswith("/".join((*path, name)) + "/") or known == "/".join((*path, name))
                       for known in kept)}

    modules, _, _ = jax.jit(lambda: other.apply({"params": prune(with_mtp.params)}, with_mtp.batch))()
    for a, b in zip(jax.tree.leaves(modules), jax.tree.leaves(with_mtp.call(with_mtp.params, with_mtp.batch)[0]),
                    strict=True):
        assert np.abs(a - b).max() > 1e-3


def test_bfloat16_activations_give_float32_logits_near_the_exact_ones(with_mtp):
    half = small_model(num_layers=2, activation_dtype="bfloat16")
    got = jax.jit(lambda: half.apply({"params": with_mtp.params}, with_mtp.batch))()
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    want = with_mtp.call(with_mtp.params, with_mtp.batch)
    modules, exact = (np.stack(jax.tree.leaves(x[0])) for x in (got, want))
    assert 0 < np.abs(modules - exact).max() < 0.3
