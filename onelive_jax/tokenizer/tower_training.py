"""Training of the two towers by InfoNCE on a log of views.

Axes: B pairs, T history views, A authors, U users, V training views, S content rows or width of attributes, F width of
user features, C content width, D embedding width.

A training view is a positive pair (user, author); what the user watched before it stands for the user. Views are arrays
in the order of a log (`ViewLog`): all views of user 0 by time, then those of user 1, … Histories are sliced when a
batch is made, never stored.
"""

import dataclasses
from typing import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from onelive_jax.config import TokenizerConfig
from onelive_jax.sharding import partitioning
from onelive_jax.tokenizer.encoder import Towers, check_finite
from onelive_jax.tokenizer.towers import TwoTowers, info_nce

Array = jax.Array

# Share of history views hidden at random: an author must not lean on one neighbour only.
HISTORY_DROPOUT = 0.6
# Share of authors whose training views are hidden from the gate: content alone must do, as for authors never seen.
ID_DROPOUT = 0.2
REPORT_EVERY = 100


@dataclasses.dataclass(frozen=True)
class ViewLog:
    """Views and what is known of those who watch and who are watched.

    Attributes:
      user_ptr: int64 [U + 1], user u's views are rows user_ptr[u] … user_ptr[u + 1] - 1, by time.
      author: int32 [V], the author of each view.
      num_authors: A.
      time_ms: int64 [V], when each view began; read where config.negatives is "same time" (`_runs` says why).
      content: float32 [S, C], concat(x_30s, x_pool) of (author, moment) rows, or None. May be a memory map: only the
        rows of a batch are gathered.
      content_row: int32 [V], the row of `content` in force at each view, -1 for none.
      attributes_AxS: float32, side features of every author (numbers, one-hot categories), or None.
      features_UxF: float32, side features of every user, or None.

    Raises: ValueError where arrays do not fit each other.
    """

    user_ptr: np.ndarray
    author: np.ndarray
    num_authors: int
    time_ms: np.ndarray | None = None
    content: np.ndarray | None = None
    content_row: np.ndarray | None = None
    attributes_AxS: np.ndarray | None = None
    features_UxF: np.ndarray | None = None

    def __post_init__(self):
        user_ptr, author = np.asarray(self.user_ptr, np.int64), np.asarray(self.author, np.int32)
        if user_ptr.ndim != 1 or not len(user_ptr) or user_ptr[0] != 0 or user_ptr[-1] != len(author):
            raise ValueError(f"user_ptr must run from 0 to the number of views, {len(author)}")
        if (np.diff(user_ptr) < 0).any():
            raise ValueError(f"user_ptr falls after user {int(np.argmax(np.diff(user_ptr) < 0))}")
        if len(author) and (author.min() < 0 or author.max() >= self.num_authors):
            raise ValueError(f"author indices lie in {author.min()} … {author.max()}, allowed are 0 … "
                             f"{self.num_authors - 1}")
        content = _table("content", self.content)
        row = np.full(len(author), -1, np.int32) if content is None else self.content_row
        if row is None or len(row) != len(author):
            raise ValueError(f"content needs content_row, one row of content (or -1) for each of the {len(author)} "
                             "views")
        if content is not None and len(author) and (np.min(row) < -1 or np.max(row) >= len(content)):
            raise ValueError(f"content_row lies in {np.min(row)} … {np.max(row)}, allowed are -1 … {len(content) - 1}")
        checked = {"user_ptr": user_ptr, "author": author, "content": content,
                   "content_row": np.asarray(row, np.int32),
                   "attributes_AxS": _table("attributes", self.attributes_AxS, self.num_authors),
                   "features_UxF": _table("user features", self.features_UxF, len(user_ptr) - 1)}
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def users_of(self, rows: np.ndarray) -> np.ndarray:
        """Who watched the views `rows`, int64 [n]."""
        return np.searchsorted(self.user_ptr, rows, side="right") - 1

    def content_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [..., C], bool [...] whether any was known) of the views `rows` int [...]; C = 0 without content."""
        row = self.content_row[rows]
        table = np.zeros((1, 0), np.float32) if self.content is None else self.content
        return table[np.maximum(row, 0)], row >= 0


@dataclasses.dataclass(frozen=True)
class TowersResult:
    """What training leaves behind.

    Attributes:
      towers: the trained towers; parameters are whole, on the host's default device.
      losses: float32 [steps].
      pairs: training views that served as positives.
      without_history: training views that could not: no view of another author within the history before them.
    """

    towers: Towers
    losses: np.ndarray
    pairs: int
    without_history: int


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


def train_towers(log: ViewLog, config: TokenizerConfig, seed: int = 0, initial: dict | None = None,
                 progress: Callable[[int, float], None] | None = None, mesh: Mesh | None = None) -> TowersResult:
    """Aligns the towers on the training views by InfoNCE (AdamW, cosine schedule).

    Views of the positive author are taken out of the history: with them the towers would learn that people return to
    what they watch, without them who is watched by the same people, which is what ids must say.

    The popularity correction of a negative is an author's share of all positives of the log. That is how often batches
    of config.negatives="any" draw it. A batch of "same time" draws from the moment's authors: who is on air for an hour
    a day is drawn more often in that hour than the correction says, and never outside it. We correct by the share of
    the whole log there too: an approximation, not the exact probability.

    Args:
      log: the training views.
      config: widths, steps, rates.
      seed: of initial values, batches and dropout.
      initial: parameters to go on from (a refresh: the space, and with it the codes, stays in place); they may hold
        fewer authors, the new ones start at random.
      progress: called with (steps done, mean loss since the last call) every 100 steps and at the end.
      mesh: devices of this process to train on; parameters and both moments lie as `partitioning.RULES` say, pairs over
        data and fsdp (a batch is rounded down to a multiple of these). None: the default device.

    Raises:
      ValueError: a log without any pair to learn from, or without time_ms where that is read.
      FloatingPointError: the loss became NaN or infinite; the message names the step.
    """
    user_ptr, author = log.user_ptr, log.author
    positives = _positives(user_ptr, author, config.history_items)
    if len(positives) < 2:
        raise ValueError(f"{len(positives)} of {len(author)} training views have a view of another author by the same "
                         "user before them; the towers need at least 2 such pairs")
    if config.negatives == "same time" and (log.time_ms is None or len(log.time_ms) != len(author)):
        raise ValueError("config.tokenizer.negatives='same time' needs time_ms, one moment for each of the "
                         f"{len(author)} views")
    views = np.bincount(author, minlength=log.num_authors).astype(np.int32)
    share = np.maximum(np.bincount(author[positives], minlength=log.num_authors), 1) / len(positives)
    log_q = np.log(share).astype(np.float32)

    def described(rows):
        content, has_content = log.content_of(rows)
        side = {} if log.attributes_AxS is None else {"attributes": log.attributes_AxS[author[rows]]}
        return dict(author=author[rows], views=views[author[rows]].astype(np.float32), content=content,
                    has_content=has_content) | side

    def who(rows):
        return {} if log.features_UxF is None else {"features": log.features_UxF[log.users_of(rows)]}

    model = TwoTowers(log.num_authors, config)
    widths = (0 if table is None else table.shape[1] for table in (log.content, log.attributes_AxS, log.features_UxF))
    boxed = boxed_params(model, seed, *widths)
    params = nn.unbox(boxed)
    if initial is not None:
        params = _continue_from(initial, params)
    # Only matrices decay: neither temperature nor gate is to be pulled to 0.
    optimizer = optax.adamw(optax.cosine_decay_schedule(config.learning_rate, config.steps), b2=0.98,
                            weight_decay=config.weight_decay,
                            mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
    batch_size, rng = min(config.batch_size, len(positives)), np.random.default_rng(seed)
    if mesh is None:
        state, shardings = (params, optimizer.init(params)), None
    else:
        batch_size = _for_devices(batch_size, mesh)
        of_params = partitioning.logical_to_sharding(boxed, mesh)
        of_moments = partitioning.optimizer_sharding(optimizer, params, of_params, mesh)
        params, shardings = jax.device_put(params, of_params), ((of_params, of_moments), partitioning.replicated(mesh))
        state = params, jax.jit(optimizer.init, out_shardings=of_moments)(params)
    step, key = _train_step(model, optimizer, shardings), jax.random.key(seed)
    if config.negatives == "same time":
        batches = _runs(positives[np.argsort(np.asarray(log.time_ms)[positives], kind="stable")], batch_size, rng)
    else:
        batches = _batches(positives, batch_size, rng)
    losses, pending = np.zeros(config.steps, np.float32), []
    for index in range(config.steps):
        rows = next(batches)
        history_rows, mask = slice_history(user_ptr, rows, config.history_items)
        batch = described(rows), described(history_rows) | who(rows), mask, log_q[author[rows]]
        if mesh is not None:
            batch = partitioning.put_batch(batch, mesh)
        state, loss = step(state, jax.random.fold_in(key, index), *batch)
        pending.append(loss)
        if len(pending) == REPORT_EVERY or index + 1 == config.steps:
            first, recent = index + 1 - len(pending), np.array(jax.device_get(pending))
            _check_finite(recent, first)
            losses[first:index + 1], pending = recent, []
            if progress:
                progress(index + 1, float(recent.mean()))
    towers = Towers(jax.tree.map(np.asarray, state[0]), config, views, log.attributes_AxS)
    return TowersResult(towers, losses, len(positives), len(author) - len(positives))


def boxed_params(model: TwoTowers, seed: int, content_width: int = 0, attribute_width: int = 0,
                 feature_width: int = 0) -> dict:
    """Initial parameters in their partitioning boxes; a width of 0 stands for inputs that are not there."""
    one = dict(author=jnp.zeros((1,), jnp.int32), views=jnp.zeros((1,)), content=jnp.zeros((1, content_width)),
               has_content=jnp.zeros((1,), bool))
    if attribute_width:
        one["attributes"] = jnp.zeros((1, attribute_width))
    history = {name: value[None] for name, value in one.items()} | {"mask": jnp.zeros((1, 1), bool)}
    if feature_width:
        history["features"] = jnp.zeros((1, feature_width))
    return model.init(jax.random.key(seed), one, history)["params"]


def recall_on_log(towers: Towers, log: ViewLog, rows: np.ndarray, author_AxD: np.ndarray,
                  ks: tuple[int, ...] = (10, 64), chunk: int = 4096) -> dict[int, float]:
    """What the towers alone recall: share of views whose author is among the k nearest of *all* authors to the user.

    The user is what was watched before the view (all of it, the author itself included) and its features. No list of
    who is on air: a figure of the embedding, not of recommendations.

    Args:
      log: holds the views in `rows` and those before them.
      rows: int64 [Q], the views to be found.
      author_AxD: float32, unit length, what stands for each author (`Towers.authors`).
      ks: how many nearest.
      chunk: views at once.

    Returns:
      {k: share of rows}; ties count against a view.

    Raises:
      ValueError: no rows, or inputs other than the towers were trained on.
    """
    if not len(rows):
        raise ValueError("recall needs at least one view to be found")
    found = {k: 0.0 for k in ks}
    for first in range(0, len(rows), chunk):
        part = rows[first:first + chunk]
        history, mask = slice_history(log.user_ptr, part, towers.config.history_items)
        content = (None, None) if log.content is None else log.content_of(history)
        features = None if log.features_UxF is None else log.features_UxF[log.users_of(part)]
        scores = towers.users(log.author[history], mask, *content, features) @ author_AxD.T
        rank = (scores >= scores[np.arange(len(part)), log.author[part]][:, None]).sum(axis=1) - 1
        for k in ks:
            found[k] += float((rank < k).mean()) * len(part) / len(rows)
    return found


def _table(name: str, values: np.ndarray | None, count: int | None = None) -> np.ndarray | None:
    """float32 [count, width], finite; None as it is."""
    if values is None:
        return None
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or 0 in values.shape or count not in (None, len(values)):
        raise ValueError(f"{name} must be a non-empty [{'rows' if count is None else count}, width] array, not of "
                         f"shape {values.shape}")
    check_finite(name, values)
    return values


def _check_finite(losses: np.ndarray, first: int) -> None:
    finite = np.isfinite(losses)
    if not finite.all():
        worst = int(np.argmin(finite))
        raise FloatingPointError(f"the InfoNCE loss is {losses[worst]} at step {first + worst + 1}: lower "
                                 "config.tokenizer.learning_rate, or look for huge values in the content vectors")


def _positives(user_ptr: np.ndarray, author: np.ndarray, length: int, chunk: int = 65536) -> np.ndarray:
    """Rows of the views with a view of another author among the `length` views before them."""
    found = []
    for start in range(0, len(author), chunk):
        rows = np.arange(start, min(start + chunk, len(author)))
        history, mask = slice_history(user_ptr, rows, length)
        found.append(rows[(mask & (author[history] != author[rows, None])).any(axis=1)])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _batches(positives: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless full batches, a new order every epoch; the rows that do not fill a last batch wait for the next order."""
    while True:
        order = rng.permutation(positives)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield order[start:start + batch_size]


def _runs(by_time: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless batches of views that follow each other in time; every epoch cuts elsewhere and has an order of its own.

    The negatives of a pair are then rooms that others chose among at that time, with what they showed at that time. Of
    any moment, most negatives are told from the positive by the hours at which an author goes on air: that says who it
    is and nothing of what it shows, and the towers lean on their ids.
    """
    while True:
        last = len(by_time) - batch_size
        starts = np.arange(rng.integers(min(batch_size, last + 1)), last + 1, batch_size)
        for start in rng.permutation(starts):
            yield by_time[start:start + batch_size]


def _for_devices(batch_size: int, mesh: Mesh) -> int:
    """The batch rounded down to a multiple of the devices that it is split over; ValueError where nothing is left."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < parts:
        raise ValueError(f"a batch of {batch_size} pairs cannot be split over config.mesh.data x config.mesh.fsdp = "
                         f"{parts} devices; raise config.tokenizer.batch_size to {parts} or more, where the log has so "
                         "many training views, or use fewer devices")
    return batch_size - batch_size % parts


def _train_step(model: TwoTowers, optimizer: optax.GradientTransformation, shardings=None):
    def loss_fn(params, key, pair, history, mask_BxT, log_q_B):
        pair_key, history_key, view_key = jax.random.split(key, 3)
        kept_BxT = mask_BxT & (history["author"] != pair["author"][:, None])
        kept_BxT &= jax.random.bernoulli(view_key, 1.0 - HISTORY_DROPOUT, mask_BxT.shape)
        user_BxD, author_BxD, temperature = model.apply(
            {"params": params}, _hide_ids(pair, pair_key), _hide_ids(history, history_key) | {"mask": kept_BxT})
        # Where dropout left no history and there are no features, there is no user to align with; the pair still serves
        # as a negative.
        weight_B = (kept_BxT.any(axis=1) | ("features" in history)).astype(jnp.float32)
        return info_nce(user_BxD, author_BxD, temperature, pair["author"], log_q_B, weight_B)

    def step(state, *batch):
        params, moments = state
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def _hide_ids(described: dict[str, Array], key: Array) -> dict[str, Array]:
    """Takes the training views of some authors from the gate (it then trusts content alone, where there is content)."""
    shown = jax.random.bernoulli(key, 1.0 - ID_DROPOUT, described["views"].shape)
    return described | {"views": jnp.where(shown, described["views"], 0.0)}


def _continue_from(old: dict, fresh: dict) -> dict:
    """Old parameters in the shapes of fresh ones; authors beyond the old table keep their fresh rows."""
    table = np.array(fresh["author_tower"]["author_id"])
    known = np.asarray(old["author_tower"]["author_id"])
    if known.shape[0] > table.shape[0] or known.shape[1] != table.shape[1]:
        raise ValueError(f"the old author table is {known.shape}, the new one {table.shape}: authors can be added, not "
                         "taken away, and config.tokenizer.dim must stay the same")
    table[:len(known)] = known
    old = old | {"author_tower": old["author_tower"] | {"author_id": table}}
    if jax.tree.map(jnp.shape, old) != jax.tree.map(jnp.shape, fresh):
        raise ValueError("the old tower parameters do not fit: config.tokenizer.hidden, history_items and the content "
                         "width must stay the same")
    return jax.tree.map(jnp.array, old)  # a copy: the training step donates its arguments
