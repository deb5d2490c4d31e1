"""A request in, ranked rooms out: context, beam search and identity scores as one compiled function.

Axes: B batch, W beams, L code levels, K codes, N rooms on air (slots of the index), D model width, k ranks returned.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from onelive_jax.batch import LiveRooms, Request
from onelive_jax.config import DecodingConfig
from onelive_jax.decoding import beam_search
from onelive_jax.decoding.beam_search import Ranking, RoomScores, Search
from onelive_jax.decoding.live_index import LiveIndex
from onelive_jax.model.layers import Context
from onelive_jax.model.onelive import OneLive, level_logits

Array = jax.Array
Recommender = Callable[..., Ranking]  # (params, request, index, tie_score_BxN=None, context=None, personal=None)


@struct.dataclass
class Personal:
    """In what the catalogue of one request differs from the one that its batch shares.

    Attributes:
      allowed: bool [B, N]; rooms where it is False are not on air for that request.
      slot: int32 [B, M], rooms with features of their own (no one's own view counts among the viewers that they are
        told); the index's capacity where there is none.
      features: float32 [B, M, R], of those.
    """

    allowed: Array
    slot: Array
    features: Array


def make_recommender(model: OneLive, config: DecodingConfig, k: int | None = None, normalise: str = "live",
                     combine: str = "sum") -> Recommender:
    """Compiles (params, request, index, tie_score_BxN=None, context=None, personal=None) → `Ranking`: the best rooms on
    air for every viewer of the request.

    score(room) = Σ_l log p(q_l | BOS, q_<l, context) + identity_weight · s(room), with s from the identity and evidence
    heads and the codes' logits weighed beside them (`OneLive.combine`). With identity_weight = 0 or a model without
    those heads, codes alone decide (`codes_alone`), and rooms of one id tie: then
    `tie_score_BxN` tells them apart, the towers' score of user and author (paper, section a).

    The function is pure. It is traced once for each shape of request and index: rooms that go on or off air, and other
    parameters, recompile nothing. Encoding and the main decoder's step on [BOS] run once and serve both heads.

    Args:
      model: an `OneLive`; its levels and codes are those of the index.
      config: beams, identity_weight, lookahead.
      k: ranks returned; as many as beams when None.
      normalise, combine: as in `beam_search.decode`.

    The returned function takes `params` (float32 tree), `request` (arrays [B, …]) and `index`: one catalogue shared by
    the batch (serving), or one a request, `live_index.from_rooms(LiveRooms [B, N])` (evaluation); `tie_score_BxN`
    float32 [B, N] in slot order, or None: a fixed order (`beam_search.rank_rooms`); `context`, what `OneLive.encode`
    makes of the request, where it is known already; `personal`, where a shared catalogue differs for some requests. It
    raises ValueError where the index has other levels or codes than the model.
    """
    weight = 0.0 if codes_alone(model, config) else config.identity_weight
    # An upper bound of what lies below a prefix is known only where rooms have scores of their own.
    search = Search(config.beams, config.beams if k is None else k, normalise, combine,
                    lookahead=config.lookahead and weight != 0.0)

    def recommend(params: Any, request: Request, index: LiveIndex, tie_score_BxN: Array | None = None,
                  context: Context | None = None, personal: Personal | None = None) -> Ranking:
        if (index.num_levels, index.num_codes) != (model.levels, model.num_codes):
            raise ValueError(f"the index holds ids of {index.num_levels} levels of {index.num_codes} codes, the model "
                             f"predicts {model.levels} levels of {model.num_codes}: both must come from one tokenizer")
        opened = model.apply({"params": params}, request, _with_batch_axis(index), weight, context, method="open")
        score_BxN = opened.room_scores
        if score_BxN is not None and personal is not None:
            own = LiveRooms(index.author[personal.slot], index.codes[personal.slot], personal.features,
                            personal.slot < index.capacity)
            own_BxM = weight * model.apply({"params": params}, request, opened.state.hidden[:, 0], opened.context, own,
                                           method="room_scores")
            score_BxN = score_BxN.at[jnp.arange(own_BxM.shape[0])[:, None], personal.slot].set(own_BxM, mode="drop")
        allowed_BxN = None if personal is None else personal.allowed
        return beam_search.decode(level_logits(model, params, opened), opened.state, index, search,
                                  RoomScores(score_BxN, tie_score_BxN, allowed_BxN), batch=request.hour.shape[0])

    return jax.jit(recommend)


def codes_alone(model: OneLive, config: DecodingConfig) -> bool:
    """Whether rooms have no score of their own in decoding, so that those of one id tie."""
    return not model.config.identity or config.identity_weight == 0.0


def _with_batch_axis(index: LiveIndex) -> LiveRooms:
    """The rooms as the identity head reads them: [B, N], or [1, N] where the batch shares one catalogue."""
    rooms = index.as_rooms()
    return rooms if index.batched else jax.tree.map(lambda x: x[None], rooms)
