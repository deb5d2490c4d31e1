"""The lazy decoder block and its stack (paper, section b; "lazy": no block projects the context again).

Axes as in layers.py. A block has three pre-norm residual branches: cross gated attention to the shared context,
causal self gated attention over the decoded positions, SwiGLU.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from onelive_jax.config import ModelConfig
from onelive_jax.model.layers import (
    Context,
    CrossGatedAttention,
    RMSNorm,
    SelfCache,
    SelfGatedAttention,
    SwiGLU,
    make_dropouts,
)

Array = jax.Array


class DecoderBlock(nn.Module):
    """One block; `set_index` says which of the L_kv shared key/value sets it reads."""

    config: ModelConfig
    set_index: int

    @nn.compact
    def __call__(self, x_BxWxSxD: Array, context: Context, train: bool = False, cache: SelfCache | None = None,
                 position: int = 0) -> tuple[Array, SelfCache | None]:
        c = self.config
        head_dim = c.dim // c.num_heads
        x = x_BxWxSxD
        drop_cross, drop_self, drop_mlp = make_dropouts(self, x.shape, c.dropout, train, 3)
        y = CrossGatedAttention(c.num_heads, head_dim, c.qk_norm, c.gate, name="cross")(
            RMSNorm(name="cross_norm")(x), context.keys[self.set_index], context.values[self.set_index], context.mask)
        x = x + drop_cross(y)
        y, cache = SelfGatedAttention(c.num_heads, c.num_groups, head_dim, c.qk_norm, c.gate, name="self")(
            RMSNorm(name="self_norm")(x), cache, position)
        x = x + drop_self(y)
        y = SwiGLU(c.mlp_dim, name="mlp")(RMSNorm(name="mlp_norm")(x))
        return x + drop_mlp(y), cache


class Decoder(nn.Module):
    """N blocks; block l reads key/value set floor(l · L_kv / N)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxWxSxD: Array, context: Context, train: bool = False,
                 caches: tuple[SelfCache, ...] | None = None, position: int = 0):
        """Returns the hidden states [B, W, S, D] and, if caches were given, the caches with `position` written."""
        N, sets = self.config.num_layers, self.config.context_sets
        new_caches = []
        x = x_BxWxSxD
        for layer in range(N):
            block = DecoderBlock(self.config, layer * sets // N, name=f"block_{layer}")
            x, cache = block(x, context, train, None if caches is None else caches[layer], position)
            new_caches.append(cache)
        return x, None if caches is None else tuple(new_caches)


def empty_caches(config: ModelConfig, batch: int, beams: int, positions: int, dtype) -> tuple[SelfCache, ...]:
    """Caches of zeros for decoding without multi-token prediction."""
    shape = (batch, beams, positions, config.num_groups, config.dim // config.num_heads)
    return tuple(SelfCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers))
