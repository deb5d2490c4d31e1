"""The user tower and the author tower: where the IA embedding comes from (paper, section a.1-3).

`tower_training.train_towers` aligns them by InfoNCE. A user is what was watched lately, an author is its own
embedding mixed with the content of its room. Both may have side features: attributes of an author, features of a user.

Axes: B users or pairs, T history views, A authors, M (author, moment) rows, Q queries, C content width, S width of an
author's attributes, F width of a user's features, D embedding width, H hidden width.
"""

import functools
from typing import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onelive_jax.config import TokenizerConfig

Array = jax.Array

# Names of parameter axes.
EMBED, HIDDEN, AUTHORS, CONTENT, ATTRIBUTES = "embed", "mlp", "authors", "content", "features"
# The learned temperature stays above this multiple of its start. Left alone it falls to .04 on a log of 90,000 views:
# the towers then learn pairs by heart, and the quantizer finds no clusters in what they make.
TEMPERATURE_FLOOR = 0.85


def _dense_init(*axes: str):
    return nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)


def _zeros_init(*axes: str | None):
    return nn.with_logical_partitioning(nn.initializers.zeros, axes)


def _normalise(x: Array) -> Array:
    # The epsilon stands inside the root: the gradient at a zero vector is zero, not NaN.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


class Mlp(nn.Module):
    """Two layers, float32 [..., in] -> [..., features]."""

    hidden: int
    features: int
    in_axis: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w_in = self.param("w_in", _dense_init(self.in_axis, HIDDEN), (x.shape[-1], self.hidden))
        b_in = self.param("b_in", _zeros_init(HIDDEN), (self.hidden,))
        w_out = self.param("w_out", _dense_init(HIDDEN, EMBED), (self.hidden, self.features))
        b_out = self.param("b_out", _zeros_init(EMBED), (self.features,))
        x = jax.nn.silu(jnp.einsum("...i,ih->...h", x, w_in) + b_in)
        return jnp.einsum("...h,hd->...d", x, w_out) + b_out


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
        table = self.param("author_id", nn.with_logical_partitioning(nn.initializers.normal(self.dim**-0.5),
                                                                     (AUTHORS, EMBED)), (self.num_authors, self.dim))
        x_id = table[author]
        if attributes is not None:
            known = (views > 0)[..., None]
            x_id = jnp.where(known, x_id, 0.0) + Mlp(self.hidden, self.dim, ATTRIBUTES, name="attributes")(attributes)
        if content.shape[-1] == 0:
            return x_id
        gate = self.param("gate", nn.with_logical_partitioning(lambda *_: jnp.array([1.0, -2.0]), (None,)))
        x_mllm = Mlp(self.hidden, self.dim, CONTENT, name="content")(jnp.where(has_content[..., None], content, 0.0))
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
        recency_T = self.param("recency", _zeros_init(None), (self.history,))
        query_D = self.param("query", _zeros_init(EMBED), (self.dim,))
        items_BxTxD = _normalise(items_BxTxD)
        score_BxT = jnp.einsum("btd,d->bt", items_BxTxD, query_D) + recency_T[self.history - items_BxTxD.shape[1]:]
        score_BxT = jnp.where(mask_BxT, score_BxT, -1e9)
        weight_BxT = jax.nn.softmax(score_BxT, axis=-1) * mask_BxT
        pooled_BxD = jnp.einsum("bt,btd->bd", weight_BxT, items_BxTxD)
        user_BxD = pooled_BxD + Mlp(self.hidden, self.dim, EMBED, name="mlp")(pooled_BxD)
        if features_BxF is None:
            return user_BxD
        return user_BxD + Mlp(self.hidden, self.dim, ATTRIBUTES, name="features")(features_BxF)


class TwoTowers(nn.Module):
    """Both towers and the temperature of InfoNCE."""

    num_authors: int
    config: TokenizerConfig

    def setup(self):
        c = self.config
        self.author_tower = AuthorTower(self.num_authors, c.dim, c.hidden, c.gate_limit)
        self.user_tower = UserTower(c.history_items, c.dim, c.hidden)
        self.log_excess = self.param("log_excess_temperature",
                                     nn.with_logical_partitioning(nn.initializers.zeros, ()), ())

    def authors(self, author: Array, views: Array, content: Array, has_content: Array,
                attributes: Array | None = None) -> Array:
        """IA embeddings, unit length, float32 [..., D]; arguments as `AuthorTower`."""
        return _normalise(self.author_tower(author, views, content, has_content, attributes))

    def users(self, author: Array, views: Array, content: Array, has_content: Array, mask: Array,
              attributes: Array | None = None, features: Array | None = None) -> Array:
        """User embeddings, unit length, float32 [B, D], from history views [B, T] described as in `AuthorTower` and,
        where there are any, features of the users float32 [B, F]."""
        items_BxTxD = self.author_tower(author, views, content, has_content, attributes)
        return _normalise(self.user_tower(items_BxTxD, mask, features))

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


def author_embeddings(params: dict, config: TokenizerConfig, author_views: np.ndarray, author: np.ndarray | None = None,
                      content: np.ndarray | None = None, has_content: np.ndarray | None = None,
                      chunk: int = 65536, attributes: np.ndarray | None = None) -> np.ndarray:
    """IA embeddings of authors, or of (author, moment) rows.

    Args:
      params: from `train_towers`.
      config: the config that trained them.
      author_views: int [A], `TowersResult.author_views`.
      author: int32 [M], dense indices; all authors in order if None.
      content: float32 [M, C], the content of each row, or None where the towers were trained without.
      has_content: bool [M]; all True if None.
      chunk: rows computed at once.
      attributes: float32 [A, S], side features of every author, or None where the towers were trained without.

    Returns:
      float32 [M, D], unit length.

    Raises:
      ValueError: an author outside 0 … A-1; content or attributes given to towers trained without them, or the other
        way round, of another width, or NaN or infinite in a row that is read.
    """
    author = _check_authors(params, np.arange(len(params["author_tower"]["author_id"])) if author is None else author)
    if (content is not None) != ("content" in params["author_tower"]):
        raise ValueError("the towers were trained " + ("without content: give none" if content is not None else
                                                       "with content: give `content`, one row an author"))
    attributes = _check_attributes(params, attributes)
    content = np.zeros((len(author), 0), np.float32) if content is None else np.asarray(content, np.float32)
    has_content = np.full(len(author), content.shape[1] > 0) if has_content is None else np.asarray(has_content, bool)
    _check_content(params, content, has_content)
    views = np.asarray(author_views)[author].astype(np.float32)
    sides = [] if attributes is None else [_attributes_of(attributes, author)]
    parts = []
    for i in range(0, len(author), chunk):
        rows = [values[i:i + chunk] for values in (author, views, content, has_content, *sides)]
        parts.append(np.asarray(_authors(params["author_tower"], config.dim, config.hidden, config.gate_limit,
                                         *map(_padded, rows)))[:len(rows[0])])
    return np.concatenate(parts) if parts else np.zeros((0, config.dim), np.float32)


def user_embeddings(params: dict, config: TokenizerConfig, author_views: np.ndarray, history_BxT: np.ndarray,
                    mask_BxT: np.ndarray, content_BxTxC: np.ndarray | None = None,
                    has_content_BxT: np.ndarray | None = None, attributes_AxS: np.ndarray | None = None,
                    features_BxF: np.ndarray | None = None) -> np.ndarray:
    """User embeddings, unit length, float32 [B, D], from the authors of recent views int32 [B, T], oldest first.

    Content of those views, attributes of all authors and features of the users: as the towers were trained.

    Raises:
      ValueError: as `author_embeddings`; also for features of another width or number of rows, or NaN or infinite.
        Where the mask is False `history_BxT` must name some author all the same, and its attributes count as read.
    """
    history_BxT = _check_authors(params, history_BxT)
    if (features_BxF is not None) != ("features" in params["user_tower"]):
        raise ValueError("the towers were trained " + ("without user features: give none" if features_BxF is not None
                                                       else "with user features: give `features_BxF`, one row a user"))
    features_BxF = _check_features(params, features_BxF, len(history_BxT))
    attributes_AxS = _check_attributes(params, attributes_AxS)
    if content_BxTxC is None:
        content_BxTxC = np.zeros((*history_BxT.shape, 0), np.float32)
    if has_content_BxT is None:
        has_content_BxT = np.full(history_BxT.shape, content_BxTxC.shape[-1] > 0)
    views = np.asarray(author_views)[history_BxT].astype(np.float32)
    _check_content(params, content_BxTxC, has_content_BxT)
    attributes = None if attributes_AxS is None else _attributes_of(attributes_AxS, history_BxT)
    rows = (history_BxT, views, content_BxTxC, has_content_BxT, mask_BxT, attributes, features_BxF)
    rows = [None if values is None else _padded(values) for values in rows]
    towers = {name: params[name] for name in ("author_tower", "user_tower")}
    users = _users(towers, config.dim, config.hidden, config.gate_limit, config.history_items, *rows)
    return np.asarray(users)[:len(history_BxT)]


# Compiled once for a shape, not once a call: segments and requests come all day long.


@functools.partial(jax.jit, static_argnames=("dim", "hidden", "limit"))
def _authors(author_tower: dict, dim: int, hidden: int, limit: float, *described: Array) -> Array:
    tower = AuthorTower(author_tower["author_id"].shape[0], dim, hidden, limit)
    return _normalise(tower.apply({"params": author_tower}, *described))


@functools.partial(jax.jit, static_argnames=("dim", "hidden", "limit", "history"))
def _users(params: dict, dim: int, hidden: int, limit: float, history: int, author: Array, views: Array,
           content: Array, has_content: Array, mask: Array, attributes: Array | None, features: Array | None) -> Array:
    tower = AuthorTower(params["author_tower"]["author_id"].shape[0], dim, hidden, limit)
    items_BxTxD = tower.apply({"params": params["author_tower"]}, author, views, content, has_content, attributes)
    user = UserTower(history, dim, hidden)
    return _normalise(user.apply({"params": params["user_tower"]}, items_BxTxD, mask, features))


def _padded(rows: np.ndarray) -> np.ndarray:
    """Rows of zeros up to the next power of two: any number of segments runs in one of few compiled programs."""
    missing = (1 << max(len(rows) - 1, 0).bit_length()) - len(rows)
    return np.pad(rows, ((0, missing), *((0, 0),) * (rows.ndim - 1))) if missing else rows


def _check_authors(params: dict, author: np.ndarray) -> np.ndarray:
    """int32 [...], the same authors. Unchecked, -1 would read the last author's row."""
    author, count = np.asarray(author), len(params["author_tower"]["author_id"])
    wrong = (author < 0) | (author >= count)
    if wrong.any():
        raise ValueError(f"author {author[wrong][0]} at {np.argwhere(wrong)[0].tolist()} is none of the towers' "
                         f"authors 0 … {count - 1} (where a view is masked, name any of them)")
    return author.astype(np.int32)


def _check_content(params: dict, content: np.ndarray, has_content: np.ndarray) -> None:
    if "content" not in params["author_tower"]:
        return
    width = params["author_tower"]["content"]["w_in"].shape[0]
    if content.shape[-1] != width:
        raise ValueError(f"content is {content.shape[-1]} wide, the towers were trained on width {width}: use the "
                         "segment embeddings they were trained on, or train them anew")
    bad = has_content & ~np.isfinite(content.sum(axis=-1))
    if bad.any():
        raise ValueError(f"{int(bad.sum())} content rows hold NaN or infinity, the first is row "
                         f"{int(np.argmax(bad.reshape(-1)))}: set has_content to False there, or mend them")


def _check_attributes(params: dict, attributes_AxS: np.ndarray | None) -> np.ndarray | None:
    tower = params["author_tower"]
    if (attributes_AxS is not None) != ("attributes" in tower):
        raise ValueError("the towers were trained " + ("without attributes: give none" if attributes_AxS is not None
                                                       else "with attributes: give `attributes`, one row an author"))
    if attributes_AxS is None:
        return None
    attributes_AxS, width = np.asarray(attributes_AxS, np.float32), tower["attributes"]["w_in"].shape[0]
    if attributes_AxS.ndim != 2 or attributes_AxS.shape[1] != width:
        raise ValueError(f"attributes have shape {attributes_AxS.shape}, the towers were trained on width {width}")
    return attributes_AxS


def _attributes_of(attributes_AxS: np.ndarray, author: np.ndarray) -> np.ndarray:
    """float32 [..., S], the attributes of authors int [...]. Only these rows are looked at for NaN and infinity."""
    rows = attributes_AxS[author]
    bad = ~np.isfinite(rows).all(axis=-1)
    if bad.any():
        raise ValueError(f"the attributes of {len(np.unique(author[bad]))} authors hold NaN or infinity, the first is "
                         f"author {int(author[bad][0])}: give 0 where a value is missing")
    return rows


def _check_features(params: dict, features_BxF: np.ndarray | None, users: int) -> np.ndarray | None:
    if features_BxF is None:
        return None
    features_BxF, width = np.asarray(features_BxF, np.float32), params["user_tower"]["features"]["w_in"].shape[0]
    if features_BxF.shape != (users, width):
        raise ValueError(f"user features have shape {features_BxF.shape}; {users} histories and towers trained on "
                         f"width {width} need {(users, width)}")
    bad = ~np.isfinite(features_BxF).all(axis=-1)
    if bad.any():
        raise ValueError(f"the features of {int(bad.sum())} users hold NaN or infinity, the first is row "
                         f"{int(np.argmax(bad))}: give 0 where a value is missing")
    return features_BxF


def tower_recall(user_QxD: np.ndarray, author_AxD: np.ndarray, target_Q: np.ndarray, ks: tuple[int, ...] = (10, 64),
                 chunk: int = 1024) -> dict[int, float]:
    """Share of queries whose target is among the k nearest of *all* authors, for each k; ties count against it.

    Args:
      user_QxD: float32 [Q, D], from `user_embeddings`.
      author_AxD: float32 [A, D], from `author_embeddings`.
      target_Q: int [Q], the author watched.
    """
    ranks = []
    for i in range(0, len(target_Q), chunk):
        target = np.asarray(target_Q[i:i + chunk])
        scores = user_QxD[i:i + chunk] @ author_AxD.T
        ranks.append((scores >= scores[np.arange(len(target)), target][:, None]).sum(axis=1) - 1)
    rank_Q = np.concatenate(ranks)
    return {k: float((rank_Q < k).mean()) for k in ks}
