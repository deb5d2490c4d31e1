"""The supervised phase: losses over codes and rooms on air, and the train step.

L = w0·L_main + w1·L_1 + w2·L_2 with L_k = −log p(q_k … q_{L−1} | BOS, q_<, context)  (paper, section b), to which
(ours) −log p(room | rooms on air) is added, once for the identity head and once for the evidence head. p of codes is
normalised over the codes on air at that moment, over all codes, or over both with a weight each.

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
    # Row by row, so that on a mesh each device marks its own rows.
    return jax.vmap(lambda codes_N, match_N: jnp.zeros(num_codes, bool).at[codes_N].max(match_N))(
        live.codes[..., level], match)


def cross_entropy(logits_BxK: Array, target_B: Array, allowed_BxK: Array | None = None) -> Array:
    """−log softmax(logits)[target], float32 [B], over all entries or the allowed ones."""
    logits = logits_BxK.astype(jnp.float32)
    if allowed_BxK is not None:
        logits = jnp.where(allowed_BxK, logits, NEG_INF)
    chosen = jnp.take_along_axis(logits, target_B[:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, -1) - chosen


def mean(values_B: Array, weight_B: Array, total: Array | None = None) -> Array:
    """Weighted mean; 0 where all weights are. `total`: what to divide by instead of the sum of these weights."""
    total = jnp.sum(weight_B) if total is None else total
    return jnp.sum(values_B * weight_B) / jnp.maximum(total, 1e-6)


def on_air_weight(batch: Batch) -> Array:
    """float32 [B]: the weight of an example in losses over the rooms on air."""
    return batch.weight * (batch.target_slot >= 0)


def total_weights(batch: Batch) -> tuple[Array, Array]:
    """(Σ weight, Σ on-air weight), float32 []: what the losses of a batch are divided by."""
    return jnp.sum(batch.weight), jnp.sum(on_air_weight(batch))


def losses(modules: list[list[Array]], room_scores: tuple[Array, Array] | None, author_scores_BxA: Array | None,
           batch: Batch, config: ModelConfig,
           totals: tuple[Array, Array] | None = None) -> tuple[Array, dict[str, Array]]:
    """The training loss and its parts.

    Args:
      modules, room_scores, author_scores_BxA: what `OneLive.__call__` returns.
      batch: examples whose target only its own footprint shows on air (target_slot = −1) take part in losses over
        all codes and all authors, not in those over the rooms on air.
      totals: `total_weights` of the batch of which this one is a part. Loss and metrics are then the part's share in
        those of the whole: over all parts they add up to them.

    Returns: (float32 scalar, metrics by name; accuracies are teacher-forced, ACC@all of the paper is "acc_all").
    """
    on_air = on_air_weight(batch)
    whole, whole_on_air = total_weights(batch) if totals is None else totals
    metrics: dict[str, Array] = {}
    num_codes, levels = modules[0][0].shape[-1], len(modules[0])
    allowed = [codes_on_air(batch.live, batch.target_codes, level, num_codes) for level in range(levels)]
    total = jnp.zeros(())
    for k, logits in enumerate(modules):
        part = jnp.zeros(())
        for level, logits_BxK in enumerate(logits, start=k):
            target = batch.target_codes[:, level]
            if config.live_softmax:
                part += config.live_softmax * mean(cross_entropy(logits_BxK, target, allowed[level]), on_air,
                                                   whole_on_air)
            if config.full_softmax:
                part += config.full_softmax * mean(cross_entropy(logits_BxK, target), batch.weight, whole)
        metrics["loss_main" if k == 0 else f"loss_mtp_{k}"] = part
        total += config.loss_weights[k] * part
    hits = []
    for level in range(levels):
        # What decodes level l: module l with multi-token prediction, the main decoder without.
        logits_BxK = modules[min(level, len(modules) - 1)][0 if len(modules) > 1 else level]
        hit = (jnp.argmax(logits_BxK, -1) == batch.target_codes[:, level]).astype(jnp.float32)
        metrics[f"acc_q{level}"] = mean(hit, batch.weight, whole)
        hits.append(hit)
    metrics["acc_all"] = mean(sum(hits) / levels, batch.weight, whole)
    if room_scores is not None:
        identity, evidence = (mean(cross_entropy(scores_BxN, jnp.maximum(batch.target_slot, 0)), on_air, whole_on_air)
                              for scores_BxN in room_scores)
        # Of sampled scores the target's is the first; there are fewer of them than authors.
        sampled = config.author_negatives > 0 and author_scores_BxA.shape[1] == 1 + config.author_negatives
        target = jnp.zeros_like(batch.target_author) if sampled else batch.target_author
        everyone = mean(cross_entropy(author_scores_BxA, target), batch.weight, whole)
        metrics["loss_identity"] = identity
        metrics["loss_author"] = everyone
        metrics["loss_evidence"] = evidence
        total += config.identity_loss * (identity + config.full_softmax * everyone + evidence)
    metrics["loss"] = total
    return total, metrics


def microbatches(batch: Any, parts: int) -> Any:
    """Arrays [B, …] → [parts, B / parts, …]; microbatch j holds the rows j, j + parts, j + 2 · parts, …

    Rows that lie on one device stay there: neighbouring rows go into different microbatches, so that each microbatch
    is spread over the devices as the batch was.
    """
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def sum_over_parts(function: Callable[[Any, Array], tuple[Any, Any]], batch: Any, parts: int) -> tuple[Any, Any]:
    """Σ_j and max_j of function(microbatch j, j): a large batch in several passes.

    A loss that is a sum over examples divided by a number known beforehand (the weight of the whole batch) is the sum
    of what its microbatches give, gradients and metrics alike. Means taken within microbatches would not be:
    microbatches do not weigh the same, and each part of the supervised loss has weights of its own.

    Args:
      function: (microbatch, int32 index) → (tree that is summed, tree of which the largest entries are kept).
      batch: arrays [B, …]; B is a multiple of `parts`.

    Returns: the two trees. One microbatch after the other is computed; only one is in memory.
    """
    if parts == 1:
        return function(batch, jnp.zeros((), jnp.int32))
    split = microbatches(batch, parts), jnp.arange(parts, dtype=jnp.int32)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], split))
    start = (jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0]),
             jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf, x.dtype), shapes[1]))

    def body(carry, part):
        summed, largest = function(*part)
        return (jax.tree.map(jnp.add, carry[0], summed), jax.tree.map(jnp.maximum, carry[1], largest)), None

    return jax.lax.scan(body, start, split)[0]


def make_train_step(model, tx: optax.GradientTransformation, config) -> Callable[[TrainState, Batch],
                                                                                tuple[TrainState, dict[str, Any]]]:
    """One optimizer step, pure: jit it with the state donated.

    With config.training.accumulate = k the batch goes through in k microbatches, whose gradients add up to those of
    the whole: every part of the loss is divided by its own weight in the whole batch.

    Args: model, an `OneLive`; tx, its optimizer; config, the whole `Config`.

    Metrics, float32 []: those of `losses`; norms of gradient (before clipping), parameters and update; learning_rate;
    on_air, the share of examples in the live losses; largest_logit, the largest |QK logit| of all attention layers.
    """
    schedule, parts = learning_rate(config.training), config.training.accumulate

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key, totals = jax.random.fold_in(state.key, state.step), total_weights(batch)

        def gradients(part: Batch, index: Array):
            part_key = key if parts == 1 else jax.random.fold_in(key, index)

            def loss_fn(params):
                outputs, largest = model.apply({"params": params}, part, True, rngs={"dropout": part_key},
                                               method="with_largest_logit")
                loss, metrics = losses(*outputs, part, config.model, totals)
                metrics["on_air"] = mean((part.target_slot >= 0) * 1.0, part.weight, totals[0])
                return loss, (metrics, largest)

            (_, (metrics, largest)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
            return (grads, metrics), largest

        (grads, metrics), largest = sum_over_parts(gradients, batch, parts)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(params),
                    "update_norm": optax.global_norm(updates), "learning_rate": schedule(state.step),
                    "largest_logit": largest}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step
