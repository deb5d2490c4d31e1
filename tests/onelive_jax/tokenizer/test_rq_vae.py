"""RQ-VAE: straight-through, moving averages by hand, dead codes, learning."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.tokenizer import rq_vae
from onelive_jax.tokenizer.rq_vae import Settings

SMALL = Settings(levels=2, codes=8, latent=4, hidden=16, batch=64, learning_rate=3e-3, decay=0.9)


def planted():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(12, 6))
    return (centre[rng.integers(0, 12, 512)] + 0.1 * rng.normal(size=(512, 6))).astype(np.float32)


def test_the_gradient_passes_straight_through():
    books = jnp.array([[[0.0], [1.0]], [[-0.2], [0.2]]])
    codes, zhat, residuals = rq_vae.quantize(books, jnp.array([[0.9], [0.3]]))
    np.testing.assert_array_equal(codes, [[1, 0], [0, 1]])
    chex.assert_trees_all_close(zhat, jnp.array([[0.8], [0.2]]), atol=1e-6)
    chex.assert_trees_all_close(residuals[1], jnp.array([[-0.1], [0.3]]), atol=1e-6)
    slope = jax.grad(lambda z: (3 * rq_vae.quantize(books, z)[1]).sum())(jnp.array([[0.9], [0.3]]))
    chex.assert_trees_all_close(slope, jnp.full((2, 1), 3.0))
    assert float(jnp.abs(jax.grad(lambda b: rq_vae.quantize(b, jnp.ones((2, 1)))[1].sum())(books)).max()) == 0


def test_moving_averages_by_hand():
    settings = Settings(levels=1, codes=2, decay=0.75, dead_below=0.0)
    centroids, sums, sizes = rq_vae.average(jnp.array([[4.0], [10.0]]), jnp.array([2.0, 2.0]),
                                            jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1]), settings,
                                            jax.random.key(0))
    chex.assert_trees_all_close(sums, jnp.array([[4.0], [8.75]]))  # 3 + 1 and 7.5 + 1.25
    chex.assert_trees_all_close(sizes, jnp.array([2.0, 1.75]))
    chex.assert_trees_all_close(centroids, jnp.array([[2.0], [5.0]]))


def test_a_dead_code_moves_to_a_point_of_the_batch():
    settings = Settings(levels=1, codes=2, decay=0.5, dead_below=0.1)
    centroids, _, sizes = rq_vae.average(jnp.array([[4.0], [0.01]]), jnp.array([2.0, 0.01]),
                                         jnp.array([[7.0], [7.0]]), jnp.array([0, 0]), settings, jax.random.key(0))
    assert float(centroids[1, 0]) == 7.0
    assert float(sizes[1]) == 1.0


def test_commitment_pulls_the_encoder_and_not_the_codes():
    state = rq_vae.init(planted(), SMALL, jax.random.key(0))
    loss, (error, *_) = rq_vae.loss_fn(state.params, state.centroids, planted()[:8], SMALL)
    assert float(loss) > float(error)
    slope = jax.grad(lambda c: rq_vae.loss_fn(state.params, c, planted()[:8], SMALL)[0])(state.centroids)
    assert float(jnp.abs(slope).max()) == 0


def test_it_learns_and_uses_its_codes():
    points, seen = planted(), []
    state, errors = rq_vae.train(points, SMALL, 300, seed=1, progress=lambda *call: seen.append(call))
    assert errors[-20:].mean() < 0.5 * errors[:5].mean()
    assert [step for step, _ in seen] == [100, 200, 300]
    codes = np.asarray(rq_vae.encode(state, points, SMALL))
    assert codes.dtype == np.int32
    chex.assert_shape(codes, (512, 2))
    assert len(np.unique(codes[:, 0])) >= 6
    again, _ = rq_vae.train(points, SMALL, 3, seed=1)
    chex.assert_trees_all_equal(again, rq_vae.train(points, SMALL, 3, seed=1)[0])


def test_the_first_codebook_is_drawn_from_all_points(monkeypatch):
    monkeypatch.setattr(rq_vae, "START_POINTS", 64)
    points = planted()
    points[256:] += 100.0  # the first 64 say nothing of the second half
    settings, key = Settings(levels=1, codes=16, latent=4, hidden=16), jax.random.key(0)
    state = rq_vae.init(points, settings, key)
    encoder, _ = rq_vae._models(settings, 6)
    z = np.asarray(encoder.apply({"params": state.params["encoder"]}, points))
    away = np.linalg.norm(z[:, None] - np.asarray(state.centroids[0]), axis=-1)
    drawn = away.argmin(axis=0)
    np.testing.assert_allclose(away.min(axis=0), 0.0, atol=1e-3)  # each is a point
    assert len(np.unique(drawn)) == 16
    assert 3 <= (drawn >= 256).sum() <= 13


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="7 points cannot fill 8 codes"):
        rq_vae.init(planted()[:7], SMALL, jax.random.key(0))
    with pytest.raises(ValueError, match="decay"):
        rq_vae.init(planted(), Settings(decay=1.0), jax.random.key(0))
    state = rq_vae.init(planted(), SMALL, jax.random.key(0))
    with pytest.raises(ValueError, match="5 wide, the RQ-VAE was trained on width 6"):
        rq_vae.encode(state, np.zeros((2, 5)), SMALL)
    for value in (np.nan, np.inf, -np.inf):
        holed = np.where(np.arange(512)[:, None] == 3, value, planted())
        named = pytest.raises(ValueError, match="1 of 512 points hold NaN or infinity.*the first is point 3")
        with named:
            rq_vae.train(holed, SMALL, 1)
        with named:
            rq_vae.encode(state, holed, SMALL)
    equal = rq_vae.train(np.ones((16, 6)), SMALL, 2)[1]
    assert np.isfinite(equal).all()
