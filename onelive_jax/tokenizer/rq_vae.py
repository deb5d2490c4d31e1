"""RQ-VAE: residual quantization learned together with an encoder and a decoder, for comparison with residual k-means.

z = encoder(x); r_0 = z, q_t = argmin_k |r_t - e_t,k|, r_{t+1} = r_t - e_t,q_t; zhat = sum_t e_t,q_t;
xhat = decoder(z + sg(zhat - z)) (straight-through: zhat forward, z backward);
loss = |x - xhat|^2 + commitment sum_t |r_t - sg(e_t,q_t)|^2.
Codebooks get no gradient: sums and sizes of their points fade by `decay` a step (exponential moving average) and a
centroid is their quotient; one that hardly any point chooses moves to a random residual of the batch.

Everything is a pure function of an explicit state.

Axes: N points, B points of a batch, L levels, K codes, X width of a point, E width of the latent.
"""

import dataclasses
import functools
from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from onelive_jax.model.layers import MLP
from onelive_jax.tokenizer import kmeans
from onelive_jax.tokenizer.residual_kmeans import Codebooks, checked
from onelive_jax.tokenizer.residual_kmeans import encode as encode_residual

Array = jax.Array

REPORT_EVERY = 100
START_POINTS = 2**16  # points that are encoded to draw the first codebooks from


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an RQ-VAE is.

    Attributes:
      levels, codes: L, K. latent: E. hidden: width of encoder and decoder. batch: B. learning_rate: of Adam.
      commitment: weight of the commitment loss. decay: of the moving averages, a step.
      dead_below: a code whose averaged size is below this share of the mean size B / K is moved.
    """

    levels: int = 3
    codes: int = 256
    latent: int = 32
    hidden: int = 128
    batch: int = 1024
    learning_rate: float = 1e-3
    commitment: float = 0.25
    decay: float = 0.99
    dead_below: float = 0.02


class State(struct.PyTreeNode):
    """All that changes in training.

    Attributes:
      params: {"encoder": …, "decoder": …}. moments: Adam's.
      centroids: float32 [L, K, E]. sums: float32 [L, K, E] and sizes: float32 [L, K], averages of a batch.
    """

    params: dict
    moments: optax.OptState
    centroids: Array
    sums: Array
    sizes: Array


def init(points_NxX, settings: Settings, key: Array) -> State:
    """A state whose codebooks are residuals of encoded points at random (of `START_POINTS` of them, at random too).

    Raises:
      ValueError: points not finite, fewer points than codes, or a setting out of range.
    """
    points_NxX, s = checked(points_NxX), settings
    if not 0.0 <= s.decay < 1.0 or min(s.levels, s.codes, s.latent, s.hidden, s.batch) < 1 or s.commitment < 0:
        raise ValueError(f"{s}: sizes must be 1 or more, 0 <= decay < 1, commitment >= 0")
    if len(points_NxX) < s.codes:
        raise ValueError(f"{len(points_NxX)} points cannot fill {s.codes} codes a level: lower the number of codes or "
                         "give more points")
    encoder_key, decoder_key, points_key, *level_keys = jax.random.split(key, 3 + s.levels)
    one_1xX, one_1xE = jnp.zeros((1, points_NxX.shape[1])), jnp.zeros((1, s.latent))
    encoder, decoder = _models(s, points_NxX.shape[1])
    params = nn.unbox({"encoder": encoder.init(encoder_key, one_1xX)["params"],
                       "decoder": decoder.init(decoder_key, one_1xE)["params"]})
    size = min(s.batch, len(points_NxX)) / s.codes
    if len(points_NxX) > START_POINTS:
        rows = jax.random.choice(points_key, len(points_NxX), (max(START_POINTS, s.codes),), replace=False)
        points_NxX = points_NxX[np.asarray(rows)]
    left, centroids = encoder.apply({"params": params["encoder"]}, jnp.asarray(points_NxX)), []
    for level_key in level_keys:
        level_KxE = left[jax.random.choice(level_key, len(left), (s.codes,), replace=len(left) < s.codes)]
        left = left - level_KxE[kmeans.nearest_in_block(left, level_KxE)]
        centroids.append(level_KxE)
    centroids_LxKxE = jnp.stack(centroids)
    return State(params, _optimizer(s).init(params), centroids_LxKxE, centroids_LxKxE * size,
                 jnp.full(centroids_LxKxE.shape[:2], size))


def quantize(centroids_LxKxE: Array, z_BxE: Array) -> tuple[Array, Array, Array]:
    """(codes int32 [B, L], zhat float32 [B, E], residuals float32 [L, B, E] that each level was given).

    The gradient of zhat with respect to z is the identity (straight-through), none reaches the centroids.
    """
    left, codes, residuals = z_BxE, [], []
    for level_KxE in jax.lax.stop_gradient(centroids_LxKxE):
        code_B = kmeans.nearest_in_block(jax.lax.stop_gradient(left), level_KxE)
        residuals.append(left)
        left = left - level_KxE[code_B]
        codes.append(code_B)
    zhat_BxE = z_BxE - jax.lax.stop_gradient(left)
    return jnp.stack(codes, axis=-1), zhat_BxE, jnp.stack(residuals)


def loss_fn(params: dict, centroids_LxKxE: Array, batch_BxX: Array, settings: Settings) -> tuple[Array, tuple]:
    """(loss [], (reconstruction error [], codes [B, L], residuals [L, B, E])); see the head of this file."""
    encoder, decoder = _models(settings, batch_BxX.shape[1])
    z_BxE = encoder.apply({"params": params["encoder"]}, batch_BxX)
    codes_BxL, zhat_BxE, residuals_LxBxE = quantize(centroids_LxKxE, z_BxE)
    error = jnp.mean(jnp.sum(jnp.square(batch_BxX - decoder.apply({"params": params["decoder"]}, zhat_BxE)), axis=-1))
    chosen_LxBxE = jax.vmap(lambda level_KxE, code_B: level_KxE[code_B])(centroids_LxKxE, codes_BxL.T)
    away_LxB = jnp.sum(jnp.square(residuals_LxBxE - jax.lax.stop_gradient(chosen_LxBxE)), axis=-1)
    return error + settings.commitment * jnp.mean(jnp.sum(away_LxB, axis=0)), (error, codes_BxL, residuals_LxBxE)


def average(sums_KxE: Array, sizes_K: Array, residual_BxE: Array, code_B: Array, settings: Settings,
            key: Array) -> tuple[Array, Array, Array]:
    """(centroids, sums, sizes) of one level after a batch: m <- decay m + (1 - decay) of the batch's sums and sizes."""
    codes, keep = sizes_K.shape[0], settings.decay
    sums_KxE = keep * sums_KxE + (1 - keep) * jax.ops.segment_sum(residual_BxE, code_B, codes)
    sizes_K = keep * sizes_K + (1 - keep) * jax.ops.segment_sum(jnp.ones_like(code_B, jnp.float32), code_B, codes)
    mean_size = residual_BxE.shape[0] / codes
    dead_K = sizes_K < settings.dead_below * mean_size
    drawn_KxE = residual_BxE[jax.random.randint(key, (codes,), 0, residual_BxE.shape[0])]
    sums_KxE = jnp.where(dead_K[:, None], drawn_KxE * mean_size, sums_KxE)
    sizes_K = jnp.where(dead_K, mean_size, sizes_K)
    return sums_KxE / jnp.maximum(sizes_K, 1e-9)[:, None], sums_KxE, sizes_K


@functools.partial(jax.jit, static_argnames="settings", donate_argnums=0)
def train_step(state: State, batch_BxX: Array, key: Array, settings: Settings) -> tuple[State, Array]:
    """One step of Adam on encoder and decoder and one of the moving averages: (state, reconstruction error [])."""
    grads, (error, codes_BxL, residuals_LxBxE) = jax.grad(loss_fn, has_aux=True)(
        state.params, state.centroids, batch_BxX, settings)
    updates, moments = _optimizer(settings).update(grads, state.moments, state.params)
    centroids, sums, sizes = jax.vmap(lambda *level: average(*level[:4], settings, level[4]))(
        state.sums, state.sizes, residuals_LxBxE, codes_BxL.T, jax.random.split(key, settings.levels))
    return State(optax.apply_updates(state.params, updates), moments, centroids, sums, sizes), error


def train(points_NxX, settings: Settings, steps: int, seed: int = 0,
          progress: Callable[[int, float], None] | None = None) -> tuple[State, np.ndarray]:
    """Trains an RQ-VAE on points float [N, X].

    Args:
      points_NxX: finite, N >= codes.
      settings: what it is.
      steps: steps of `settings.batch` random points.
      seed: of initial values, batches and moved codes.
      progress: called with (steps done, mean reconstruction error since the last call) every 100 steps and at the end.

    Returns:
      (state, reconstruction errors float32 [steps], mean squared length of x - xhat).

    Raises:
      ValueError: as `init`. FloatingPointError: the error became NaN or infinite; names the step.
    """
    points_NxX, key = np.asarray(checked(points_NxX)), jax.random.key(seed)
    state, rng = init(points_NxX, settings, key), np.random.default_rng(seed)
    errors, pending = np.zeros(steps, np.float32), []
    for index in range(steps):
        rows = rng.integers(0, len(points_NxX), min(settings.batch, len(points_NxX)))
        state, error = train_step(state, points_NxX[rows], jax.random.fold_in(key, index), settings)
        pending.append(error)
        if len(pending) == REPORT_EVERY or index + 1 == steps:
            first, recent = index + 1 - len(pending), np.array(jax.device_get(pending))
            if not np.isfinite(recent).all():
                raise FloatingPointError(f"the RQ-VAE's error is not finite at step "
                                         f"{first + int(np.argmin(np.isfinite(recent))) + 1}: lower its learning rate")
            errors[first:index + 1], pending = recent, []
            if progress:
                progress(index + 1, float(recent.mean()))
    return state, errors


def encode(state: State, points_NxX, settings: Settings) -> Array:
    """Codes of points, int32 [N, L]."""
    points_NxX = checked(points_NxX)
    width = state.params["encoder"]["w_in"].shape[0]
    if points_NxX.shape[1] != width:
        raise ValueError(f"points are {points_NxX.shape[1]} wide, the RQ-VAE was trained on width {width}")
    return encode_residual(Codebooks(state.centroids), _encoded(state.params["encoder"], points_NxX, settings))


@functools.partial(jax.jit, static_argnames="settings")
def _encoded(encoder: dict, points_NxX: Array, settings: Settings) -> Array:
    """float32 [N, D], what the codebooks quantize."""
    return _models(settings, points_NxX.shape[1])[0].apply({"params": encoder}, points_NxX)


def _models(settings: Settings, width: int) -> tuple[MLP, MLP]:
    return (MLP(settings.hidden, settings.latent, out_bias=True),
            MLP(settings.hidden, width, out_bias=True, in_axis="embed"))


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    return optax.adam(settings.learning_rate)
