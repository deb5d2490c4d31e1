"""Exact batched beam search over the semantic ids on air, and the ranking of the rooms that carry them.

Axes: B batch, W beams, L code levels, K codes, C capacity of the index, N trie nodes of one level, k ranks returned.

A level is searched from the side of the trie: every live prefix of that length is one candidate, whose score is its
parent beam's score plus one log-probability. There are at most C of them, however large K and W are, so a wide beam
costs no more to search than a narrow one, and a code that is not on air is not a candidate at all.

The model enters as one pure function,

    level_logits(level, state, previous_BxW, prefix_BxWxL) -> (logits_BxWxK, state)

with `level` a Python int (0 … L-1), `state` a pytree of arrays [B, W, …] (what differs between beams: the context's
keys and values do not, so the function closes over them), `previous_BxW` int32 the code before (0 at level 0) and
`prefix_BxWxL` int32 the codes so far (columns `level` and later are 0). W is 1 at level 0 and grows to the beam
width. Beams that are not valid carry the codes of a valid shape (zeros); what the model says of them is not read.
"""

import dataclasses
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from onelive_jax.decoding.live_index import LiveIndex, Trie, TrieLevel

Array = jax.Array
LevelLogits = Callable[[int, Any, Array, Array], tuple[Array, Any]]

NORMALISERS = ("live", "all")
COMBINATIONS = ("sum", "within")


@dataclasses.dataclass(frozen=True)
class Search:
    """How wide the search is, and what it returns.

    Attributes:
      beams: the beam width asked for. k: ranks returned.
      normalise: log-probabilities of codes are normalised "live", over the codes on air, or over "all" K codes.
      combine: what a room's own score adds to its id's log-probability, see `room_bonus`.
      lookahead: prefixes are ranked by log-probability + the best bonus below them, an upper bound of what their rooms
        can reach, so that a narrow beam does not lose a room for its codes alone. Needs scores of rooms.
    """

    beams: int
    k: int
    normalise: str = "live"
    combine: str = "sum"
    lookahead: bool = False


class RoomScores(NamedTuple):
    """What tells rooms apart beside their codes, in slot order [B, C]; None where nothing does.

    Attributes:
      room_score_BxC: float32, see `room_bonus`. tie_score_BxC: float32, see `rank_rooms`.
      allowed_BxC: bool; rooms where it is False are not on air for that request.
    """

    room_score_BxC: Array | None = None
    tie_score_BxC: Array | None = None
    allowed_BxC: Array | None = None


UNSCORED = RoomScores()


@struct.dataclass
class Beams:
    """The best semantic ids on air, best first. W may be below the width asked for: never more than C or K^L.

    Attributes:
      codes: int32 [B, W, L]; 0 where not valid.
      node: int32 [B, W], node of the trie's last level; 0 where not valid.
      score: float32 [B, W], log-probability of the id; -inf where not valid.
      valid: bool [B, W]. Fewer ids on air than beams is normal. A code to which the model gives -inf is never valid.
      bound: float32 [B], no room outside the beams can score above it; -inf where nothing was left out.
    """

    codes: Array
    node: Array
    score: Array
    valid: Array
    bound: Array


@struct.dataclass
class Ranking:
    """The best rooms on air, best first; always k ranks, those past the last room are not valid.

    Attributes:
      slot: int32 [B, k], slot of the index; -1 where not valid.
      author: int32 [B, k]; -1 where not valid.
      codes: int32 [B, k, L]; -1 where not valid.
      score: float32 [B, k]; -inf where not valid.
      valid: bool [B, k].
      bound: float32 [B], no room that was left out by the beams can score above it: ranks whose score is above it
        are those of a search over every room on air.
    """

    slot: Array
    author: Array
    codes: Array
    score: Array
    valid: Array
    bound: Array


def gather_beams(state: Any, parent_BxW: Array) -> Any:
    """Takes beams `parent_BxW` (int32) from every array [B, W', …] of `state`: arrays [B, W, …]."""
    return jax.tree.map(lambda x: jax.vmap(lambda row, parent: row[parent])(x, parent_BxW), state)


def room_bonus(index: LiveIndex, room_score_BxC: Array, combine: str = "sum") -> Array:
    """What a room's own score adds to the log-probability of its id: float32 [B, C], in the trie's *sorted* order.

    Args:
      index: the rooms on air.
      room_score_BxC: float32, in slot order, e.g. weight · (user · author); slots off air are not read.
      combine: "sum" adds the score as it is; "within" adds its log-softmax over the rooms of the same id, so that
        codes choose the id and the room score chooses among those who share it.

    Raises: ValueError for another `combine`, or scores that are not one a slot.
    """
    if combine not in COMBINATIONS:
        raise ValueError(f"combine={combine!r} is not one of {', '.join(map(repr, COMBINATIONS))}")
    _check_slots(index, "room_score_BxC", room_score_BxC)

    def bonus(trie: Trie, score_C):
        sorted_C = score_C.astype(jnp.float32)[trie.order]
        if combine == "within":
            log_sum_C = _log_sum_within(trie, sorted_C)
            sorted_C = jnp.where(sorted_C == -jnp.inf, -jnp.inf, sorted_C - log_sum_C)
        return jnp.where(jnp.arange(sorted_C.shape[0]) < trie.num_rooms, sorted_C, -jnp.inf)

    return _over_batch(index, bonus)(index.trie, room_score_BxC)


def beam_search(level_logits: LevelLogits, state: Any, index: LiveIndex, search: Search, *, batch: int,
                bonus_BxC: Array | None = None, masked: bool = False) -> Beams:
    """The `beams` most probable semantic ids on air; exact where no prefix is left out, i.e. where W ≥ ids on air.

    score(q) = Σ_t log p(q_t | q_<t), with p normalised over the codes on air after q_<t or over all K.

    Args:
      level_logits: the model, see the top of this file.
      state: its state before level 0, arrays [B, 1, …].
      index: one catalogue for the batch, or one a request (leading B axis).
      batch: B.
      bonus_BxC: float32, from `room_bonus`, where rooms have scores of their own.
      masked: whether prefixes of nothing but rooms of bonus -inf are left out.

    Raises: ValueError for a width below 1, another `normalise`, or `lookahead` without `bonus_BxC`.
    """
    beams, normalise, lookahead = search.beams, search.normalise, search.lookahead
    if beams < 1:
        raise ValueError(f"beams={beams} must be at least 1 (config.decoding.beams)")
    if normalise not in NORMALISERS:
        raise ValueError(f"normalise={normalise!r} is not one of {', '.join(map(repr, NORMALISERS))}")
    if (lookahead or masked) and bonus_BxC is None:
        raise ValueError(f"{'lookahead' if lookahead else 'masked'}=True needs bonus_BxC: without room scores there is "
                         "nothing to look ahead to")

    num_levels = index.num_levels
    promise = [None] * num_levels
    if lookahead or masked:
        promise = _over_batch(index, _best_below)(index.trie, bonus_BxC)
        if not lookahead:  # what nobody may have stays out, all else is ranked by its codes
            promise = [jnp.where(best == -jnp.inf, best, 0.0) for best in promise]
    codes_BxWxL = jnp.zeros((batch, 1, num_levels), jnp.int32)
    score_BxW, node_BxW = jnp.zeros((batch, 1)), jnp.zeros((batch, 1), jnp.int32)  # the root
    left_out_B = jnp.full(batch, -jnp.inf)

    for level in range(num_levels):
        previous_BxW = codes_BxWxL[..., max(level - 1, 0)]
        logits_BxWxK, state = level_logits(level, state, previous_BxW, codes_BxWxL)
        _check_logits(logits_BxWxK, level, (*score_BxW.shape, index.num_codes))
        num_parents = 1 if level == 0 else index.trie.levels[level - 1].code.shape[-1]

        one_level = partial(_search_level, num_parents=num_parents, beams=beams, normalise=normalise)
        score_BxW, node_BxW, parent_BxW, code_BxW, pruned_B = _over_batch(index, one_level)(
            index.trie.levels[level], logits_BxWxK, score_BxW, node_BxW, promise[level])
        codes_BxWxL = gather_beams(codes_BxWxL, parent_BxW).at[..., level].set(code_BxW)
        if level + 1 < num_levels:
            state = gather_beams(state, parent_BxW)
        left_out_B = jnp.maximum(left_out_B, pruned_B)

    if bonus_BxC is not None and not lookahead:
        # A prefix left out for its codes alone may lead to the room with the best bonus. (-inf: none was left out.)
        left_out_B = jnp.where(left_out_B == -jnp.inf, -jnp.inf, left_out_B + bonus_BxC.max(axis=-1))
    return Beams(codes=codes_BxWxL, node=node_BxW, score=score_BxW, valid=score_BxW != -jnp.inf, bound=left_out_B)


def rank_rooms(index: LiveIndex, beams: Beams, k: int, bonus_BxC: Array | None = None,
               tie_score_BxC: Array | None = None) -> Ranking:
    """The k best rooms whose semantic id is in a beam: score = log-probability of the id + the room's bonus.

    Rooms of one id and equal score are told apart by `tie_score_BxC`, float32 in slot order, the highest first (the
    paper's user–author score of the towers); it is no part of `score`, and slots off air are not read. Without it, or
    where it is equal too, by `tie_rank` of the author. Of different ids with equal score, lower codes come first. Both
    rules are fixed and know nothing of the answer.

    Raises: ValueError for k below 1, or tie scores of another shape than [B, C].
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    if tie_score_BxC is not None:
        _check_slots(index, "tie_score_BxC", tie_score_BxC, beams.score.shape[0])
    found = min(k, index.capacity)

    def rank(index, score_W, node_W, bonus_C, tie_score_C):
        trie = index.trie
        score_N = _scatter_nodes(trie.levels[-1].code.shape[0], node_W, score_W, score_W, -jnp.inf)
        score_C = score_N[trie.leaf] + (0.0 if bonus_C is None else bonus_C)
        score_C = jnp.where(jnp.arange(index.capacity) < trie.num_rooms, score_C, -jnp.inf)
        order_C = trie.order
        if tie_score_C is not None:
            within_C = _order_within(trie, tie_score_C)
            score_C, order_C = score_C[within_C], order_C[within_C]
        score_k, at_k = _top_k(score_C, found)
        valid_k, slot_k = score_k != -jnp.inf, order_C[at_k]
        return (jnp.where(valid_k, slot_k, -1), jnp.where(valid_k, index.author[slot_k], -1),
                jnp.where(valid_k[:, None], index.codes[slot_k], -1), score_k)

    slot_Bxk, author_Bxk, codes_BxkxL, score_Bxk = _over_batch(index, rank)(index, beams.score, beams.node, bonus_BxC,
                                                                           tie_score_BxC)
    missing = (0, k - found)
    slot_Bxk = jnp.pad(slot_Bxk, ((0, 0), missing), constant_values=-1)
    author_Bxk = jnp.pad(author_Bxk, ((0, 0), missing), constant_values=-1)
    codes_BxkxL = jnp.pad(codes_BxkxL, ((0, 0), missing, (0, 0)), constant_values=-1)
    score_Bxk = jnp.pad(score_Bxk, ((0, 0), missing), constant_values=-jnp.inf)
    return Ranking(slot=slot_Bxk, author=author_Bxk, codes=codes_BxkxL, score=score_Bxk, valid=score_Bxk != -jnp.inf,
                   bound=beams.bound)


def decode(level_logits: LevelLogits, state: Any, index: LiveIndex, search: Search, rooms: RoomScores = UNSCORED,
           *, batch: int) -> Ranking:
    """The k best rooms on air: `room_bonus`, `beam_search` and `rank_rooms` in one; arguments and errors as there."""
    score_BxC, allowed_BxC = rooms.room_score_BxC, rooms.allowed_BxC
    if allowed_BxC is not None:
        score_BxC = jnp.where(allowed_BxC, 0.0 if score_BxC is None else score_BxC, -jnp.inf)
    bonus_BxC = None if score_BxC is None else room_bonus(index, score_BxC, search.combine)
    found = beam_search(level_logits, state, index, search, batch=batch, bonus_BxC=bonus_BxC,
                        masked=allowed_BxC is not None)
    return rank_rooms(index, found, search.k, bonus_BxC, rooms.tie_score_BxC)


def _over_batch(index: LiveIndex, function: Callable) -> Callable:
    """vmap over B of function(part of the index, per-request arrays …): the index is shared unless it has a B axis."""
    def batched(part, *arrays):
        in_axes = (0 if index.batched else None, *(None if x is None else 0 for x in arrays))
        return jax.vmap(function, in_axes=in_axes)(part, *arrays)

    return batched


def _search_level(trie_level: TrieLevel, logits_WxK: Array, score_W: Array, node_W: Array, promise_N: Array | None,
                  num_parents: int, beams: int, normalise: str) -> tuple[Array, Array, Array, Array, Array]:
    """One request, one level: the best live nodes among the children of the beams.

    Returns score, node, parent beam and code, each [min(beams, N)], and the best rank score that was left out.
    """
    width, num_codes = logits_WxK.shape
    num_nodes = trie_level.code.shape[0]
    beam_of_parent = _scatter_nodes(num_parents, node_W, score_W, jnp.arange(width, dtype=jnp.int32), width)
    beam_N = beam_of_parent[trie_level.parent]
    live_N = (beam_N < width) & (jnp.arange(num_nodes) < trie_level.size)
    if promise_N is not None:
        live_N &= promise_N != -jnp.inf
    at_N = jnp.where(live_N, beam_N * num_codes + trie_level.code, width * num_codes)
    log_prob_N = _log_probs(logits_WxK.astype(jnp.float32), at_N, normalise)
    score_N = jnp.where(live_N, score_W[jnp.minimum(beam_N, width - 1)] + log_prob_N, -jnp.inf)

    rank_N = score_N if promise_N is None else score_N + promise_N
    kept = min(beams, num_nodes)
    rank, node = _top_k(rank_N, min(beams + 1, num_nodes))
    pruned = rank[kept] if num_nodes > kept else jnp.float32(-jnp.inf)
    node = node[:kept].astype(jnp.int32)
    score = jnp.where(rank[:kept] == -jnp.inf, -jnp.inf, score_N[node])
    valid = score != -jnp.inf
    parent, code = jnp.where(valid, beam_N[node], 0), jnp.where(valid, trie_level.code[node], 0)
    return score, jnp.where(valid, node, 0), parent, code, pruned


def _log_probs(logits_WxK: Array, at_N: Array, normalise: str) -> Array:
    """Log-probabilities at flat positions `at_N` of [W, K]; a position past the end gives -inf."""
    log_sum_W = jax.nn.logsumexp(_where_live(logits_WxK, at_N) if normalise == "live" else logits_WxK, axis=-1)
    width, num_codes = logits_WxK.shape
    logit_N = logits_WxK.reshape(-1).at[at_N].get(mode="fill", fill_value=-jnp.inf)
    log_sum_N = log_sum_W[jnp.minimum(at_N // num_codes, width - 1)]
    return jnp.where(logit_N == -jnp.inf, -jnp.inf, logit_N - log_sum_N)  # never -inf - -inf


def _where_live(logits_WxK: Array, at_N: Array) -> Array:
    """The logits of the codes on air, -inf elsewhere. (A mask, not sums by segment: the same sum on every device.)"""
    live = jnp.zeros(logits_WxK.size, bool).at[at_N].set(True, mode="drop")
    return jnp.where(live.reshape(logits_WxK.shape), logits_WxK, -jnp.inf)


def _top_k(x_N: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k` (ties: the lower position first), behind a barrier: XLA merges slices of its results into it and then
    no longer knows it for a top-k but sorts all of x, fifty times slower on a CPU."""
    return lax.optimization_barrier(lax.top_k(x_N, k))


def _scatter_nodes(num_nodes: int, node_W: Array, score_W: Array, value_W: Array, blank) -> Array:
    """[num_nodes] of `blank`, with the value of every valid beam at its node."""
    at_W = jnp.where(score_W != -jnp.inf, node_W, num_nodes)
    return jnp.full(num_nodes, blank, value_W.dtype).at[at_W].set(value_W, mode="drop")


def _best_below(trie: Trie, bonus_C: Array) -> list[Array]:
    """Per level, the best bonus among the rooms below every node: float32 [N] each; -inf where a node is unused."""
    best, below, node = [], bonus_C, trie.leaf
    for trie_level in reversed(trie.levels):
        num_nodes = trie_level.code.shape[0]
        best.append(jnp.full(num_nodes, -jnp.inf).at[node].max(below))
        below, node = best[-1], trie_level.parent
    return best[::-1]


def _order_within(trie: Trie, tie_score_C: Array) -> Array:
    """int32 [C], the sorted rooms anew: ids where they were, the rooms of an id by falling tie score (slot order), then
    as before. A top-k among equal scores takes the lower position, so this order is all that a tie needs."""
    positions_C = jnp.arange(tie_score_C.shape[0], dtype=jnp.int32)
    leaf_C = jnp.where(positions_C < trie.num_rooms, trie.leaf, tie_score_C.shape[0])  # off air: last
    falling_C = -tie_score_C.astype(jnp.float32)[trie.order]
    return lax.sort((leaf_C, falling_C, positions_C), num_keys=2, is_stable=True)[-1]


def _log_sum_within(trie: Trie, score_C: Array) -> Array:
    """float32 [C]: log Σ exp of the scores of the sorted rooms that share a room's id. (On a GPU the last bit of a sum
    over three or more rooms may vary from run to run; everything else here has a fixed order.)"""
    capacity, num_leaves = score_C.shape[0], trie.levels[-1].code.shape[0]
    leaf_C = jnp.where(jnp.arange(capacity) < trie.num_rooms, trie.leaf, num_leaves)  # off air: dropped
    best_N = jnp.full(num_leaves, -jnp.inf).at[leaf_C].max(score_C, mode="drop")
    best_C = jnp.where(best_N == -jnp.inf, 0.0, best_N)[trie.leaf]
    sum_N = jnp.zeros(num_leaves).at[leaf_C].add(jnp.exp(score_C - best_C), mode="drop")
    return jnp.log(sum_N)[trie.leaf] + best_C


def _check_slots(index: LiveIndex, name: str, score_BxC: Array, batch: int | None = None) -> None:
    """Unchecked, a row of another length would be read past its end, where its last entry stands for all others."""
    if index.batched:
        batch = index.author.shape[0]
    if score_BxC.ndim != 2 or score_BxC.shape[1] != index.capacity or batch not in (None, score_BxC.shape[0]):
        raise ValueError(f"{name} has shape {score_BxC.shape}, [B, C] is {(batch or 'B', index.capacity)}: one score "
                         "for each slot of the index, in slot order")


def _check_logits(logits_BxWxK: Array, level: int, shape: tuple[int, int, int]) -> None:
    if logits_BxWxK.shape != shape:
        raise ValueError(f"level_logits returned shape {logits_BxWxK.shape} at level {level}; [B, W, K] is {shape}")
    if shape[1] * shape[2] >= 2**31:
        raise ValueError(f"beams × codes = {shape[1]} × {shape[2]} does not fit 32-bit positions: narrow "
                         "config.decoding.beams")
