"""The lazy decoder: which block reads which key/value set, residual branches, caches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.model.decoder import Decoder, empty_caches
from tests.onelive_jax.random_batches import changed, paths, random_context, random_params, small_config

B, W, S, D, d = 2, 3, 3, 16, 4
X = np.random.default_rng(1).normal(size=(B, W, S, D)).astype(np.float32)


@pytest.mark.parametrize("blocks, sets, want", [(3, 1, [0, 0, 0]), (3, 2, [0, 0, 1]), (4, 2, [0, 0, 1, 1]),
                                                (2, 2, [0, 1]), (4, 3, [0, 0, 1, 2])])
def test_block_l_reads_set_floor_of_l_times_sets_over_blocks(blocks, sets, want):
    module, context = Decoder(small_config(num_layers=blocks, context_sets=sets)), random_context(sets)
    params = random_params(module, X, context)

    @jax.jit
    def reads(alone):
        """Gradient of the output with respect to every set's keys and values where one block alone attends."""
        muted = changed(params, lambda path, leaf: leaf * (alone == int(path.split("/")[0].split("_")[1]))
                        if "cross/output/out" in path else leaf)

        def total(keys, values):
            return jnp.sum(jnp.sin(module.apply({"params": muted}, X, context.replace(keys=keys, values=values))[0]))

        grads = jax.grad(total, argnums=(0, 1))(context.keys, context.values)
        return [jnp.abs(g).max(axis=(1, 2, 3, 4)) for g in grads]

    assert len([path for path in paths(params) if path.endswith("cross/output/out")]) == blocks
    for block, kv_set in enumerate(want):
        for grad in reads(block):
            assert np.flatnonzero(grad).tolist() == [kv_set], f"block {block}"


def test_no_block_projects_the_context_again():
    """Lazy: every parameter of cross attention maps the width D of the decoded positions, none makes keys or values."""
    names = paths(random_params(Decoder(small_config(num_layers=2)), X, random_context()))
    cross = {name.split("cross/")[1] for name in names if "cross/" in name}
    assert not [name for name in cross if "key" in name or "value" in name]
    sizes = [names[name].size for name in names if "cross/" in name]
    assert max(sizes) == D * D


def test_a_block_is_three_residual_branches():
    """With the three last matrices at zero a block does nothing; each of them alone adds something."""
    module, context = Decoder(small_config()), random_context()
    params = random_params(module, X, context)
    last = [path for path in paths(params) if path.endswith(("/out", "/down"))]
    assert len(last) == 3

    apply = jax.jit(lambda params: module.apply({"params": params}, X, context)[0])
    for kept in [None, *last]:
        out = apply(changed(params, lambda path, leaf, kept=kept: leaf * (path not in last or path == kept)))
        if kept is None:
            np.testing.assert_array_equal(out, X)
        else:
            assert np.abs(out - X).max() > 1e-2, kept


def test_masked_items_are_not_read():
    module, context = Decoder(small_config()), random_context()
    params = random_params(module, X, context)

    def total(keys, values):
        return jnp.sum(jnp.sin(module.apply({"params": params}, X, context.replace(keys=keys, values=values))[0]))

    for grad in jax.jit(jax.grad(total, argnums=(0, 1)))(context.keys, context.values):
        read = np.abs(grad).max(axis=(0, 3, 4))
        np.testing.assert_array_equal(read > 0, context.mask)


@pytest.mark.parametrize("num_groups", [1, 4])
def test_cached_positions_equal_the_whole_pass(num_groups):
    config = small_config(num_layers=2, num_groups=num_groups, context_sets=2)
    context = random_context(2, num_groups)
    module = Decoder(config)
    params = random_params(module, X, context)

    @jax.jit
    def both(x):
        whole, none = module.apply({"params": params}, x, context)
        assert none is None
        outs, caches = [], empty_caches(config, B, W, S, jnp.float32)
        chex.assert_shape(jax.tree.leaves(caches), (B, W, S, num_groups, d))
        for position in range(S):
            out, caches = module.apply({"params": params}, x[:, :, position, None], context, False, caches, position)
            outs.append(out)
        return whole, jnp.concatenate(outs, 2)

    whole, cached = both(X)
    np.testing.assert_allclose(cached, whole, atol=1e-4)


def test_dropout_acts_in_training_alone():
    module, context = Decoder(small_config(dropout=0.5)), random_context()
    params = random_params(module, X, context)

    @jax.jit
    def train(key):
        return module.apply({"params": params}, X, context, True, rngs={"dropout": key})[0]

    rest = jax.jit(lambda: module.apply({"params": params}, X, context)[0])()
    first, again, second = (train(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert min(np.abs(first - second).max(), np.abs(first - rest).max()) > 1e-2
