"""History sequences → the keys and values that all blocks share (paper, section b, context sequence projector).

Axes: B batch, T items of all sequences together, L code levels, D model width, G groups, d head width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from onelive_jax.batch import Request
from onelive_jax.config import ModelConfig
from onelive_jax.model.layers import (
    MLP,
    Context,
    RMSNorm,
    TimeEmbedding,
    dropout,
    normal,
    rms_normalise,
    weight,
)
from onelive_jax.sharding.placement import Placement

Array = jax.Array


class ContextProjector(nn.Module):
    """Items with their own times, concatenated; one linear layer makes C, and set l reads k_l = RMSNorm(C[l·S_kv]) and
    v_l = RMSNorm(C[l·S_kv + 1]) (S_kv = 2) or v_l = k_l (S_kv = 1), as OneRec-V2 has it."""

    config: ModelConfig
    sequences: tuple[str, ...]
    placement: Placement = Placement()

    @nn.compact
    def __call__(self, request: Request, code_table_LxKxD: Array, author_table_AxE: Array | None,
                 train: bool = False) -> Context:
        """Tables are the embeddings of codes and, where items carry their author's own embedding, of authors."""
        c = self.config
        dtype = jnp.dtype(c.activation_dtype)
        named = [request.histories[name] for name in self.sequences]
        join = lambda field: jnp.concatenate([getattr(h, field) for h in named], 1)  # noqa: E731
        codes_BxTxL, mask_BxT, habits_BxTxF = join("codes"), join("mask"), join("habits")

        x = sum(self.placement.take(code_table_LxKxD[level], ("codes", "embed"), codes_BxTxL[..., level])
                for level in range(codes_BxTxL.shape[-1]))
        if author_table_AxE is not None:
            project = weight(self, "author", (author_table_AxE.shape[-1], c.dim), ("features", "embed"))
            x = x + self.placement.take(author_table_AxE, ("authors", "features"), join("author")) @ project
        x = x.astype(dtype)
        if c.habits:
            x = x + MLP(c.dim, c.dim, name="habits")(habits_BxTxF.astype(dtype))
        kind = weight(self, "sequence", (len(named), c.dim), (None, "embed"), normal(0.02))
        x = x + jnp.repeat(kind, jnp.array([h.mask.shape[1] for h in named]), axis=0,
                           total_repeat_length=mask_BxT.shape[1]).astype(dtype)
        if c.item_time:
            # x_i ← x_i + MLP(concat(x_hour, x_day, x_week))
            x = x + TimeEmbedding(c.dim, name="time")(join("hour"), join("day"), join("week"), dtype)
        items = dropout(self, rms_normalise(self.placement.rows(x)), c.dropout, train)

        head_dim = c.dim // c.num_heads
        slices = c.context_split * c.context_sets
        project = weight(self, "keys_values", (c.dim, slices, c.num_groups, head_dim),
                         ("embed", None, "groups", "head_dim"),
                         nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0,
                                                          out_axis=(1, 2, 3)))
        shared = jnp.einsum("btd,dsgk->sbtgk", items, project.astype(dtype))
        keys, values = [], []
        for l in range(c.context_sets):
            keys.append(RMSNorm("head_dim", name=f"key_norm_{l}")(shared[l * c.context_split]))
            values.append(keys[-1] if c.context_split == 1 else
                          RMSNorm("head_dim", name=f"value_norm_{l}")(shared[l * c.context_split + 1]))
        return Context(jnp.stack(keys), jnp.stack(values), items, join("author"), codes_BxTxL, habits_BxTxF, mask_BxT)
