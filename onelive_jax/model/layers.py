"""RMSNorm, time embedding, QK-normed gated attention, feed-forward.

Axes: B batch, W beams (1 in training), S decoded positions, T history items, D model width, H query heads,
G key/value groups, d head width, F feed-forward width.

Parameters are float32 and carry logical axis names, from which their shardings are derived
(onelive_jax/training/partitioning.py). Activations have the dtype of the input; softmax and logits are float32.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

Array = jax.Array
NEG_INF = -1e9  # finite, so that a row without any allowed entry has no NaN in its gradient


@struct.dataclass
class Context:
    """The history of a request as keys and values, computed once and read by every block and every beam.

    Attributes:
      keys, values: [L_kv, B, T, G, d]. With S_kv = 1 they are the same array.
      items: [B, T, D], the items' representations (the copy heads read them).
      author: int32 [B, T]. codes: int32 [B, T, L]. habits: float32 [B, T, F].
      mask: bool [B, T].
    """

    keys: Array
    values: Array
    items: Array
    author: Array
    codes: Array
    habits: Array
    mask: Array


@struct.dataclass
class SelfCache:
    """Keys and values of the positions decoded so far, [B, W, S_max, G, d] each."""

    keys: Array
    values: Array


def weight(module: nn.Module, name: str, shape, axes, init=None) -> Array:
    """A float32 parameter with logical axis names; the default start is variance-scaled by its first axis."""
    init = init or nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=-1)
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def normal(scale: float):
    return nn.initializers.normal(scale)


zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()


def rms_normalise(x: Array) -> Array:
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + 1e-6)).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) · scale over the last axis."""

    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return rms_normalise(x) * weight(self, "scale", (x.shape[-1],), (self.axis,), ones).astype(x.dtype)


class MLP(nn.Module):
    """Two layers with SiLU between; `out_scale` is the standard deviation of the last layer's start."""

    hidden: int
    out: int
    out_scale: float | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w_in = weight(self, "w_in", (x.shape[-1], self.hidden), ("features", "mlp"))
        b_in = weight(self, "b_in", (self.hidden,), ("mlp",), zeros)
        out_init = None if self.out_scale is None else normal(self.out_scale)
        w_out = weight(self, "w_out", (self.hidden, self.out), ("mlp", "embed"), out_init)
        hidden = nn.silu(x @ w_in.astype(x.dtype) + b_in.astype(x.dtype))
        return hidden @ w_out.astype(x.dtype)


class TimeEmbedding(nn.Module):
    """MLP(concat(x_hour, x_day, x_week)) of integer hour 0..23, day 0..6 and week 0..15 (paper, section b)."""

    dim: int

    @nn.compact
    def __call__(self, hour: Array, day: Array, week: Array, dtype) -> Array:
        tables = [weight(self, name, (size, self.dim), (None, "embed"), normal(1.0))
                  for name, size in (("hour", 24), ("day", 7), ("week", 16))]
        parts = [table[index] for table, index in zip(tables, (hour, day, week), strict=True)]
        return MLP(self.dim, self.dim, out_scale=0.02)(jnp.concatenate(parts, -1).astype(dtype))


def attention(q_BxQxHxd: Array, k_BxTxGxd: Array, v_BxTxGxd: Array, mask_BxQxT: Array) -> Array:
    """softmax(q kᵀ / sqrt(d)) v with grouped queries, float32 logits; [B, Q, H, d].

    A query that may attend to nothing gets zeros.
    """
    B, Q, H, d = q_BxQxHxd.shape
    G = k_BxTxGxd.shape[2]
    q = q_BxQxHxd.reshape(B, Q, G, H // G, d)
    logits = jnp.einsum("bqghd,btgd->bghqt", q, k_BxTxGxd, preferred_element_type=jnp.float32) / jnp.sqrt(d)
    mask = mask_BxQxT[:, None, None]
    logits = jnp.where(mask, logits, NEG_INF)
    weights = jnp.where(mask, jax.nn.softmax(logits, -1), 0.0).astype(v_BxTxGxd.dtype)
    return jnp.einsum("bghqt,btgd->bqghd", weights, v_BxTxGxd).reshape(B, Q, H, d)


class _Heads(nn.Module):
    """x → [.., heads, d], RMS-normalised per head if asked (QK-norm)."""

    heads: int
    head_dim: int
    norm: bool
    axis: str = "heads"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w = weight(self, "w", (x.shape[-1], self.heads, self.head_dim), ("embed", self.axis, "head_dim"),
                   nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)))
        y = jnp.einsum("...d,dhk->...hk", x, w.astype(x.dtype))
        return RMSNorm("head_dim", name="norm")(y) if self.norm else y


class _GatedOutput(nn.Module):
    """O = (attention ⊙ sigmoid(X W_θ)) W_O, the gate read from the block's normed input (paper, gated attention)."""

    gate: bool

    @nn.compact
    def __call__(self, x: Array, attended: Array) -> Array:
        H, d = attended.shape[-2:]
        if self.gate:
            w = weight(self, "gate", (x.shape[-1], H, d), ("embed", "heads", "head_dim"),
                       nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)))
            attended = attended * nn.sigmoid(jnp.einsum("...d,dhk->...hk", x, w.astype(x.dtype)))
        w = weight(self, "out", (H, d, x.shape[-1]), ("heads", "head_dim", "embed"),
                   nn.initializers.variance_scaling(0.3, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2))
        return jnp.einsum("...hk,hkd->...d", attended, w.astype(x.dtype))


class CrossGatedAttention(nn.Module):
    """Beams and positions attend to the shared context keys and values; only queries, gate and output are its own."""

    heads: int
    head_dim: int
    qk_norm: bool
    gate: bool

    @nn.compact
    def __call__(self, x_BxWxSxD: Array, k_BxTxGxd: Array, v_BxTxGxd: Array, mask_BxT: Array) -> Array:
        B, W, S, D = x_BxWxSxD.shape
        q = _Heads(self.heads, self.head_dim, self.qk_norm, name="query")(x_BxWxSxD)
        mask = jnp.broadcast_to(mask_BxT[:, None], (B, W * S, mask_BxT.shape[1]))
        # W and S are one query axis here: no copy of the context is ever made for a beam.
        out = attention(q.reshape(B, W * S, *q.shape[3:]), k_BxTxGxd, v_BxTxGxd, mask)
        return _GatedOutput(self.gate, name="output")(x_BxWxSxD, out.reshape(B, W, S, *out.shape[2:]))


class SelfGatedAttention(nn.Module):
    """Causal attention over the decoded positions of each beam."""

    heads: int
    groups: int
    head_dim: int
    qk_norm: bool
    gate: bool

    @nn.compact
    def __call__(self, x_BxWxSxD: Array, cache: SelfCache | None = None,
                 position: int = 0) -> tuple[Array, SelfCache | None]:
        """Without cache: all S positions at once. With cache: S = 1, the static `position` is written and attended."""
        B, W, S, D = x_BxWxSxD.shape
        q = _Heads(self.heads, self.head_dim, self.qk_norm, name="query")(x_BxWxSxD)
        k = _Heads(self.groups, self.head_dim, self.qk_norm, "groups", name="key")(x_BxWxSxD)
        v = _Heads(self.groups, self.head_dim, False, "groups", name="value")(x_BxWxSxD)
        if cache is not None:
            k = cache.keys.at[:, :, position].set(k[:, :, 0])
            v = cache.values.at[:, :, position].set(v[:, :, 0])
            cache = SelfCache(k, v)
            mask = (jnp.arange(k.shape[2]) <= position)[None]
        else:
            mask = jnp.tril(jnp.ones((S, S), bool))
        if k.shape[2] == 1:  # one position attends to itself with weight one
            out = jnp.repeat(v, self.heads // self.groups, axis=3)
        else:
            flat = lambda y: y.reshape(B * W, *y.shape[2:])  # noqa: E731
            out = attention(flat(q), flat(k), flat(v), jnp.broadcast_to(mask, (B * W, S, k.shape[2])))
            out = out.reshape(B, W, S, self.heads, self.head_dim)
        return _GatedOutput(self.gate, name="output")(x_BxWxSxD, out), cache


class SwiGLU(nn.Module):
    """(X W_up ⊙ SiLU(X W_gate)) W_down."""

    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        D = x.shape[-1]
        up = weight(self, "up", (D, self.hidden), ("embed", "mlp"))
        gate = weight(self, "gate", (D, self.hidden), ("embed", "mlp"))
        down = weight(self, "down", (self.hidden, D), ("mlp", "embed"),
                      nn.initializers.variance_scaling(0.3, "fan_in", "truncated_normal"))
        return ((x @ up.astype(x.dtype)) * nn.silu(x @ gate.astype(x.dtype))) @ down.astype(x.dtype)


def dropout(module: nn.Module, x: Array, rate: float, train: bool) -> Array:
    if not train or rate == 0.0:
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
