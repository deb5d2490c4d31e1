"""K-means of one level: nearest codes, Lloyd's algorithm, mini-batches, starts, dead codes, bounded sizes.

Points lie in blocks, [M, C, D]: distances to all K codes are held for one block at a time, so that memory grows with
C x K and never with points x K. On a mesh every block is split over the data axes, centroids are replicated, and the
compiler sums the clusters over devices. No device receives the points of the others, but for those that are drawn: a
sample, a mini-batch, new places of dead codes.

The work of an iteration is one matrix product a block. Two things keep what is around it small on a CPU: the bias
|c|^2 / 2 is a column of the product, and the index of the least score is found by a second minimum over float32 row
numbers (a combined argmin is not vectorised).

Axes: N points, M blocks, C points of a block, K codes, D embedding width, S sampled points.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Array = jax.Array

# Scores (points x codes) held at once: as many as stay in a CPU's caches, or as fill an accelerator.
CPU_SCORES, ACCELERATOR_SCORES = 2**20, 2**27
FULL = 1e30  # a bias that no score reaches: the code is closed to further points
# A step beyond the mean: for fixed codes any factor below 2 lowers the error, and points without clear clusters end
# lower than by plain steps after as many iterations. The last iterations are plain. No setting switches it off.
OVERSHOOT, PLAIN = 1.5, 3


class Blocks(NamedTuple):
    """Points in blocks: point i is row i % C of block i // C; rows from `count` on are padding.

    Attributes:
      points: float32 [M, C, D]. count: int32 [], N.
    """

    points: Array
    count: Array

    def is_point(self) -> Array:
        """bool [M, C], False for padding."""
        shape = self.points.shape[:2]
        return jnp.arange(math.prod(shape)).reshape(shape) < self.count

    def take(self, rows: Array) -> Array:
        """Points of rows int32 [...], float32 [..., D]. By block and place in it: joined blocks would have to be
        gathered from all devices, here a device hands over what it holds of the rows asked for."""
        return self.points[rows // self.points.shape[1], rows % self.points.shape[1]]

    def flat(self, values_MxC: Array) -> Array:
        """[M x C, ...], blocks joined again; padding included."""
        return values_MxC.reshape(-1, *values_MxC.shape[2:])


def block_size(codes: int, chunk: int | None = None) -> int:
    """Points of a block: `chunk`, or as many as suit the device."""
    if chunk is not None:
        return chunk
    scores = CPU_SCORES if jax.default_backend() == "cpu" else ACCELERATOR_SCORES
    return max(128, scores // codes)


def block_spec(mesh: Mesh | None) -> PartitionSpec:
    """How arrays [M, C, …] lie on a mesh: C is split over its axes `data` and `fsdp` (those of a batch)."""
    return PartitionSpec(None, tuple(axis for axis in ("data", "fsdp") if mesh and axis in mesh.shape))


def make_blocks(points_NxD, codes: int, chunk: int | None = None, mesh: Mesh | None = None) -> Blocks:
    """Lays points out in blocks, on a mesh split as `block_spec` says."""
    count, dim = points_NxD.shape
    spec = block_spec(mesh)
    devices = math.prod(mesh.shape[axis] for axis in spec[1]) if mesh else 1
    size = min(block_size(codes, chunk) * devices, count)
    blocks = -(-count // size)
    size = -(-count // (blocks * devices)) * devices  # blocks of equal size: at most M x devices rows of padding
    points = pad_rows(points_NxD, blocks * size).reshape(blocks, size, dim)
    points = jax.device_put(points, NamedSharding(mesh, spec)) if mesh else jnp.asarray(points)
    return Blocks(points, jnp.int32(count))


def pad_rows(rows, count: int):
    """Rows [N, …] and zeros up to `count` of them, where they were (host or device)."""
    missing = count - rows.shape[0]
    xp = jnp if isinstance(rows, jax.Array) else np
    return xp.pad(rows, ((0, missing), *((0, 0),) * (rows.ndim - 1))) if missing else rows


def power_of_two(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()


# Nearest codes.


def nearest_in_block(points_CxD: Array, centroids_KxD: Array, open_K: Array | None = None) -> Array:
    """argmin_k |c_k|^2 / 2 - x.c_k over codes that are open (all, unless given), int32 [C]; ties go to the lower code.

    Both sides are centred at the mean centroid: an offset that all points share would cost the digits of the score.
    """
    codes, centre_D = centroids_KxD.shape[0], jnp.mean(centroids_KxD, axis=0)
    centroids_KxD = centroids_KxD - centre_D
    bias_K = 0.5 * jnp.sum(jnp.square(centroids_KxD), axis=-1)
    bias_K = bias_K if open_K is None else jnp.where(open_K, bias_K, FULL)
    weights_KxE = jnp.concatenate([-centroids_KxD, bias_K[:, None]], axis=1)
    inputs_CxE = jnp.concatenate([points_CxD - centre_D, jnp.ones((points_CxD.shape[0], 1))], axis=1)
    score_KxC = jnp.einsum("ke,ce->kc", weights_KxE, inputs_CxE, precision=jax.lax.Precision.HIGHEST)
    least_C = jnp.min(score_KxC, axis=0)
    row_Kx1 = jnp.arange(codes, dtype=jnp.float32)[:, None]  # exact: K <= 2^24
    return jnp.min(jnp.where(score_KxC == least_C, row_Kx1, codes - 1.0), axis=0).astype(jnp.int32)


def nearest(points_MxCxD: Array, centroids_KxD: Array, open_K: Array | None = None) -> Array:
    """Nearest open code of every point, int32 [M, C], one block after another."""
    return jax.lax.map(lambda block_CxD: nearest_in_block(block_CxD, centroids_KxD, open_K), points_MxCxD)


def distances(points: Array, centroids_KxD: Array, code: Array) -> Array:
    """Squared distance of points [..., D] to the centroids of their codes [...].

    Taken from the difference: |x|^2 - 2xc + |c|^2 loses all digits where x is close to c.
    """
    return jnp.sum(jnp.square(points - centroids_KxD[code]), axis=-1)


@jax.jit
def residual(blocks: Blocks, centroids_KxD: Array, code_MxC: Array) -> Array:
    """What codes leave over, float32 [M, C, D]; padding stays 0, so that it never outweighs a point."""
    left = blocks.points - centroids_KxD[code_MxC]
    return jnp.where(blocks.is_point()[..., None], left, 0.0)


def cluster_sums(blocks: Blocks, code_MxC: Array, codes: int, one_hot: bool) -> tuple[Array, Array]:
    """(sums float32 [K, D], sizes float32 [K]) of the points of each code.

    one_hot: by a second matrix product, block by block, where a scatter is slow (TPU); the same figures.
    """
    code_MxC = jnp.where(blocks.is_point(), code_MxC, codes)  # code K is dropped
    sizes_K = jnp.zeros(codes).at[code_MxC].add(1.0, mode="drop")
    if not one_hot:  # blocks are not joined for it: points split over devices would have to travel
        return jnp.zeros((codes, blocks.points.shape[-1])).at[code_MxC].add(blocks.points, mode="drop"), sizes_K

    def add(sums_KxD, block):
        points_CxD, code_C = block
        member_CxK = jax.nn.one_hot(code_C, codes)
        return sums_KxD + jnp.einsum("ck,cd->kd", member_CxK, points_CxD, precision=jax.lax.Precision.HIGHEST), None

    zeros_KxD = jnp.zeros((codes, blocks.points.shape[-1]))
    return jax.lax.scan(add, zeros_KxD, (blocks.points, code_MxC))[0], sizes_K


# Iterations.


def lloyd(blocks: Blocks, centroids_KxD: Array, iterations: int, capacity: int = 0,
          one_hot: bool | None = None) -> Array:
    """Lloyd's algorithm: nearest codes, then codes towards the mean of their points. Returns float32 [K, D].

    Not the textbook's steps: in all but the last three iterations a code moves one and a half times as far as the mean
    of its points (`OVERSHOOT`). No setting switches that off; three iterations or fewer are plain.

    Args:
      blocks: the points.
      centroids_KxD: the start.
      iterations: passes over the points; 0 returns the start.
      capacity: most points a code may hold; 0 for no bound. See `bounded`.
      one_hot: see `cluster_sums`; None decides by the device.
    """
    one_hot = jax.default_backend() == "tpu" if one_hot is None else one_hot
    return _lloyd(blocks, centroids_KxD, jnp.int32(iterations), capacity, one_hot)


@functools.partial(jax.jit, static_argnames=("capacity", "one_hot"))
def _lloyd(blocks: Blocks, centroids_KxD: Array, iterations: Array, capacity: int, one_hot: bool) -> Array:
    def iteration(index, centroids_KxD):
        step = jnp.where(index < iterations - PLAIN, OVERSHOOT, 1.0)
        code_MxC = _bounded(blocks, centroids_KxD, capacity) if capacity else nearest(blocks.points, centroids_KxD)
        sums_KxD, sizes_K = cluster_sums(blocks, code_MxC, centroids_KxD.shape[0], one_hot)
        return move(blocks, centroids_KxD, code_MxC, sums_KxD, sizes_K, step)

    return jax.lax.fori_loop(0, iterations, iteration, centroids_KxD)


def move(blocks: Blocks, centroids_KxD: Array, code_MxC: Array, sums_KxD: Array, sizes_K: Array,
         step: Array | float = 1.0) -> Array:
    """Used codes move to (`step` times as far as) the mean of their points, unused ones to the worst-fitted points."""
    means_KxD = sums_KxD / jnp.maximum(sizes_K, 1.0)[:, None]
    means_KxD = jnp.where(sizes_K[:, None] > 0, centroids_KxD + step * (means_KxD - centroids_KxD), centroids_KxD)
    return jax.lax.cond(jnp.any(sizes_K == 0), lambda: _reseed(blocks, centroids_KxD, code_MxC, sizes_K, means_KxD),
                        lambda: means_KxD)


def _reseed(blocks: Blocks, centroids_KxD: Array, code_MxC: Array, sizes_K: Array, means_KxD: Array) -> Array:
    """Moves dead codes to far points: the worst of each of 4K groups of points, the worst groups first.

    Row i is of group i mod 4K. Groups are reduced by scatters: each device reduces its own points, and only figures of
    groups travel.
    """
    distance_MxC = jnp.where(blocks.is_point(), distances(blocks.points, centroids_KxD, code_MxC), -1.0)
    codes, rows = sizes_K.shape[0], distance_MxC.size
    groups = min(4 * codes, rows)  # a sort of all points would cost more than the iteration
    row_MxC = jnp.arange(rows, dtype=jnp.int32).reshape(distance_MxC.shape)
    group_MxC = row_MxC % groups
    most_G = jnp.full(groups, -1.0).at[group_MxC].max(distance_MxC)
    row_MxC = jnp.where(distance_MxC == most_G[group_MxC], row_MxC, rows)  # of equal distances the first
    row_G = jnp.full(groups, rows, jnp.int32).at[group_MxC].min(row_MxC)
    worst_distance, worst_group = jax.lax.top_k(most_G, min(codes, groups))
    worst = row_G[worst_group]
    dead_K = sizes_K == 0
    rank_K = jnp.minimum(jnp.cumsum(dead_K) - 1, worst.shape[0] - 1)  # the j-th dead code takes the j-th worst point
    # A point that is fitted exactly needs no second code: with few distinct points dead codes stay put.
    reseed_K = dead_K & (worst_distance[rank_K] > 0.0)
    return jnp.where(reseed_K[:, None], blocks.take(worst[rank_K]), means_KxD)


def minibatch(blocks: Blocks, centroids_KxD: Array, passes: int, batch: int, key: Array) -> Array:
    """Mini-batch k-means: `passes` x N / batch steps, each on `batch` random points. Returns float32 [K, D].

    A code's centroid is the mean of the points that it won lately: sums and sizes fade by 1 - batch / N a step, a
    memory of one pass (with batch = N: none, a Lloyd iteration on a resample). A code that has all but faded moves to
    a badly fitted point of the batch.

    On a mesh every device receives the batch and works on all of it: the points stay split, but a step takes as long
    as on one device.
    """
    count = int(blocks.count)
    batch = min(batch, count)
    return _minibatch(blocks, centroids_KxD, jnp.int32(math.ceil(passes * count / batch)), key, batch,
                      jax.default_backend() == "tpu")


@functools.partial(jax.jit, static_argnames=("batch", "one_hot"))
def _minibatch(blocks: Blocks, centroids_KxD: Array, steps: Array, key: Array, batch: int, one_hot: bool) -> Array:
    codes, dim = centroids_KxD.shape
    size = min(blocks.points.shape[1], batch)
    keep = 1.0 - batch / blocks.count

    def step(index, state):
        centroids_KxD, sums_KxD, sizes_K = state
        rows = jax.random.randint(jax.random.fold_in(key, index), (-(-batch // size), size), 0, blocks.count)
        drawn = Blocks(blocks.take(rows), jnp.int32(batch))
        code_MxC = nearest(drawn.points, centroids_KxD)
        new_KxD, new_K = cluster_sums(drawn, code_MxC, codes, one_hot)
        sums_KxD, sizes_K = keep * sums_KxD + new_KxD, keep * sizes_K + new_K
        sizes_K = jnp.where(sizes_K < 1e-3, 0.0, sizes_K)
        moved_KxD = move(drawn, centroids_KxD, code_MxC, sums_KxD, sizes_K)
        return moved_KxD, jnp.where(sizes_K[:, None] > 0, sums_KxD, 0.0), sizes_K

    state = (centroids_KxD, jnp.zeros((codes, dim)), jnp.zeros(codes))
    return jax.lax.fori_loop(0, steps, step, state)[0]


# Bounded sizes.


@functools.partial(jax.jit, static_argnames="capacity")
def bounded(blocks: Blocks, centroids_KxD: Array, capacity: int) -> Array:
    """Codes of points such that no code holds more than `capacity` of them, int32 [M, C].

    Rounds of offers: every point without a code asks the nearest code that has room; a code takes the closest of
    those who ask, as many as it has room for. At least one code fills in every round but the last, so that K rounds
    are enough; a few are usual. Greedy, not optimal: whoever comes late pays. On a mesh a round sorts on every device:
    each receives the codes and distances of all points (not the points).
    """
    return _bounded(blocks, centroids_KxD, capacity)


def _bounded(blocks: Blocks, centroids_KxD: Array, capacity: int) -> Array:
    codes, shape = centroids_KxD.shape[0], blocks.points.shape[:2]

    def waiting(state):
        code_MxC, _ = state
        return jnp.any(code_MxC < 0)

    def offers(state):
        code_MxC, room_K = state
        wish_MxC = nearest(blocks.points, centroids_KxD, room_K > 0)
        distance_N = blocks.flat(distances(blocks.points, centroids_KxD, wish_MxC))
        wish_N = blocks.flat(jnp.where(code_MxC < 0, wish_MxC, codes))  # code K: asks for nothing
        order_N = jnp.lexsort((distance_N, wish_N))
        first_K = jnp.searchsorted(wish_N[order_N], jnp.arange(codes + 1))
        place_N = jnp.zeros_like(order_N).at[order_N].set(jnp.arange(order_N.shape[0])) - first_K[wish_N]
        taken_N = (wish_N < codes) & (place_N < jnp.append(room_K, 0)[wish_N])
        room_K = room_K - jax.ops.segment_sum(taken_N.astype(jnp.int32), wish_N, codes)
        return jnp.where(taken_N.reshape(shape), wish_MxC, code_MxC), room_K

    start = jnp.where(blocks.is_point(), -1, 0)
    return jax.lax.while_loop(waiting, offers, (start, jnp.full(codes, capacity, jnp.int32)))[0]


# Starts.


def spread_sample(blocks: Blocks, size: int, key: Array) -> Array:
    """`size` distinct points (all where there are no more), one at random out of every N / size, float32 [S, D], on
    every device of a mesh."""
    count = int(blocks.count)
    size = min(size, count)
    edges = (np.arange(size + 1, dtype=np.int64) * count) // size
    rows = jax.random.randint(key, (size,), jnp.asarray(edges[:-1]), jnp.asarray(edges[1:]))
    return blocks.take(rows)


def start_sample(blocks: Blocks, codes: int, key: Array) -> Array:
    """K distinct points at random, float32 [K, D]."""
    return spread_sample(blocks, codes, key)


def start_plus_plus(blocks: Blocks, codes: int, key: Array) -> Array:
    """k-means++ (Arthur and Vassilvitskii 2007) on a sample: each start is drawn with weight squared distance to those
    before. The sample holds 4K points, at least 16,384: its cost, S x K x D, stays below that of one iteration."""
    sample_key, draw_key = jax.random.split(key)
    return _plus_plus(spread_sample(blocks, max(4 * codes, 2**14), sample_key), codes, draw_key)


@functools.partial(jax.jit, static_argnames="codes")
def _plus_plus(points_SxD: Array, codes: int, key: Array) -> Array:
    first_key, rest_key = jax.random.split(key)
    first_D = points_SxD[jax.random.randint(first_key, (), 0, points_SxD.shape[0])]

    def distance_to(point_D):
        return jnp.sum(jnp.square(points_SxD - point_D), axis=-1)

    def draw(nearest_S, share):
        # The last place with any weight: rounding must not draw a point that was chosen already. Where every point
        # was chosen the sum is 0 and argmax gives point 0: a copy, no NaN.
        total_S = jnp.cumsum(nearest_S)
        point_D = points_SxD[jnp.argmax(total_S > jnp.minimum(share * total_S[-1], 0.9999999 * total_S[-1]))]
        return jnp.minimum(nearest_S, distance_to(point_D)), point_D

    _, others = jax.lax.scan(draw, distance_to(first_D), jax.random.uniform(rest_key, (codes - 1,)))
    return jnp.concatenate([first_D[None], others])
