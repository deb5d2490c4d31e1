"""The alignment phase: supervised loss plus a policy term for a share of the requests (paper, section c).

    loss = supervised · L_supervised + weight · L_policy(candidates of the reference, their rewards)

What a checkpoint hands on as `params` is the policy; the reference is a field of its own (`PolicyState`).

How a share below one request a step is met: the policy term then runs on `policy_rows` requests at once in every so
many steps (`is_policy_step`), evenly spread, and all other steps are plain supervised ones. At 1 % of batches of 64
with 8 rows that is two steps in 25. So 1 % of the requests cost about 1 % of what all of them would.

Axes: B batch, R requests with a policy term, G candidates, N rooms on air, P tokens (codes, room).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from onelive_jax.alignment import policy_losses, rollouts
from onelive_jax.batch import Batch, Feedback, LiveRooms
from onelive_jax.config import AlignmentConfig, Config, TrainingConfig
from onelive_jax.decoding import live_index
from onelive_jax.model.onelive import OneLive
from onelive_jax.reward.rewards import RewardFunction, logged_reward
from onelive_jax.training.supervised import losses
from onelive_jax.training.train_state import TrainState, fields_of, learning_rate, make_optimizer

Array = jax.Array
PolicyStep = Callable[..., tuple["PolicyState", dict[str, Array]]]


@struct.dataclass
class PolicyState(TrainState):
    """The training state of a policy, and `reference`: the parameters that propose candidates, as `params`."""

    reference: Any


def with_reference(state: TrainState) -> PolicyState:
    """The state whose reference is a copy of its parameters (a copy: a step donates both trees); pure."""
    return PolicyState(**fields_of(state), reference=jax.tree.map(jnp.copy, state.params))


def training_config(config: Config) -> TrainingConfig:
    """The settings of config.alignment as those of an optimizer."""
    a = config.alignment
    return dataclasses.replace(config.training, steps=a.steps, learning_rate=a.learning_rate,
                               warmup_steps=a.warmup_steps)


def make_policy_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW as in the supervised phase."""
    return make_optimizer(training_config(config))


def sync_reference(state: PolicyState) -> PolicyState:
    """The state whose reference is a copy of the policy; pure. To be called, jitted, where `is_sync_step`."""
    return state.replace(reference=jax.tree.map(jnp.copy, state.params))


def is_sync_step(step: int, config: AlignmentConfig) -> bool:
    """Whether the reference is renewed after `step` steps were taken."""
    return step > 0 and step % config.sync_every == 0


def policy_rows(config: AlignmentConfig, batch_size: int) -> int:
    """R, requests of one policy term: share · B, or `rows` where that is more; 0 where the share is."""
    if config.share == 0:
        return 0
    return min(batch_size, max(round(config.share * batch_size), config.rows))


def is_policy_step(step: int, config: AlignmentConfig, batch_size: int) -> bool:
    """Whether step number `step` (from 0) has a policy term: share · B / R of all steps have, evenly spread."""
    rows = policy_rows(config, batch_size)
    if not rows:
        return False
    rate = min(1.0, config.share * batch_size / rows)
    # (A little above: rounding must not turn an exact multiple into the one below.)
    return math.floor((step + 1) * rate + 1e-9) > math.floor(step * rate + 1e-9)


def make_policy_step(model: OneLive, tx: optax.GradientTransformation, config: Config, reward: RewardFunction | None,
                     with_policy: bool = True) -> PolicyStep:
    """One optimizer step, pure: jit it with the state donated. Compile it twice, with and without policy term, and let
    `is_policy_step` choose.

    Args:
      model: an `OneLive`. tx: `make_policy_optimizer`. reward: from `alignment.rewards.make_reward`.

    The step takes (state, batch, reward_params, feedback=None) and returns (state, metrics). `reward_params`: the
    reward model's, None where it has none. `feedback`: logged feedback of the same requests, row by row, where the
    reward or the sampler reads it.

    Metrics beside those of the supervised loss: those of `policy_losses.policy_loss`; "entropy" (mean over candidates
    and tokens, nats); "diversity" (distinct authors / candidates); "candidates" (mean a group, at most G);
    "exact_groups" (share of groups no better room of which was lost by a narrow beam); "policy_requests" (R).
    """
    a, weight = config.alignment, config.decoding.identity_weight
    schedule = learning_rate(training_config(config))

    def policy_step(state: PolicyState, batch: Batch, reward_params: Any = None,
                    feedback: Feedback | None = None) -> tuple[PolicyState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        dropout_key, row_key, draw_key = jax.random.split(key, 3)
        group = None
        if with_policy:
            part, part_feedback = _draw_rows(batch, feedback, policy_rows(a, batch.weight.shape[0]), row_key)
            group = roll_out(model, state.reference, part, part_feedback, reward, reward_params, a, weight,
                             draw_key)

        def loss_fn(params):
            outputs = model.apply({"params": params}, batch, True, rngs={"dropout": dropout_key})
            supervised, metrics = losses(*outputs, batch, config.model)
            metrics["loss_supervised"] = supervised
            total = a.supervised * supervised
            if group is not None:
                policy, diagnostics = _policy_term(model, params, part, group, a, weight)
                total = total + a.weight * policy
                metrics |= diagnostics
            metrics["loss"] = total
            return total, metrics

        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(params),
                    "update_norm": optax.global_norm(updates), "learning_rate": schedule(state.step)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return policy_step


class Group(NamedTuple):
    """The candidates of R requests.

    Attributes:
      rooms: [R, G]. slot: int32 [R, G], their slots among the rooms on air. valid: bool [R, G].
      reward: float32 [R, G]. advantage: float32 [R, G], or None: relative to the group.
      old_log_prob, reference_log_prob: float32 [R, G, P].
      allowed: what `rollouts.token_log_probs` reads; None for whole rooms (P = 1).
      exact: bool [R], no better room was lost by a narrow beam.
    """

    rooms: LiveRooms
    slot: Array
    valid: Array
    reward: Array
    advantage: Array | None
    old_log_prob: Array
    reference_log_prob: Array
    allowed: list[Array] | None
    exact: Array


def roll_out(model: OneLive, reference: Any, batch: Batch, feedback: Feedback | None, reward: RewardFunction,
             reward_params: Any, config: AlignmentConfig, identity_weight: float, key: Array) -> Group:
    """Candidates of the reference under the live index of each request, their rewards and log-probabilities.

    sampler="logged" takes the rooms that were shown instead. What was logged of them is the probability of the room as
    a whole, so that P = 1 there: log π(room) over the rooms on air against the log of the logged propensity (of the
    reference's, where the log does not say); and the advantage is the logged reward itself, −1 … 1. A room that is not
    among the rooms on air of its batch, or that has no reward, is not valid.
    """
    live = batch.live
    opened = model.apply({"params": reference}, batch.request, live, identity_weight, method="open")
    everyone = jnp.ones(batch.weight.shape[0], bool)
    if config.sampler == "logged":
        if feedback is None:
            raise ValueError("config.alignment.sampler='logged' needs logged feedback of the same requests")
        rooms, slot = feedback.rooms, rollouts.slots_of(feedback.rooms, live)
        worth, known = reward(reward_params, batch.request, rooms, feedback)
        known = known & logged_reward(rooms, feedback)[1]
        valid = known & (slot >= 0) & (batch.weight > 0)[:, None]
        log_pi = rollouts.room_log_probs(model, reference, opened, live)
        reference_log_prob = jnp.take_along_axis(log_pi, jnp.maximum(slot, 0), 1)[..., None]
        logged = jnp.log(jnp.where(feedback.propensity > 0, feedback.propensity, 1.0))[..., None]
        old = jnp.where(feedback.propensity[..., None] > 0, logged, reference_log_prob)
        return Group(rooms, slot, valid, worth, worth, old, reference_log_prob, None, everyone)
    index = live_index.from_rooms(live, model.num_codes)
    ranking = rollouts.propose(model, reference, opened, index, config.group_size, sampler=config.sampler,
                               beams=config.beams, temperature=config.temperature, key=key)
    valid = ranking.valid & (batch.weight > 0)[:, None]
    rooms = rollouts.candidates(live, ranking.slot, valid)
    worth, known = reward(reward_params, batch.request, rooms, feedback)
    allowed = rollouts.codes_on_air_behind(live, rooms.codes, model.num_codes)
    log_prob, _ = rollouts.token_log_probs(model, reference, opened, live, ranking.slot, allowed)
    exact = ranking.bound <= jnp.where(ranking.valid, ranking.score, jnp.inf).min(1)
    return Group(rooms, ranking.slot, valid & known, worth, None, log_prob, log_prob, allowed, exact)


def _policy_term(model: OneLive, params: Any, batch: Batch, group: Group, config: AlignmentConfig,
                 identity_weight: float) -> tuple[Array, dict[str, Array]]:
    """The policy loss of the group under `params`, without dropout.

    At first every ratio is 1 up to the rounding of activations: this program is compiled with its gradient, that of
    `roll_out` without, and so bfloat16 is rounded at other places (ratios of 0.98 to 1.01).
    """
    opened = model.apply({"params": params}, batch.request, batch.live, identity_weight, method="open")
    if group.allowed is None:
        log_pi = rollouts.room_log_probs(model, params, opened, batch.live)
        log_prob = jnp.take_along_axis(log_pi, jnp.maximum(group.slot, 0), 1)[..., None]
        entropy_R = -jnp.sum(jnp.where(batch.live.mask, jnp.exp(log_pi) * log_pi, 0.0), -1)
        entropy = jnp.broadcast_to(jax.lax.stop_gradient(entropy_R)[:, None, None], log_prob.shape)
    else:
        log_prob, entropy = rollouts.token_log_probs(model, params, opened, batch.live, group.slot, group.allowed)
    loss, metrics = policy_losses.policy_loss(log_prob, policy_losses.Candidates(
        group.old_log_prob, group.reference_log_prob, group.reward, group.valid, group.advantage), config)
    some_R = group.valid.any(1)
    count = jnp.maximum(some_R.sum(), 1)
    return loss, metrics | {
        "entropy": policy_losses.over_groups(entropy.mean(-1), group.valid),
        "diversity": rollouts.diversity(group.rooms.replace(mask=group.valid)),
        "candidates": group.valid.sum() / count,
        "exact_groups": (group.exact & some_R).sum() / count,
        "policy_requests": jnp.asarray(float(batch.weight.shape[0])),
    }


def _draw_rows(batch: Batch, feedback: Feedback | None, rows: int,
               key: Array) -> tuple[Batch, Feedback | None]:
    """`rows` requests drawn without replacement, padding last; the whole batch where that is all of them."""
    total = batch.weight.shape[0]
    if rows < 1:
        raise ValueError("config.alignment.share=0 leaves no request for a policy term: use with_policy=False")
    if rows == total:
        return batch, feedback
    at = jax.lax.top_k(jnp.where(batch.weight > 0, jax.random.uniform(key, (total,)), -1.0), rows)[1]
    return jax.tree.map(lambda x: x[at], (batch, feedback))
