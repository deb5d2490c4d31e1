"""Losses against hand-worked values, who takes part in which, and the train step on a tiny model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onelive_jax.batch import LiveRooms
from onelive_jax.config import Config, MeshConfig, TrainingConfig
from onelive_jax.model.layers import NEG_INF
from onelive_jax.sharding import partitioning
from onelive_jax.training import supervised, train_state
from tests.onelive_jax.random_batches import (
    AUTHORS,
    BATCH,
    CODES,
    LEVELS,
    ROOMS,
    paths,
    random_batch,
    random_params,
    small_config,
    small_model,
)

BATCH_OF_4 = random_batch()


# The parts of the loss.


def test_codes_on_air_by_hand():
    live = LiveRooms(author=np.zeros((2, 4), np.int32), features=np.zeros((2, 4, 2), np.float32),
                     codes=np.array([[[0, 1], [0, 2], [1, 1], [2, 0]], [[2, 2], [2, 2], [1, 0], [0, 0]]]),
                     mask=np.array([[True, True, True, False], [True, True, True, True]]))
    prefix = np.array([[0, 9], [2, 9]])  # the code of the level itself is not read
    np.testing.assert_array_equal(supervised.codes_on_air(live, prefix, 0, 4),
                                  [[True, True, False, False], [True, True, True, False]])
    np.testing.assert_array_equal(supervised.codes_on_air(live, prefix, 1, 4),
                                  [[False, True, True, False], [False, False, True, False]])
    # Behind a prefix that no room on air carries (2 is off air in the first row) there is nothing.
    np.testing.assert_array_equal(supervised.codes_on_air(live, np.array([[2, 0], [3, 0]]), 1, 4), False)


def test_cross_entropy_by_hand():
    logits = np.log([[1.0, 2.0, 5.0, 8.0], [4.0, 4.0, 1.0, 1.0]])
    target = np.array([1, 0])
    np.testing.assert_allclose(supervised.cross_entropy(logits, target), -np.log([2 / 16, 4 / 10]), rtol=1e-5)
    allowed = np.array([[True, True, True, False], [True, False, False, False]])
    out = supervised.cross_entropy(logits, target, allowed)
    np.testing.assert_allclose(out, -np.log([2 / 8, 1.0]), rtol=1e-5, atol=1e-6)
    grad = jax.grad(lambda x: supervised.cross_entropy(x, target, allowed).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(grad, [[1 / 8, 2 / 8 - 1, 5 / 8, 0], [0, 0, 0, 0]], atol=1e-6)


def test_cross_entropy_is_float32_whatever_it_is_given():
    out = supervised.cross_entropy(jnp.zeros((1, 300), jnp.bfloat16), np.array([7]))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, np.log(300), rtol=1e-6)


def test_cross_entropy_is_finite_where_nothing_is_allowed():
    out, grad = jax.value_and_grad(lambda x: supervised.cross_entropy(x, np.array([1]), np.zeros((1, 3), bool))[0])(
        jnp.ones((1, 3)))
    chex.assert_tree_all_finite((out, grad))


def test_mean_is_weighted_and_zero_without_weight():
    np.testing.assert_allclose(supervised.mean(np.array([1.0, 4.0, 9.0]), np.array([1.0, 0.5, 0.0])), 2.0, rtol=1e-6)
    assert supervised.mean(np.array([1.0, 4.0]), np.zeros(2)) == 0.0


# The whole loss, from outputs of no model in particular.


def outputs(seed=0, modules=LEVELS):
    rng = np.random.default_rng(seed)
    logits = [[jnp.asarray(rng.normal(size=(BATCH, CODES)), jnp.float32) for _ in range(k, LEVELS)]
              for k in range(modules)]
    rooms = np.where(BATCH_OF_4.live.mask, rng.normal(size=(2, BATCH, ROOMS)), NEG_INF).astype(np.float32)
    return logits, tuple(map(jnp.asarray, rooms)), jnp.asarray(rng.normal(size=(BATCH, AUTHORS)), jnp.float32)


def loss(args, batch=BATCH_OF_4, **changes):
    return jax.jit(lambda args, batch: supervised.losses(*args, batch, small_config(**changes)))(args, batch)


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x)))


def test_the_loss_by_hand():
    """Row 2 is not seen on air by others, row 3 has half the weight."""
    batch = BATCH_OF_4.replace(target_slot=np.where(np.arange(BATCH) == 2, -1, BATCH_OF_4.target_slot),
                               weight=np.array([1, 1, 1, 0.5], np.float32))
    args = modules, rooms, authors = outputs()
    weights = dict(live_softmax=0.7, full_softmax=0.3, identity_loss=2.0, loss_weights=(1.0, 0.5, 0.25))
    total, metrics = loss(args, batch, **weights)
    live, codes, parts = batch.live, batch.target_codes, []
    for k in range(LEVELS):
        on_air = everything = 0.0
        for level in range(k, LEVELS):
            logits = np.asarray(modules[k][level - k], np.float64)
            for b in range(BATCH):
                q = codes[b, level]
                everything -= batch.weight[b] * log_softmax(logits[b])[q] / 3.5
                if batch.target_slot[b] >= 0:
                    behind = live.mask[b] & (live.codes[b, :, :level] == codes[b, :level]).all(-1)
                    allowed = np.unique(live.codes[b, behind, level])
                    on_air -= batch.weight[b] * log_softmax(logits[b][allowed])[allowed == q][0] / 2.5
        parts.append(0.7 * on_air + 0.3 * everything)
    identity, evidence = (-sum(batch.weight[b] * log_softmax(np.asarray(scores[b], np.float64)[live.mask[b]])[
        np.flatnonzero(live.mask[b]) == batch.target_slot[b]][0] for b in (0, 1, 3)) / 2.5 for scores in rooms)
    author = -sum(batch.weight[b] * log_softmax(np.asarray(authors[b], np.float64))[batch.target_author[b]]
                  for b in range(BATCH)) / 3.5
    got = [metrics[name] for name in ("loss_main", "loss_mtp_1", "loss_mtp_2", "loss_identity", "loss_author",
                                    "loss_evidence")]
    np.testing.assert_allclose(got, [*parts, identity, author, evidence], rtol=1e-5)
    want = parts[0] + 0.5 * parts[1] + 0.25 * parts[2] + 2.0 * (identity + 0.3 * author + evidence)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    # Scores of drawn authors have the target's first.
    drawn = np.argsort(np.arange(AUTHORS) != batch.target_author[:, None], 1, kind="stable")
    first = modules, rooms, np.take_along_axis(authors, drawn, 1)
    np.testing.assert_allclose(loss(first, batch, author_negatives=AUTHORS - 1, **weights)[0], want, rtol=1e-5)


def value_and_gradients(batch=BATCH_OF_4, args=None, **changes):
    config = small_config(**changes)
    return jax.jit(jax.value_and_grad(lambda args, batch: supervised.losses(*args, batch, config)[0]))(
        args or outputs(), batch)


def gradients(batch=BATCH_OF_4, **changes):
    return value_and_gradients(batch, **changes)[1]


def test_a_zero_weight_takes_its_part_out():
    whole, metrics = loss(outputs())
    parts = [float(metrics[name]) for name in ("loss_main", "loss_mtp_1", "loss_mtp_2")]
    for k in range(LEVELS):
        value, (modules, rooms, _) = value_and_gradients(loss_weights=tuple(float(i != k) for i in range(LEVELS)))
        np.testing.assert_allclose(value, whole - parts[k], rtol=1e-5)
        for i in range(LEVELS):
            assert all((np.abs(g).max() > 0) == (i != k) for g in modules[i])
        assert min(np.abs(scores).max() for scores in rooms) > 0
    value, (modules, rooms, authors) = value_and_gradients(identity_loss=0.0)
    np.testing.assert_allclose(value, sum(parts), rtol=1e-5)
    assert np.abs(np.stack(rooms)).max() == np.abs(authors).max() == 0.0
    assert np.abs(modules[0][0]).max() > 0


def test_the_live_loss_pushes_codes_on_air_alone():
    modules, rooms, authors = gradients(full_softmax=0.0)
    for k, module in enumerate(modules):
        for level, grad in enumerate(module, start=k):
            allowed = supervised.codes_on_air(BATCH_OF_4.live, BATCH_OF_4.target_codes, level, CODES)
            np.testing.assert_array_equal(np.asarray(grad)[~allowed], 0.0)
    assert np.abs(modules[0][0]).max() > 0
    np.testing.assert_array_equal(np.asarray(rooms)[:, ~BATCH_OF_4.live.mask], 0.0)
    np.testing.assert_array_equal(authors, 0.0)


def test_an_example_that_only_its_own_footprint_shows_has_no_part_in_live_losses():
    slot = BATCH_OF_4.target_slot.copy()
    slot[1] = -1
    batch = BATCH_OF_4.replace(target_slot=slot)
    live, rng = batch.live, np.random.default_rng(3)
    codes, mask, author = live.codes.copy(), live.mask.copy(), live.author.copy()
    codes[1], mask[1], author[1] = rng.integers(0, CODES, codes[1].shape), False, 0
    elsewhere = batch.replace(live=live.replace(codes=codes, mask=mask, author=author))
    args = modules, rooms, authors = outputs()
    moved = modules, tuple(scores.at[1].set(-scores[1]) for scores in rooms), authors
    chex.assert_trees_all_equal(loss(args, batch), loss(moved, elsewhere))
    # Were it an example like the others, it would matter.
    assert loss(args)[0] != loss(moved)[0]

    for b in (batch, elsewhere):
        (first, *_), room_grads, author_grad = gradients(b)
        chex.assert_tree_all_finite((first, room_grads, author_grad))
        for room_grad in room_grads:
            np.testing.assert_array_equal(room_grad[1], 0.0)
        assert np.abs(first[0][1]).max() > 0  # all codes and all authors still count
        assert np.abs(author_grad[1]).max() > 0
        np.testing.assert_array_equal(gradients(b, full_softmax=0.0)[0][0][0][1], 0.0)


def test_no_row_on_air_gives_no_live_loss_and_no_nan():
    batch = BATCH_OF_4.replace(target_slot=np.full(BATCH, -1, np.int32))
    total, metrics = loss(outputs(), batch, full_softmax=0.0)
    assert total == 0.0
    chex.assert_tree_all_finite((metrics, gradients(batch)))


def test_accuracies_are_those_of_what_decodes_each_level():
    """Module l says level l with multi-token prediction; the main decoder says all of them without."""
    def sure(right):
        return jnp.where(right, 1.0, -1.0) * jax.nn.one_hot(BATCH_OF_4.target_codes, CODES).transpose(1, 0, 2)

    right, wrong = sure(True), sure(False)
    half = right.at[:, :2].set(wrong[:, :2])
    _, rooms, authors = outputs()
    chained = [[right[0], wrong[1], wrong[2]], [half[1], wrong[2]], [wrong[2]]]
    metrics = loss((chained, rooms, authors))[1]
    np.testing.assert_allclose([metrics[f"acc_q{i}"] for i in range(3)] + [metrics["acc_all"]], [1, 0.5, 0, 0.5])
    alone = [[right[0], half[1], right[2]]]
    metrics = loss((alone, rooms, authors), BATCH_OF_4.replace(weight=np.array([1, 0, 1, 1], np.float32)))[1]
    np.testing.assert_allclose([metrics[f"acc_q{i}"] for i in range(3)], [1, 2 / 3, 1], rtol=1e-6)


# The train step.


class Run:
    """A compiled train step and fresh states for it."""

    def __init__(self):
        self.config = Config(model=small_config(dropout=0.05),
                             training=TrainingConfig(steps=150, warmup_steps=0, learning_rate=0.02))
        self.model = small_model().clone(config=self.config.model)
        tx = train_state.make_optimizer(self.config.training)
        mesh = partitioning.make_mesh(MeshConfig())
        start = train_state.init_state(lambda key: self.model.init(key, BATCH_OF_4)["params"], tx, mesh,
                                       jax.random.key(0))
        self.start = start.replace(key=jax.random.key_data(start.key))  # NumPy holds no typed keys
        self.start = jax.tree.map(np.asarray, self.start)
        self.outputs = jax.jit(lambda params: self.model.apply({"params": params}, BATCH_OF_4))
        self.step = jax.jit(supervised.make_train_step(self.model, tx, self.config), donate_argnums=0)

    def state(self, key=None):
        """A fresh state: the step donates what it is given."""
        state = jax.tree.map(jnp.array, self.start)
        return state.replace(key=jax.random.wrap_key_data(state.key) if key is None else jax.random.key(key))


@pytest.fixture(scope="module")
def run():
    return Run()


def test_a_fresh_model_rules_nothing_out_and_takes_nothing_for_granted(run):
    modules, rooms, authors = run.outputs(run.state().params)
    chex.assert_tree_all_finite((run.start.params, modules, rooms, authors))
    for logits in jax.tree.leaves(modules):
        p = jax.nn.softmax(logits)
        assert p.min() > 0.02
        assert p.max() < 0.9


def test_the_step_has_these_metrics_and_donates_its_state(run):
    before = run.state()
    state, metrics = run.step(before, BATCH_OF_4)
    assert set(metrics) == {"loss", "loss_main", "loss_mtp_1", "loss_mtp_2", "loss_identity", "loss_author",
                            "loss_evidence", "acc_q0", "acc_q1", "acc_q2", "acc_all", "grad_norm", "param_norm",
                            "update_norm", "learning_rate", "on_air", "largest_logit"}
    assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())
    chex.assert_tree_all_finite(metrics)
    assert state.step == 1
    assert metrics["grad_norm"] > 0
    moved = optax.global_norm(jax.tree.map(lambda a, b: a - b, state.params, run.start.params))
    np.testing.assert_allclose(metrics["update_norm"], moved, rtol=1e-4)
    assert 0 < metrics["largest_logit"] < 10
    assert metrics["on_air"] == 1.0
    np.testing.assert_allclose(metrics["learning_rate"], 0.02, rtol=1e-6)
    np.testing.assert_allclose(metrics["param_norm"], optax.global_norm(state.params), rtol=1e-5)
    # The step works in place: parameters and both moments are given up, not copied.
    assert all(x.is_deleted() for x in jax.tree.leaves((before.params, before.opt_state)))


def test_every_parameter_learns(run):
    """Adam's first moment after one step is a share of the gradient, so it is zero where the gradient is."""
    state, _ = run.step(run.state(), BATCH_OF_4)
    gradient = paths(optax.tree_utils.tree_get(state.opt_state, "mu"))
    assert set(gradient) == set(paths(state.params))
    still = {name for name, value in gradient.items() if not np.abs(value).max() > 0}
    # The last module only ever has one position, and a softmax over one position is one whatever its query and key.
    # The weights of codes, identity and evidence are fitted, not trained.
    silent = ("mtp_1/block/self/query", "mtp_1/block/self/key", "combine")
    assert {name for name in gradient if name.startswith(silent)} == still


def test_the_same_key_gives_the_same_step_and_another_key_another(run):
    (first, one), (second, two), (third, _) = (run.step(run.state(key), BATCH_OF_4) for key in (1, 1, 2))
    chex.assert_trees_all_equal(first.params, second.params)
    chex.assert_trees_all_equal(one, two)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(third.params),
                                              strict=True))
    # The key of a step follows from the run's key and the step's number alone.
    chex.assert_trees_all_equal(jax.random.key_data(first.key), jax.random.key_data(jax.random.key(1)))
    late = run.step(run.state(1).replace(step=jnp.asarray(5, jnp.int32)), BATCH_OF_4)[1]
    assert late["loss"] != one["loss"]


def test_rows_without_weight_have_no_effect(run):
    weight = np.array([1, 1, 1, 0], np.float32)
    padded = BATCH_OF_4.replace(weight=weight, target_slot=np.array([*BATCH_OF_4.target_slot[:3], -1], np.int32))
    other = random_batch(seed=9)
    changed = jax.tree.map(lambda a, b: np.concatenate([a[:3], b[3:]]), BATCH_OF_4, other).replace(weight=weight)
    (state, metrics), (state_2, metrics_2) = (run.step(run.state(), batch) for batch in (padded, changed))
    chex.assert_trees_all_close(metrics, metrics_2, rtol=1e-6)
    chex.assert_trees_all_close(state.params, state_2.params, atol=1e-6)
    assert run.step(run.state(), BATCH_OF_4)[1]["loss"] != metrics["loss"]


def test_four_examples_are_learned_by_heart(run):
    state = run.state()
    first = None
    for _ in range(150):
        state, metrics = run.step(state, BATCH_OF_4)
        first = float(metrics["loss"]) if first is None else first
    assert state.step == 150
    outputs_now = run.outputs(state.params)
    last, metrics = supervised.losses(*outputs_now, BATCH_OF_4, run.config.model)
    assert first > 5.0
    assert last < 0.05 * first
    np.testing.assert_array_equal([metrics[f"acc_q{level}"] for level in range(LEVELS)], 1.0)
    for scores in outputs_now[1]:
        np.testing.assert_array_equal(jnp.argmax(scores, -1), BATCH_OF_4.target_slot)
    np.testing.assert_array_equal(jnp.argmax(outputs_now[2], -1), BATCH_OF_4.target_author)


def test_with_bfloat16_activations_parameters_and_losses_stay_float32(run):
    model = run.model.clone(config=small_config(activation_dtype="bfloat16"))
    tx = train_state.make_optimizer(run.config.training)
    step = supervised.make_train_step(model, tx, run.config)
    state, metrics = jax.eval_shape(step, run.state(), BATCH_OF_4)
    context = jax.eval_shape(lambda params: model.apply({"params": params}, BATCH_OF_4.request, method="encode"),
                             state.params)
    assert context.keys.dtype == jnp.bfloat16
    assert {x.dtype for x in metrics.values()} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(optax.tree_utils.tree_get(state.opt_state, "mu"))} == {
        jnp.dtype("float32")}


def test_microbatches_with_uneven_weights_give_the_step_of_the_whole_batch():
    """Microbatch j holds rows j, j + 4: one is lighter than the other, and has another share on air."""
    batch = random_batch(seed=5, batch=8)
    batch = batch.replace(weight=np.array([1, 0.1, 1, 0, 0.7, 0.2, 1, 0.5], np.float32),
                          target_slot=np.where([0, 1, 0, 0, 1, 1, 0, 0], -1, batch.target_slot).astype(np.int32))
    results = {}
    for parts in (1, 4):
        config = Config(model=small_config(mtp=False),
                        training=TrainingConfig(warmup_steps=0, accumulate=parts, batch_size=8))
        model, tx = small_model(mtp=False), train_state.make_optimizer(config.training)
        params = random_params(model, batch)
        state = train_state.TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(0))
        state, metrics = jax.jit(supervised.make_train_step(model, tx, config))(state, batch)
        results[parts] = optax.tree_utils.tree_get(state.opt_state, "mu"), metrics  # after one step, 0.1 x gradient
    assert results[1][1]["on_air"] < 1
    chex.assert_trees_all_close(results[4], results[1], rtol=2e-4, atol=1e-5)
