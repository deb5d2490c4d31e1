"""The lazy decoder: which block reads which key/value set, residual branches, caches, scanned and recomputed blocks."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.model.decoder import Decoder, empty_caches
from onelive_jax.model.layers import rms_normalise
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
        whole, none, _ = module.apply({"params": params}, x, context)
        assert none is None
        outs, caches = [], empty_caches(config, B, W, S, jnp.float32)
        chex.assert_shape(jax.tree.leaves(caches), (B, W, S, num_groups, d))
        for position in range(S):
            out, caches, _ = module.apply({"params": params}, x[:, :, position, None], context, False, caches, position)
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


def stacked(params, blocks: int):
    """Parameters of block_0, block_1, … as those of the scanned stack."""
    rest = {name: value for name, value in params.items() if not name.startswith("block_")}
    layers = [params[f"block_{layer}"] for layer in range(blocks)]
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


@pytest.mark.parametrize("sets", [1, 2])
def test_scanned_blocks_equal_unrolled_ones_in_values_gradients_and_caches(sets):
    config, context = small_config(num_layers=3, context_sets=sets), random_context(sets)
    unrolled, scanned = Decoder(config), Decoder(dataclasses.replace(config, scan_layers=True))
    params = random_params(unrolled, X, context)
    names = paths(random_params(scanned, X, context))
    assert {name.split("/")[0] for name in names} == {"blocks"}
    assert {leaf.shape[0] for leaf in names.values()} == {3}

    def run(module):
        def total(params):
            out, _, largest = module.apply({"params": params}, X, context)
            return jnp.sum(jnp.sin(out)), (out, largest)

        @jax.jit
        def everything(params):
            (_, outs), grads = jax.value_and_grad(total, has_aux=True)(params)
            caches, positions = empty_caches(module.config, B, W, S, jnp.float32), []
            for position in range(S):
                out, caches, _ = module.apply({"params": params}, X[:, :, position, None], context, False, caches,
                                              position)
                positions.append(out)
            return outs, grads, jnp.concatenate(positions, 2), caches

        return everything

    outs, grads, cached, caches = run(unrolled)(params)
    scan_outs, scan_grads, scan_cached, scan_caches = run(scanned)(stacked(params, 3))
    chex.assert_trees_all_close((outs, stacked(grads, 3), cached), (scan_outs, scan_grads, scan_cached), rtol=1e-3,
                                atol=3e-4)
    assert outs[1] > 0
    # Beams are picked along axis 1 of a cache, stacked or not.
    chex.assert_shape(jax.tree.leaves(scan_caches), (B, W, 3, S, 2, d))
    chex.assert_trees_all_close(jax.tree.map(lambda *x: jnp.stack(x, 2), *caches), scan_caches, atol=1e-5)


@pytest.mark.parametrize("scan_layers, computed", [(False, "full"), (True, "dots")])
def test_rematerialisation_changes_memory_and_no_number(scan_layers, computed):
    context, kept, grads = random_context(), {}, {}
    for remat in ("none", "dots", "full"):
        module = Decoder(small_config(num_layers=2, scan_layers=scan_layers, remat=remat, dropout=0.2))
        params = random_params(module, X, context)

        def total(params, module=module):
            return jnp.sum(jnp.sin(module.apply({"params": params}, X, context, True,
                                                rngs={"dropout": jax.random.key(0)})[0]))

        if remat in ("none", computed):
            grads[remat] = jax.jit(jax.grad(total))(params)
        residuals = jax.eval_shape(lambda params, total=total: jax.vjp(total, params)[1], params)
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(residuals))
    chex.assert_trees_all_close(grads["none"], grads[computed], rtol=1e-3, atol=1e-4)
    assert kept["full"] < kept["dots"] < kept["none"]


def test_the_largest_logit_is_bounded_by_qk_norm_alone():
    """With unit scales |q kᵀ| / sqrt(d) ≤ sqrt(d); without QK-norm it grows with the weights of the queries."""
    context = random_context()
    for qk_norm in (True, False):
        module = Decoder(small_config(num_layers=2, qk_norm=qk_norm))
        params = changed(random_params(module, X, context),
                         lambda path, leaf: jnp.ones_like(leaf) if path.endswith("scale") else leaf)
        grown = changed(params, lambda path, leaf: leaf * 50 if "query/w" in path else leaf)
        unit = context.replace(keys=rms_normalise(context.keys))
        before, after = (module.apply({"params": p}, X, unit)[2] for p in (params, grown))
        assert before.shape == ()
        if qk_norm:
            assert 0.5 < before <= d**0.5 + 1e-4
            assert after <= d**0.5 + 1e-4
        else:
            assert after > 20 * before
