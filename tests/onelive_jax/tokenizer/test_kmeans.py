"""One level: sums, starts, mini-batches, bounded sizes, eight devices against one."""

import dataclasses
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.config import MeshConfig, TokenizerConfig
from onelive_jax.sharding import partitioning
from onelive_jax.tokenizer import kmeans, residual_kmeans
from tests.onelive_jax.kmeans_fit import fit

KEY = jax.random.key(0)


def cloud(points=300, dim=4, seed=0):
    return np.random.default_rng(seed).normal(size=(points, dim)).astype(np.float32)


@pytest.mark.parametrize("offset", [0, 1_000, 3_000, 30_000])
def test_codes_are_the_nearest_whatever_points_have_in_common(offset):
    points, centroids = (cloud(count, 8, seed) + np.float32(offset) for count, seed in ((500, 1), (64, 2)))
    distance = np.square(points[:, None].astype(np.float64) - centroids[None]).sum(-1)
    code = np.asarray(kmeans.nearest(jnp.asarray(points)[None], jnp.asarray(centroids)))[0]
    least = distance.min(1)
    assert (distance[np.arange(500), code] <= least + 1e-5 * (1 + least)).all()


def test_blocks_hold_every_point_once():
    points = cloud(103)
    blocks = kmeans.make_blocks(points, 8, chunk=10)
    assert blocks.points.shape[1] <= 10
    np.testing.assert_array_equal(blocks.flat(blocks.points)[:103], points)
    assert int(blocks.is_point().sum()) == 103


def test_sums_by_scatter_by_product_and_by_a_loop_agree():
    points, code = cloud(37), np.random.default_rng(1).integers(0, 5, 37)
    blocks = kmeans.make_blocks(points, 6, chunk=8)
    padded = jnp.asarray(np.pad(code, (0, blocks.is_point().size - 37))).reshape(blocks.points.shape[:2])
    sums = np.stack([points[code == k].sum(axis=0) for k in range(6)])  # code 5 is empty, padding is in no code
    for one_hot in (False, True):
        got, sizes = kmeans.cluster_sums(blocks, padded, 6, one_hot)
        chex.assert_trees_all_close(got, sums, atol=1e-4)
        np.testing.assert_array_equal(sizes, np.bincount(code, minlength=6))


def test_ties_go_to_the_lower_code():
    twice = jnp.asarray(np.repeat(cloud(4), 2, axis=0))
    np.testing.assert_array_equal(kmeans.nearest_in_block(twice, twice) % 2, np.zeros(8))


def test_rows_are_taken_by_block_and_place():
    points = cloud(103)
    blocks = kmeans.make_blocks(points, 8, chunk=10)
    rows = np.array([[0, 102, 10], [9, 57, 57]])
    np.testing.assert_array_equal(blocks.take(jnp.asarray(rows)), points[rows])


@pytest.mark.parametrize("count, chunk", [(203, 16), (203, 1000), (30, 7)])  # 30 < 4K: every point its own group
def test_dead_codes_take_the_worst_points_of_their_groups(count, chunk):
    points = np.round(2 * cloud(count, dim=2))  # many distances are equal: the first row counts
    centroids = np.concatenate([cloud(3, dim=2, seed=1), np.full((7, 2), 99.0)]).astype(np.float32)
    blocks = kmeans.make_blocks(points, 10, chunk)
    code = kmeans.nearest(blocks.points, jnp.asarray(centroids))
    sums, sizes = kmeans.cluster_sums(blocks, code, 10, False)
    np.testing.assert_array_equal(np.asarray(sizes) == 0, np.arange(10) >= 3)
    moved = kmeans.move(blocks, jnp.asarray(centroids), code, sums, sizes)
    distance = np.asarray(kmeans.distances(blocks.points, jnp.asarray(centroids), code)).ravel()[:count]
    groups = min(40, blocks.is_point().size)
    worst = [max(range(group, count, groups), key=lambda row: (distance[row], -row))
             for group in range(min(groups, count))]
    worst.sort(key=lambda row: (-distance[row], row % groups))
    np.testing.assert_array_equal(moved[3:], points[worst[:7]])


def test_no_iteration_raises_the_error():
    blocks = kmeans.make_blocks(cloud(), 12, chunk=64)
    centroids, errors = kmeans.start_sample(blocks, 12, KEY), []
    for iterations in range(12):
        moved = kmeans.lloyd(blocks, centroids, iterations)
        error = kmeans.distances(blocks.points, moved, kmeans.nearest(blocks.points, moved))
        errors.append(float(jnp.where(blocks.is_point(), error, 0.0).sum()))
    assert np.all(np.diff(errors) <= 1e-3)
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("size", [1, 7, 300, 999])
def test_a_spread_sample_is_distinct_points(size):
    points = cloud()
    sample = np.asarray(kmeans.spread_sample(kmeans.make_blocks(points, 8, chunk=64), size, KEY))
    assert len(np.unique(sample, axis=0)) == len(sample) == min(size, 300)
    assert {tuple(row) for row in sample} <= {tuple(row) for row in points}


def test_minibatches_end_near_lloyd_and_follow_the_key():
    points = cloud(2000)
    error = {mode: float(residual_kmeans.residual_norms(
        fit(points, 1, 16, KEY, iterations=10, mode=mode, batch=256), points)[-1])
        for mode in ("lloyd", "minibatch")}
    assert error["minibatch"] < 1.03 * error["lloyd"]
    runs = [fit(points, 1, 16, KEY, iterations=2, mode="minibatch", batch=256) for _ in range(2)]
    chex.assert_trees_all_equal(*runs)


def test_a_warm_start_replaces_passes():
    points = cloud(4000)
    fits = {name: fit(points, 1, 16, KEY, init="sample", **settings) for name, settings in {
        "cold": {"iterations": 1}, "warm": {"iterations": 1, "warm_iterations": 15}}.items()}
    cold, warm = (float(residual_kmeans.residual_norms(fits[name], points)[-1]) for name in ("cold", "warm"))
    assert warm < 0.98 * cold


@pytest.mark.parametrize("balance, most", [(1.0, 25), (1.2, 30)])
def test_no_code_holds_more_than_its_bound(balance, most):
    points = np.concatenate([0.1 * cloud(180), 5 + cloud(20, seed=1)])  # most of them in one place
    books = fit(points, 2, 8, KEY, iterations=3, balance=balance)
    codes = np.asarray(residual_kmeans.encode_balanced(books, points, balance))
    sizes = np.array([np.bincount(codes[:, level], minlength=8) for level in range(2)])
    assert sizes.max() <= most
    assert sizes.sum() == 400
    free = np.bincount(np.asarray(residual_kmeans.encode(fit(points, 1, 8, KEY), points))[:, 0])
    assert free.max() > most  # without the bound they are not even


def test_bounded_codes_are_the_nearest_where_there_is_room():
    blocks = kmeans.make_blocks(np.array([[0.0], [1.0], [2.0], [10.0]], np.float32), 2)
    centroids = jnp.array([[0.0], [10.0]])
    np.testing.assert_array_equal(kmeans.bounded(blocks, centroids, 4), [[0, 0, 0, 1]])
    np.testing.assert_array_equal(kmeans.bounded(blocks, centroids, 2), [[0, 0, 1, 1]])  # the farthest gives way


def test_settings_reach_the_fit_and_wrong_ones_are_named():
    config = TokenizerConfig(levels=2, codes=4, kmeans_iterations=2, kmeans_init="sample", kmeans_warm_iterations=1)
    books = residual_kmeans.fit(cloud(), config, KEY)
    for other in ({"kmeans_iterations": 3}, {"kmeans_init": "k-means++"}, {"kmeans_warm_iterations": 0}):
        moved = residual_kmeans.fit(cloud(), dataclasses.replace(config, **other), KEY)
        assert np.abs(np.asarray(moved.centroids) - books.centroids).max() > 1e-3, other
    with pytest.raises(ValueError, match="balance=0.5 must be 0"):
        fit(cloud(), 1, 4, KEY, balance=0.5)
    with pytest.raises(ValueError, match="needs kmeans_mode='lloyd'"):
        fit(cloud(), 1, 4, KEY, balance=1.5, mode="minibatch")
    with pytest.raises(ValueError, match="config.tokenizer.kmeans_mode='fast'"):
        fit(cloud(), 1, 4, KEY, mode="fast")
    with pytest.raises(ValueError, match="codes have shape"):
        residual_kmeans.residual_norms(books, cloud(), np.zeros((300, 1), int))


def eight_parts():
    return partitioning.make_mesh(MeshConfig(data=4, fsdp=2, tensor=1))


@pytest.mark.eight_devices
def test_eight_devices_fit_what_one_fits():
    points, mesh = cloud(501), eight_parts()
    blocks = kmeans.make_blocks(points, 8, 16, mesh)
    assert len(blocks.points.addressable_shards) == 8
    assert blocks.points.addressable_shards[0].data.shape[1] * 8 == blocks.points.shape[1]
    settings = dict(levels=2, codes=8, key=KEY, iterations=4, chunk=16)
    one, eight = fit(points, **settings), fit(points, **settings, mesh=mesh)
    np.testing.assert_allclose(one.centroids, eight.centroids, atol=1e-5)
    assert len(eight.centroids.devices()) == 1, "encode would run on all devices, each for all points"
    for more in (dict(mode="minibatch", batch=100), dict(balance=1.2), dict(warm_iterations=2, init="sample")):
        one_of, eight_of = (fit(points, **settings, **more, mesh=m) for m in (None, mesh))
        np.testing.assert_allclose(one_of.centroids, eight_of.centroids, atol=1e-5, err_msg=str(more))
        assert np.abs(np.asarray(one_of.centroids) - one.centroids).max() > 1e-3, more


def most_elements(lowered) -> int:
    """The greatest array that a collective yields."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    found = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", lowered.compile().as_text())
    assert found, "nothing is summed over devices"
    return max(math.prod(map(int, filter(None, shape.split(",")))) for result in found
               for shape in re.findall(r"\[([\d,]*)\]", result))


@pytest.mark.eight_devices
def test_points_do_not_travel_between_devices():
    points = cloud(2003)
    blocks, one = kmeans.make_blocks(points, 8, 16, eight_parts()), kmeans.make_blocks(points, 8, 16)
    centroids, rows = jnp.asarray(points[:8]), blocks.is_point().size
    gathered = jax.jit(lambda blocks: blocks.flat(blocks.points)[jnp.arange(7) ** 3]).lower(blocks)
    assert most_elements(gathered) >= rows, "this test would see it"
    for one_hot in (False, True):
        assert most_elements(kmeans._lloyd.lower(blocks, centroids, jnp.int32(4), 0, one_hot)) < 100
    # Codes and distances are sorted as a whole, points stay where they are.
    assert most_elements(kmeans._lloyd.lower(blocks, centroids, jnp.int32(4), 260, False)) <= rows
    assert most_elements(kmeans._minibatch.lower(blocks, centroids, jnp.int32(9), KEY, 100, False)) <= 4 * 100
    assert most_elements(jax.jit(kmeans.Blocks.take).lower(blocks, jnp.arange(50))) <= 4 * 50
    # Dead codes move to the same points.
    dead = centroids.at[3:].set(99.0)
    np.testing.assert_allclose(kmeans.lloyd(one, dead, 1), kmeans.lloyd(blocks, dead, 1), atol=1e-5)
    np.testing.assert_array_equal(kmeans.spread_sample(one, 50, KEY), kmeans.spread_sample(blocks, 50, KEY))
