"""What a candidate is worth: the reward model's score, logged feedback, or a mix of both.

Axes: B batch, G candidates, C rooms of which feedback is logged, R rows of a log.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onelive_jax.batch import Feedback, LiveRooms, Request
from onelive_jax.reward.model import RewardModel

Array = jax.Array
REWARDS = ("model", "feedback", "mix")
# (reward parameters or None, request, candidate rooms [B, G], feedback or None) → (reward [B, G], known bool [B, G])
RewardFunction = Callable[[Any, Request, LiveRooms, Feedback | None], tuple[Array, Array]]


def make_reward(kind: str, model: RewardModel | None = None, mix: float = 0.5) -> RewardFunction:
    """The reward of candidates, as a pure function.

    "model": the ensemble's score in (0, 1), known for every room. "feedback": the logged reward of the rooms that were
    shown, −1 … 1, unknown for all others (they take no part in their group). "mix": the score s as 2s − 1, and where
    feedback is known (1 − mix) · (2s − 1) + mix · feedback: both on −1 … 1.

    Raises: ValueError for another kind, or where `model` is missing.
    """
    if kind not in REWARDS:
        raise ValueError(f"config.alignment.reward={kind!r} is not one of {', '.join(map(repr, REWARDS))}")
    if kind != "feedback" and model is None:
        raise ValueError(f"config.alignment.reward={kind!r} needs a reward model: train one with "
                         "`python -m experiments.train_reward`, or set config.alignment.reward='feedback'")

    def reward(params: Any, request: Request, rooms: LiveRooms, feedback: Feedback | None) -> tuple[Array, Array]:
        if kind == "feedback":
            return logged_reward(rooms, feedback)
        score_BxG = jax.nn.sigmoid(model.apply({"params": params}, request, rooms)[1])
        if kind == "model":
            return score_BxG, rooms.mask
        logged_BxG, known_BxG = logged_reward(rooms, feedback)
        score_BxG = 2.0 * score_BxG - 1.0
        return jnp.where(known_BxG, (1.0 - mix) * score_BxG + mix * logged_BxG, score_BxG), rooms.mask

    return reward


def logged_reward(rooms: LiveRooms, feedback: Feedback | None) -> tuple[Array, Array]:
    """(reward float32 [B, G], known bool [B, G]) of the rooms whose author was shown to this request.

    An author who was shown twice counts by the first row. Raises ValueError without feedback.
    """
    if feedback is None:
        raise ValueError("config.alignment.reward='feedback' and 'mix' read logged feedback: give the policy step the "
                         "Feedback of the same requests, row by row")
    usable = feedback.rewarded & feedback.rooms.mask
    match_BxGxC = (rooms.author[:, :, None] == feedback.rooms.author[:, None]) & usable[:, None] & rooms.mask[..., None]
    first_BxG = jnp.argmax(match_BxGxC, -1)
    known_BxG = match_BxGxC.any(-1)
    return jnp.where(known_BxG, jnp.take_along_axis(feedback.reward, first_BxG, 1), 0.0), known_BxG


def shape_feedback(user_R: np.ndarray, duration_R: np.ndarray, watch_R: np.ndarray, negative_R: np.ndarray,
                   top: float = 0.25, least: int = 4) -> tuple[np.ndarray, dict[str, int]]:
    """Duration-aware shaping of logged feedback (OneRec-V2, arXiv 2508.20900): −1, 0 or +1 for each row of a log.

    How long one watches depends on how much there is to watch, so watch time is compared only among rooms of about the
    same length: bucket = floor(log2(1 + duration)). Within the viewer's own views of a bucket the quantile of a view is
    (views watched less + half of those watched as long) / views. The reward is −1 where the feedback is negative, +1
    where the quantile is at least 1 − top, else 0. A viewer with fewer than `least` views in a bucket is compared with
    everyone's views of it. Rows with negative feedback are compared with nothing and take no part in a quantile.

    Args:
      user_R: int, viewer. duration_R: float, length of the room (any unit, the same in all rows; for a broadcast still
        on air, up to now). watch_R: float, time watched. negative_R: bool: disliked, hidden, or left at once.
      top: share of a viewer's views that are rewarded. least: see above.

    Returns: (float32 [R], counts {"positive", "neutral", "negative", "compared_with_everyone"}).

    Raises: ValueError naming the first row with a negative or non-finite duration or watch time, or a bad `top`.
    """
    if not 0 < top <= 1:
        raise ValueError(f"top={top} must be in (0, 1]: the share of a viewer's views that are rewarded")
    user_R, negative_R = np.asarray(user_R), np.asarray(negative_R, bool)
    duration_R, watch_R = np.asarray(duration_R, np.float64), np.asarray(watch_R, np.float64)
    for name, values in (("duration", duration_R), ("watch", watch_R)):
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(f"row {row}: {name}={values[row]} must be finite and 0 or more")
    bucket_R = np.floor(np.log2(1.0 + duration_R)).astype(np.int64)
    used = np.flatnonzero(~negative_R)
    _, own = np.unique(np.stack([user_R[used].astype(np.int64), bucket_R[used]]), axis=1, return_inverse=True)
    own = own.reshape(-1)
    own_quantile, own_count = _quantiles(own, watch_R[used])
    all_quantile, _ = _quantiles(bucket_R[used], watch_R[used])
    few = own_count < least
    quantile = np.where(few, all_quantile, own_quantile)
    reward_R = np.zeros(len(user_R), np.float32)
    reward_R[used] = quantile >= 1.0 - top
    reward_R[negative_R] = -1.0
    return reward_R, {"positive": int((reward_R > 0).sum()), "neutral": int((reward_R == 0).sum()),
                      "negative": int(negative_R.sum()), "compared_with_everyone": int(few.sum())}


def _quantiles(group_R: np.ndarray, value_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mid-rank quantile of each value within its group, size of the group), both [R]."""
    order = np.lexsort((value_R, group_R))
    group, value = group_R[order], value_R[order]
    at = np.arange(len(order))
    new_group = np.r_[True, group[1:] != group[:-1]] if len(at) else np.zeros(0, bool)
    new_value = new_group | np.r_[True, value[1:] != value[:-1]] if len(at) else np.zeros(0, bool)
    group_start, group_id = at[new_group], np.cumsum(new_group) - 1
    value_start, value_id = at[new_value], np.cumsum(new_value) - 1
    group_size = np.diff(np.r_[group_start, len(at)])[group_id]
    ties = np.diff(np.r_[value_start, len(at)])[value_id]
    less = value_start[value_id] - group_start[group_id]
    quantile, count = np.empty(len(at)), np.empty(len(at), np.int64)
    quantile[order], count[order] = (less + 0.5 * ties) / group_size, group_size
    return quantile, count
