"""LightGCN (He et al., 2020), the GNN of the paper's Table 2: people and authors are the mean of what lies 0 … n steps
away from them on the graph of training views.

No layer has weights: E⁰ is learned, Eˡ⁺¹ = D^-½ A D^-½ Eˡ, and a vector is the mean over l. The loss is BPR (it starts
at log 2 = .6931: one that stays there has learned nothing), with L2 on the rows of E⁰ that a batch touches.

Axes: U users, A authors, E edges, B pairs of a batch, D width.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from data_pipelines.log.tasks import Task
from data_pipelines.log.timelines import Timelines
from experiments.baselines import fitting, histories
from experiments.common.fingerprint import identity
from experiments.common.log import Log
from onelive_jax.model.layers import normal, weight

Array = jax.Array


@dataclass(frozen=True)
class Settings:
    """Sizes and training. batch: views whose author is set against one that the person has not watched; counts: whether
    an edge weighs log(1 + views), or 1 whatever their number."""

    dim: int = 64
    layers: int = 3
    batch: int = 8192
    l2: float = 1e-4
    counts: bool = False
    training: fitting.Training = field(default_factory=lambda: fitting.Training(learning_rate=1e-2))


class Graph(NamedTuple):
    """Edges in order of user, and the permutation that puts them in order of author. user, author: int32 [E]; norm:
    float32 [E], weight / sqrt(degree · degree)."""

    user: np.ndarray
    author: np.ndarray
    norm: np.ndarray
    by_author: np.ndarray


class Pairs(NamedTuple):
    """int32 [B] each: who watched whom, and whom they never did."""

    user: np.ndarray
    author: np.ndarray
    other: np.ndarray


def graph_of(views: Timelines, num_authors: int, counts: bool) -> Graph:
    key, number = np.unique(views.users().astype(np.int64) * num_authors + views.author, return_counts=True)
    user, author = (key // num_authors).astype(np.int32), (key % num_authors).astype(np.int32)
    value = np.log1p(number) if counts else np.ones(key.size)
    degree_U, degree_A = np.bincount(user, value), np.bincount(author, value)
    norm = (value / np.sqrt(degree_U[user] * degree_A[author])).astype(np.float32)
    return Graph(user, author, norm, np.argsort(author, kind="stable").astype(np.int32))


def pairs_of(views: Timelines, num_authors: int, rng: np.random.Generator) -> Pairs:
    """Every view once, in a random order, each with an author drawn uniformly; where the person has watched that one,
    another is drawn once more."""
    user, author = views.users(), views.author
    known = np.unique(user.astype(np.int64) * num_authors + author)
    other = rng.integers(num_authors, size=user.size).astype(np.int32)
    key = user.astype(np.int64) * num_authors + other
    taken = known[np.minimum(np.searchsorted(known, key), known.size - 1)] == key
    other[taken] = rng.integers(num_authors, size=int(taken.sum()))
    return Pairs(user, author, other)


class Model(nn.Module):
    settings: Settings
    num_users: int
    num_authors: int

    @nn.compact
    def __call__(self, graph: Graph) -> tuple[Array, Array, Array, Array]:
        """Vectors of users [U, D] and authors [A, D], and their own rows of E⁰."""
        s = self.settings
        user = user0 = weight(self, "user_table", (self.num_users, s.dim), (None, "features"), normal(0.1))
        author = author0 = weight(self, "author_table", (self.num_authors, s.dim), ("authors", "features"), normal(0.1))
        users, authors = user, author
        norm_Ex1 = jnp.asarray(graph.norm)[:, None]
        to_author = graph.author[graph.by_author]
        for _ in range(s.layers):
            user, author = (
                jax.ops.segment_sum(norm_Ex1 * author[graph.author], graph.user, self.num_users, True),
                jax.ops.segment_sum((norm_Ex1 * user[graph.user])[graph.by_author], to_author, self.num_authors, True))
            users, authors = users + user, authors + author
        return users / (s.layers + 1), authors / (s.layers + 1), user0, author0


@dataclass
class LightGCN:
    """See `experiments.baselines`. A person without a training view has only their own untrained row."""

    settings: Settings
    folder: Path
    seed: int = 0

    def fit(self, log: Log, validation: list[Task]) -> None:
        s, views = self.settings, log.training_part().views
        graph = graph_of(views, log.num_authors, s.counts)
        model = Model(s, log.views.num_users, log.num_authors)
        vectors = jax.jit(lambda params: model.apply({"params": params}, graph)[:2])
        epochs = histories.Epochs(lambda rng: pairs_of(views, log.num_authors, rng), s.batch, self.seed)

        def loss(params, pairs, key):
            users, authors, user0, author0 = model.apply({"params": params}, graph)
            user = users[pairs.user]
            margin = jnp.einsum("bd,bd->b", user, authors[pairs.author] - authors[pairs.other])
            squares = sum(jnp.sum(jnp.square(x)) for x in (user0[pairs.user], author0[pairs.author],
                                                           author0[pairs.other]))
            return -jnp.mean(jax.nn.log_sigmoid(margin)) + s.l2 * squares / (2 * pairs.user.size)

        def validate(params):
            self.vectors = tuple(map(np.asarray, vectors(params)))
            return fitting.validation_figures(self.score, validation)

        settings = asdict(s) | {"baseline": "lightgcn", "seed": self.seed, "log": identity(log)}
        params = fitting.train(self.folder, settings, s.training, self.seed,
                               lambda key: model.init(key, graph)["params"], loss, epochs.batch, validate)
        self.vectors = tuple(map(np.asarray, vectors(params)))

    def score(self, task: Task) -> np.ndarray:
        users, authors = self.vectors
        result = np.empty(task.candidates.size, np.float32)
        for request, new, candidates in histories.parts(task):
            scores = users[task.user[request[:new]]] @ authors.T
            result[candidates] = histories.of_candidates(scores, task, int(request[0]), candidates)
        return result
