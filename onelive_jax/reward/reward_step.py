"""The reward model's phase: its train step, and the ensemble's objective weights (IPPO).

IPPO, iterative Pareto policy optimization. The Pantheon paper searches its ensemble's objective weights by iteration;
of the procedure, ours is this. Every `ippo_every` steps, on validation rows, an objective *lags* by
AUC(its own head) − AUC(ensemble score): what it pays for sharing one score. Weights move by
w_o ← w_o · exp(ippo_rate · (lag_o − mean lag)), are held within 1/ippo_limit … ippo_limit and keep a mean of 1. At
rest all objectives lag alike (or stand at a limit), which is the Chebyshev point of the trade-off: no objective could
lag less without another lagging more, hence Pareto-optimal among the scores that the ensemble can form.

Axes: B batch, C candidates, O objectives.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from onelive_jax.batch import Feedback
from onelive_jax.config import Config, TrainingConfig
from onelive_jax.reward.model import RewardModel, reward_losses
from onelive_jax.training.train_state import TrainState, fields_of, learning_rate, make_optimizer

Array = jax.Array


@struct.dataclass
class RewardState(TrainState):
    """The training state of a reward model.

    Attributes:
      base_rate_O: float32, running mean of each objective's label.
      objective_weight_O: float32, weights of the objectives in the ensemble, mean 1.
    """

    base_rate_O: Array
    objective_weight_O: Array


def with_objectives(state: TrainState, num_objectives: int, base_rate: float = 0.1) -> RewardState:
    """The state with equal weights and one base rate for all objectives; pure."""
    return RewardState(**fields_of(state), base_rate_O=jnp.full(num_objectives, base_rate),
                       objective_weight_O=jnp.ones(num_objectives))


def training_config(config: Config) -> TrainingConfig:
    """The settings of config.reward as those of an optimizer."""
    r = config.reward
    return dataclasses.replace(config.training, steps=r.steps, batch_size=r.batch_size, learning_rate=r.learning_rate,
                               warmup_steps=r.warmup_steps, weight_decay=r.weight_decay)


def make_reward_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW as in the supervised phase."""
    return make_optimizer(training_config(config))


def make_reward_step(model: RewardModel, tx: optax.GradientTransformation,
                     config: Config) -> Callable[[RewardState, Feedback], tuple[RewardState, dict[str, Array]]]:
    """One optimizer step on a batch of feedback, pure: jit it with the state donated. `tx`: `make_reward_optimizer`."""
    schedule = learning_rate(training_config(config))
    decay = config.reward.rate_decay

    def reward_step(state: RewardState, feedback: Feedback) -> tuple[RewardState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)

        def loss_fn(params):
            logits, score = model.apply({"params": params}, feedback.request, feedback.rooms, True,
                                        rngs={"dropout": key})
            return reward_losses(logits, score, feedback, model.objectives, state.base_rate_O,
                                 state.objective_weight_O, config.reward)

        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        seen_O = (feedback.known & feedback.rooms.mask[..., None]) * feedback.weight[:, None, None]
        batch_rate_O = jnp.stack([metrics[f"rate_{name}"] for name in model.objectives])
        moved_O = decay * state.base_rate_O + (1 - decay) * batch_rate_O
        base_rate_O = jnp.where(seen_O.sum((0, 1)) > 0, moved_O, state.base_rate_O)
        metrics |= {"grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(params),
                    "update_norm": optax.global_norm(updates), "learning_rate": schedule(state.step)}
        metrics |= {f"weight_{name}": state.objective_weight_O[i] for i, name in enumerate(model.objectives)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, base_rate_O=base_rate_O), metrics

    return reward_step


def ippo_weights(weight_O: np.ndarray, head_auc_O: list[float | None], score_auc_O: list[float | None], rate: float,
                 limit: float) -> np.ndarray:
    """The next objective weights, float32 [O] within 1/limit … limit and with mean 1; see the top of this file.

    Args:
      weight_O: the weights so far. head_auc_O, score_auc_O: AUC of each objective's own head and of the ensemble's
        score, None where a log has too little of it: such an objective keeps its weight relative to an average lag.
      rate, limit: config.reward.ippo_rate and ippo_limit.
    """
    known = np.array([h is not None and s is not None for h, s in zip(head_auc_O, score_auc_O, strict=True)])
    lag_O = np.zeros(len(known))
    lag_O[known] = [h - s for h, s, k in zip(head_auc_O, score_auc_O, known, strict=True) if k]
    lag_O = np.where(known, lag_O - (lag_O[known].mean() if known.any() else 0.0), 0.0)
    moved_O = np.asarray(weight_O, np.float64) * np.exp(rate * lag_O)
    low, high = 1 / (limit * moved_O.max()), limit / moved_O.min()  # scales at which all weights are at one bound
    for _ in range(100):
        scale = np.sqrt(low * high)
        low, high = (scale, high) if np.clip(scale * moved_O, 1 / limit, limit).mean() < 1 else (low, scale)
    return np.clip(high * moved_O, 1 / limit, limit).astype(np.float32)


def with_objective_weights(state: RewardState, weight_O: np.ndarray) -> RewardState:
    """The state with other objective weights; nothing is recompiled."""
    weight = jax.device_put(np.asarray(weight_O, np.float32), state.objective_weight_O.sharding)
    return state.replace(objective_weight_O=weight)
