"""The user tower and the author tower, aligned by InfoNCE: where the IA embedding comes from (paper, section a.1-3).

Axes: B users or pairs, T history views, A authors, V training views, S content rows, C content width, D embedding width,
H hidden width.

A training view is a positive pair (user, author); what the user watched before it stands for the user. Views are arrays
in the order of a log: all views of user 0 by time, then those of user 1, …; `user_ptr[u] : user_ptr[u + 1]` are user
u's. Histories are sliced when a batch is made, never stored.
"""

import dataclasses
from typing import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from onelive_jax.config import TokenizerConfig

Array = jax.Array

EMBED, HIDDEN, AUTHORS, CONTENT = "embed", "mlp", "authors", "content"  # logical axis names
# Share of history views hidden at random in training, so that no author leans on one neighbour only.
HISTORY_DROPOUT = 0.6
TEMPERATURE_RANGE = (0.01, 1.0)


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

    The gate lambda = sigmoid(slope log(1 + training views) + bias) learns how much evidence an author's own embedding
    needs before it is trusted. It is 0 for an author never seen in training (whose own embedding is noise) and 1 where
    there is no content. An author with neither keeps its random, untrained embedding: a code of its own that means nothing.
    """

    num_authors: int
    dim: int
    hidden: int

    @nn.compact
    def __call__(self, author: Array, views: Array, content: Array, has_content: Array) -> Array:
        """Fused author vectors, before the L2 norm.

        Args:
          author: int32 [...], dense author index.
          views: float32 [...], the author's training views.
          content: float32 [..., C], concat(x_30s, x_pool); C may be 0.
          has_content: bool [...], False where no content is known at that moment (the vector is then ignored).

        Returns:
          float32 [..., D].
        """
        table = self.param("author_id", nn.with_logical_partitioning(nn.initializers.normal(self.dim**-0.5),
                                                                     (AUTHORS, EMBED)), (self.num_authors, self.dim))
        x_id = table[author]
        if content.shape[-1] == 0:
            return x_id
        gate = self.param("gate", nn.with_logical_partitioning(lambda *_: jnp.array([1.0, -2.0]), (None,)))
        x_mllm = Mlp(self.hidden, self.dim, CONTENT, name="content")(jnp.where(has_content[..., None], content, 0.0))
        mix = gate_value(gate, views, has_content)[..., None]
        return mix * x_id + (1.0 - mix) * x_mllm


def gate_value(gate: Array, views: Array, has_content: Array) -> Array:
    """lambda, float32 [...], from (slope, bias) float32 [2], training views [...] and whether there is content [...]."""
    learned = jax.nn.sigmoid(gate[0] * jnp.log1p(views) + gate[1])
    return jnp.where(has_content, jnp.where(views > 0, learned, 0.0), 1.0)


class UserTower(nn.Module):
    """A user as what was watched lately: attention pooling over recent views, and an MLP beside it.

    The items are author-tower vectors: authors who are watched together then come together even when they are hardly ever
    a positive themselves, and new authors enter through their content.
    """

    history: int
    dim: int
    hidden: int

    @nn.compact
    def __call__(self, items_BxTxD: Array, mask_BxT: Array) -> Array:
        """float32 [B, D], before the L2 norm, from items float32 [B, T, D], oldest first, and their mask bool [B, T].

        A user without any view is the zero history: the MLP's biases alone.
        """
        recency_T = self.param("recency", _zeros_init(None), (self.history,))
        query_D = self.param("query", _zeros_init(EMBED), (self.dim,))
        items_BxTxD = _normalise(items_BxTxD)
        score_BxT = jnp.einsum("btd,d->bt", items_BxTxD, query_D) + recency_T[self.history - items_BxTxD.shape[1]:]
        score_BxT = jnp.where(mask_BxT, score_BxT, -1e9)
        weight_BxT = jax.nn.softmax(score_BxT, axis=-1) * mask_BxT
        pooled_BxD = jnp.einsum("bt,btd->bd", weight_BxT, items_BxTxD)
        return pooled_BxD + Mlp(self.hidden, self.dim, EMBED, name="mlp")(pooled_BxD)


class TwoTowers(nn.Module):
    """Both towers and the temperature of InfoNCE."""

    num_authors: int
    config: TokenizerConfig

    def setup(self):
        c = self.config
        self.author_tower = AuthorTower(self.num_authors, c.dim, c.hidden)
        self.user_tower = UserTower(c.history_items, c.dim, c.hidden)
        self.log_temperature = self.param(
            "log_temperature", nn.with_logical_partitioning(nn.initializers.constant(np.log(c.temperature)), ()), ())

    def authors(self, author: Array, views: Array, content: Array, has_content: Array) -> Array:
        """IA embeddings, unit length, float32 [..., D]; arguments as `AuthorTower`."""
        return _normalise(self.author_tower(author, views, content, has_content))

    def users(self, author: Array, views: Array, content: Array, has_content: Array, mask: Array) -> Array:
        """User embeddings, unit length, float32 [B, D], from history views [B, T] described as in `AuthorTower`."""
        return _normalise(self.user_tower(self.author_tower(author, views, content, has_content), mask))

    def __call__(self, pair: Mapping[str, Array], history: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """(users [B, D], authors [B, D], temperature []) of positive pairs and the histories before them."""
        return self.users(**history), self.authors(**pair), jnp.exp(jnp.clip(self.log_temperature, *np.log(TEMPERATURE_RANGE)))


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


@dataclasses.dataclass(frozen=True)
class TowersResult:
    """What training leaves behind.

    Attributes:
      params: nested dict of float32 arrays.
      losses: float32 [steps].
      author_views: int32 [A], training views of every author: the evidence that the gate reads.
      pairs: training views that have a view before them, hence can be a positive.
      first_views: training views left out as positives because nothing is known of the user before them.
    """

    params: dict
    losses: np.ndarray
    author_views: np.ndarray
    pairs: int
    first_views: int


def slice_history(user_ptr: np.ndarray, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the `length` views before each position, of the same user, oldest first.

    Args:
      user_ptr: int64 [U + 1].
      positions: int64 [B], rows of the log.
      length: T.

    Returns:
      (rows int64 [B, T], mask bool [B, T]); rows are 0 where the mask is False.
    """
    start = user_ptr[np.searchsorted(user_ptr, positions, side="right") - 1]
    rows = positions[:, None] + np.arange(-length, 0)
    mask = rows >= start[:, None]
    return np.where(mask, rows, 0), mask


def train_towers(user_ptr: np.ndarray, author: np.ndarray, config: TokenizerConfig, num_authors: int,
                 content: np.ndarray | None = None, content_row: np.ndarray | None = None, seed: int = 0,
                 initial: dict | None = None, progress: Callable[[int, float], None] | None = None) -> TowersResult:
    """Aligns the towers on the training views by InfoNCE (AdamW, cosine schedule).

    Views of the positive author are taken out of the history: with them the towers would learn "what you watch you watch
    again", without them who is watched by the same people, which is what ids must say.

    Args:
      user_ptr: int64 [U + 1], user u's training views are rows user_ptr[u] … user_ptr[u + 1] - 1, by time.
      author: int32 [V], the author of each training view.
      config: widths, steps, rates.
      num_authors: A.
      content: float32 [S, C], concat(x_30s, x_pool) of (author, moment) rows, or None.
      content_row: int32 [V], the row of `content` in force at each view, -1 for none.
      seed: of initial values, batches and dropout.
      initial: parameters to go on from (a refresh: the space, and with it the codes, stays in place); they may hold fewer
        authors, the new ones start at random.
      progress: called with (steps done, mean loss since the last call) about every 100 steps.

    Returns:
      TowersResult.

    Raises:
      ValueError: arrays that do not fit each other, or a log without any pair to learn from.
      FloatingPointError: the loss became NaN or infinite; the message names the step.
    """
    user_ptr, author = np.asarray(user_ptr, np.int64), np.asarray(author, np.int32)
    content, content_row = _check_log(user_ptr, author, num_authors, content, content_row)
    first = np.zeros(len(author) + 1, bool)
    first[user_ptr[:-1]] = True
    positives = np.flatnonzero(~first[:-1])
    if len(positives) < 2:
        raise ValueError(f"{len(positives)} of {len(author)} training views have a view of the same user before them; "
                         "the towers need at least 2 such pairs")
    views = np.bincount(author, minlength=num_authors).astype(np.int32)
    log_q = np.log(np.maximum(np.bincount(author[positives], minlength=num_authors), 1) / len(positives))
    batch_size = min(config.batch_size, len(positives))
    model = TwoTowers(num_authors, config)
    params = init_params(model, content.shape[1], seed)
    if initial is not None:
        params = _continue_from(initial, params)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    # Only matrices decay: the temperature and the gate are not to be pulled to 0.
    optimizer = optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay,
                            mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
    step = _train_step(model, optimizer, jnp.asarray(views, jnp.float32), jnp.asarray(content),
                       jnp.asarray(log_q, jnp.float32))
    state, key = (params, optimizer.init(params)), jax.random.key(seed)
    batches = _batches(positives, batch_size, np.random.default_rng(seed))
    losses, reported = [], 0
    for index in range(config.steps):
        rows = next(batches)
        history, mask = slice_history(user_ptr, rows, config.history_items)
        state, loss = step(state, jax.random.fold_in(key, index), author[rows], content_row[rows], author[history],
                           content_row[history], mask)
        losses.append(loss)
        if len(losses) - reported == 100 or index + 1 == config.steps:
            recent = np.array(jax.device_get(losses[reported:]))
            if not np.isfinite(recent).all():
                raise FloatingPointError(f"the InfoNCE loss is {recent[np.argmin(np.isfinite(recent))]} at step "
                                         f"{reported + int(np.argmin(np.isfinite(recent))) + 1}: lower "
                                         "config.tokenizer.learning_rate, or look for huge values in the content vectors")
            reported = len(losses)
            if progress:
                progress(reported, float(recent.mean()))
    return TowersResult(jax.tree.map(np.asarray, state[0]), np.array(jax.device_get(losses), np.float32), views,
                        len(positives), len(author) - len(positives))


def init_params(model: TwoTowers, content_width: int, seed: int) -> dict:
    """Initial parameters without their partitioning boxes."""
    one = dict(author=jnp.zeros((1,), jnp.int32), views=jnp.zeros((1,)), content=jnp.zeros((1, content_width)),
               has_content=jnp.zeros((1,), bool))
    history = {name: value[None] for name, value in one.items()} | {"mask": jnp.zeros((1, 1), bool)}
    return nn.unbox(model.init(jax.random.key(seed), one, history))["params"]


def _check_log(user_ptr, author, num_authors, content, content_row):
    if user_ptr.ndim != 1 or not len(user_ptr) or user_ptr[0] != 0 or user_ptr[-1] != len(author):
        raise ValueError(f"user_ptr must run from 0 to the number of views, {len(author)}")
    if (np.diff(user_ptr) < 0).any():
        raise ValueError(f"user_ptr falls after user {int(np.argmax(np.diff(user_ptr) < 0))}")
    if len(author) and (author.min() < 0 or author.max() >= num_authors):
        raise ValueError(f"author indices lie in {author.min()} … {author.max()}, allowed are 0 … {num_authors - 1}")
    if content is None:
        return np.zeros((1, 0), np.float32), np.full(len(author), -1, np.int32)
    content = np.asarray(content, np.float32)
    if content_row is None or len(content_row) != len(author):
        raise ValueError(f"content needs content_row, one row of content (or -1) for each of the {len(author)} views")
    if len(content_row) and (np.min(content_row) < -1 or np.max(content_row) >= len(content)):
        raise ValueError(f"content_row lies in {np.min(content_row)} … {np.max(content_row)}, allowed are -1 … "
                         f"{len(content) - 1}")
    if not np.isfinite(content).all():
        raise ValueError(f"content row {int(np.argmin(np.isfinite(content).all(axis=1)))} holds NaN or infinity")
    return content, np.asarray(content_row, np.int32)


def _batches(positives: np.ndarray, batch_size: int, rng: np.random.Generator):
    """Endless batches, a new order every epoch; what does not fill a batch at an epoch's end comes in the next order."""
    while True:
        order = rng.permutation(positives)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield order[start:start + batch_size]


def _train_step(model: TwoTowers, optimizer: optax.GradientTransformation, views_A: Array, content_SxC: Array,
                log_q_A: Array):
    def loss_fn(params, key, author_B, row_B, history_BxT, history_row_BxT, mask_BxT):
        kept_BxT = mask_BxT & (history_BxT != author_B[:, None])
        kept_BxT &= jax.random.bernoulli(key, 1.0 - HISTORY_DROPOUT, mask_BxT.shape)
        user_BxD, author_BxD, temperature = model.apply(
            {"params": params}, _described(author_B, row_B, views_A, content_SxC),
            _described(history_BxT, history_row_BxT, views_A, content_SxC) | {"mask": kept_BxT})
        return info_nce(user_BxD, author_BxD, temperature, author_B, log_q_A[author_B],
                        kept_BxT.any(axis=1).astype(jnp.float32))

    def step(state, key, *batch):
        params, moments = state
        loss, grads = jax.value_and_grad(loss_fn)(params, key, *batch)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    return jax.jit(step, donate_argnums=0)


def _described(author: Array, row: Array, views_A: Array, content_SxC: Array) -> dict[str, Array]:
    """The arguments of the author tower for authors at moments given by content rows (-1: none)."""
    return dict(author=author, views=views_A[author], content=content_SxC[jnp.maximum(row, 0)], has_content=row >= 0)


def _continue_from(old: dict, fresh: dict) -> dict:
    """Old parameters in the shapes of fresh ones; authors beyond the old table keep their fresh rows."""
    table = np.array(fresh["author_tower"]["author_id"])
    known = np.asarray(old["author_tower"]["author_id"])
    if known.shape[0] > table.shape[0] or known.shape[1] != table.shape[1]:
        raise ValueError(f"the old author table is {known.shape}, the new one {table.shape}: authors can be added, not "
                         "taken away, and config.tokenizer.dim must stay the same")
    table[:len(known)] = known
    old = old | {"author_tower": old["author_tower"] | {"author_id": table}}
    shapes = jax.tree.map(jnp.shape, fresh)
    if jax.tree.map(jnp.shape, old) != shapes:
        raise ValueError("the old tower parameters do not fit: config.tokenizer.hidden, history_items and the content width "
                         "must stay the same")
    return jax.tree.map(jnp.array, old)


def author_embeddings(params: dict, config: TokenizerConfig, author_views: np.ndarray, author: np.ndarray | None = None,
                      content: np.ndarray | None = None, has_content: np.ndarray | None = None,
                      chunk: int = 65536) -> np.ndarray:
    """IA embeddings of authors, or of (author, moment) rows.

    Args:
      params: from `train_towers`.
      config: the config that trained them.
      author_views: int [A], `TowersResult.author_views`.
      author: int32 [M], dense indices; all authors in order if None.
      content: float32 [M, C], the content of each row, or None where the towers were trained without.
      has_content: bool [M]; all True if None.
      chunk: rows computed at once.

    Returns:
      float32 [M, D], unit length.

    Raises:
      ValueError: content given to towers trained without it, or the other way round.
    """
    table = params["author_tower"]["author_id"]
    author = np.arange(len(table), dtype=np.int32) if author is None else np.asarray(author, np.int32)
    if (content is not None) != ("content" in params["author_tower"]):
        raise ValueError("the towers were trained " + ("without content: give none" if content is not None else
                                                       "with content: give `content`, one row an author"))
    content = np.zeros((len(author), 0), np.float32) if content is None else np.asarray(content, np.float32)
    has_content = np.full(len(author), content.shape[1] > 0) if has_content is None else np.asarray(has_content, bool)
    model = TwoTowers(len(table), config)
    embed = jax.jit(lambda params, *args: model.apply({"params": params}, *args, method="authors"))
    views = np.asarray(author_views)[author].astype(np.float32)
    parts = [embed(params, author[i:i + chunk], views[i:i + chunk], content[i:i + chunk], has_content[i:i + chunk])
             for i in range(0, len(author), chunk)]
    return np.concatenate([np.asarray(part) for part in parts])


def user_embeddings(params: dict, config: TokenizerConfig, author_views: np.ndarray, history_BxT: np.ndarray,
                    mask_BxT: np.ndarray, content_BxTxC: np.ndarray | None = None,
                    has_content_BxT: np.ndarray | None = None) -> np.ndarray:
    """User embeddings, unit length, float32 [B, D], from the authors of recent views int32 [B, T], oldest first."""
    if content_BxTxC is None:
        content_BxTxC = np.zeros((*history_BxT.shape, 0), np.float32)
    if has_content_BxT is None:
        has_content_BxT = np.full(history_BxT.shape, content_BxTxC.shape[-1] > 0)
    model = TwoTowers(len(params["author_tower"]["author_id"]), config)
    embed = jax.jit(lambda params, *args: model.apply({"params": params}, *args, method="users"))
    views = np.asarray(author_views)[history_BxT].astype(np.float32)
    return np.asarray(embed(params, history_BxT, views, content_BxTxC, has_content_BxT, mask_BxT))


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
