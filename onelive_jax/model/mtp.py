"""Sequential multi-token prediction: one light module a further code (paper, section b).

The main decoder predicts q0 from [BOS]. Module k reads, at each position, the previous module's hidden state and the
embedding of the code that this state predicted, and predicts the next code with a single block. When decoding, each
module therefore runs once, on one position.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from onelive_jax.config import ModelConfig
from onelive_jax.model.decoder import DecoderBlock, rematerialised
from onelive_jax.model.layers import Context, RMSNorm, weight
from onelive_jax.sharding.placement import Placement

Array = jax.Array


class MTPModule(nn.Module):
    """h'_p = Block(W [RMSNorm(h_p); RMSNorm(e(q))])."""

    config: ModelConfig
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, hidden_BxWxSxD: Array, code_BxWxSxD: Array, context: Context,
                 train: bool = False) -> tuple[Array, Array]:
        """Hidden states of the previous module and the embeddings of the codes they predicted → (hidden states, the
        largest QK logit)."""
        D = self.config.dim
        pair = jnp.concatenate([RMSNorm(name="hidden_norm")(hidden_BxWxSxD),
                                RMSNorm(name="code_norm")(code_BxWxSxD)], -1)
        merged = pair @ weight(self, "merge", (2 * D, D), ("features", "embed")).astype(pair.dtype)
        merged = self.placement.rows(merged)
        last_set = self.config.context_sets - 1
        apply = rematerialised(lambda block, x: block(x, context, last_set, train)[::2], self.config)
        return apply(DecoderBlock(self.config, self.placement, name="block"), merged)
