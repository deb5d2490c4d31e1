"""The lazy decoder block and its stack (paper, section b; "lazy": no block projects the context again).

Axes as in layers.py. A block has three pre-norm residual branches: cross gated attention to the shared context,
causal self gated attention over the decoded positions, SwiGLU.
"""

from collections.abc import Callable
from typing import Any

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
from onelive_jax.sharding.placement import Placement

Array = jax.Array
LAYER_OF_CACHE = 2  # axis of the layers in a stacked cache: batch and beams come first in whatever a search carries


class DecoderBlock(nn.Module):
    """One block; it reads one of the L_kv shared key/value sets."""

    config: ModelConfig
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, x_BxWxSxD: Array, context: Context, set_index: int | Array, train: bool = False,
                 cache: SelfCache | None = None, position: int = 0) -> tuple[Array, SelfCache | None, Array]:
        """Returns: (hidden states [B, W, S, D], cache with `position` written or None, largest QK logit)."""
        c = self.config
        head_dim = c.dim // c.num_heads
        x = x_BxWxSxD
        drop_cross, drop_self, drop_mlp = make_dropouts(self, x.shape, c.dropout, train, 3)
        y, largest_cross = CrossGatedAttention(c.num_heads, head_dim, c.qk_norm, c.gate, c.attention, name="cross")(
            RMSNorm(name="cross_norm")(x), jnp.asarray(context.keys)[set_index],
            jnp.asarray(context.values)[set_index], context.mask)
        x = x + drop_cross(y)
        y, cache, largest_self = SelfGatedAttention(c.num_heads, c.num_groups, head_dim, c.qk_norm, c.gate,
                                                    c.attention, name="self")(
            RMSNorm(name="self_norm")(x), cache, position)
        x = x + drop_self(y)
        y = SwiGLU(c.mlp_dim, name="mlp")(RMSNorm(name="mlp_norm")(x))
        return self.placement.rows(x + drop_mlp(y)), cache, jnp.maximum(largest_cross, largest_self)


def rematerialised(function: Callable, config: ModelConfig) -> Callable:
    """`function(module, …arrays)` whose backward pass computes again what config.remat does not keep."""
    if config.remat == "none":
        return function
    # "dots" keeps the products with weights and recomputes the rest: norms, gates, attention's logits and softmax.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    return nn.remat(function, policy=policy, prevent_cse=not config.scan_layers)


class Decoder(nn.Module):
    """N blocks; block l reads key/value set floor(l · L_kv / N).

    Without config.scan_layers the blocks are block_0, block_1, …; with it they are one module `blocks`, whose
    parameters are stacked along a first axis "layers" and which is compiled once.
    """

    config: ModelConfig
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, x_BxWxSxD: Array, context: Context, train: bool = False, caches: Any = None,
                 position: int = 0) -> tuple[Array, Any, Array]:
        """Returns: (hidden states [B, W, S, D], the caches given with `position` written, the largest QK logit)."""
        c, N = self.config, self.config.num_layers
        sets = [layer * c.context_sets // N for layer in range(N)]

        def apply(block: DecoderBlock, x: Array, set_index: int | Array, cache: SelfCache | None):
            return block(x, context, set_index, train, cache, position)

        if c.scan_layers:
            def body(block: DecoderBlock, x: Array, layer: tuple[Array, SelfCache | None]):
                set_index, cache = layer
                if c.context_sets == 1:  # known: the loop need not pick it
                    one = rematerialised(lambda block, x, cache: apply(block, x, 0, cache), c)
                    x, cache, largest = one(block, x, cache)
                else:
                    x, cache, largest = rematerialised(apply, c)(block, x, set_index, cache)
                return x, (cache, largest)

            scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=N,
                           in_axes=((0, LAYER_OF_CACHE),), out_axes=(LAYER_OF_CACHE, 0),
                           metadata_params={nn.PARTITION_NAME: "layers"})
            blocks = DecoderBlock(c, self.placement, name="blocks")
            x, (caches, largest_N) = scan(blocks, x_BxWxSxD, (jnp.array(sets), caches))
            return x, caches, jnp.max(largest_N)

        x, new_caches, largest = x_BxWxSxD, [], jnp.zeros(())
        for layer, set_index in enumerate(sets):
            # `set_index` is bound here and not an argument, which rematerialisation would trace.
            one = rematerialised(lambda block, x, cache, set_index=set_index: apply(block, x, set_index, cache), c)
            x, cache, block_largest = one(DecoderBlock(c, self.placement, name=f"block_{layer}"), x,
                                          None if caches is None else caches[layer])
            new_caches.append(cache)
            largest = jnp.maximum(largest, block_largest)
        return x, None if caches is None else tuple(new_caches), largest


def empty_caches(config: ModelConfig, batch: int, beams: int, positions: int, dtype) -> Any:
    """Caches of zeros for decoding without multi-token prediction: a tuple of N `SelfCache`s [B, W, S, G, d], or
    (scan_layers) one of [B, W, N, S, G, d]; beams are picked along axis 1 of either."""
    head_dim = config.dim // config.num_heads

    def zeros(*layers: int) -> SelfCache:
        shape = (batch, beams, *layers, positions, config.num_groups, head_dim)
        return SelfCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    return zeros(config.num_layers) if config.scan_layers else tuple(zeros() for _ in range(config.num_layers))
