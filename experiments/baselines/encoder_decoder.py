"""TIGER (arXiv 2305.05065) and OneRec (arXiv 2502.18965): an encoder reads the semantic ids of a person's views, a
decoder writes the id of the next one, and a beam search over the ids on air answers.

TIGER reads one token a code, and ids end with a code that tells authors of one id apart (`with_own_code`). OneRec reads
one token a view, the sum of its codes' embeddings, and ids are of the content; two authors of one id are then a tie.

One thing differs from both papers: the encoder is causal from view to view (the codes of a view see each other). What
it says of a view then does not depend on later ones, so that one pass trains the decoder on every next view of a
sequence, where a bidirectional encoder would need a pass for each.

With `decoder_only` there is one stack for both: the codes of an answer follow the views in one causal stream (the
"standard decoder-only" rung of the paper's Table 3).

Axes: B rows, T views, L levels, K codes, D width, R requests, W beams, N candidates of a request.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from data_pipelines.batches.features import padded
from data_pipelines.log.tasks import Task
from experiments.baselines import fitting, histories
from experiments.baselines.blocks import Block
from experiments.common.fingerprint import identity
from experiments.common.log import Log
from onelive_jax.batch import ROOM_FEATURES, LiveRooms
from onelive_jax.decoding import beam_search, live_index
from onelive_jax.files import sha256
from onelive_jax.model.layers import RMSNorm, dropout, normal, weight, zeros
from onelive_jax.training.supervised import cross_entropy, mean

Array = jax.Array
REQUESTS = 64  # decoded at a time


@dataclass(frozen=True)
class Settings:
    """Sizes and training. length: views that are read; rows: packed rows of `length` views in a batch; token_a_code:
    whether the encoder reads a token a code (TIGER) or a token a view (OneRec); decoder_only: one stack of
    encoder_layers + decoder_layers."""

    dim: int = 96
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    length: int = 20
    rows: int = 32
    beams: int = 50
    token_a_code: bool = True
    decoder_only: bool = False
    training: fitting.Training = field(default_factory=fitting.Training)


def with_own_code(codes_AxL: np.ndarray) -> np.ndarray:
    """int32 [A, L + 1]: ids with one more code, which numbers the authors of an id in the order of their indices."""
    _, which = np.unique(codes_AxL, axis=0, return_inverse=True)
    order = np.argsort(which, kind="stable")
    first = np.searchsorted(which[order], which[order])
    own = np.empty(which.size, np.int32)
    own[order] = np.arange(which.size) - first
    return np.concatenate([codes_AxL, own[:, None]], 1).astype(np.int32)


class Model(nn.Module):
    settings: Settings
    levels: int
    codes: int

    def setup(self):
        s, shape = self.settings, (self.levels, self.codes, self.settings.dim)
        self.code_table = weight(self, "code_table", shape, (None, "codes", "embed"), normal(0.02))
        self.place_table = weight(self, "place_table", (s.length, s.dim), (None, "embed"), normal(0.02))
        self.level_table = weight(self, "level_table", (self.levels, s.dim), (None, "embed"), normal(0.02))
        # A decoder begins with the place that its sequence has come to: else it could not tell the latest view.
        self.begin_table = weight(self, "begin_table", (s.length, s.dim), (None, "embed"), normal(0.02))
        self.heads = weight(self, "heads", (self.levels, s.dim, self.codes), (None, "embed", "codes"), normal(0.02))
        self.head_bias = weight(self, "head_bias", (self.levels, self.codes), (None, "codes"), zeros)
        layers = (s.encoder_layers + s.decoder_layers, 0) if s.decoder_only else (s.encoder_layers, s.decoder_layers)
        self.encoder, self.decoder = ([Block(s.heads, 4 * s.dim, s.dropout) for _ in range(n)] for n in layers)
        self.encoder_norm, self.decoder_norm = RMSNorm(), RMSNorm()

    @property
    def tokens(self) -> int:
        """Encoder tokens of a view."""
        return self.levels if self.settings.token_a_code else 1

    def embed(self, codes: Array, levels: slice) -> Array:
        """[..., l] codes of the levels → [..., l, D]."""
        return jnp.stack([self.code_table[level][codes[..., i]] for i, level in enumerate(range(self.levels)[levels])],
                         -2) * self.settings.dim**0.5

    def encode(self, codes_BxTxL: Array, segment_BxT: Array, place_BxT: Array, train: bool = False) -> list[Array]:
        """What the decoder attends to, [B, T · tokens, D]: the encoder's result, or (decoder_only) what each of its
        layers reads. A token sees those of its own view and of the views of its segment before."""
        s, (B, T, _) = self.settings, codes_BxTxL.shape
        x = self.embed(codes_BxTxL, slice(None))
        x = x + self.level_table if s.token_a_code else x.sum(2, keepdims=True)
        x = (x + self.place_table[place_BxT][:, :, None]).reshape(B, T * self.tokens, s.dim)
        x = dropout(self, x, s.dropout, train)
        view = jnp.repeat(jnp.arange(T), self.tokens)
        mask = self._same(segment_BxT) & (view[:, None] >= view[None])
        read = []
        for block in self.encoder:
            read.append(x)
            x = block(x, mask, train)
        return read if s.decoder_only else [self.encoder_norm(x)]

    def _same(self, segment_BxT: Array) -> Array:
        segment = jnp.repeat(segment_BxT, self.tokens, 1)
        return (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)

    def decode(self, codes_BxPxl: Array, place_BxP: Array, context: list[Array], context_mask_BxPxS: Array,
               train: bool = False) -> Array:
        """Hidden states [B, P · (l + 1), D] of P answers that begin with l codes each; the last of an answer predicts
        its next code. place: of the last view before it; context_mask: what of the context an answer may see."""
        s, (B, P, l) = self.settings, codes_BxPxl.shape
        x = self.begin_table[place_BxP][:, :, None] * s.dim**0.5
        if l:
            x = jnp.concatenate([x, self.embed(codes_BxPxl, slice(l))], 2)
        x = (x + self.level_table[:l + 1]).reshape(B, P * (l + 1), s.dim)
        x = dropout(self, x, s.dropout, train)
        answer, level = jnp.repeat(jnp.arange(P), l + 1), jnp.tile(jnp.arange(l + 1), P)
        mask = (answer[:, None] == answer[None]) & (level[:, None] >= level[None])
        mask, seen = jnp.broadcast_to(mask, (B, *mask.shape)), jnp.repeat(context_mask_BxPxS, l + 1, 1)
        if s.decoder_only:
            for block, memory in zip(self.encoder, context, strict=True):
                x = block(x, jnp.concatenate([seen, mask], 2), train, memory_BxMxD=memory)
        for block in self.decoder:
            x = block(x, mask, train, context[0], seen)
        return self.decoder_norm(x)

    def logits(self, level: int, x: Array) -> Array:
        return x @ self.heads[level] + self.head_bias[level]

    def __call__(self, codes_BxTxL: Array, target_BxTxL: Array, segment_BxT: Array, place_BxT: Array,
                 train: bool = False) -> list[Array]:
        """Logits of every level of every view's next one, teacher-forced: L arrays [B · T, K]."""
        B, T, L = codes_BxTxL.shape
        context = self.encode(codes_BxTxL, segment_BxT, place_BxT, train)
        view = jnp.repeat(jnp.arange(T), self.tokens)
        seen = self._same(segment_BxT)[:, ::self.tokens] & (jnp.arange(T)[:, None] >= view[None])
        x = self.decode(target_BxTxL[..., :L - 1], place_BxT, context, seen, train).reshape(B * T, L, -1)
        return [self.logits(level, x[:, level]) for level in range(L)]

    def loss(self, codes_BxTxL: Array, target_BxTxL: Array, rows: histories.Rows) -> Array:
        levels = self(codes_BxTxL, target_BxTxL, rows.segment, rows.place, True)
        target, weights = target_BxTxL.reshape(-1, self.levels), rows.weight.reshape(-1)
        return sum(mean(cross_entropy(logits, target[:, level]), weights) for level, logits in enumerate(levels))

    def next_code(self, level: int, codes_RxWxL: Array, context: list[Array],
                  mask_RxS: Array) -> Array:
        """float32 [R, W, K], of beams whose first `level` codes are known."""
        R, W, _ = codes_RxWxL.shape
        mask = jnp.broadcast_to(mask_RxS[:, None], (R, W, mask_RxS.shape[1]))
        last = jnp.maximum(mask_RxS.sum(1) // self.tokens - 1, 0)
        x = self.decode(codes_RxWxL[..., :level], jnp.broadcast_to(last[:, None], (R, W)), context, mask)
        return self.logits(level, x.reshape(R, W, level + 1, -1)[:, :, -1])


@dataclass
class EncoderDecoder:
    """See `experiments.baselines`. name: of the baseline; codes_AxL: int32, the semantic id of every author."""

    settings: Settings
    folder: Path
    codes_AxL: np.ndarray
    seed: int = 0
    name: str = "tiger"

    def fit(self, log: Log, validation: list[Task]) -> None:
        s, training, codes = self.settings, log.training_part().views, self.codes_AxL
        self.views, self.model = log.views, Model(s, codes.shape[1], int(codes.max()) + 1)
        epochs = histories.Epochs(lambda rng: histories.pack(training, s.length, rng), s.rows, self.seed)
        self._rank, self._hits = jax.jit(self._ranking), jax.jit(self._accuracy)
        self._everyone = None

        def loss(params, rows, key):
            return self.model.apply({"params": params}, jnp.asarray(codes)[rows.item], jnp.asarray(codes)[rows.target],
                                    rows, rngs={"dropout": key}, method="loss")

        def validate(params):
            self.params = params
            return fitting.validation_figures(self.score, validation)

        first = epochs.batch(0)
        settings = asdict(s) | {"baseline": self.name, "seed": self.seed, "log": identity(log), "codes": sha256(codes)}
        self.params = fitting.train(
            self.folder, settings, s.training, self.seed, lambda key: self.model.init(
                key, codes[first.item], codes[first.target], first.segment, first.place)["params"],
            loss, epochs.batch, validate)

    def _ranking(self, params, codes_RxTxL: Array, there_RxT: Array, index: live_index.LiveIndex):
        R, T, L = codes_RxTxL.shape
        place = jnp.broadcast_to(jnp.arange(T), (R, T))
        context = self.model.apply({"params": params}, codes_RxTxL, there_RxT.astype(jnp.int32), place, method="encode")
        mask = jnp.repeat(there_RxT, self.model.tokens, 1)

        def level_logits(level, state, previous_BxW, prefix_BxWxL):
            return self.model.apply({"params": params}, level, prefix_BxWxL, context, mask, method="next_code"), state

        k = min(index.capacity, self.settings.beams) if not index.batched else index.capacity
        found = beam_search.decode(level_logits, jnp.zeros((R, 1)), index,
                                   beam_search.Search(self.settings.beams, k), batch=R)
        return found.slot, found.score, found.valid

    def accuracy(self, task: Task) -> float:
        """ACC@all: share of the codes of the targets that are predicted right, each with the ones before it given."""
        hits = 0.0
        for low in range(0, task.user.size, REQUESTS):
            request = np.minimum(np.arange(low, low + REQUESTS), task.user.size - 1)
            at, there = histories.last_views(self.views, task.user[request], task.time_ms[request],
                                             self.settings.length)
            target = self.codes_AxL[task.target[request]]
            hits += np.asarray(self._hits(self.params, self.codes_AxL[self.views.author[at]], there, target))[
                :min(REQUESTS, task.user.size - low)].sum()
        return float(hits / task.user.size)

    def _accuracy(self, params, codes_RxTxL: Array, there_RxT: Array, target_RxL: Array) -> Array:
        """float32 [R]: share of the target's codes that are predicted right, of each request."""
        (R, T, L), last = codes_RxTxL.shape, jnp.maximum(there_RxT.sum(1) - 1, 0)
        levels = self.model.apply({"params": params}, codes_RxTxL, jnp.broadcast_to(target_RxL[:, None], (R, T, L)),
                                  there_RxT.astype(jnp.int32), jnp.broadcast_to(jnp.arange(T), (R, T)))
        best = [jnp.argmax(logits.reshape(R, T, -1)[jnp.arange(R), last], -1) for logits in levels]
        return jnp.mean(jnp.stack(best, 1) == target_RxL, 1)

    def score(self, task: Task) -> np.ndarray:
        """−inf for candidates whose id no beam holds."""
        count, num_authors = np.diff(task.offsets), self.codes_AxL.shape[0]
        scores = np.full(task.candidates.size, -np.inf, np.float32)
        everyone = bool((count == num_authors).all())
        slots = num_authors if everyone else -(-int(count.max(initial=1)) // 64) * 64
        for low in range(0, task.user.size, REQUESTS):
            request = np.minimum(np.arange(low, low + REQUESTS), task.user.size - 1)
            new = min(REQUESTS, task.user.size - low)
            at, there = histories.last_views(self.views, task.user[request], task.time_ms[request],
                                             self.settings.length)
            index = self._index_of_all() if everyone else self._index_of(task, request, slots)
            slot, value, valid = map(np.asarray, self._rank(self.params, self.codes_AxL[self.views.author[at]], there,
                                                            index))
            valid = valid & (np.arange(REQUESTS) < new)[:, None]
            row, _ = np.nonzero(valid)
            scores[task.offsets[request[row]] + slot[valid]] = value[valid]
        return scores

    def _index_of_all(self) -> live_index.LiveIndex:
        if self._everyone is None:
            A = self.codes_AxL.shape[0]
            rooms = LiveRooms(np.arange(A, dtype=np.int32), self.codes_AxL,
                              np.zeros((A, len(ROOM_FEATURES)), np.float32), np.ones(A, bool))
            self._everyone = jax.jit(live_index.from_rooms, static_argnums=1)(rooms, self.model.codes)
        return self._everyone

    def _index_of(self, task: Task, request: np.ndarray, slots: int) -> live_index.LiveIndex:
        begin, length = task.offsets[request], np.diff(task.offsets)[request]
        flat = np.concatenate([np.arange(b, b + n) for b, n in zip(begin, length, strict=True)])
        offsets, author = np.append(0, np.cumsum(length)), task.candidates[flat]
        rooms = LiveRooms(*(padded(values, offsets, slots) for values in (
            author, self.codes_AxL[author], np.zeros((author.size, len(ROOM_FEATURES)), np.float32),
            np.ones(author.size, bool))))
        return jax.jit(live_index.from_rooms, static_argnums=1)(rooms, self.model.codes)
