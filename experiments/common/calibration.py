"""One likelihood over the rooms on air: how much codes, identity and evidence count, fitted on views held out.

p(room) ∝ Π_l softmax(w_c · logits_l)[q_l] · exp(w_i · identity + w_e · evidence). What a head was trained on it is too
sure of; so the three weights are those under which views that no head has seen are likeliest.

Axes: R held-out requests, N rooms on air, L levels.
"""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from data_pipelines.batches.training import BatchMaker
from data_pipelines.log import draws
from onelive_jax.alignment import rollouts
from onelive_jax.batch import Batch
from onelive_jax.model.onelive import OneLive

logger = logging.getLogger(__name__)
CODE_WEIGHTS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
MOST, LEAST, CHUNK = 1024, 50, 32
LARGEST = 5.0  # of the other two weights


def held_out(views_start_ms: np.ndarray, share: float) -> np.ndarray:
    """bool [n], the views that begin in the last `share` of them."""
    return views_start_ms > np.quantile(views_start_ms, 1 - share) if share else np.zeros(views_start_ms.size, bool)


def fit(model: OneLive, params: Any, maker: BatchMaker, views: np.ndarray, seed: int) -> tuple[list[float], dict]:
    """The weights of `OneLive.combine`, and (requests, negative log-likelihood before and after) as figures.

    views: int64, held-out views whose rooms others show on air; at most 1,024 are read, and with under 50 the weights
      stay as they are.
    """
    start = [float(weight) for weight in np.asarray(params["combine"])]
    if views.size < LEAST:
        logger.info("%d views are held out: too few to fit the weights of codes, identity and evidence, which stay %s",
                    views.size, start)
        return start, {"requests": int(views.size)}
    views = np.sort(np.random.default_rng(seed).permutation(views)[:MOST])
    codes, identity, evidence, mask, target = _scores(model, params, maker, views, seed, (start[0], *CODE_WEIGHTS))
    before = _loss(np.array(start[1:]), codes[0], identity, evidence, mask, target)[0]
    fits = [minimize(_loss, start[1:], (by_codes, identity, evidence, mask, target), "L-BFGS-B", jac=True,
                     bounds=((0.0, LARGEST),) * 2) for by_codes in codes[1:]]
    best = int(np.argmin([found.fun for found in fits]))
    return [CODE_WEIGHTS[best], *map(float, fits[best].x)], {
        "requests": int(views.size), "nll_before": float(before), "nll": float(fits[best].fun)}


def line(training: dict) -> str:
    """What was fitted, as a sentence. training: figures with "combine" and "calibration"."""
    codes, identity, evidence = training["combine"]
    fitted = training["calibration"]
    return (f"weights of codes, identity and evidence: {codes:.2f}, {identity:.2f}, {evidence:.2f}; on "
            f"{fitted['requests']:,} held-out views the negative log-likelihood is {fitted['nll']:.3f}, before "
            f"{fitted['nll_before']:.3f}")


def _scores(model: OneLive, params: Any, maker: BatchMaker, views: np.ndarray, seed: int, code_weights) -> tuple:
    """codes [W, R, N] under each weight, identity and evidence [R, N], mask bool [R, N], target slot [R]."""
    @jax.jit
    def parts(params, batch: Batch):
        variables = {"params": params}
        opened = model.apply(variables, batch.request, batch.live, method="open")
        slots = jnp.broadcast_to(jnp.arange(batch.live.mask.shape[1], dtype=jnp.int32), batch.live.mask.shape)
        tokens, _ = rollouts.token_log_probs(model, params, opened, batch.live, slots)
        identity = model.apply(variables, opened.state.hidden[:, 0], opened.context, batch.live,
                               method="identity_scores")
        evidence = model.apply(variables, batch.request, opened.context, batch.live, method="evidence_scores")
        return tokens[..., :model.levels].sum(-1), identity, evidence

    made = []
    for low in range(0, views.size, CHUNK):
        row = np.minimum(np.arange(low, low + CHUNK), views.size - 1)  # one shape
        batch = maker.batch(views[row], draws.keys_of(seed, row))
        codes = []
        for weight in code_weights:
            by_codes, identity, evidence = parts(params | {"combine": jnp.array([weight, 0.0, 0.0])}, batch)
            codes.append(np.asarray(by_codes))
        kept = slice(0, min(CHUNK, views.size - low))
        made.append((np.stack(codes)[:, kept], *(np.asarray(x)[kept] for x in (
            identity, evidence, batch.live.mask, batch.target_slot))))
    codes, *others = zip(*made, strict=True)
    codes, (identity, evidence, mask, target) = np.concatenate(codes, 1), map(np.concatenate, others)
    there = target >= 0
    return codes[:, there], identity[there], evidence[there], mask[there], target[there]


def _loss(weights, codes, identity, evidence, mask, target) -> tuple[float, np.ndarray]:
    """Mean −log p(target) and its gradient by the weights of identity and evidence."""
    parts = np.stack([np.where(mask, values, 0.0) for values in (identity, evidence)]).astype(np.float64)
    score = np.where(mask, codes + np.tensordot(weights, parts, 1), -np.inf)
    score -= score.max(1, keepdims=True)
    p = np.exp(score)
    total = p.sum(1, keepdims=True)
    row = np.arange(target.size)
    loss = np.log(total[:, 0]) - score[row, target]
    gradient = (parts * (p / total)).sum(2) - parts[:, row, target]
    return float(loss.mean()), gradient.mean(1)
