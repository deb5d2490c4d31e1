"""The policy over rooms on air: proposing candidates, and the log-probability of every token of a candidate.

Axes: B batch, G candidates, N rooms on air, L levels, K codes, P = L + 1 tokens, A authors.

A candidate is a room on air. Its tokens are its L codes, each normalised over the codes on air behind the prefix, and
the room itself, normalised over all rooms on air: exactly the distributions that the supervised phase trains, and the
sum of their log-probabilities is the score by which `decoding.recommend` ranks, less a number that is the same for all
rooms of a request. So what alignment lifts is what serving ranks higher. A model without identity head has P = L.

Each model opens a request once (`OneLive.open`): context and the main decoder's step on [BOS] are computed one time and
read by the search, by all G candidates and by every level.
"""

from typing import Any

import jax
import jax.numpy as jnp

from onelive_jax.batch import LiveRooms
from onelive_jax.decoding import beam_search
from onelive_jax.decoding.beam_search import Ranking, RoomScores, Search
from onelive_jax.decoding.live_index import LiveIndex
from onelive_jax.model.layers import NEG_INF
from onelive_jax.model.onelive import OneLive, Opened, level_logits

Array = jax.Array
SAMPLERS = ("beam", "gumbel")


def propose(model: OneLive, params: Any, opened: Opened, index: LiveIndex, group_size: int, *, sampler: str = "beam",
            beams: int = 32, temperature: float = 1.0, key: Array | None = None) -> Ranking:
    """G rooms on air for every request, from the model that opened it.

    "beam": the G rooms that decoding ranks first. "gumbel": G rooms drawn without replacement from
    π(room) ∝ exp(score / temperature), score being that of decoding: noise temperature · Gumbel(0, 1) is added to each
    room's score, and the G largest sums are such a draw (Gumbel top-k). The sums are found by the same beam search,
    whose look-ahead knows the best noise below a prefix; the draw is exact wherever no sum that was left out could be
    above the last that was found, i.e. ranking.bound ≤ ranking.score[:, -1], and always with as many beams as ids.

    Args:
      index: one catalogue a request, from the rooms that `opened` scored. key: needed by "gumbel".

    Returns: `Ranking` of k = G ranks; fewer rooms on air than G leave the last ranks invalid.

    Raises: ValueError for another sampler, or "gumbel" without a key.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is not one of {', '.join(map(repr, SAMPLERS))}")
    score_BxN = opened.room_scores
    if sampler == "gumbel":
        if key is None:
            raise ValueError("sampler='gumbel' needs a random key")
        noise_BxN = temperature * jax.random.gumbel(key, index.author.shape, jnp.float32)
        score_BxN = noise_BxN if score_BxN is None else score_BxN + noise_BxN

    search = Search(max(beams, group_size), group_size, lookahead=score_BxN is not None)
    return beam_search.decode(level_logits(model, params, opened), opened.state, index, search, RoomScores(score_BxN),
                              batch=opened.first_logits.shape[0])


def codes_on_air_behind(live: LiveRooms, codes_BxGxL: Array, num_codes: int) -> list[Array]:
    """Per level, the codes that some room on air carries behind each candidate's prefix.

    Returns: L arrays, bool [B, 1, K] at level 0 and [B, G, K] behind it.
    """
    row = jnp.arange(codes_BxGxL.shape[0])[:, None, None]
    allowed, match_BxGxN = [], live.mask[:, None]
    for level in range(codes_BxGxL.shape[-1]):
        column = jnp.arange(match_BxGxN.shape[1])[None, :, None]
        blank = jnp.zeros((*match_BxGxN.shape[:2], num_codes), bool)
        allowed.append(blank.at[row, column, live.codes[:, None, :, level]].max(match_BxGxN))
        match_BxGxN = match_BxGxN & (live.codes[:, None, :, level] == codes_BxGxL[..., level, None])
    return allowed


def token_log_probs(model: OneLive, params: Any, opened: Opened, live: LiveRooms, slot_BxG: Array,
                    allowed: list[Array] | None = None) -> tuple[Array, Array]:
    """Log-probability of every token of given rooms, teacher-forced, and the entropy of every distribution.

    Args:
      opened: from `OneLive.open` with the same parameters. live: rooms on air [B, N].
      slot_BxG: int32, slots of `live`; where one is negative, slot 0 stands in: mask its results.
      allowed: from `codes_on_air_behind` of these rooms' codes; computed where None.

    Returns: (log_prob_BxGxP, entropy_BxGxP), float32; entropy in nats, without gradient.
    """
    slot_BxG = jnp.maximum(slot_BxG, 0)
    codes_BxGxL = jnp.take_along_axis(live.codes, slot_BxG[..., None], 1)
    allowed = codes_on_air_behind(live, codes_BxGxL, model.num_codes) if allowed is None else allowed
    log_probs, entropies = [], []

    def add(logits_BxWxK, allowed_BxWxK, target_BxG):
        log_p = jax.nn.log_softmax(jnp.where(allowed_BxWxK, logits_BxWxK.astype(jnp.float32), NEG_INF), -1)
        entropy = -jnp.sum(jnp.where(allowed_BxWxK, jnp.exp(log_p) * log_p, 0.0), -1)
        entropies.append(jnp.broadcast_to(jax.lax.stop_gradient(entropy), target_BxG.shape))
        if log_p.shape[1] == 1:  # one distribution for the whole group: it is indexed, never repeated
            log_probs.append(jnp.take_along_axis(log_p[:, 0], target_BxG, 1))
        else:
            log_probs.append(jnp.take_along_axis(log_p, target_BxG[..., None], 2)[..., 0])

    add(opened.first_logits, allowed[0], codes_BxGxL[..., 0])
    decode = level_logits(model, params, opened)
    state = beam_search.gather_beams(opened.state, jnp.zeros_like(slot_BxG))
    for level in range(1, model.levels):
        logits, state = decode(level, state, codes_BxGxL[..., level - 1], codes_BxGxL)
        add(logits, allowed[level], codes_BxGxL[..., level])
    if opened.room_scores is not None:
        add(opened.room_scores[:, None], live.mask[:, None], slot_BxG)
    return jnp.stack(log_probs, -1), jnp.stack(entropies, -1)


def room_log_probs(model: OneLive, params: Any, opened: Opened, live: LiveRooms) -> Array:
    """log π(room) over all rooms on air, float32 [B, N]; NEG_INF off air.

    The distribution that "gumbel" draws its first room from at temperature 1, and what a platform that serves by it
    should log as the propensity of its first rank.
    """
    slots_BxN = jnp.broadcast_to(jnp.arange(live.mask.shape[1], dtype=jnp.int32), live.mask.shape)
    score_BxN = token_log_probs(model, params, opened, live, slots_BxN)[0].sum(-1)
    return jnp.where(live.mask, jax.nn.log_softmax(jnp.where(live.mask, score_BxN, NEG_INF), -1), NEG_INF)


def candidates(live: LiveRooms, slot_BxG: Array, valid_BxG: Array) -> LiveRooms:
    """The rooms in given slots as `LiveRooms` [B, G]; blank where not valid."""
    slot_BxG = jnp.maximum(slot_BxG, 0)
    pick = lambda x: jnp.take_along_axis(x, slot_BxG.reshape(*slot_BxG.shape, *(1,) * (x.ndim - 2)), 1)  # noqa: E731
    return LiveRooms(author=jnp.where(valid_BxG, pick(live.author), 0), codes=pick(live.codes),
                     features=pick(live.features), mask=valid_BxG & pick(live.mask))


def diversity(rooms: LiveRooms) -> Array:
    """Distinct authors among a group's candidates over their number, mean over the groups that have any; float32 []."""
    G = rooms.author.shape[1]
    same = (rooms.author[:, :, None] == rooms.author[:, None, :]) & rooms.mask[:, None, :]
    earlier = jnp.any(same & jnp.tril(jnp.ones((G, G), bool), -1), -1)
    distinct_B, count_B = (rooms.mask & ~earlier).sum(1), rooms.mask.sum(1)
    return (distinct_B / jnp.maximum(count_B, 1)).sum() / jnp.maximum((count_B > 0).sum(), 1)


def slots_of(rooms: LiveRooms, live: LiveRooms) -> Array:
    """Slot in `live` of the author of each room, int32 [B, C]; -1 where that author is not among the rooms on air."""
    same_BxCxN = (rooms.author[:, :, None] == live.author[:, None, :]) & live.mask[:, None] & rooms.mask[..., None]
    return jnp.where(same_BxCxN.any(-1), jnp.argmax(same_BxCxN, -1), -1).astype(jnp.int32)
