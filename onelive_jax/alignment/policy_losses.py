"""Policy losses as pure functions: GRPO, ECPO, GBPO, DPO and the plain policy gradient (paper, section c).

Axes: B requests (groups), G candidates of a group, P tokens of a candidate (its codes and, last, the room itself).

All share one form. A group is what one request was offered: G candidates, each with a reward and with the
log-probability of each of its tokens under the policy, under the policy that proposed it ("old") and under the
reference. Advantages are relative to the group; a group whose rewards tell nothing apart gets none and is counted.
Losses are means over the groups with at least one candidate, of means over their candidates, of means over tokens.
Everything is float32; candidates that are masked out may hold any finite numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from onelive_jax.config import AlignmentConfig

Array = jax.Array
LOSSES = ("grpo", "ecpo", "gbpo", "dpo", "reinforce")
MOST_LOG_RATIO = 20.0
LEAST_SPREAD = 1e-6  # of the largest reward: closer ones are equal, their order is that of rounding errors


class Candidates(NamedTuple):
    """What is fixed of B groups while the policy learns from them.

    Attributes:
      old_log_prob_BxGxP, reference_log_prob_BxGxP: float32, under the policy that proposed the candidates and under
        the reference. With candidates of the reference they are the same.
      reward_BxG: float32, any scale. mask_BxG: bool, candidates that count.
      advantage_BxG: advantages from elsewhere (e.g. shaped feedback, −1 … 1) instead of the group-relative ones.
        DPO still compares rewards.
    """

    old_log_prob_BxGxP: Array
    reference_log_prob_BxGxP: Array
    reward_BxG: Array
    mask_BxG: Array
    advantage_BxG: Array | None = None


def group_advantages(reward_BxG: Array, mask_BxG: Array) -> tuple[Array, Array]:
    """A = (r − mean) / std within the group, with the standard deviation of the group itself (divided by n).

    Returns:
      advantage_BxG: float32, 0 where masked and in dead groups.
      dead_B: bool, groups with fewer than two candidates or without spread; rows without any candidate, too.
    """
    mask = mask_BxG.astype(jnp.float32)
    count_B = mask.sum(1)
    mean_B = (jnp.where(mask_BxG, reward_BxG, 0.0)).sum(1) / jnp.maximum(count_B, 1.0)
    centred_BxG = jnp.where(mask_BxG, reward_BxG - mean_B[:, None], 0.0)
    std_B = jnp.sqrt(jnp.square(centred_BxG).sum(1) / jnp.maximum(count_B, 1.0))
    largest_B = jnp.where(mask_BxG, jnp.abs(reward_BxG), 0.0).max(1)
    dead_B = (count_B < 2) | (std_B <= LEAST_SPREAD * largest_B)
    advantage_BxG = centred_BxG / jnp.where(dead_B, 1.0, std_B)[:, None]
    return jax.lax.stop_gradient(jnp.where(dead_B[:, None], 0.0, advantage_BxG)), dead_B


def over_groups(value_BxG: Array, mask_BxG: Array) -> Array:
    """Mean over candidates, then over the groups that have any; 0 where there is none."""
    mask = mask_BxG.astype(jnp.float32)
    count_B = mask.sum(1)
    group_B = (jnp.where(mask_BxG, value_BxG, 0.0)).sum(1) / jnp.maximum(count_B, 1.0)
    return group_B.sum() / jnp.maximum((count_B > 0).sum(), 1)


def held_exp(log_ratio: Array) -> Array:
    """exp(log_ratio), which goes on as a line beyond `MOST_LOG_RATIO`: finite, with a finite gradient, for any ratio.

    A policy that has moved far from its proposer, or DPO on the worst of a group, gets there; a run is not to stop
    because a ratio became infinite, nor a dead group (advantage 0) to be 0 · ∞.
    """
    held = jnp.minimum(log_ratio, MOST_LOG_RATIO)
    return jnp.exp(held) * (1.0 + (log_ratio - held))


def k3_penalty(log_prob_BxGxP: Array, reference_log_prob_BxGxP: Array) -> Array:
    """The k3 term of GRPO at each token: π_ref/π − log(π_ref/π) − 1 ≥ 0, float32 [B, G, P].

    Its value is an unbiased estimate of KL(π ‖ π_ref) where the tokens were drawn from π. Its gradient, 1 − π_ref/π per
    log-probability, is not that of KL(π ‖ π_ref): over tokens of π it averages to the gradient of KL(π_ref ‖ π). Both
    are 0 at π = π_ref and nowhere else, with the same curvature there.
    """
    log_ratio = reference_log_prob_BxGxP - log_prob_BxGxP
    return held_exp(log_ratio) - log_ratio - 1.0


def clipped_objective(ratio_BxGxP: Array, advantage_BxG: Array, clip: float) -> Array:
    """min(ratio · A, clip(ratio, 1 − ε, 1 + ε) · A) of PPO, float32 [B, G, P]."""
    advantage = advantage_BxG[..., None]
    return jnp.minimum(ratio_BxGxP * advantage, jnp.clip(ratio_BxGxP, 1 - clip, 1 + clip) * advantage)


def grpo(log_prob_BxGxP: Array, old_log_prob_BxGxP: Array, advantage_BxG: Array, clip: float) -> Array:
    """−PPO's clipped objective on the ratio π/π_old of every token (arXiv 2402.03300), float32 [B, G]."""
    return -clipped_objective(held_exp(log_prob_BxGxP - old_log_prob_BxGxP), advantage_BxG, clip).mean(-1)


def ecpo(log_prob_BxGxP: Array, old_log_prob_BxGxP: Array, advantage_BxG: Array, clip: float, delta: float) -> Array:
    """GRPO on π/π_old' with π_old' = max(sg(π)/(1 + ε + δ), π_old), float32 [B, G].

    The ratio, and with it the gradient of a candidate with A < 0, never exceeds 1 + ε + δ: GRPO's does not stop there.
    """
    bound = jax.lax.stop_gradient(log_prob_BxGxP) - jnp.log1p(clip + delta)
    return grpo(log_prob_BxGxP, jnp.maximum(bound, old_log_prob_BxGxP), advantage_BxG, clip)


def gbpo(log_prob_BxGxP: Array, old_log_prob_BxGxP: Array, advantage_BxG: Array) -> Array:
    """−π/π_old' · A without clipping, float32 [B, G].

    π_old' = max(π_old, sg(π)) where A ≥ 0 and max(π_old, 1 − sg(π)) where A < 0: the gradient of no token exceeds that
    of binary cross-entropy on it (arXiv 2508.20900).
    """
    policy = jax.lax.stop_gradient(log_prob_BxGxP)
    not_taken = jnp.log(jnp.maximum(-jnp.expm1(jnp.minimum(policy, 0.0)), 1e-30))  # log(1 − π)
    bound = jnp.where(advantage_BxG[..., None] >= 0, policy, not_taken)
    ratio = held_exp(log_prob_BxGxP - jnp.maximum(old_log_prob_BxGxP, bound))
    return -(ratio * advantage_BxG[..., None]).mean(-1)


def reinforce(log_prob_BxGxP: Array, advantage_BxG: Array) -> Array:
    """−A · log π: the policy gradient weighted by the reward, without ratio or clip, float32 [B, G]."""
    return -(log_prob_BxGxP * advantage_BxG[..., None]).mean(-1)


def dpo(log_prob_BxGxP: Array, reference_log_prob_BxGxP: Array, reward_BxG: Array, mask_BxG: Array,
        beta: float) -> Array:
    """−log σ(β·(h(best) − h(worst))) with h = Σ_p log π/π_ref (arXiv 2305.18290), float32 [B]; the pair is the group's
    candidate of highest and of lowest reward (ties: the first). Groups without candidates give log 2: mask them."""
    gain_BxG = (log_prob_BxGxP - reference_log_prob_BxGxP).sum(-1)
    best_B = jnp.argmax(jnp.where(mask_BxG, reward_BxG, -jnp.inf), 1)
    worst_B = jnp.argmin(jnp.where(mask_BxG, reward_BxG, jnp.inf), 1)
    pick = lambda at_B: jnp.take_along_axis(gain_BxG, at_B[:, None], 1)[:, 0]  # noqa: E731
    return jax.nn.softplus(-beta * (pick(best_B) - pick(worst_B)))


def policy_loss(log_prob_BxGxP: Array, candidates: Candidates,
                config: AlignmentConfig) -> tuple[Array, dict[str, Array]]:
    """One of `LOSSES`, plus kl · `k3_penalty`, and what to watch.

    Args:
      log_prob_BxGxP: float32, log-probabilities under the policy: the only argument that gets a gradient.
      config: loss, a name of `LOSSES`; clip and delta, ε and δ of GRPO and ECPO; kl, weight of the penalty (DPO has
        the reference in its own loss and takes none); beta, β of DPO.

    Returns:
      (float32 scalar, metrics): "policy_loss" (without the penalty), "kl" (mean k3), "ratio_min", "ratio_max"
      (π/π_old over all tokens of valid candidates, see `held_exp`), "clipped" (share of tokens outside 1 ± ε),
      "reward_mean", "reward_spread" (mean standard deviation within a group), "dead_groups" (of the groups that have
      candidates, the share that teaches nothing: without spread, or with fewer than two; with given advantages, where
      all of them are 0), "groups".

    Raises: ValueError for another name.
    """
    loss, clip = config.loss, config.clip
    reward_BxG, mask_BxG, advantage_BxG = candidates.reward_BxG, candidates.mask_BxG, candidates.advantage_BxG
    if loss not in LOSSES:
        raise ValueError(f"config.alignment.loss={loss!r} is not one of {', '.join(map(repr, LOSSES))}")
    token_mask = mask_BxG[..., None]
    old, reference = (jax.lax.stop_gradient(jnp.where(token_mask, x.astype(jnp.float32), 0.0))
                      for x in candidates[:2])
    log_prob = jnp.where(token_mask, log_prob_BxGxP.astype(jnp.float32), 0.0)
    relative_BxG, dead_B = group_advantages(reward_BxG, mask_BxG)
    given = advantage_BxG is not None
    advantage = jax.lax.stop_gradient(jnp.where(mask_BxG, advantage_BxG, 0.0)) if given else relative_BxG
    if given and loss != "dpo":
        dead_B = ~(advantage != 0).any(1)  # these need no other candidate to tell something
    some_B = mask_BxG.any(1)
    groups = jnp.maximum(some_B.sum(), 1)
    if loss == "dpo":
        # log 2 of a dead group has no gradient and would only hide the others.
        value = jnp.where(dead_B, 0.0, dpo(log_prob, reference, reward_BxG, mask_BxG, config.beta)).sum() / groups
    else:
        terms = {"grpo": lambda: grpo(log_prob, old, advantage, clip),
                 "ecpo": lambda: ecpo(log_prob, old, advantage, clip, config.delta),
                 "gbpo": lambda: gbpo(log_prob, old, advantage),
                 "reinforce": lambda: reinforce(log_prob, advantage)}
        value = over_groups(terms[loss](), mask_BxG)
    divergence = over_groups(k3_penalty(log_prob, reference).mean(-1), mask_BxG)
    total = value if loss == "dpo" else value + config.kl * divergence

    ratio = jax.lax.stop_gradient(held_exp(log_prob - old))
    some = mask_BxG.any()
    mean_B = jnp.where(mask_BxG, reward_BxG, 0.0).sum(1) / jnp.maximum(mask_BxG.sum(1), 1)
    spread_BxG = jnp.where(mask_BxG, jnp.square(reward_BxG - mean_B[:, None]), 0.0)
    spread_B = jnp.sqrt(spread_BxG.sum(1) / jnp.maximum(mask_BxG.sum(1), 1))
    return total, {
        "policy_loss": value, "kl": divergence,
        "ratio_min": jnp.where(some, jnp.min(jnp.where(token_mask, ratio, jnp.inf)), 1.0),
        "ratio_max": jnp.where(some, jnp.max(jnp.where(token_mask, ratio, -jnp.inf)), 1.0),
        "clipped": over_groups((jnp.abs(ratio - 1) > clip).mean(-1), mask_BxG),
        "reward_mean": over_groups(reward_BxG, mask_BxG),
        "reward_spread": spread_B.sum() / groups,
        "dead_groups": (dead_B & some_B).sum() / groups,
        "groups": some_B.sum().astype(jnp.float32),
    }
