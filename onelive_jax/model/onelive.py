"""The model: context, training logits, one decoding step, identity scores.

Axes: B batch, W beams, S positions, L levels, K codes, N rooms, A authors, D model width, E author width.

All calls are pure: `model.apply({"params": params}, …, method="open")` and so on. Decoder input is [BOS], q0, q1 (…);
the time of the request conditions [BOS].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from onelive_jax.batch import Batch, LiveRooms, Request
from onelive_jax.config import ModelConfig
from onelive_jax.model.context import ContextProjector
from onelive_jax.model.decoder import Decoder, empty_caches
from onelive_jax.model.evidence import EvidenceHead
from onelive_jax.model.identity import CopyScore, IdentityHead, copied_codes
from onelive_jax.model.layers import NEG_INF, Context, TimeEmbedding, normal, rms_normalise, weight, zeros
from onelive_jax.model.mtp import MTPModule
from onelive_jax.sharding.placement import Placement

Array = jax.Array
COMBINED = ("codes", "identity", "evidence")  # what the score of a room is made of, as `OneLive.combine` weighs it


@struct.dataclass
class DecoderState:
    """What one level of the search hands on to the next, for W beams.

    Attributes:
      hidden: [B, W, D], the state that predicted the code before. caches: of the main decoder's self-attention
        (`decoder.empty_caches`); None with multi-token prediction, whose modules read `hidden` alone.
    """

    hidden: Array
    caches: Any = None


@struct.dataclass
class Opened:
    """A request, opened: all that is computed once, before any room is searched for or scored token by token.

    Attributes:
      context: shared keys and values. state: the decoder's state after level 0, arrays [B, 1, …].
      first_logits: float32 [B, 1, K], scores of the first code.
      room_scores: float32 [B, N], weighted identity scores, NEG_INF off air; None where rooms have none.
    """

    context: Context
    state: DecoderState
    first_logits: Array
    room_scores: Array | None


class OneLive(nn.Module):
    """The time-aware gated decoder with sequential multi-token prediction.

    Attributes:
      config: the model's settings.
      levels, num_codes: L and K of the semantic ids.
      num_authors: A, rows of the author table. author_dim: E, the tokenizer's width.
      sequences: names of the history sequences in the order in which they are concatenated.
      placement: where activations lie, see `Placement`.
    """

    config: ModelConfig
    levels: int
    num_codes: int
    num_authors: int
    author_dim: int
    sequences: tuple[str, ...] = ("live",)
    placement: Placement = Placement()

    def setup(self):
        c, D = self.config, self.config.dim
        self.context_projector = ContextProjector(c, self.sequences, self.placement)
        self.code_table = weight(self, "code_table", (self.levels, self.num_codes, D), (None, "codes", "embed"),
                                 normal(D**-0.5))
        self.bos = weight(self, "bos", (D,), ("embed",), normal(D**-0.5))
        if c.request_time:
            self.bos_time = TimeEmbedding(D)
        self.decoder = Decoder(c, self.placement)
        if c.mtp:
            self.mtp = [MTPModule(c, self.placement) for _ in range(self.levels - 1)]
        # Near zero at the start, so that the copy path is not drowned by random logits.
        self.heads = weight(self, "heads", (self.levels, D, self.num_codes), (None, "embed", "codes"), normal(0.02))
        self.head_bias = weight(self, "head_bias", (self.levels, self.num_codes), (None, "codes"), zeros)
        if c.copy:
            self.copy_score = CopyScore(c.habits)
        if c.identity or c.author_items:
            self.author_table = weight(self, "author_table", (self.num_authors, self.author_dim),
                                       ("authors", "features"), normal(self.author_dim**-0.5))
        if c.identity:
            self.identity = IdentityHead(c, self.num_authors, self.placement)
            self.evidence = EvidenceHead(c, self.num_authors)
            # Not trained by the losses: fitted on views held out (experiments/common/calibration.py).
            self.combine = weight(self, "combine", (len(COMBINED),), (None,),
                                  lambda key, shape, dtype: jnp.array(c.combine, dtype))

    # What every use of the model starts with.

    def encode(self, request: Request, train: bool = False) -> Context:
        """The history as shared keys and values; once a request."""
        authors = self.author_table if self.config.author_items else None
        return self.context_projector(request, self.code_table, authors, train)

    def open(self, request: Request, live: LiveRooms | None = None, identity_weight: float = 1.0,
             context: Context | None = None) -> Opened:
        """Opens a request for serving, evaluation, rollouts and the policy, without dropout: encodes it, runs the main
        decoder on [BOS] and scores the rooms on air. Rooms are then searched for by `level_logits`.

        Args:
          live: rooms on air [B, N], or [1, N] where the batch shares one catalogue; None scores no room.
          identity_weight: static; of the identity scores, which 0 leaves out.
          context: `encode(request)`, where it is known already (a server keeps it while a history stays the same).
        """
        context = self.encode(request) if context is None else context
        first_logits, state = self.decode_first(request, context)
        scores_BxN = None
        if live is not None and self.config.identity and identity_weight:
            scores_BxN = identity_weight * self.room_scores(request, state.hidden[:, 0], context, live)
            scores_BxN = jnp.where(live.mask, scores_BxN, NEG_INF)
            first_logits = self.code_weight() * first_logits
        return Opened(context, state, first_logits, scores_BxN)

    def code_weight(self) -> Array:
        """What the logits of codes are multiplied with beside room scores, float32 []."""
        return jax.lax.stop_gradient(self.combine[0])

    def room_scores(self, request: Request, hidden_BxD: Array, context: Context, rooms: LiveRooms) -> Array:
        """What is added to the codes' log-probability, float32 [B, N]: identity and evidence, weighed by `combine`."""
        _, identity, evidence = jax.lax.stop_gradient(self.combine)
        return (identity * self.identity_scores(hidden_BxD, context, rooms)
                + evidence * self.evidence(request, context, rooms))

    def start(self, request: Request) -> Array:
        """x_BOS + MLP(concat(hour, day, week)), [B, D]."""
        dtype = jnp.dtype(self.config.activation_dtype)
        x = jnp.broadcast_to(self.bos.astype(dtype), (request.hour.shape[0], self.config.dim))
        if self.config.request_time:
            x = x + self.bos_time(request.hour, request.day, request.week, dtype)
        return self.placement.rows(x)

    def embed_codes(self, level: int, codes: Array) -> Array:
        embedded = self.placement.take(self.code_table[level], ("codes", "embed"), codes)
        return embedded.astype(jnp.dtype(self.config.activation_dtype))

    def logits(self, level: int, hidden_BxWxSxD: Array, context: Context, prefix_BxWxSxL: Array,
               copy_BxWxSxT: Array | None = None) -> Array:
        """Scores of the K codes of `level`, float32 [B, W, S, K], generated and copied.

        `copy_BxWxSxT`: the copy scores of these hidden states, where they are known already.
        """
        x = self.placement.rows(rms_normalise(hidden_BxWxSxD))
        out = jnp.einsum("bwsd,dk->bwsk", x, self.heads[level].astype(x.dtype), preferred_element_type=jnp.float32)
        out = out + self.head_bias[level]
        if self.config.copy:
            score = self.copy_score(hidden_BxWxSxD, context) if copy_BxWxSxT is None else copy_BxWxSxT
            out = jnp.logaddexp(out, copied_codes(score, context, prefix_BxWxSxL, level, self.num_codes))
        return out

    # Training: all positions at once, teacher-forced.

    def _training_pass(self, context: Context, request: Request, codes_BxL: Array, train: bool):
        """Teacher-forced logits.

        Returns:
          modules: modules[k][l − k] is what module k (0: main decoder) says of level l, float32 [B, K].
          hidden_BxD: the main decoder's state at [BOS], which the identity head reads.
          largest: the largest QK logit of all modules, float32 [].
        """
        L = self.levels
        start = self.start(request)[:, None]
        inputs = [start] + [self.embed_codes(l, codes_BxL[:, None, l]) for l in range(L - 1)]
        hidden, _, largest = self.decoder(jnp.stack(inputs, 2), context, train)  # [B, 1, L, D]
        states = [hidden]
        if self.config.mtp:
            for k in range(1, L):
                # Position p of module k predicts level p + k: it reads the state that predicted level p + k − 1.
                embedded = jnp.stack([self.embed_codes(l, codes_BxL[:, None, l]) for l in range(k - 1, L - 1)], 2)
                state, module_largest = self.mtp[k - 1](states[-1][:, :, :L - k], embedded, context, train)
                states.append(state)
                largest = jnp.maximum(largest, module_largest)
        return self._logits_of_modules(states, context, codes_BxL), hidden[:, 0, 0], largest

    def _logits_of_modules(self, states: list[Array], context: Context, codes_BxL: Array) -> list[list[Array]]:
        """modules[k][l − k] from the states [B, 1, L − k, D] of the modules, all modules of a level at once."""
        by_level = [jnp.concatenate([x[:, :, l - k, None] for k, x in enumerate(states[:l + 1])], 2)
                    for l in range(self.levels)]
        copies = [None] * self.levels
        if self.config.copy:
            ends = [sum(x.shape[2] for x in by_level[:l]) for l in range(1, self.levels)]
            states_BxWxSxD = self.placement.rows(jnp.concatenate(by_level, 2))
            copies = jnp.split(self.copy_score(states_BxWxSxD, context), ends, axis=2)
        modules = [[] for _ in states]
        for l in range(self.levels):
            prefix = jnp.broadcast_to(codes_BxL[:, None, None], (*by_level[l].shape[:3], self.levels))
            logits = self.logits(l, by_level[l], context, prefix, copies[l])
            for k in range(logits.shape[2]):
                modules[k].append(logits[:, 0, k])
        return modules

    # Decoding: one code at a time for W beams.

    def decode_first(self, request: Request, context: Context) -> tuple[Array, DecoderState]:
        """Level 0, from [BOS]: (logits float32 [B, 1, K], state [B, 1, …])."""
        start = self.start(request)[:, None]
        no_prefix = jnp.zeros((start.shape[0], 1, self.levels), jnp.int32)
        caches = None if self.config.mtp else empty_caches(self.config, start.shape[0], 1, self.levels, start.dtype)
        return self._decode_main(0, start, caches, no_prefix, context)

    def decode_next(self, level: int, state: DecoderState, previous_BxW: Array, prefix_BxWxL: Array,
                    context: Context) -> tuple[Array, DecoderState]:
        """One level of the search behind the first: (logits float32 [B, W, K], state). `level` ≥ 1 is static.

        With multi-token prediction the main decoder runs at level 0 only and module k at level k, each on one
        position; without it the main decoder runs at every level over its cache.
        """
        embedded = self.embed_codes(level - 1, previous_BxW)
        if not self.config.mtp:
            return self._decode_main(level, embedded, state.caches, prefix_BxWxL, context)
        hidden = self.mtp[level - 1](state.hidden[:, :, None], embedded[:, :, None], context)[0]
        return self.logits(level, hidden, context, prefix_BxWxL[:, :, None])[:, :, 0], DecoderState(hidden[:, :, 0])

    def _decode_main(self, level: int, x_BxWxD: Array, caches: Any, prefix_BxWxL: Array,
                     context: Context) -> tuple[Array, DecoderState]:
        """One position of the main decoder."""
        hidden, caches, _ = self.decoder(x_BxWxD[:, :, None], context, False, caches, level)
        logits = self.logits(level, hidden, context, prefix_BxWxL[:, :, None])[:, :, 0]
        return logits, DecoderState(hidden[:, :, 0], caches)

    # Identity.

    def evidence_scores(self, request: Request, context: Context, rooms: LiveRooms) -> Array:
        """Scores of rooms on air by what is counted, float32 [B, N]."""
        return self.evidence(request, context, rooms)

    def identity_scores(self, hidden_BxD: Array, context: Context, rooms: LiveRooms,
                        everyone_BxA: Array | None = None) -> Array:
        """Identity scores of rooms on air, float32 [B, N]; `everyone_BxA` is `author_scores`, if computed already."""
        hidden_BxD = self.placement.rows(hidden_BxD)
        user = self.identity.user(hidden_BxD, self.author_dim)
        return self.identity.rooms(hidden_BxD, user, context, rooms, self.author_table, everyone_BxA)

    def author_scores(self, hidden_BxD: Array) -> Array:
        """Generated identity scores of all authors, float32 [B, A]."""
        user = self.identity.user(self.placement.rows(hidden_BxD), self.author_dim)
        return self.identity.everyone(user, self.author_table)

    def sampled_author_scores(self, hidden_BxD: Array, target_B: Array, train: bool) -> Array:
        """Scores that stand for `author_scores` in a loss, float32 [B, 1 + S], see `IdentityHead.sampled`; without
        `train` the draw is always the same."""
        key = self.make_rng("dropout") if train else jax.random.key(0)
        user = self.identity.user(self.placement.rows(hidden_BxD), self.author_dim)
        return self.identity.sampled(user, self.author_table, target_B, key)

    def __call__(self, batch: Batch, train: bool = False):
        """Everything that training needs; also what `init` runs.

        Returns: (modules, (identity scores, evidence scores) float32 [B, N] or None, author_scores float32 or None:
        [B, A], or [B, 1 + S] with the target's first where 0 < S = config.author_negatives < A).
        """
        return self.with_largest_logit(batch, train)[0]

    def with_largest_logit(self, batch: Batch, train: bool = False):
        """What `__call__` returns, and the largest |QK logit| of all blocks, float32 []."""
        context = self.encode(batch.request, train)
        modules, hidden, largest = self._training_pass(context, batch.request, batch.target_codes, train)
        if not self.config.identity:
            return (modules, None, None), largest
        evidence = self.evidence(batch.request, context, batch.live)
        if 0 < self.config.author_negatives < self.num_authors:
            everyone, known = self.sampled_author_scores(hidden, batch.target_author, train), None
        else:
            everyone = known = self.author_scores(hidden)
        return (modules, (self.identity_scores(hidden, context, batch.live, known), evidence), everyone), largest


def level_logits(model: OneLive, params: Any, opened: Opened) -> Callable:
    """(level, state, previous_BxW, prefix_BxWxL) → (logits_BxWxK, state) of an opened request, as
    `decoding.beam_search` asks for it; the search starts from `opened.state`."""
    def logits(level: int, state: DecoderState, previous_BxW: Array, prefix_BxWxL: Array):
        if level == 0:
            return opened.first_logits, state
        made, state = model.apply({"params": params}, level, state, previous_BxW, prefix_BxWxL, opened.context,
                                  method="decode_next")
        scored = opened.room_scores is not None
        return (model.apply({"params": params}, method="code_weight") * made if scored else made), state

    return logits
