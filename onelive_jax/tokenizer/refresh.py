"""Codebooks on newer data: centroids follow the points, ids stay where the content stayed.

Codebooks fitted from scratch name their codes at random, so every id would change. Two things keep ids in place. The
centroids start from the old ones and move by a part of the way only (`step`): a day of data is evidence, not the whole
truth. And a point keeps its old code while that is hardly worse than the nearest (`margin`): points half-way between
two centroids would otherwise change sides with every small move.

Axes: N points, M blocks, C points of a block, L levels, K codes, D embedding width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from onelive_jax.tokenizer import kmeans
from onelive_jax.tokenizer.residual_kmeans import Codebooks, checked, gathered

Array = jax.Array


def refresh(codebooks: Codebooks, points_NxD, previous_NxL=None, iterations: int = 2, step: float = 0.5,
            margin: float = 0.04, chunk: int | None = None, mesh: Mesh | None = None) -> Codebooks:
    """Moves old codebooks towards new points without renaming the codes. Nothing here is random.

    Level by level: points are assigned with the stickiness of `encode_sticky`, used centroids move by `step` of the way
    to the mean of their points, unused ones to badly fitted points while there are any. This continues ids only if the
    embedding space itself is continued: train the towers on from the old parameters
    (`train_towers(…, initial=…)`), a space learned from scratch is rotated at random.

    Args:
      codebooks: the old centroids.
      points_NxD: float [N, D], finite, of the codebooks' width. May be fewer than codes.
      previous_NxL: int [N, L], codes that the points carried so far, -1 for a point that had none; None for no point.
      iterations: passes a level; 0 returns the old centroids.
      step: in (0, 1]; 1 is Lloyd's algorithm.
      margin: see `encode_sticky`.
      chunk, mesh: see `residual_kmeans.fit`.

    Returns:
      Codebooks of the same shape. Codes of the points: `encode_sticky` with the same previous codes and margin.

    Raises:
      ValueError: points not finite or of another width, codes that do not fit, a setting out of range.
    """
    if not 0.0 < step <= 1.0 or iterations < 0:
        raise ValueError(f"step={step} must lie above 0 and not above 1, iterations={iterations} not below 0")
    return Codebooks(_walk(codebooks, points_NxD, previous_NxL, iterations, step, margin, chunk, mesh)[0])


def encode_sticky(codebooks: Codebooks, points_NxD, previous_NxL, margin: float = 0.04,
                  chunk: int | None = None, mesh: Mesh | None = None) -> Array:
    """Codes of points that carried codes before, int32 [N, L].

    At each level, while the levels before kept theirs, the old code p is kept where
    |r - c_p|^2 <= (1 + margin) min_k |r - c_k|^2; otherwise the nearest is taken. So no level's error rises by more
    than the share `margin`. With margin 0, or for previous codes of -1, this is `residual_kmeans.encode`.

    Args:
      codebooks: the centroids of now.
      points_NxD: float [N, D].
      previous_NxL: int [N, L], -1 for a point without.
      margin: >= 0.
      chunk, mesh: see `residual_kmeans.fit`.

    Raises:
      ValueError: as `refresh`.
    """
    return _walk(codebooks, points_NxD, previous_NxL, 0, 1.0, margin, chunk, mesh)[1]


def _walk(codebooks: Codebooks, points_NxD, previous_NxL, iterations: int, step: float, margin: float,
          chunk: int | None, mesh: Mesh | None) -> tuple[Array, Array]:
    """(centroids [L, K, D], codes [N, L]) after `iterations` passes a level."""
    points_NxD = checked(points_NxD, codebooks)
    count, levels = points_NxD.shape[0], codebooks.levels
    if margin < 0:
        raise ValueError(f"margin={margin} may not be below 0")
    previous_NxL = np.full((count, levels), -1) if previous_NxL is None else np.asarray(previous_NxL)
    if previous_NxL.shape != (count, levels):
        raise ValueError(f"previous codes have shape {previous_NxL.shape}, the points need {(count, levels)}")
    if previous_NxL.min() < -1 or previous_NxL.max() >= codebooks.codes:
        raise ValueError(f"previous codes lie in {previous_NxL.min()} … {previous_NxL.max()}, allowed are -1 … "
                         f"{codebooks.codes - 1}")
    blocks = kmeans.make_blocks(points_NxD, codebooks.codes, chunk, mesh)
    shape = blocks.points.shape[:2]
    padding = shape[0] * shape[1] - count
    previous_LxMxC = jnp.asarray(np.pad(previous_NxL.T, ((0, 0), (0, padding)), constant_values=-1),
                                 jnp.int32).reshape(levels, *shape)
    if mesh is not None:  # beside the points that they belong to
        spec = PartitionSpec(None, *kmeans.block_spec(mesh))
        previous_LxMxC = jax.device_put(previous_LxMxC, NamedSharding(mesh, spec))
    kept_MxC, centroids, columns = jnp.ones(shape, bool), [], []
    for level_KxD, previous_MxC in zip(codebooks.centroids, previous_LxMxC, strict=True):
        previous_MxC = jnp.where(kept_MxC, previous_MxC, -1)  # an old code speaks of the residual of the old prefix
        for _ in range(iterations):
            level_KxD = _step(blocks, level_KxD, previous_MxC, step, margin)
        code_MxC = _sticky(blocks.points, level_KxD, previous_MxC, margin)
        kept_MxC = code_MxC == previous_MxC
        blocks = blocks._replace(points=kmeans.residual(blocks, level_KxD, code_MxC))
        centroids.append(level_KxD)
        columns.append(blocks.flat(code_MxC)[:count])
    return gathered(jnp.stack(centroids), mesh), gathered(jnp.stack(columns, axis=-1), mesh)


@jax.jit
def _sticky(points_MxCxD: Array, centroids_KxD: Array, previous_MxC: Array, margin: Array) -> Array:
    nearest_MxC = kmeans.nearest(points_MxCxD, centroids_KxD)
    old_MxC = kmeans.distances(points_MxCxD, centroids_KxD, jnp.maximum(previous_MxC, 0))
    least_MxC = kmeans.distances(points_MxCxD, centroids_KxD, nearest_MxC)
    stays_MxC = (previous_MxC >= 0) & (old_MxC <= (1.0 + margin) * least_MxC) & (margin > 0)
    return jnp.where(stays_MxC, previous_MxC, nearest_MxC)


@jax.jit
def _step(blocks: kmeans.Blocks, centroids_KxD: Array, previous_MxC: Array, step: Array, margin: Array) -> Array:
    code_MxC = _sticky(blocks.points, centroids_KxD, previous_MxC, margin)
    one_hot = jax.default_backend() == "tpu"
    sums_KxD, sizes_K = kmeans.cluster_sums(blocks, code_MxC, centroids_KxD.shape[0], one_hot)
    return kmeans.move(blocks, centroids_KxD, code_MxC, sums_KxD, sizes_K, step)
