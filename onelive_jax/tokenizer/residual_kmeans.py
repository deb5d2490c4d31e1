"""Residual k-means: the quantizer that turns an IA embedding into L codes (paper, section a.4).

Level t clusters what the levels before it left over: r_0 = x, q_t = argmin_k |r_t - c_t,k|, r_{t+1} = r_t - c_t,q_t.

Axes: N points, L levels, K codes, D embedding width, C points of a chunk.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array


@struct.dataclass
class Codebooks:
    """The centroids of every level.

    Attributes:
      centroids: float32 [L, K, D].
    """

    centroids: Array

    @property
    def levels(self) -> int:
        return self.centroids.shape[0]

    @property
    def codes(self) -> int:
        return self.centroids.shape[1]

    @property
    def dim(self) -> int:
        return self.centroids.shape[2]


def fit(points_NxD, levels: int, codes: int, key: Array, iterations: int = 25, init: str = "k-means++",
        chunk: int = 4096) -> Codebooks:
    """Fits one codebook a level by Lloyd's algorithm, each on the residuals of the levels before.

    The result depends on the points and the key alone. A code that loses all its points is moved to a badly fitted
    point, which never raises the error. Points that are all equal (or fewer distinct points than codes) are no
    error: the surplus codes stay on copies of points and are never used.

    Args:
      points_NxD: float [N, D], finite, N >= codes.
      levels: L.
      codes: K.
      key: a `jax.random.key`.
      iterations: Lloyd iterations of a level.
      init: "k-means++" (K passes over the points, better) or "sample" (K points at random, for millions of points).
      chunk: points whose distances to all K codes are held at once; memory grows with chunk x K, never N x K.

    Returns:
      Codebooks, centroids float32 [L, K, D].

    Raises:
      ValueError: points not finite, fewer points than codes, or a setting out of range.
    """
    points_NxD = _checked(points_NxD)
    if levels < 1 or codes < 1 or iterations < 1 or chunk < 1:
        raise ValueError(f"levels={levels}, codes={codes}, iterations={iterations}, chunk={chunk}: none may be below 1")
    if init not in ("k-means++", "sample"):
        raise ValueError(f"init={init!r} is not one of 'k-means++', 'sample'")
    if points_NxD.shape[0] < codes:
        raise ValueError(f"{points_NxD.shape[0]} points cannot fill {codes} codes a level: lower the number of codes "
                         "(config.tokenizer.codes) or give more points")
    start = _plus_plus if init == "k-means++" else _sample
    residual_NxD, centroids = points_NxD, []
    for level in range(levels):
        first_KxD = start(residual_NxD, codes, jax.random.fold_in(key, level))
        level_KxD = _lloyd(residual_NxD, first_KxD, iterations, chunk)
        residual_NxD = residual_NxD - level_KxD[_assign(residual_NxD, level_KxD, chunk)[0]]
        centroids.append(level_KxD)
    return Codebooks(jnp.stack(centroids))


def refresh(codebooks: Codebooks, points_NxD, iterations: int = 5, chunk: int = 4096) -> Codebooks:
    """Moves old codebooks to new points without renaming the codes: Lloyd's algorithm from the old centroids.

    Code k of level t keeps its neighbourhood, so most ids of yesterday stay valid (measure with
    `semantic_ids.churn`). This holds only if the embedding space itself is continued: train the towers on from the
    old parameters (`train_towers(..., initial=...)`), a space learned from scratch is rotated at random. Nothing
    here is random.

    Args:
      codebooks: the old centroids.
      points_NxD: float [N, D], finite, of the codebooks' width. May be fewer than codes: codes without points are moved
        to badly fitted points while there are any, and stay where they are otherwise.
      iterations: Lloyd iterations of a level; 0 returns the old centroids.
      chunk: see `fit`.

    Returns:
      Codebooks of the same shape.

    Raises:
      ValueError: points not finite or of another width.
    """
    points_NxD = _checked(points_NxD, codebooks)
    residual_NxD, centroids = points_NxD, []
    for old_KxD in codebooks.centroids:
        level_KxD = _lloyd(residual_NxD, old_KxD, iterations, chunk)
        residual_NxD = residual_NxD - level_KxD[_assign(residual_NxD, level_KxD, chunk)[0]]
        centroids.append(level_KxD)
    return Codebooks(jnp.stack(centroids))


def encode(codebooks: Codebooks, points_NxD, chunk: int = 4096) -> Array:
    """Codes of points, int32 [N, L]; ties go to the lower code.

    Raises:
      ValueError: points not finite or of another width than the codebooks.
    """
    residual_NxD, columns = _checked(points_NxD, codebooks), []
    for level_KxD in codebooks.centroids:
        code_N, _ = _assign(residual_NxD, level_KxD, chunk)
        residual_NxD = residual_NxD - level_KxD[code_N]
        columns.append(code_N)
    return jnp.stack(columns, axis=-1)


def decode(codebooks: Codebooks, codes_NxL) -> Array:
    """The points that codes stand for, float32 [..., D]: the sum of the levels' centroids.

    Fewer than L columns decode a prefix. Raises ValueError for more columns than levels or a code outside 0..K-1.
    """
    codes_NxL = np.asarray(codes_NxL)
    if codes_NxL.shape[-1] > codebooks.levels:
        raise ValueError(f"codes have {codes_NxL.shape[-1]} levels, the codebooks have {codebooks.levels}")
    if codes_NxL.size and (codes_NxL.min() < 0 or codes_NxL.max() >= codebooks.codes):
        raise ValueError(f"codes lie in {codes_NxL.min()} … {codes_NxL.max()}, allowed are 0 … {codebooks.codes - 1}")
    total = jnp.zeros((*codes_NxL.shape[:-1], codebooks.dim), jnp.float32)
    for level in range(codes_NxL.shape[-1]):
        total = total + codebooks.centroids[level, codes_NxL[..., level]]
    return total


def residual_norms(codebooks: Codebooks, points_NxD, chunk: int = 4096) -> Array:
    """Root mean square length of what is left before any level and after each, float32 [L + 1].

    Falls from level to level on the points that the codebooks were fitted to; on other points it need not.
    """
    residual_NxD = _checked(points_NxD, codebooks)
    norms = [_rms_length(residual_NxD)]
    for level_KxD in codebooks.centroids:
        residual_NxD = residual_NxD - level_KxD[_assign(residual_NxD, level_KxD, chunk)[0]]
        norms.append(_rms_length(residual_NxD))
    return jnp.stack(norms)


def _rms_length(x_NxD: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(x_NxD), axis=-1)))


def _checked(points_NxD, codebooks: Codebooks | None = None) -> Array:
    points_NxD = jnp.asarray(points_NxD, jnp.float32)
    if points_NxD.ndim != 2 or 0 in points_NxD.shape:
        raise ValueError(f"points must be a non-empty [N, D] array, not of shape {points_NxD.shape}")
    if codebooks is not None and points_NxD.shape[1] != codebooks.dim:
        raise ValueError(f"points are {points_NxD.shape[1]} wide, the codebooks were fitted to width {codebooks.dim}: "
                         "use the embedding they were fitted to, or fit new codebooks")
    finite_N = np.asarray(jnp.all(jnp.isfinite(points_NxD), axis=1))
    if not finite_N.all():
        raise ValueError(f"{int((~finite_N).sum())} of {finite_N.size} points hold NaN or infinity, the first is point "
                         f"{int(np.argmin(finite_N))}")
    return points_NxD


@functools.partial(jax.jit, static_argnames="chunk")
def _assign(points_NxD: Array, centroids_KxD: Array, chunk: int) -> tuple[Array, Array]:
    """Nearest code int32 [N] and squared distance to it float32 [N], one chunk of points after another."""
    count, dim = points_NxD.shape
    chunk = min(chunk, count)
    padded = jnp.pad(points_NxD, ((0, -count % chunk), (0, 0))).reshape(-1, chunk, dim)
    half_norm_K = 0.5 * jnp.sum(jnp.square(centroids_KxD), axis=-1)

    def nearest(points_CxD):
        dots_CxK = jnp.einsum("cd,kd->ck", points_CxD, centroids_KxD, precision=jax.lax.Precision.HIGHEST)
        code_C = jnp.argmin(half_norm_K - dots_CxK, axis=-1).astype(jnp.int32)
        # The distance is taken from the difference: |x|^2 - 2xc + |c|^2 loses all digits where x is close to c.
        return code_C, jnp.sum(jnp.square(points_CxD - centroids_KxD[code_C]), axis=-1)

    code, distance = jax.lax.map(nearest, padded)
    return code.reshape(-1)[:count], distance.reshape(-1)[:count]


@functools.partial(jax.jit, static_argnames=("iterations", "chunk"))
def _lloyd(points_NxD: Array, centroids_KxD: Array, iterations: int, chunk: int) -> Array:
    def iteration(_, centroids_KxD):
        code_N, distance_N = _assign(points_NxD, centroids_KxD, chunk)
        return _move(points_NxD, centroids_KxD, code_N, distance_N)

    return jax.lax.fori_loop(0, iterations, iteration, centroids_KxD)


def _move(points_NxD: Array, centroids_KxD: Array, code_N: Array, distance_N: Array) -> Array:
    """Used codes move to the mean of their points, unused ones to the worst-fitted points (one point a code)."""
    codes = centroids_KxD.shape[0]
    sums_KxD = jax.ops.segment_sum(points_NxD, code_N, codes)
    counts_K = jax.ops.segment_sum(jnp.ones_like(distance_N), code_N, codes)
    means_KxD = sums_KxD / jnp.maximum(counts_K, 1.0)[:, None]
    dead_K = counts_K == 0
    worst_distance, worst = jax.lax.top_k(distance_N, min(codes, distance_N.shape[0]))
    rank_K = jnp.minimum(jnp.cumsum(dead_K) - 1, worst.shape[0] - 1)  # the j-th dead code takes the j-th worst point
    # A point that is fitted exactly needs no second code: with few distinct points dead codes stay put.
    reseed_K = dead_K & (worst_distance[rank_K] > 0.0)
    moved_KxD = jnp.where(reseed_K[:, None], points_NxD[worst[rank_K]], centroids_KxD)
    return jnp.where(dead_K[:, None], moved_KxD, means_KxD)


@functools.partial(jax.jit, static_argnames="codes")
def _plus_plus(points_NxD: Array, codes: int, key: Array) -> Array:
    """k-means++ (Arthur and Vassilvitskii 2007): each start is drawn with weight squared distance to those before."""
    first_key, rest_key = jax.random.split(key)
    first_D = points_NxD[jax.random.randint(first_key, (), 0, points_NxD.shape[0])]

    def distance_to(point_D):
        return jnp.sum(jnp.square(points_NxD - point_D), axis=-1)

    def draw(nearest_N, key):
        # log 0 = -inf leaves a chosen point out; where every point is chosen, argmax gives point 0: a copy, no NaN.
        point_D = points_NxD[jax.random.categorical(key, jnp.log(nearest_N))]
        return jnp.minimum(nearest_N, distance_to(point_D)), point_D

    _, others = jax.lax.scan(draw, distance_to(first_D), jax.random.split(rest_key, codes - 1))
    return jnp.concatenate([first_D[None], others])


def _sample(points_NxD: Array, codes: int, key: Array) -> Array:
    return points_NxD[jax.random.choice(key, points_NxD.shape[0], (codes,), replace=False)]
