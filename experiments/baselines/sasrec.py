"""SASRec (Kang and McAuley, 2018): a causal transformer over a person's views predicts the next author.

As the reproductions that reach the published figures have it: pre-norm, one table for input and output, and a softmax
over all authors (not one sampled negative and a binary loss).

Axes: B rows, T places, A authors, D width, R requests.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from data_pipelines.log.tasks import Task
from experiments.baselines import fitting, histories
from experiments.baselines.blocks import Block
from experiments.common.fingerprint import identity
from experiments.common.log import Log
from onelive_jax.model.layers import NEG_INF, RMSNorm, dropout, normal, weight
from onelive_jax.training.supervised import cross_entropy, mean

Array = jax.Array


@dataclass(frozen=True)
class Settings:
    """Sizes and training. length: views that are read; rows: packed rows of `length` places in a batch.

    sampled: authors drawn a step that the softmax is estimated from in the first sampled_share of the steps, which
    costs less (0: all authors in every step). The last steps see all authors.
    """

    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    length: int = 50
    rows: int = 32
    sampled: int = 0
    sampled_share: float = 0.75
    training: fitting.Training = field(default_factory=fitting.Training)


class Model(nn.Module):
    """Hidden states of every place, [B, T, D]; scores are their products with the rows of the table."""

    settings: Settings
    num_authors: int

    def setup(self):
        s = self.settings
        self.table = weight(self, "author_table", (self.num_authors, s.dim), ("authors", "features"), normal(0.02))
        self.place_table = weight(self, "place_table", (s.length, s.dim), (None, "embed"), normal(0.02))
        self.blocks = [Block(s.heads, 4 * s.dim, s.dropout) for _ in range(s.layers)]
        self.norm = RMSNorm()

    def __call__(self, item_BxT: Array, segment_BxT: Array, place_BxT: Array, train: bool = False) -> Array:
        s = self.settings
        x = self.table[item_BxT] * s.dim**0.5 + self.place_table[place_BxT]
        x = dropout(self, x, s.dropout, train)
        places = jnp.arange(item_BxT.shape[1])
        mask = (segment_BxT[:, :, None] == segment_BxT[:, None, :]) & (places[:, None] >= places[None])
        for block in self.blocks:
            x = block(x, mask, train)
        return self.norm(x)

    def loss(self, rows: histories.Rows, drawn_S: Array | None = None) -> Array:
        """Mean of −log softmax(scores of all authors)[next] over the places that have a next; estimated from S authors
        drawn uniformly where they are given, each with log(A / S) added."""
        x = self(rows.item, rows.segment, rows.place, True)
        x, target, weights = x.reshape(-1, x.shape[-1]), rows.target.reshape(-1), rows.weight.reshape(-1)
        if drawn_S is None:
            return mean(cross_entropy(x @ self.table.T, target), weights)
        own = jnp.einsum("nd,nd->n", x, self.table[target])
        others = x @ self.table[drawn_S].T + jnp.log(self.num_authors / drawn_S.size)
        others = jnp.where(drawn_S == target[:, None], NEG_INF, others)
        return mean(jnp.logaddexp(own, jax.nn.logsumexp(others, -1)) - own, weights)

    def scores(self, item_RxT: Array, there_RxT: Array) -> Array:
        """float32 [R, A]; zeros for a person without a view."""
        places, count_R = jnp.arange(item_RxT.shape[1]), there_RxT.sum(1)
        x = self(item_RxT, there_RxT.astype(jnp.int32), jnp.broadcast_to(places, item_RxT.shape))
        x = jnp.where(count_R[:, None] > 0, x[jnp.arange(x.shape[0]), jnp.maximum(count_R - 1, 0)], 0.0)
        return x @ self.table.T


@dataclass
class SASRec:
    """See `experiments.baselines`. folder: of its checkpoints and metrics."""

    settings: Settings
    folder: Path
    seed: int = 0

    def fit(self, log: Log, validation: list[Task]) -> None:
        s, training = self.settings, log.training_part().views
        self.views, self.model = log.views, Model(s, log.num_authors)
        self._scores = jax.jit(lambda params, item, there: self.model.apply({"params": params}, item, there,
                                                                            method="scores"))
        epoch = histories.Epochs(lambda rng: histories.pack(training, s.length, rng), s.rows, self.seed)

        sampled_steps = round(s.sampled_share * s.training.steps) if s.sampled else 0

        def batch(step: int) -> tuple[histories.Rows, np.ndarray | None]:
            draw = np.random.default_rng((self.seed, step)).integers(log.num_authors, size=s.sampled, dtype=np.int32)
            return epoch.batch(step), draw if step < sampled_steps else None

        def loss(params, batch, key):
            return self.model.apply({"params": params}, *batch, rngs={"dropout": key}, method="loss")

        def validate(params):
            self.params = params
            return fitting.validation_figures(self.score, validation)

        first = epoch.batch(0)
        self.params = fitting.train(
            self.folder, asdict(s) | {"baseline": "sasrec", "seed": self.seed, "log": identity(log)}, s.training,
            self.seed, lambda key: self.model.init(key, first.item, first.segment, first.place)["params"], loss,
            batch, validate)

    def score(self, task: Task) -> np.ndarray:
        result = np.empty(task.candidates.size, np.float32)
        for request, new, candidates in histories.parts(task):
            at, there = histories.last_views(self.views, task.user[request], task.time_ms[request],
                                             self.settings.length)
            scores = np.asarray(self._scores(self.params, self.views.author[at], there))[:new]
            result[candidates] = histories.of_candidates(scores, task, int(request[0]), candidates)
        return result
