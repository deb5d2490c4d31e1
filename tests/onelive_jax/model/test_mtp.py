"""Sequential multi-token prediction: which module predicts what, and what each of them reads."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.model.mtp import MTPModule
from tests.onelive_jax.random_batches import (
    BATCH,
    CODES,
    changed,
    paths,
    random_batch,
    random_context,
    random_params,
    small_config,
    small_model,
)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_module_k_predicts_levels_k_and_later(levels):
    batch = random_batch(levels=levels)
    for mtp, want in ((True, [levels - k for k in range(levels)]), (False, [levels])):
        model = small_model(levels=levels, mtp=mtp)
        modules, _, _ = jax.eval_shape(lambda model=model: model.init_with_output(jax.random.key(0), batch)[0])
        assert [len(logits) for logits in modules] == want
        chex.assert_shape(jax.tree.leaves(modules), (BATCH, CODES))
        assert {x.dtype for x in jax.tree.leaves(modules)} == {jnp.dtype("float32")}


def test_there_is_one_block_a_further_level_and_none_when_off():
    batch = random_batch()
    on, off = (paths(random_params(small_model(mtp=mtp, num_layers=2), batch)) for mtp in (True, False))
    extra = {name.split("/")[0] for name in set(on) - set(off)}
    assert len(extra) == 2
    assert {name for name in on if name.split("/")[0] not in extra} == set(off)
    blocks = {tuple(name.split("/")[:2]) for name in on if "block" in name}
    assert len(blocks) == 2 + 2  # the stack's two, and one of each module


@pytest.fixture(scope="module")
def sensitivity():
    """sensitivity[changed module][k][i]: how far logits i of module k move when the module's parameters do."""
    batch, model = random_batch(), small_model()
    params = random_params(model, batch)
    logits = jax.jit(lambda params: model.apply({"params": params}, batch)[0])
    base = logits(params)

    def moved(prefix):
        other = logits(changed(params, lambda path, leaf: leaf * 1.3 if path.startswith(prefix) else leaf))
        return jax.tree.map(lambda a, b: float(np.abs(a - b).max()), base, other)

    return {prefix: moved(prefix) for prefix in ("decoder/", "mtp_0/", "mtp_1/")}


def test_modules_are_chained(sensitivity):
    """Module k reads module k − 1, and no module reads a later one."""
    reads = {"decoder/": (True, True, True), "mtp_0/": (False, True, True), "mtp_1/": (False, False, True)}
    for prefix, want in reads.items():
        for k, expected in enumerate(want):
            for change in sensitivity[prefix][k]:
                assert (change > 1e-4) == expected, (prefix, k)


def test_a_module_merges_the_state_and_the_code():
    """h' = Block(W [RMSNorm(h); RMSNorm(e)]): both matter, the length of neither does."""
    module, context = MTPModule(small_config(context_sets=2)), random_context(2)
    hidden, code = np.random.default_rng(2).normal(size=(2, 2, 3, 3, 16)).astype(np.float32)  # each [B, W, S, D]
    params = random_params(module, hidden, code, context)

    @jax.jit
    def run(hidden, code, keys=context.keys):
        return module.apply({"params": params}, hidden, code, context.replace(keys=keys))[0]

    out = run(hidden, code)
    chex.assert_equal_shape([out, hidden])
    np.testing.assert_allclose(run(hidden * 3, code * 0.2), out, atol=1e-2)
    assert np.abs(run(hidden, -code) - out).max() > 0.1
    assert np.abs(run(-hidden, code) - out).max() > 0.1
    # Its block reads the last set of the shared context.
    grad = jax.jit(jax.grad(lambda keys: jnp.sum(jnp.sin(run(hidden, code, keys)))))(context.keys)
    keys = np.abs(grad).max(axis=(1, 2, 3, 4))
    assert keys[0] == 0
    assert keys[1] > 0
