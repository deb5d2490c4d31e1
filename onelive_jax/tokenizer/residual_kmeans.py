"""Residual k-means: the quantizer that turns an IA embedding into L codes (paper, section a.4).

Level t clusters the residual that the levels before it left over: r_0 = x, q_t = argmin_k |r_t - c_t,k|,
r_{t+1} = r_t - c_t,q_t. One level is `kmeans`; old codebooks on newer data are `refresh`.

Axes: N points, M blocks, C points of a block, L levels, K codes, D embedding width.
"""

import math
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from onelive_jax.config import TokenizerConfig, check_ranges
from onelive_jax.tokenizer import kmeans

Array = jax.Array

ENCODE_ROWS = 2**18  # points encoded by one call of the compiled program
LONGEST = 1e14  # of a point: scores of longer ones come near `kmeans.FULL`, and then overflow


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


def fit(points_NxD, config: TokenizerConfig, key: Array, chunk: int | None = None, mesh: Mesh | None = None,
        progress: Callable[[int], None] | None = None) -> Codebooks:
    """Fits one codebook a level, each on the residuals of the levels before.

    The result depends on the points, the settings and the key alone. A code that loses all its points is moved to a
    badly fitted point, which never raises the error. Points that are all equal (or fewer distinct points than codes)
    are no error: the surplus codes stay on copies of points and are never used.

    Args:
      points_NxD: float [N, D], finite, N >= codes.
      config: levels L, codes K, and of the fit
        kmeans_iterations: passes over all points, a level. Those of Lloyd overshoot the mean, see `kmeans.lloyd`.
        kmeans_init: "k-means++" (on a sample of max(4K, 16384) points) or "sample" (K points at random).
        kmeans_mode: "lloyd" moves the centroids once a pass, "minibatch" once every `kmeans_batch` points.
        kmeans_warm_iterations: Lloyd iterations on a sample of an eighth of the points before the passes over all. They
          cost an eighth of a pass each and bring the centroids close, so that fewer passes end at the same error.
        kmeans_balance: 0, or the most points of a code as a multiple of N / K (>= 1): every level's clusters then hold
          at most ceil(balance * N / K) points while fitting; see `encode_balanced` for codes that keep to it. Lloyd
          only.
      key: a `jax.random.key`.
      chunk: points whose distances to all K codes are held at once on a device; memory grows with chunk x K, never
        N x K. None takes as many as suit the device.
      mesh: splits the points over the axes `data` and `fsdp`; the result is that of one device up to rounding. The
        centroids come back to the host's default device.
      progress: called with the number of levels done.

    Returns:
      Codebooks, centroids float32 [L, K, D].

    Raises:
      ValueError: points not finite, fewer points than codes, or a setting out of range.
    """
    points_NxD, c, codes = checked(points_NxD), config, config.codes
    check_ranges(c, "config.tokenizer")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} may not be below 1")
    if points_NxD.shape[0] < codes:
        raise ValueError(f"{points_NxD.shape[0]} points cannot fill {codes} codes a level: lower the number of codes "
                         "(config.tokenizer.codes) or give more points")
    capacity = most_points(points_NxD.shape[0], codes, c.kmeans_balance)
    if capacity and c.kmeans_mode != "lloyd":
        raise ValueError(f"config.tokenizer.kmeans_balance={c.kmeans_balance} needs kmeans_mode='lloyd': a mini-batch "
                         "does not know how full a code is")
    start = kmeans.start_plus_plus if c.kmeans_init == "k-means++" else kmeans.start_sample
    blocks, centroids = kmeans.make_blocks(points_NxD, codes, chunk, mesh), []
    for level in range(c.levels):
        start_key, warm_key, batch_key = jax.random.split(jax.random.fold_in(key, level), 3)
        level_KxD = start(blocks, codes, start_key)
        if c.kmeans_warm_iterations:
            size = max(points_NxD.shape[0] // 8, codes)
            sample = kmeans.make_blocks(kmeans.spread_sample(blocks, size, warm_key), codes, chunk, mesh)
            level_KxD = kmeans.lloyd(sample, level_KxD, c.kmeans_warm_iterations)
        if c.kmeans_mode == "lloyd":
            level_KxD = kmeans.lloyd(blocks, level_KxD, c.kmeans_iterations, capacity)
        else:
            level_KxD = kmeans.minibatch(blocks, level_KxD, c.kmeans_iterations, c.kmeans_batch, batch_key)
        centroids.append(level_KxD)
        if level + 1 < c.levels:
            code_MxC = kmeans.bounded(blocks, level_KxD, capacity) if capacity else _nearest(blocks, level_KxD)
            blocks = blocks._replace(points=kmeans.residual(blocks, level_KxD, code_MxC))
        if progress:
            progress(level + 1)
    return Codebooks(gathered(jnp.stack(centroids), mesh))


def gathered(array: Array, mesh: Mesh | None) -> Array:
    """An array that was made on a mesh, free to be used with arrays on one device; as it is where mesh is None."""
    if mesh is None:
        return array
    return jnp.asarray(jax.device_get(jax.device_put(array, NamedSharding(mesh, PartitionSpec()))))


def most_points(count: int, codes: int, balance: float) -> int:
    """The bound on the points of a code, ceil(balance * N / K); 0 (no bound) where balance is 0.

    Raises ValueError for a balance between 0 and 1, for which there are not enough places.
    """
    if balance and not balance >= 1.0:
        raise ValueError(f"balance={balance} must be 0 (no bound) or at least 1 (all codes hold equally many points)")
    return math.ceil(balance * count / codes)


def encode(codebooks: Codebooks, points_NxD, chunk: int | None = None) -> Array:
    """Codes of points, int32 [N, L]; ties go to the lower code.

    May be called with any number of points, none too (a moment without new segments): it compiles for powers of two
    only.

    Raises:
      ValueError: points not finite or of another width than the codebooks.
    """
    if np.shape(points_NxD) == (0, codebooks.dim):
        return jnp.zeros((0, codebooks.levels), jnp.int32)
    points_NxD = checked(points_NxD, codebooks)
    chunk = kmeans.block_size(codebooks.codes, chunk)
    count, parts = points_NxD.shape[0], []
    for first in range(0, count, ENCODE_ROWS):
        part = points_NxD[first:first + ENCODE_ROWS]
        parts.append(_encode(codebooks.centroids, _padded(part, chunk))[:len(part)])
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def encode_balanced(codebooks: Codebooks, points_NxD, balance: float) -> Array:
    """Codes of points such that no code of a level holds more than ceil(balance * N / K) of them, int32 [N, L].

    For a set of points as a whole (a nightly table of ids): a code depends on the other points, see `kmeans.bounded`.
    """
    points_NxD, columns = checked(points_NxD, codebooks), []
    capacity = most_points(points_NxD.shape[0], codebooks.codes, balance or 1.0)
    blocks = kmeans.make_blocks(points_NxD, codebooks.codes)
    for level_KxD in codebooks.centroids:
        code_MxC = kmeans.bounded(blocks, level_KxD, capacity)
        blocks = blocks._replace(points=kmeans.residual(blocks, level_KxD, code_MxC))
        columns.append(blocks.flat(code_MxC)[:points_NxD.shape[0]])
    return jnp.stack(columns, axis=-1)


def residual_norms(codebooks: Codebooks, points_NxD, codes_NxL=None) -> Array:
    """Root mean square length of what is left before any level and after each, float32 [L + 1].

    Falls from level to level on the points that the codebooks were fitted to; on other points it need not. Its square
    is the distortion, the mean squared distance of a point to what its codes stand for.

    Args:
      codebooks: the centroids.
      points_NxD: float [N, D].
      codes_NxL: int [N, L], the codes that the points carry; those of `encode` if None.
    """
    points_NxD = checked(points_NxD, codebooks)
    codes_NxL = jnp.asarray(encode(codebooks, points_NxD) if codes_NxL is None else codes_NxL)
    if codes_NxL.shape != (points_NxD.shape[0], codebooks.levels):
        raise ValueError(f"codes have shape {codes_NxL.shape}, the points need {(len(points_NxD), codebooks.levels)}")
    return _norms(codebooks.centroids, jnp.asarray(points_NxD), codes_NxL)


@jax.jit
def _norms(centroids_LxKxD: Array, points_NxD: Array, codes_NxL: Array) -> Array:
    norms = [_rms_length(points_NxD)]
    for level in range(centroids_LxKxD.shape[0]):
        points_NxD = points_NxD - centroids_LxKxD[level, codes_NxL[:, level]]
        norms.append(_rms_length(points_NxD))
    return jnp.stack(norms)


def _rms_length(x_NxD: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(x_NxD), axis=-1)))


def checked(points_NxD, codebooks: Codebooks | None = None) -> np.ndarray | Array:
    """Points as float32 [N, D], where they were (host or device).

    Raises:
      ValueError: no [N, D] array, another width than the codebooks', or NaN, infinity or a length above `LONGEST`;
        names the first point.
    """
    xp = jnp if isinstance(points_NxD, jax.Array) else np
    points_NxD = xp.asarray(points_NxD, dtype=np.float32)
    if points_NxD.ndim != 2 or 0 in points_NxD.shape:
        raise ValueError(f"points must be a non-empty [N, D] array, not of shape {points_NxD.shape}")
    if codebooks is not None and points_NxD.shape[1] != codebooks.dim:
        raise ValueError(f"points are {points_NxD.shape[1]} wide, the codebooks were fitted to width {codebooks.dim}: "
                         "use the embedding they were fitted to, or fit new codebooks")
    good_N = np.asarray(xp.einsum("nd,nd->n", points_NxD, points_NxD)) <= LONGEST**2  # False for NaN too
    if not good_N.all():
        raise ValueError(f"{int((~good_N).sum())} of {good_N.size} points hold NaN or infinity or are longer than "
                         f"{LONGEST:g}, the first is point {int(np.argmin(good_N))}")
    return points_NxD


_nearest = jax.jit(lambda blocks, centroids_KxD: kmeans.nearest(blocks.points, centroids_KxD))


def _padded(points_NxD, chunk: int) -> Array:
    """Points in blocks [M, C, D] of which both M and C are powers of two or `chunk`: few shapes to compile for."""
    count, dim = points_NxD.shape
    size = chunk if count >= chunk else min(chunk, kmeans.power_of_two(count))
    blocks = kmeans.power_of_two(-(-count // size))
    return jnp.asarray(kmeans.pad_rows(points_NxD, blocks * size).reshape(blocks, size, dim))


@jax.jit
def _encode(centroids_LxKxD: Array, points_MxCxD: Array) -> Array:
    def block(points_CxD):
        columns = []
        for level_KxD in centroids_LxKxD:
            code_C = kmeans.nearest_in_block(points_CxD, level_KxD)
            points_CxD = points_CxD - level_KxD[code_C]
            columns.append(code_C)
        return jnp.stack(columns, axis=-1)

    return jax.lax.map(block, points_MxCxD).reshape(-1, centroids_LxKxD.shape[0])
