"""RMSNorm, time embedding, QK-normed gated attention, feed-forward.

Axes: B batch, W beams (1 in training), S decoded positions, T history items, D model width, H query heads,
G key/value groups, d head width, F feed-forward width.

Parameters are float32 and carry logical axis names, from which their shardings are derived
(onelive_jax/sharding/partitioning.py). Activations have the dtype of the input; softmax and logits are float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.linalg
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
    """Two layers with SiLU between; `out_scale` is the standard deviation of the last layer's start.

    `out_bias`: whether the last layer has a bias too. `in_axis`: name of the input's axis. With `rows_xR`, the input is
    rows_xR @ x without its being formed: x is a table of R rows.
    """

    hidden: int
    out: int
    out_scale: float | None = None
    out_bias: bool = False
    in_axis: str = "features"

    @nn.compact
    def __call__(self, x: Array, rows_xR: Array | None = None) -> Array:
        w_in = weight(self, "w_in", (x.shape[-1], self.hidden), (self.in_axis, "mlp"))
        b_in = weight(self, "b_in", (self.hidden,), ("mlp",), zeros)
        out_init = None if self.out_scale is None else normal(self.out_scale)
        w_out = weight(self, "w_out", (self.hidden, self.out), ("mlp", "embed"), out_init)
        first = x @ w_in.astype(x.dtype)
        first = first if rows_xR is None else rows_xR @ first
        out = nn.silu(first + b_in.astype(x.dtype)) @ w_out.astype(x.dtype)
        return out + weight(self, "b_out", (self.out,), ("embed",), zeros).astype(x.dtype) if self.out_bias else out


class TimeEmbedding(nn.Module):
    """MLP(concat(x_hour, x_day, x_week)) of integer hour 0..23, day 0..6 and week 0..15 (paper, section b)."""

    dim: int

    @nn.compact
    def __call__(self, hour: Array, day: Array, week: Array, dtype) -> Array:
        sizes = {"hour": 24, "day": 7, "week": 16}
        tables = [weight(self, name, (size, self.dim), (None, "embed"), normal(1.0)) for name, size in sizes.items()]
        # The first layer is linear in the concatenation, so it is applied to the 47 rows of the tables (as one block
        # diagonal matrix) and not to every item; picking rows by a matrix product keeps scatters out of the gradient.
        rows = jax.scipy.linalg.block_diag(*tables)
        picked = [jax.nn.one_hot(index, size, dtype=dtype)
                  for index, size in zip((hour, day, week), sizes.values(), strict=True)]
        return MLP(self.dim, self.dim, out_scale=0.02)(rows.astype(dtype), jnp.concatenate(picked, -1))


def _attention_logits(q_BxQxHxd: Array, k_BxTxGxd: Array) -> Array:
    """q kᵀ / sqrt(d), float32 [B, G, H / G, Q, T]."""
    B, Q, H, d = q_BxQxHxd.shape
    G = k_BxTxGxd.shape[2]
    q = q_BxQxHxd.reshape(B, Q, G, H // G, d)
    return jnp.einsum("bqghd,btgd->bghqt", q, k_BxTxGxd, preferred_element_type=jnp.float32) / jnp.sqrt(d)


def largest_logit(q_BxQxHxd: Array, k_BxTxGxd: Array, mask_BxQxT: Array) -> Array:
    """max |q kᵀ / sqrt(d)| over the pairs that attend, float32 []: what QK-norm keeps small (paper, Figure 3).

    Where `attention` is an einsum too, the compiler merges the two products; where nobody reads it, it costs nothing.
    """
    logits = _attention_logits(*jax.lax.stop_gradient((q_BxQxHxd, k_BxTxGxd)))
    return jnp.max(jnp.where(mask_BxQxT[:, None, None], jnp.abs(logits), 0.0))


def attention(q_BxQxHxd: Array, k_BxTxGxd: Array, v_BxTxGxd: Array, mask_BxQxT: Array,
              kernel: str = "einsum") -> Array:
    """softmax(q kᵀ / sqrt(d)) v with grouped queries, float32 logits; [B, Q, H, d].

    A query that may attend to nothing gets zeros. `kernel`: "einsum"; "dot_product" or "cudnn",
    `jax.nn.dot_product_attention` as it chooses or by cuDNN; "auto", einsum on a CPU and dot_product elsewhere.
    """
    if kernel == "auto":
        kernel = "einsum" if jax.default_backend() == "cpu" else "dot_product"
    if kernel != "einsum":
        out = jax.nn.dot_product_attention(q_BxQxHxd, k_BxTxGxd, v_BxTxGxd, mask=mask_BxQxT[:, None],
                                           implementation="cudnn" if kernel == "cudnn" else None)
        return jnp.where(mask_BxQxT.any(-1)[:, :, None, None], out, 0.0)
    B, Q, H, d = q_BxQxHxd.shape
    mask = mask_BxQxT[:, None, None]
    logits = jnp.where(mask, _attention_logits(q_BxQxHxd, k_BxTxGxd), NEG_INF)
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
    kernel: str = "einsum"

    @nn.compact
    def __call__(self, x_BxWxSxD: Array, k_BxTxGxd: Array, v_BxTxGxd: Array, mask_BxT: Array) -> tuple[Array, Array]:
        """Returns: ([B, W, S, D], the largest logit, see `largest_logit`)."""
        B, W, S, D = x_BxWxSxD.shape
        q = _Heads(self.heads, self.head_dim, self.qk_norm, name="query")(x_BxWxSxD)
        mask = jnp.broadcast_to(mask_BxT[:, None], (B, W * S, mask_BxT.shape[1]))
        # W and S are one query axis here: no copy of the context is ever made for a beam.
        q = q.reshape(B, W * S, *q.shape[3:])
        out = attention(q, k_BxTxGxd, v_BxTxGxd, mask, self.kernel)
        out = _GatedOutput(self.gate, name="output")(x_BxWxSxD, out.reshape(B, W, S, *out.shape[2:]))
        return out, largest_logit(q, k_BxTxGxd, mask)


class SelfGatedAttention(nn.Module):
    """Causal attention over the decoded positions of each beam."""

    heads: int
    groups: int
    head_dim: int
    qk_norm: bool
    gate: bool
    kernel: str = "einsum"

    @nn.compact
    def __call__(self, x_BxWxSxD: Array, cache: SelfCache | None = None,
                 position: int = 0) -> tuple[Array, SelfCache | None, Array]:
        """Without cache: all S positions at once. With cache: S = 1, the static `position` is written and attended.

        Returns: ([B, W, S, D], cache, the largest logit: 0 where a single position attends to itself).
        """
        B, W, S, D = x_BxWxSxD.shape
        q = _Heads(self.heads, self.head_dim, self.qk_norm, name="query")(x_BxWxSxD)
        k = _Heads(self.groups, self.head_dim, self.qk_norm, "groups", name="key")(x_BxWxSxD)
        v = _Heads(self.groups, self.head_dim, False, "groups", name="value")(x_BxWxSxD)
        if cache is not None:
            cache = SelfCache(cache.keys.at[:, :, position].set(k[:, :, 0]),
                              cache.values.at[:, :, position].set(v[:, :, 0]))
            k, v = cache.keys[:, :, :position + 1], cache.values[:, :, :position + 1]
            mask = jnp.ones((1, position + 1), bool)
        else:
            mask = jnp.tril(jnp.ones((S, S), bool))
        if k.shape[2] == 1:  # one position attends to itself with weight one
            out, largest = jnp.repeat(v, self.heads // self.groups, axis=3), jnp.zeros(())
        else:
            q, k, v = (y.reshape(B * W, *y.shape[2:]) for y in (q, k, v))
            mask = jnp.broadcast_to(mask, (B * W, S, k.shape[1]))
            out = attention(q, k, v, mask, self.kernel).reshape(B, W, S, self.heads, self.head_dim)
            largest = largest_logit(q, k, mask)
        return _GatedOutput(self.gate, name="output")(x_BxWxSxD, out), cache, largest


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


def make_dropouts(module: nn.Module, shape, rate: float, train: bool, count: int) -> list[Callable[[Array], Array]]:
    """`count` (1 … 3) independent dropouts for arrays of one shape, from a single draw.

    Each entry is dropped with probability `rate` rounded to a multiple of 1/1024 and otherwise scaled to keep the mean.
    """
    dropped = round(rate * 1024)
    if not train or dropped == 0:
        return [lambda x: x] * count
    # A draw is a loop of many small steps, so a block draws once: 32 random bits serve three branches, ten bits each.
    bits = jax.random.bits(module.make_rng("dropout"), shape, jnp.uint32)

    def make(branch: int):
        keep = (bits >> (10 * branch)) & 1023 >= dropped
        return lambda x: jnp.where(keep, x * (1024 / (1024 - dropped)), 0.0).astype(x.dtype)

    return [make(branch) for branch in range(count)]


def dropout(module: nn.Module, x: Array, rate: float, train: bool) -> Array:
    """One of `make_dropouts`."""
    return make_dropouts(module, x.shape, rate, train, 1)[0](x)
