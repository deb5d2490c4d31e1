"""The user tower and the author tower: where the IA embedding comes from (paper, section a.1-3).

`tower_training.train_towers` aligns them by InfoNCE, `encoder.Towers` applies what it learned. A user is what was
watched lately, an author is its own embedding mixed with the content of its room. Both may have side features:
attributes of an author, features of a user.

Axes: B users or pairs, T history views, A authors, C content width, S width of an author's attributes, F width of a
user's features, D embedding width.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from onelive_jax.config import TokenizerConfig
from onelive_jax.model.layers import MLP, normal, weight, zeros

Array = jax.Array

# The learned temperature stays above this multiple of its start. Left alone it falls to .04 on a log of 90,000 views:
# the towers then learn pairs by heart, and the quantizer finds no clusters in what they make.
TEMPERATURE_FLOOR = 0.85


def normalise(x: Array) -> Array:
    """Unit length along the last axis."""
    # The epsilon stands inside the root: the gradient at a zero vector is zero, not NaN.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


class AuthorTower(nn.Module):
    """x_author = lambda x_AId + (1 - lambda) x_MLLM, x_MLLM = MLP(concat(x_30s, x_pool)).

    The gate lambda = limit sigmoid(slope log(1 + training views) + bias) learns how much evidence an author's own
    embedding needs before it is trusted. It is 0 for an author never seen in training (whose own embedding is noise)
    and 1 where there is no content. Without a limit below 1, lambda of busy authors nears 1, and their ids no longer
    follow what they show. An author with neither keeps its random, untrained embedding: its codes set it apart but mean
    nothing.

    With attributes, x_AId = [views > 0] id + MLP(attributes): an author never seen, and without content, is then placed
    by its attributes.
    """

    num_authors: int
    dim: int
    hidden: int
    gate_limit: float = 1.0

    @nn.compact
    def __call__(self, author: Array, views: Array, content: Array, has_content: Array,
                 attributes: Array | None = None) -> Array:
        """Fused author vectors, before the L2 norm.

        Args:
          author: int32 [...], dense author index.
          views: float32 [...], the author's training views.
          content: float32 [..., C], concat(x_30s, x_pool); C may be 0.
          has_content: bool [...], False where no content is known at that moment (the vector is then ignored).
          attributes: float32 [..., S], the author's side features, or None where the log has none.

        Returns:
          float32 [..., D].
        """
        table = weight(self, "author_id", (self.num_authors, self.dim), ("authors", "embed"), normal(self.dim**-0.5))
        x_id = table[author]
        if attributes is not None:
            known = (views > 0)[..., None]
            mlp = MLP(self.hidden, self.dim, out_bias=True, name="attributes")
            x_id = jnp.where(known, x_id, 0.0) + mlp(attributes)
        if content.shape[-1] == 0:
            return x_id
        gate = weight(self, "gate", (2,), (None,), lambda *_: jnp.array([1.0, -2.0]))
        content = jnp.where(has_content[..., None], content, 0.0)
        x_mllm = MLP(self.hidden, self.dim, out_bias=True, name="content")(content)
        mix = gate_value(gate, views, has_content, self.gate_limit)[..., None]
        return mix * x_id + (1.0 - mix) * x_mllm


def gate_value(gate: Array, views: Array, has_content: Array, limit: float = 1.0) -> Array:
    """lambda, float32 [...], from (slope, bias) float32 [2], training views [...] and has_content bool [...].

    At most `limit` where there is content.
    """
    learned = limit * jax.nn.sigmoid(gate[0] * jnp.log1p(views) + gate[1])
    return jnp.where(has_content, jnp.where(views > 0, learned, 0.0), 1.0)


class UserTower(nn.Module):
    """A user as what was watched lately: attention pooling over recent views, and an MLP beside it.

    The items are author-tower vectors: authors who are watched together then come together even when they are hardly
    ever a positive themselves, and new authors enter through their content.
    """

    history: int
    dim: int
    hidden: int

    @nn.compact
    def __call__(self, items_BxTxD: Array, mask_BxT: Array, features_BxF: Array | None = None) -> Array:
        """float32 [B, D], before the L2 norm, from items float32 [B, T, D], oldest first, and their mask bool [B, T].

        Features of the users float32 [B, F], where there are any, go through an MLP of their own, whose output is
        added: a user without any view is then placed by them, and is the MLPs' biases alone otherwise. Raises
        ValueError where T exceeds `history`.
        """
        if items_BxTxD.shape[1] > self.history:
            raise ValueError(f"a history of {items_BxTxD.shape[1]} views is longer than config.tokenizer.history_items="
                             f"{self.history}: give the most recent ones")
        recency_T = weight(self, "recency", (self.history,), (None,), zeros)
        query_D = weight(self, "query", (self.dim,), ("embed",), zeros)
        items_BxTxD = normalise(items_BxTxD)
        score_BxT = jnp.einsum("btd,d->bt", items_BxTxD, query_D) + recency_T[self.history - items_BxTxD.shape[1]:]
        score_BxT = jnp.where(mask_BxT, score_BxT, -1e9)
        weight_BxT = jax.nn.softmax(score_BxT, axis=-1) * mask_BxT
        pooled_BxD = jnp.einsum("bt,btd->bd", weight_BxT, items_BxTxD)
        mlp = MLP(self.hidden, self.dim, out_bias=True, in_axis="embed", name="mlp")
        user_BxD = pooled_BxD + mlp(pooled_BxD)
        if features_BxF is None:
            return user_BxD
        return user_BxD + MLP(self.hidden, self.dim, out_bias=True, name="features")(features_BxF)


class TwoTowers(nn.Module):
    """Both towers and the temperature of InfoNCE."""

    num_authors: int
    config: TokenizerConfig

    def setup(self):
        c = self.config
        self.author_tower = AuthorTower(self.num_authors, c.dim, c.hidden, c.gate_limit)
        self.user_tower = UserTower(c.history_items, c.dim, c.hidden)
        self.log_excess = weight(self, "log_excess_temperature", (), (), zeros)

    def authors(self, author: Array, views: Array, content: Array, has_content: Array,
                attributes: Array | None = None) -> Array:
        """IA embeddings, unit length, float32 [..., D]; arguments as `AuthorTower`."""
        return normalise(self.author_tower(author, views, content, has_content, attributes))

    def users(self, author: Array, views: Array, content: Array, has_content: Array, mask: Array,
              attributes: Array | None = None, features: Array | None = None) -> Array:
        """User embeddings, unit length, float32 [B, D], from history views [B, T] described as in `AuthorTower` and,
        where there are any, features of the users float32 [B, F]."""
        items_BxTxD = self.author_tower(author, views, content, has_content, attributes)
        return normalise(self.user_tower(items_BxTxD, mask, features))

    def __call__(self, pair: Mapping[str, Array], history: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """(users [B, D], authors [B, D], temperature []) of positive pairs and the histories before them.

        `pair` holds the arguments of `authors`, `history` those of `users`.
        """
        # The excess over the floor is learned, not clipped: a clipped temperature could never rise again.
        excess = (1.0 - TEMPERATURE_FLOOR) * jnp.exp(self.log_excess)
        temperature = self.config.temperature * (TEMPERATURE_FLOOR + excess)
        return self.users(**history), self.authors(**pair), temperature


def info_nce(user_BxD: Array, author_BxD: Array, temperature: Array, author_B: Array, log_q_B: Array,
             weight_B: Array) -> Array:
    """InfoNCE with in-batch negatives, corrected for how often an author is a negative.

    s_ij = u_i . a_j / temperature - log q_j;  loss = - mean_i log( exp s_ii / sum_j exp s_ij ), j over the batch
    without the other pairs of i's own author: a duplicate of the positive is no negative.

    Args:
      user_BxD, author_BxD: float32 [B, D], unit length, row i a positive pair.
      temperature: float32 [].
      author_B: int32 [B], who the positives are.
      log_q_B: float32 [B], log probability that a draw of the batch is this author.
      weight_B: float32 [B], weight of a pair as a positive; pairs of weight 0 still serve as negatives.

    Returns:
      float32 [], the weighted mean; 0 where no pair has weight.
    """
    logits_BxB = jnp.einsum("id,jd->ij", user_BxD, author_BxD) / temperature - log_q_B
    twin_BxB = (author_B[:, None] == author_B) & ~jnp.eye(author_B.shape[0], dtype=bool)
    logits_BxB = jnp.where(twin_BxB, -jnp.inf, logits_BxB)
    loss_B = jax.nn.logsumexp(logits_BxB, axis=-1) - jnp.diagonal(logits_BxB)
    return jnp.sum(loss_B * weight_B) / jnp.maximum(jnp.sum(weight_B), 1e-6)
