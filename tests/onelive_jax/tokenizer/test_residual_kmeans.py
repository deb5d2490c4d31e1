"""Residual k-means: exact on planted clusters, monotone, independent of chunks, clear about bad input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.tokenizer import kmeans, residual_kmeans
from onelive_jax.tokenizer.refresh import refresh
from onelive_jax.tokenizer.residual_kmeans import Codebooks
from tests.onelive_jax.kmeans_fit import fit

KEY = jax.random.key(0)


def cloud(points=400, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(points, dim)).astype(np.float32)


def planted():
    """20 points around each of 8 far corners, and the corner of each point."""
    rng = np.random.default_rng(1)
    corners = 10.0 * np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    label = np.repeat(np.arange(8), 20)
    return (corners[label] + 0.1 * rng.normal(size=(160, 3))).astype(np.float32), label


def test_planted_clusters_are_found():
    points, label = planted()
    codes = np.asarray(residual_kmeans.encode(fit(points, 1, 8, KEY), points))[:, 0]
    assert len({(a, b) for a, b in zip(label, codes, strict=True)}) == 8  # one code a corner and one corner a code
    assert len(set(codes)) == 8


def test_centroids_are_the_means_of_their_points():
    points, label = planted()
    codebooks = fit(points, 1, 8, KEY)
    means = np.stack([points[label == k].mean(axis=0) for k in range(8)])
    order = np.lexsort(np.asarray(codebooks.centroids[0]).round().T)
    chex.assert_trees_all_close(codebooks.centroids[0][order], means[np.lexsort(means.round().T)], atol=1e-4)


@pytest.mark.parametrize("init", ["k-means++", "sample"])
def test_residual_falls_level_by_level(init):
    points = cloud()
    codebooks = fit(points, 3, 16, KEY, init=init)
    norms = residual_kmeans.residual_norms(codebooks, points)
    chex.assert_shape(norms, (4,))
    assert np.all(np.diff(norms) < -0.05)
    chex.assert_trees_all_close(norms[0], np.sqrt((points**2).sum(axis=1).mean()), rtol=1e-5)


def test_what_the_centroids_of_the_codes_leave_is_the_last_residual():
    points = cloud()
    codebooks = fit(points, 3, 16, KEY)
    codes = residual_kmeans.encode(codebooks, points)
    chex.assert_shape(codes, (400, 3))
    assert codes.dtype == jnp.int32
    left = points - sum(codebooks.centroids[level, codes[:, level]] for level in range(3))
    norms = residual_kmeans.residual_norms(codebooks, points)
    chex.assert_trees_all_close(np.sqrt((left**2).sum(axis=1).mean()), norms[3], rtol=1e-5)
    first = points - codebooks.centroids[0, codes[:, 0]]
    chex.assert_trees_all_close(np.sqrt((first**2).sum(axis=1).mean()), norms[1], rtol=1e-5)


def test_encode_takes_the_nearest_centroid_of_each_level():
    points, codebooks = cloud(50), fit(cloud(), 2, 8, KEY)
    residual, expected = points, []
    for level in np.asarray(codebooks.centroids):
        code = ((residual[:, None] - level) ** 2).sum(axis=-1).argmin(axis=1)
        residual = residual - level[code]
        expected.append(code)
    np.testing.assert_array_equal(residual_kmeans.encode(codebooks, points), np.stack(expected, axis=1))


def test_a_centroid_encodes_to_itself():
    codebooks = fit(cloud(), 1, 16, KEY)
    np.testing.assert_array_equal(residual_kmeans.encode(codebooks, codebooks.centroids[0])[:, 0], np.arange(16))


def test_chunks_change_nothing():
    points = cloud(103)  # no multiple of the chunk: the padding must not become points
    whole = fit(points, 2, 8, KEY, chunk=1000)
    parts = fit(points, 2, 8, KEY, chunk=10)
    chex.assert_trees_all_close(whole, parts, atol=1e-5)
    np.testing.assert_array_equal(residual_kmeans.encode(whole, points, chunk=1000),
                                  residual_kmeans.encode(whole, points, chunk=7))


def test_distances_are_never_held_for_all_points_and_codes_at_once():
    traced = jax.make_jaxpr(kmeans.nearest)(kmeans.make_blocks(np.zeros((4096, 4)), 64, 32).points, jnp.zeros((64, 4)))
    assert "64,32]" in str(traced)
    assert "64,4096]" not in str(traced)
    assert "128,64,32]" not in str(traced)


def test_the_key_decides():
    points = cloud()
    chex.assert_trees_all_equal(fit(points, 2, 8, KEY), fit(points, 2, 8, KEY))
    other = fit(points, 2, 8, jax.random.key(1))
    assert not np.allclose(other.centroids, fit(points, 2, 8, KEY).centroids)


def test_order_of_points_does_not_change_a_refresh():
    points, old = cloud(), fit(cloud(), 2, 8, KEY)
    order = np.random.default_rng(2).permutation(len(points))
    chex.assert_trees_all_close(refresh(old, points), refresh(old, points[order]),
                                atol=1e-4)


def test_dead_codes_move_to_the_worst_fitted_points():
    points = np.array([[0.0, 0], [0, 1], [9, 0], [0, -7]], np.float32)
    centroids = np.array([[0.0, 0], [100, 100], [200, 200]], np.float32)
    blocks = kmeans.make_blocks(points, 3)
    code = kmeans.nearest(blocks.points, jnp.asarray(centroids))
    np.testing.assert_array_equal(code, [[0, 0, 0, 0]])
    moved = kmeans.move(blocks, jnp.asarray(centroids), code, *kmeans.cluster_sums(blocks, code, 3, False))
    chex.assert_trees_all_close(moved, np.array([[2.25, -1.5], [9, 0], [0, -7]], np.float32))


def test_lloyd_revives_dead_codes():
    points, _ = planted()
    stuck = Codebooks(jnp.concatenate([jnp.zeros((1, 1, 3)), jnp.full((1, 7, 3), 1e3)], axis=1))
    codes = residual_kmeans.encode(refresh(stuck, points, iterations=20, step=1.0), points)
    assert len(np.unique(codes)) == 8


def test_refresh_keeps_codes_where_points_hardly_move():
    points, label = planted()
    old = fit(points, 1, 8, KEY)
    moved = points + np.float32(0.5)
    new = refresh(old, moved, step=1.0)
    np.testing.assert_array_equal(residual_kmeans.encode(old, points), residual_kmeans.encode(new, moved))
    chex.assert_trees_all_close(new.centroids, old.centroids + 0.5, atol=1e-4)
    chex.assert_trees_all_equal(refresh(old, moved, iterations=0), old)


def test_refresh_takes_fewer_points_than_codes():
    old = fit(cloud(), 2, 16, KEY)
    chex.assert_tree_all_finite(refresh(old, cloud(3)))


@pytest.mark.parametrize("init", ["k-means++", "sample"])
def test_equal_points_share_one_code_and_leave_nothing(init):
    points = np.full((20, 3), 2.5, np.float32)
    codebooks = fit(points, 2, 4, KEY, init=init)
    chex.assert_tree_all_finite(codebooks)
    assert len(np.unique(residual_kmeans.encode(codebooks, points), axis=0)) == 1
    chex.assert_trees_all_close(residual_kmeans.residual_norms(codebooks, points)[1:], np.zeros(2), atol=1e-5)


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("values", [np.nan, np.inf, -np.inf, [np.inf, -np.inf, 0], 1e15])
def test_points_that_are_no_numbers_are_named(values, device):
    points = cloud(20, 3)
    codebooks = fit(points, 2, 2, KEY, iterations=1)
    points[13], points[17] = values, np.nan
    points = jnp.asarray(points) if device else points
    for use in (lambda: fit(points, 1, 2, KEY), lambda: residual_kmeans.encode(codebooks, points),
                lambda: residual_kmeans.encode_balanced(codebooks, points, 1.0),
                lambda: residual_kmeans.residual_norms(codebooks, points), lambda: refresh(codebooks, points)):
        with pytest.raises(ValueError, match="2 of 20 points hold NaN or infinity or .*the first is point 13"):
            use()


def test_the_longest_points_are_encoded_and_bounded():
    points = np.concatenate([cloud(20, 3), np.full((4, 3), 0.5 * residual_kmeans.LONGEST, np.float32)])
    codebooks = fit(points, 1, 2, KEY, iterations=2, balance=1.0)
    chex.assert_tree_all_finite(codebooks)
    codes = np.asarray(residual_kmeans.encode_balanced(codebooks, points, 1.0))
    np.testing.assert_array_equal(np.bincount(codes[:, 0]), [12, 12])


def test_no_points_have_no_codes():
    codebooks = fit(cloud(20, 3), 2, 4, KEY, iterations=1)
    for none in (np.zeros((0, 3)), jnp.zeros((0, 3))):
        codes = residual_kmeans.encode(codebooks, none)
        chex.assert_shape(codes, (0, 2))
        assert codes.dtype == jnp.int32
    for wrong in (np.zeros((0, 5)), np.zeros(0)):
        with pytest.raises(ValueError, match="non-empty"):
            residual_kmeans.encode(codebooks, wrong)
    with pytest.raises(ValueError, match="non-empty"):
        fit(np.zeros((0, 3)), 1, 2, KEY)


def test_bad_input_is_named():
    points = cloud(10, 3)
    with pytest.raises(ValueError, match=r"10 points cannot fill 11 codes.*config\.tokenizer\.codes"):
        fit(points, 1, 11, KEY)
    with pytest.raises(ValueError, match="1 of 10 points hold NaN.*point 4"):
        fit(np.where(np.arange(10)[:, None] == 4, np.nan, points), 1, 2, KEY)
    with pytest.raises(ValueError, match="config.tokenizer.kmeans_init='best'"):
        fit(points, 1, 2, KEY, init="best")
    with pytest.raises(ValueError, match="config.tokenizer.kmeans_iterations=0"):
        fit(points, 1, 2, KEY, iterations=0)
    codebooks = fit(points, 2, 2, KEY)
    for use in (residual_kmeans.encode, refresh, residual_kmeans.residual_norms):
        with pytest.raises(ValueError, match="5 wide, the codebooks were fitted to width 3"):
            use(codebooks, cloud(10, 5))
