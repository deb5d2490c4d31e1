"""Sequential multi-token prediction: one light module a further code (paper, section b).

The main decoder predicts q0 from [BOS]. Module k reads, at each position, the previous module's hidden state and the
embedding of the code that this state predicted, and predicts the next code with a single block. When decoding, each
module therefore runs once, on one position.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from onelive_jax.config import ModelConfig
from onelive_jax.model.decoder import DecoderBlock
from onelive_jax.model.layers import Context, RMSNorm, weight

Array = jax.Array


class MTPModule(nn.Module):
    """h'_p = Block(W [RMSNorm(h_p); RMSNorm(e(q))])."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BxWxSxD: Array, code_BxWxSxD: Array, context: Context, train: bool = False) -> Array:
        """Hidden states of the previous module and the embeddings of the codes they predicted → hidden states."""
        D = self.config.dim
        pair = jnp.concatenate([RMSNorm(name="hidden_norm")(hidden_BxWxSxD),
                                RMSNorm(name="code_norm")(code_BxWxSxD)], -1)
        merged = pair @ weight(self, "merge", (2 * D, D), ("features", "embed")).astype(pair.dtype)
        last_set = self.config.context_sets - 1
        return DecoderBlock(self.config, last_set, name="block")(merged, context, train)[0]
