"""The supervised phase: losses over codes and rooms on air, and the train step.

L = w0·L_main + w1·L_1 + w2·L_2 with L_k = −log p(q_k … q_{L−1} | BOS, q_<, context)  (paper, section b), to which
(ours) the identity loss −log p(room | rooms on air) is added. p is normalised over the codes on air at that moment,
over all codes, or over both with a weight each.

Axes: B batch, L levels, K codes, N rooms on air, A authors.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from onelive_jax.batch import Batch, LiveRooms
from onelive_jax.config import ModelConfig
from onelive_jax.model.layers import NEG_INF
from onelive_jax.training.train_state import TrainState, learning_rate

Array = jax.Array


def codes_on_air(live: LiveRooms, prefix_BxL: Array, level: int, num_codes: int) -> Array:
    """bool [B, K]: codes of `level` that some room on air carries behind the prefix (columns 0 … level − 1)."""
    match = live.mask
    for l in range(level):
        match = match & (live.codes[..., l] == prefix_BxL[:, None, l])
    row = jnp.arange(match.shape[0])[:, None]
    return jnp.zeros((match.shape[0], num_codes), bool).at[row, live.codes[..., level]].max(match)


def cross_entropy(logits_BxK: Array, target_B: Array, allowed_BxK: Array | None = None) -> Array:
    """−log softmax(logits)[target], float32 [B], over all entries or the allowed ones."""
    logits = logits_BxK.astype(jnp.float32)
    if allowed_BxK is not None:
        logits = jnp.where(allowed_BxK, logits, NEG_INF)
    chosen = jnp.take_along_axis(logits, target_B[:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, -1) - chosen


def mean(values_B: Array, weight_B: Array) -> Array:
    """Weighted mean; 0 where all weights are."""
    return jnp.sum(values_B * weight_B) / jnp.maximum(jnp.sum(weight_B), 1e-6)


def losses(modules: list[list[Array]], room_scores_BxN: Array | None, author_scores_BxA: Array | None, batch: Batch,
           config: ModelConfig) -> tuple[Array, dict[str, Array]]:
    """The training loss and its parts.

    Args:
      modules, room_scores_BxN, author_scores_BxA: what `OneLive.__call__` returns.
      batch: examples whose target only its own footprint shows on air (target_slot = −1) take part in losses over
        all codes and all authors, not in those over the rooms on air.

    Returns: (float32 scalar, metrics by name; accuracies are teacher-forced, ACC@all of the paper is "acc_all").
    """
    on_air = batch.weight * (batch.target_slot >= 0)
    metrics: dict[str, Array] = {}
    num_codes, levels = modules[0][0].shape[-1], len(modules[0])
    allowed = [codes_on_air(batch.live, batch.target_codes, level, num_codes) for level in range(levels)]
    total = jnp.zeros(())
    for k, logits in enumerate(modules):
        part = jnp.zeros(())
        for level, logits_BxK in enumerate(logits, start=k):
            target = batch.target_codes[:, level]
            if config.live_softmax:
                part += config.live_softmax * mean(cross_entropy(logits_BxK, target, allowed[level]), on_air)
            if config.full_softmax:
                part += config.full_softmax * mean(cross_entropy(logits_BxK, target), batch.weight)
        metrics["loss_main" if k == 0 else f"loss_mtp_{k}"] = part
        total += config.loss_weights[k] * part
    hits = []
    for level in range(levels):
        # What decodes level l: module l with multi-token prediction, the main decoder without.
        logits_BxK = modules[min(level, len(modules) - 1)][0 if len(modules) > 1 else level]
        hit = (jnp.argmax(logits_BxK, -1) == batch.target_codes[:, level]).astype(jnp.float32)
        metrics[f"acc_q{level}"] = mean(hit, batch.weight)
        hits.append(hit)
    metrics["acc_all"] = mean(sum(hits) / levels, batch.weight)
    if room_scores_BxN is not None:
        identity = mean(cross_entropy(room_scores_BxN, jnp.maximum(batch.target_slot, 0)), on_air)
        everyone = mean(cross_entropy(author_scores_BxA, batch.target_author), batch.weight)
        metrics["loss_identity"] = identity
        metrics["loss_author"] = everyone
        total += config.identity_loss * (identity + config.full_softmax * everyone)
    metrics["loss"] = total
    return total, metrics


def make_train_step(model, tx: optax.GradientTransformation, config) -> Callable[[TrainState, Batch],
                                                                                tuple[TrainState, dict[str, Any]]]:
    """One optimizer step, pure: jit it with the state donated.

    Args: model, an `OneLive`; tx, its optimizer; config, the whole `Config`.
    """
    schedule = learning_rate(config.training)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)

        def loss_fn(params):
            return losses(*model.apply({"params": params}, batch, True, rngs={"dropout": key}), batch, config.model)

        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(params),
                    "learning_rate": schedule(state.step),
                    "on_air": mean((batch.target_slot >= 0) * 1.0, batch.weight)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step
