"""The optimizer: its schedule, its clip, and which parameters decay."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onelive_jax.config import MeshConfig, TrainingConfig
from onelive_jax.sharding import partitioning
from onelive_jax.training import train_state


def test_the_rate_warms_up_and_falls_along_a_cosine():
    rate = train_state.learning_rate(TrainingConfig(steps=100, warmup_steps=20, learning_rate=0.4, final_rate=0.1))
    np.testing.assert_allclose([rate(s) for s in (0, 10, 20, 60, 100)], [0.0, 0.2, 0.4, 0.22, 0.04], rtol=1e-5)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    rate = train_state.learning_rate(TrainingConfig(steps=100, warmup_steps=0, learning_rate=0.4, final_rate=0.0))
    np.testing.assert_allclose([rate(0), rate(100)], [0.4, 0.0], atol=1e-7)


@pytest.mark.parametrize("path, shape, want", [
    (("block_0", "query"), (8, 2, 4), True),
    (("block_0", "up"), (8, 16), True),
    (("heads",), (3, 8, 64), True),
    (("TimeEmbedding_0", "MLP_0", "w_in"), (8, 16), True),
    (("TimeEmbedding_0", "hour"), (24, 8), False),
    (("sequence",), (3, 8), False),
    (("author_table",), (5, 8), False),
    (("code_embedding",), (5, 8), False),
    (("head_bias",), (3, 64), False),
    (("RMSNorm_0", "scale"), (2, 4), False),
    (("bos",), (8,), False),
    (("temperature",), (), False),
])
def test_what_decays(path, shape, want):
    tree = jnp.ones(shape)
    for name in reversed(path):
        tree = {name: tree}
    assert jax.tree.leaves(train_state.decayed(tree)) == [want]


def test_only_matrices_shrink_without_gradient():
    tx = train_state.make_optimizer(TrainingConfig(steps=10, warmup_steps=0, learning_rate=0.5, weight_decay=0.2))
    params = {"w": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0), "author_table": jnp.full((2, 2), 3.0)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["w"], 3.0 * (1 - 0.5 * 0.2), rtol=1e-6)
    np.testing.assert_array_equal(new["bias"], params["bias"])
    np.testing.assert_array_equal(new["author_table"], params["author_table"])


def test_gradients_are_clipped_over_all_parameters_together():
    config = TrainingConfig(steps=10, warmup_steps=0, clip_norm=1.0, weight_decay=0.0)
    tx = train_state.make_optimizer(config)
    params = {"a": jnp.zeros((1,)), "b": jnp.zeros((1,))}
    _, state = tx.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, tx.init(params), params)
    adam = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    np.testing.assert_allclose([adam.mu["a"][0], adam.mu["b"][0]], [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose(adam.nu["b"][0], (1 - config.b2) * 0.64, rtol=1e-5)


def init_params(key):
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed", "mlp"))
    return {"w": init(key, (4, 6)), "plain": jnp.ones((3,))}


def test_a_fresh_state_is_unboxed_and_matches_its_description():
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = train_state.make_optimizer(TrainingConfig())
    state = train_state.init_state(init_params, tx, mesh, jax.random.key(0))
    abstract = train_state.abstract_state(init_params, tx, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for value, described in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (value.shape, value.dtype, value.sharding) == (described.shape, described.dtype, described.sharding)
    assert isinstance(state.params["w"], jax.Array)
    assert int(state.step) == 0


def test_the_key_decides_the_state():
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = train_state.make_optimizer(TrainingConfig())
    one, same, other = (train_state.init_state(init_params, tx, mesh, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.params["w"], same.params["w"])
    assert not np.array_equal(one.params["w"], other.params["w"])
    assert not np.array_equal(jax.random.key_data(one.key), jax.random.key_data(other.key))
