"""Transformer blocks that the baselines share: attention under any mask, pre-norm, over the library's layers.

Axes: B batch, Q queries, T places, D width, H heads, d head width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from onelive_jax.model.layers import MLP, RMSNorm, attention, dropout, weight

Array = jax.Array


class Attention(nn.Module):
    """softmax(q kᵀ / sqrt(d)) v with all heads' projections its own; nothing is attended where nothing may be."""

    heads: int

    @nn.compact
    def __call__(self, x_BxQxD: Array, y_BxTxD: Array, mask_BxQxT: Array) -> Array:
        D = x_BxQxD.shape[-1]
        shape, axes = (D, self.heads, D // self.heads), ("embed", "heads", "head_dim")
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
        q = jnp.einsum("bqd,dhk->bqhk", x_BxQxD, weight(self, "query", shape, axes, init))
        k = jnp.einsum("btd,dhk->bthk", y_BxTxD, weight(self, "key", shape, axes, init))
        v = jnp.einsum("btd,dhk->bthk", y_BxTxD, weight(self, "value", shape, axes, init))
        out = weight(self, "out", (self.heads, D // self.heads, D), ("heads", "head_dim", "embed"),
                     nn.initializers.variance_scaling(0.3, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2))
        return jnp.einsum("bqhk,hkd->bqd", attention(q, k, v, mask_BxQxT), out)


class Block(nn.Module):
    """Pre-norm: self-attention, then (where there is something to attend to) cross-attention, then an MLP.

    `memory` [B, M, D] are earlier places of the same stream: they are attended to beside x, and not computed again.
    """

    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x_BxQxD: Array, mask_BxQxQ: Array, train: bool, context_BxTxD: Array | None = None,
                 context_mask_BxQxT: Array | None = None, memory_BxMxD: Array | None = None) -> Array:
        """mask: of x alone, [B, Q, Q]; with memory, of both, [B, Q, M + Q]."""
        norm = RMSNorm(name="self_norm")
        y = norm(x_BxQxD)
        both = y if memory_BxMxD is None else jnp.concatenate([norm(memory_BxMxD), y], 1)
        x = x_BxQxD + dropout(self, Attention(self.heads, name="self")(y, both, mask_BxQxQ), self.dropout, train)
        if context_BxTxD is not None:
            y = RMSNorm(name="cross_norm")(x)
            y = Attention(self.heads, name="cross")(y, context_BxTxD, context_mask_BxQxT)
            x = x + dropout(self, y, self.dropout, train)
        y = MLP(self.hidden, x.shape[-1], name="mlp")(RMSNorm(name="mlp_norm")(x))
        return x + dropout(self, y, self.dropout, train)
