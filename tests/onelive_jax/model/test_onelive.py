"""The whole model: causality, masks, time, decoding against the teacher-forced pass and brute force, switches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from onelive_jax.config import ModelConfig
from onelive_jax.decoding.beam_search import RoomScores, Search, decode
from onelive_jax.decoding.live_index import from_rooms
from onelive_jax.model.context import ContextProjector
from onelive_jax.model.onelive import level_logits
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
        self.model = small_model(**changes)
        self.params = random_params(self.model, self.batch)
        self.call = jax.jit(lambda params, batch: self.model.apply({"params": params}, batch))
        self.levels_alone = jax.jit(self._levels_alone)
        self.prefixes = jax.jit(self._prefixes)

    def apply(self, method, *args, params=None):
        return self.model.apply({"params": self.params if params is None else params}, *args, method=method)

    def logits(self, context, codes_BxL, params=None):
        return self.apply("_training_pass", context, self.batch.request, codes_BxL, False, params=params)[0]

    def _levels_alone(self, codes_BxWxL):
        """Logits of decoding, level by level, behind W given prefixes: [B, W, L, K]."""
        opened = self.apply("open", self.batch.request)
        logits, state = jax.tree.map(lambda x: jnp.repeat(x, codes_BxWxL.shape[1], 1),
                                     (opened.first_logits, opened.state))
        decode, out = level_logits(self.model, self.params, opened), [logits]
        for level in range(1, LEVELS):
            prefix = jnp.where(jnp.arange(LEVELS) < level, codes_BxWxL, 0)
            logits, state = decode(level, state, prefix[..., level - 1], prefix)
            out.append(logits)
        return jnp.stack(out, 2)

    def _prefixes(self, codes_BxWxL):
        """The same logits from the teacher-forced pass, a prefix at a time."""
        context = self.apply("encode", self.batch.request)

        def behind(codes_BxL):
            modules = self.logits(context, codes_BxL)
            return jnp.stack([modules[level][0] if self.model.config.mtp else modules[0][level]
                              for level in range(LEVELS)], 1)

        return jax.vmap(behind, 1, 1)(codes_BxWxL)


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
        np.testing.assert_array_equal(own[:, level:], 0.0, f"module {k}, level {level}")
        assert (own[:, :level] > 0).all(), (k, level)


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
    codes = np.random.default_rng(2).integers(0, CODES, (BATCH, ROOMS, LEVELS)).astype(np.int32)
    # Prefixes that occur in the history, so that something is copied, and prefixes that branch.
    codes[:, 0] = setup.batch.request.histories["live"].codes[:, -1]
    codes[:, 1] = codes[:, 0]
    codes[:, 1, 1] = (codes[:, 1, 1] + 1) % CODES
    got, want = setup.levels_alone(codes), setup.prefixes(codes)
    chex.assert_shape(got, (BATCH, ROOMS, LEVELS, CODES))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want[:, 0, 1] - want[:, 2, 1]).max() > 1e-2


def test_an_opened_request_reads_the_hidden_state_of_training(setup):
    @jax.jit
    def states():
        opened = setup.apply("open", setup.batch.request)
        trained = setup.apply("_training_pass", opened.context, setup.batch.request, setup.batch.target_codes, False)[1]
        return trained, opened.state.hidden[:, 0]

    trained, opened = states()
    np.testing.assert_allclose(opened, trained, rtol=1e-4, atol=1e-5)


def test_a_context_that_is_kept_opens_a_request_as_encoding_it_does(setup):
    def opened(context=None):
        return setup.apply("open", setup.batch.request, setup.batch.live, 0.5, context)

    encoded = setup.apply("encode", setup.batch.request)
    chex.assert_trees_all_equal(opened(encoded), opened())
    other = setup.apply("encode", jax.tree.map(lambda x: x[::-1], setup.batch.request))
    assert np.abs(opened(other).first_logits - opened().first_logits).max() > 1e-3


def log_softmax(x, allowed):
    return x - np.log(np.sum(np.exp(x[allowed])))


def brute_force(setup) -> np.ndarray:
    """log p of every room on air by the teacher-forced pass, float64 [B, N]; -inf where there is no room."""
    live = setup.batch.live
    logits = np.asarray(setup.prefixes(live.codes), np.float64)  # [B, N, L, K]: every room is a prefix
    logits *= float(setup.params["combine"][0])
    score = np.full((BATCH, ROOMS), -np.inf)
    for b, n in np.argwhere(live.mask):
        path, on_air, score[b, n] = live.codes[b, n], live.mask[b].copy(), 0.0
        for level in range(LEVELS):
            allowed = np.unique(live.codes[b, on_air, level])
            score[b, n] += log_softmax(logits[b, n, level], allowed)[path[level]]
            on_air &= live.codes[b, :, level] == path[level]
    return score


def test_beam_search_equals_scoring_every_room_on_air(setup):
    live = setup.batch.live

    @jax.jit
    def search():
        opened = setup.apply("open", setup.batch.request, live)
        return {combine: decode(level_logits(setup.model, setup.params, opened), opened.state, from_rooms(live, CODES),
                                Search(ROOMS, ROOMS, combine=combine), RoomScores(opened.room_scores), batch=BATCH)
                for combine in ("sum", "within")}

    found, log_p = search(), brute_force(setup)
    _, weight_i, weight_e = np.asarray(setup.params["combine"], np.float64)
    identity, evidence = (np.asarray(scores, np.float64) for scores in setup.call(setup.params, setup.batch)[1])
    room_score = weight_i * identity + weight_e * evidence
    same_id = (live.codes[:, :, None] == live.codes[:, None]).all(-1) & live.mask[:, :, None] & live.mask[:, None]
    assert same_id.sum() > live.mask.sum()  # some rooms share an id
    for b in range(BATCH):
        rooms = np.flatnonzero(live.mask[b])
        # p is a distribution over the ids on air.
        np.testing.assert_allclose(np.sum(np.exp(log_p[b, rooms]) / same_id[b, rooms].sum(1)), 1.0, rtol=1e-4)
        within = np.array([np.log(np.sum(np.exp(room_score[b, same_id[b, n]]))) for n in rooms])
        for combine, bonus in (("sum", room_score[b, rooms]), ("within", room_score[b, rooms] - within)):
            want, ranking = log_p[b, rooms] + bonus, found[combine]
            best = np.argsort(-want)
            np.testing.assert_array_equal(ranking.valid[b], np.arange(ROOMS) < len(best))
            np.testing.assert_array_equal(ranking.slot[b, :len(best)], rooms[best])
            np.testing.assert_array_equal(ranking.author[b, :len(best)], live.author[b, rooms[best]])
            np.testing.assert_allclose(ranking.score[b, :len(best)], want[best], rtol=1e-4, atol=1e-4)


# Switches.


def prune(tree: dict, names: set[str], path: str = "") -> dict:
    """The parameters whose names are among `names`."""
    kept = {key: prune(value, names, f"{path}{key}/") if isinstance(value, dict) else value
            for key, value in tree.items() if isinstance(value, dict) or path + key in names}
    return {key: value for key, value in kept.items() if not isinstance(value, dict) or value}


@pytest.mark.parametrize("off", SWITCHES)
def test_every_switch_can_be_off(off, with_mtp):
    """A part that is off has no parameters; the loss is finite; with the parameters left, the answer is another."""
    batch, model = with_mtp.batch, small_model(**{off: False})
    names, all_names = set(paths(random_params(model, batch))), set(paths(with_mtp.params))
    params = prune(with_mtp.params, names)
    assert set(paths(params)) == names  # none by another name
    words = {"mtp": ("mtp_",), "gate": ("output/gate",), "qk_norm": ("query/norm", "key/norm"),
             "copy": ("copy_score",), "habits": ("habits", "evidence/seen"),
             "identity": ("identity/", "evidence/", "combine"), "similar": ("evidence/similar",),
             "author_items": ("context_projector/author",), "item_time": ("context_projector/time",),
             "request_time": ("bos_time",), "seen": ("evidence/seen",), "room_features": ("evidence/room",)}[off]
    assert names < all_names
    assert all(any(word in name for word in words) for name in all_names - names)
    assert not [name for name in names if any(word in name for word in words)]

    modules, rooms, authors = jax.jit(lambda params: model.apply({"params": params}, batch))(params)
    assert (rooms is None) == (authors is None) == (off == "identity")
    loss, _ = losses(modules, rooms, authors, batch, model.config)
    assert np.isfinite(loss)
    assert loss > 0
    # Behind a prefix that no item shares nothing is copied; at the first level something always is.
    moved = float(np.abs(modules[0][0] - with_mtp.call(with_mtp.params, batch)[0][0][0]).max())
    assert (moved > 1e-3) == (off not in ("mtp", "identity", "seen", "room_features", "similar"))


def test_both_author_switches_off_leave_no_author_table():
    names = paths(random_params(small_model(identity=False, author_items=False), random_batch()))
    assert "author_table" not in names
    assert ModelConfig().identity
    assert small_config().author_items


def test_bfloat16_activations_give_float32_logits_near_the_exact_ones(with_mtp):
    half = small_model(activation_dtype="bfloat16")
    got = jax.jit(lambda: half.apply({"params": with_mtp.params}, with_mtp.batch))()
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    want = with_mtp.call(with_mtp.params, with_mtp.batch)
    modules, exact = (np.stack(jax.tree.leaves(x[0])) for x in (got, want))
    assert 0 < np.abs(modules - exact).mean() < 0.1
