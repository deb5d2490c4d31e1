"""KuaiFormer (arXiv 2411.10057): a long history, the older the coarser, and several query tokens that each stand for an
interest.

The earliest views are pooled in groups, the middle ones in smaller groups, and the latest stay as they are; learned
query tokens follow them through a causal transformer, and a score is the best over the queries. The loss is a softmax
over the authors of the batch, each with log-q taken off, since popular authors are in more batches, with smoothed
labels.

Axes: B batch, T views, S tokens, Q queries, A authors, D width, R requests.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from data_pipelines.log.tasks import Task
from experiments.baselines import fitting, heuristics, histories
from experiments.baselines.blocks import Block
from experiments.common.fingerprint import identity
from experiments.common.log import Log
from onelive_jax.model.layers import MLP, NEG_INF, RMSNorm, dropout, normal, weight

Array = jax.Array


@dataclass(frozen=True)
class Settings:
    """Sizes and training. early, middle: (views, views of a group); latest: views that stay as they are."""

    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    early: tuple[int, int] = (32, 8)
    middle: tuple[int, int] = (16, 4)
    latest: int = 16
    queries: int = 4
    batch: int = 512
    smoothing: float = 0.1
    training: fitting.Training = field(default_factory=fitting.Training)

    @property
    def length(self) -> int:
        return self.early[0] + self.middle[0] + self.latest


class Examples(NamedTuple):
    """item int32 [B, T] and there bool [B, T], the last views, newest last; target int32 [B]; log_q float32 [B]."""

    item: np.ndarray
    there: np.ndarray
    target: np.ndarray
    log_q: np.ndarray


class Model(nn.Module):
    settings: Settings
    num_authors: int

    def setup(self):
        s = self.settings
        self.table = weight(self, "author_table", (self.num_authors, s.dim), ("authors", "features"), normal(0.02))
        self.pools = [MLP(s.dim, s.dim) for _ in range(2)]
        tokens = s.early[0] // s.early[1] + s.middle[0] // s.middle[1] + s.latest
        self.place_table = weight(self, "place_table", (tokens, s.dim), (None, "embed"), normal(0.02))
        self.query_table = weight(self, "query_table", (s.queries, s.dim), (None, "embed"), normal(1.0))
        self.blocks = [Block(s.heads, 4 * s.dim, s.dropout) for _ in range(s.layers)]
        self.norm = RMSNorm()

    def __call__(self, item_BxT: Array, there_BxT: Array, train: bool = False) -> Array:
        """Interests, [B, Q, D]."""
        s, B = self.settings, item_BxT.shape[0]
        x = self.table[item_BxT] * s.dim**0.5
        tokens, masks, first = [], [], 0
        for pool, (views, group) in zip((*self.pools, None), (s.early, s.middle, (s.latest, 1)), strict=True):
            part = x[:, first:first + views].reshape(B, views // group, group, s.dim)
            mask = there_BxT[:, first:first + views].reshape(B, views // group, group)
            first += views
            if pool is None:
                pooled = part[:, :, 0]
            else:
                pooled = jnp.sum(part * mask[..., None], 2) / jnp.maximum(mask.sum(2), 1)[..., None]
                pooled = pooled + pool(pooled)
            tokens.append(pooled)
            masks.append(mask.any(2))
        tokens = jnp.concatenate(tokens, 1) + self.place_table
        queries = jnp.broadcast_to(self.query_table, (B, *self.query_table.shape))
        x = dropout(self, jnp.concatenate([tokens, queries], 1), s.dropout, train)
        there = jnp.concatenate([*masks, jnp.ones((B, s.queries), bool)], 1)
        mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool)) & there[:, None, :]
        for block in self.blocks:
            x = block(x, mask, train)
        return self.norm(x[:, -s.queries:])

    def loss(self, examples: Examples) -> Array:
        s, B = self.settings, examples.target.shape[0]
        x_BxQxD = self(examples.item, examples.there, True)
        logits_BxB = jnp.max(jnp.einsum("bqd,nd->bqn", x_BxQxD, self.table[examples.target]), 1) - examples.log_q
        own = jnp.eye(B, dtype=bool)
        same = examples.target[:, None] == examples.target[None]
        log_p = jax.nn.log_softmax(jnp.where(same & ~own, NEG_INF, logits_BxB))
        others = jnp.where(same, 0.0, log_p).sum(1) / jnp.maximum((~same).sum(1), 1)
        return -jnp.mean((1 - s.smoothing) * jnp.diagonal(log_p) + s.smoothing * others)

    def scores(self, item_RxT: Array, there_RxT: Array) -> Array:
        """float32 [R, A]."""
        return jnp.max(jnp.einsum("rqd,ad->rqa", self(item_RxT, there_RxT), self.table), 1)


class Views(NamedTuple):
    view: np.ndarray


@dataclass
class KuaiFormer:
    """See `experiments.baselines`."""

    settings: Settings
    folder: Path
    seed: int = 0

    def fit(self, log: Log, validation: list[Task]) -> None:
        s, training = self.settings, log.training_part().views
        self.views, self.model = log.views, Model(s, log.num_authors)
        self._scores = jax.jit(lambda params, item, there: self.model.apply({"params": params}, item, there,
                                                                            method="scores"))
        user = training.users()
        known = np.flatnonzero(training.seen_before(user, training.start_ms) > training.user_ptr[user])
        count_A = heuristics.popularity(training, log.split.p1_ms, log.num_authors)
        log_q_A = np.log(np.maximum(count_A, 1) / count_A.sum()).astype(np.float32)
        epochs = histories.Epochs(lambda rng: Views(known), s.batch, self.seed)

        def batch(step: int) -> Examples:
            view = epochs.batch(step).view
            at, there = histories.last_views(training, user[view], training.start_ms[view], s.length, right=True)
            target = training.author[view]
            return Examples(training.author[at], there, target, log_q_A[target])

        def loss(params, examples, key):
            return self.model.apply({"params": params}, examples, rngs={"dropout": key}, method="loss")

        def validate(params):
            self.params = params
            return fitting.validation_figures(self.score, validation)

        first = batch(0)
        self.params = fitting.train(
            self.folder, asdict(s) | {"baseline": "kuaiformer", "seed": self.seed, "log": identity(log)}, s.training,
            self.seed, lambda key: self.model.init(key, first.item, first.there)["params"], loss, batch, validate)

    def score(self, task: Task) -> np.ndarray:
        result = np.empty(task.candidates.size, np.float32)
        for request, new, candidates in histories.parts(task):
            at, there = histories.last_views(self.views, task.user[request], task.time_ms[request],
                                             self.settings.length, right=True)
            scores = np.asarray(self._scores(self.params, self.views.author[at], there))[:new]
            result[candidates] = histories.of_candidates(scores, task, int(request[0]), candidates)
        return result
