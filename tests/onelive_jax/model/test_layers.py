"""Layers against hand-worked values: norms, time embedding, attention, gate, QK-norm, feed-forward."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.model import layers
from tests.onelive_jax.random_batches import changed, paths, random_params

B, W, S, T, H, G, d = 2, 3, 4, 5, 4, 2, 3
D = 12


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_rms_norm_by_hand():
    x = np.array([[3.0, 4.0], [-30.0, 40.0]], np.float32)
    out = layers.RMSNorm().apply({"params": {"scale": jnp.array([1.0, 10.0])}}, x)
    root = np.sqrt(12.5)
    np.testing.assert_allclose(out, [[3 / root, 40 / root], [-3 / root, 40 / root]], rtol=1e-5)


def test_rms_norm_is_computed_in_float32_and_keeps_the_dtype():
    x = jnp.full((1, 256), 3e3, jnp.bfloat16)
    out = layers.rms_normalise(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 1.0)


def test_mlp_and_swiglu_by_hand():
    x = draw(2, 5)
    mlp, swiglu = layers.MLP(7, 3), layers.SwiGLU(7)
    p, q = random_params(mlp, x), random_params(swiglu, x)
    hidden = x @ p["w_in"] + p["b_in"]
    np.testing.assert_allclose(mlp.apply({"params": p}, x), (hidden * sigmoid(hidden)) @ p["w_out"], atol=1e-5)
    gate = x @ q["gate"]
    want = ((x @ q["up"]) * gate * sigmoid(gate)) @ q["down"]
    np.testing.assert_allclose(swiglu.apply({"params": q}, x), want, atol=1e-5)


def test_time_embedding_concatenates_hour_day_and_week():
    hour, day, week = np.array([[23, 0]]), np.array([[6, 1]]), np.array([[15, 2]])
    module = layers.TimeEmbedding(4)
    p = random_params(module, hour, day, week, jnp.float32)
    by_name = {path.split("/")[-1]: leaf for path, leaf in paths(p).items()}
    chex.assert_shape(by_name["hour"], (24, 4))
    chex.assert_shape(by_name["day"], (7, 4))
    chex.assert_shape(by_name["week"], (16, 4))
    x = np.concatenate([by_name["hour"][hour], by_name["day"][day], by_name["week"][week]], -1)
    hidden = x @ by_name["w_in"] + by_name["b_in"]
    np.testing.assert_allclose(module.apply({"params": p}, hour, day, week, jnp.float32),
                               (hidden * sigmoid(hidden)) @ by_name["w_out"], atol=1e-5)


def attention_by_hand(q, k, v, mask):
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(*q.shape[:3]):
        g = h // (q.shape[2] // k.shape[2])
        seen = np.flatnonzero(mask[b, i])
        if len(seen):
            logits = k[b, seen, g] @ q[b, i, h] / np.sqrt(q.shape[3])
            p = np.exp(logits - logits.max())
            out[b, i, h] = p / p.sum() @ v[b, seen, g]
    return out


def test_grouped_attention_equals_loops_and_gives_zeros_where_nothing_may_be_seen():
    q, k, v = draw(B, S, H, d), draw(B, T, G, d, seed=1), draw(B, T, G, d, seed=2)
    mask = np.random.default_rng(3).random((B, S, T)) < 0.6
    mask[1, 2] = False
    out = layers.attention(q, k, v, mask)
    np.testing.assert_allclose(out, attention_by_hand(q, k, v, mask), atol=1e-5)
    np.testing.assert_array_equal(out[1, 2], 0.0)


def test_what_attention_may_not_see_has_no_gradient_even_where_nothing_may_be_seen():
    q, k, v = draw(1, 1, H, d), draw(1, T, G, d, seed=1), draw(1, T, G, d, seed=2)

    @jax.jit
    def total(mask):
        return jax.grad(lambda *a: jnp.sum(jnp.square(layers.attention(*a, mask))), argnums=(0, 1, 2))(q, k, v)

    _, k_grad, v_grad = total(np.array([[[True, False, True, False, False]]]))
    for grad in (k_grad, v_grad):
        np.testing.assert_array_equal(grad[:, [1, 3, 4]], 0.0)
        assert np.abs(grad[:, [0, 2]]).min() > 0
    chex.assert_trees_all_equal(total(np.zeros((1, 1, T), bool)), jax.tree.map(jnp.zeros_like, (q, k, v)))


def test_attention_logits_are_float32_where_activations_are_not():
    # In bfloat16 the logits 256 and 257 are one number.
    q = jnp.array([16.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 2)
    k = jnp.array([[16.0, 0.0], [16.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    v = jnp.array([[0.0, 0.0], [1.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    out = layers.attention(q, k, v, np.ones((1, 1, 2), bool))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out[0, 0, 0].astype(jnp.float32), sigmoid(1 / np.sqrt(2)), rtol=1e-2)


@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
def test_the_kernel_of_jax_gives_what_the_einsum_gives(dtype, atol):
    q, k, v = draw(B, S, H, d), draw(B, T, G, d, seed=1), draw(B, T, G, d, seed=2)
    mask = np.random.default_rng(3).random((B, S, T)) < 0.6
    mask[1, 2] = False

    @functools.partial(jax.jit, static_argnums=0)
    def both(kernel):
        def total(*arrays):
            out = layers.attention(*(x.astype(dtype) for x in arrays), mask, kernel).astype(jnp.float32)
            return jnp.sum(jnp.sin(out)), out

        return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    chex.assert_trees_all_close(both("dot_product"), both("einsum"), atol=atol)
    # A CPU keeps the einsum.
    chex.assert_trees_all_equal(both("auto"), both("einsum"))


def test_the_largest_logit_is_that_of_the_pairs_that_attend():
    q, k = draw(B, S, H, d), draw(B, T, G, d, seed=1)
    mask = np.random.default_rng(3).random((B, S, T)) < 0.3
    want = max(abs(k[b, t, h // (H // G)] @ q[b, i, h]) / np.sqrt(d)
               for b, i, t in np.argwhere(mask) for h in range(H))
    np.testing.assert_allclose(layers.largest_logit(q, k, mask), want, rtol=1e-5)
    assert layers.largest_logit(q, k, np.zeros_like(mask)) == 0.0


@pytest.fixture(scope="module")
def context_arrays():
    mask = np.ones((B, T), bool)
    mask[1, :2] = False
    return draw(B, T, G, d, seed=1), draw(B, T, G, d, seed=2), mask


def scaled(params, names, factor):
    return changed(params, lambda path, leaf: leaf * factor if path in names else leaf)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_qk_norm_takes_the_scale_out_of_cross_attention(qk_norm, context_arrays):
    x = draw(B, W, S, D)
    module = layers.CrossGatedAttention(H, d, qk_norm, True)
    params = random_params(module, x, *context_arrays)
    out = [module.apply({"params": p}, x, *context_arrays)[0] for p in (params, scaled(params, ("query/w",), 5.0))]
    difference = np.abs(out[0] - out[1]).max()
    assert (difference < 1e-4) == qk_norm
    assert qk_norm or difference > 1e-2


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("name", ["query/w", "key/w"])
def test_qk_norm_takes_the_scale_out_of_self_attention(name, qk_norm):
    x = draw(B, W, S, D)
    module = layers.SelfGatedAttention(H, G, d, qk_norm, True)
    params = random_params(module, x)
    out = [module.apply({"params": p}, x)[0] for p in (params, scaled(params, (name,), 5.0))]
    difference = np.abs(out[0] - out[1]).max()
    assert (difference < 1e-4) == qk_norm
    assert qk_norm or difference > 1e-2


def test_the_gate_multiplies_the_attention_output_elementwise(context_arrays):
    x = draw(B, W, S, D)
    gated, plain = (layers.CrossGatedAttention(H, d, True, gate) for gate in (True, False))
    params = random_params(gated, x, *context_arrays)
    gate = params["output"]["gate"]
    without = {**params, "output": {"out": params["output"]["out"]}}
    assert set(paths(random_params(plain, x, *context_arrays))) == set(paths(params)) - {"output/gate"}

    ungated = plain.apply({"params": without}, x, *context_arrays)[0]
    half = {**params, "output": {**params["output"], "gate": jnp.zeros_like(gate)}}
    np.testing.assert_allclose(gated.apply({"params": half}, x, *context_arrays)[0], ungated / 2, atol=1e-5)
    # With one-hot output weights the attended values themselves can be read.
    read = {"out": jnp.eye(H * d).reshape(H, d, H * d)}
    raw = plain.apply({"params": {**without, "output": read}}, x, *context_arrays)[0]
    want = raw * sigmoid(np.einsum("bwsd,dhk->bwshk", x, gate).reshape(B, W, S, H * d))
    np.testing.assert_allclose(gated.apply({"params": {**params, "output": {**read, "gate": gate}}}, x,
                                           *context_arrays)[0], want, atol=1e-5)


def test_self_attention_is_causal_and_its_cache_repeats_the_whole_pass():
    x = draw(B, W, S, D)
    module = layers.SelfGatedAttention(H, G, d, True, True)
    params = random_params(module, x)

    @jax.jit
    def by_position(x):
        outs, cache = [], layers.SelfCache(*(jnp.zeros((B, W, S, G, d)) for _ in range(2)))
        for position in range(S):
            out, cache, _ = module.apply({"params": params}, x[:, :, position, None], cache, position)
            outs.append(out)
        return jnp.concatenate(outs, 2)

    @jax.jit
    def whole(x):
        out, none, _ = module.apply({"params": params}, x)
        assert none is None
        return out

    np.testing.assert_allclose(by_position(x), whole(x), atol=1e-5)
    _, pull = jax.vjp(whole, x)
    for position in range(S):
        grad, = pull(jnp.zeros_like(x).at[:, :, position].set(draw(B, W, D, seed=position)))
        grad = np.abs(grad).max(axis=(0, 1, 3))
        np.testing.assert_array_equal(grad[position + 1:], 0.0)
        assert grad[:position + 1].min() > 0


def test_beams_do_not_see_each_other(context_arrays):
    x = draw(B, W, S, D)
    other = x.copy()
    other[:, 1] += 1.0
    for module, args in ((layers.SelfGatedAttention(H, G, d, True, True), ()),
                         (layers.CrossGatedAttention(H, d, True, True), context_arrays)):
        params = random_params(module, x, *args)
        before, after = (module.apply({"params": params}, y, *args)[0] for y in (x, other))
        np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
        assert np.abs(before[:, 1] - after[:, 1]).max() > 1e-3


class Dropped(layers.nn.Module):
    rate: float

    @layers.nn.compact
    def __call__(self, x, train):
        return layers.dropout(self, x, self.rate, train)


def test_dropout_keeps_the_mean_and_rests_outside_training():
    x = jnp.ones((100, 100))
    rngs = {"dropout": jax.random.key(0)}
    out = Dropped(0.25).apply({}, x, True, rngs=rngs)
    np.testing.assert_allclose(np.unique(out), [0.0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.02)
    np.testing.assert_array_equal(Dropped(0.25).apply({}, x, False), x)
    np.testing.assert_array_equal(Dropped(0.0).apply({}, x, True), x)
