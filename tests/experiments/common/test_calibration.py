"""The weights of codes, identity and evidence against a likelihood that is known."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from experiments.common import calibration

REQUESTS, ROOMS = 3000, 6


def scored(seed: int = 0):
    """codes, identity, evidence [R, N], mask and targets drawn from p ∝ exp(codes + .3 · identity + .8 · evidence)."""
    rng = np.random.default_rng(seed)
    codes, identity, evidence = rng.normal(size=(3, REQUESTS, ROOMS))
    mask = np.arange(ROOMS) < rng.integers(2, ROOMS + 1, REQUESTS)[:, None]
    score = np.where(mask, codes + 0.3 * identity + 0.8 * evidence + rng.gumbel(size=codes.shape), -np.inf)
    return np.where(mask, codes, -1e9), np.where(mask, identity, -1e9), evidence, mask, score.argmax(1)


def test_the_loss_has_its_gradient():
    arrays, at = scored(), np.array([0.5, 1.2])
    loss, gradient = calibration._loss(at, *arrays)
    assert 0 < loss < np.log(ROOMS) + 1
    np.testing.assert_allclose(gradient, approx_fprime(at, lambda w: calibration._loss(w, *arrays)[0]), atol=1e-5)


def test_weights_are_found():
    found = minimize(calibration._loss, (0.1, 1.0), scored(), "L-BFGS-B", jac=True, bounds=((0, 5),) * 2)
    assert found.x == pytest.approx([0.3, 0.8], abs=0.1)


def test_the_last_views_are_held_out():
    start = np.random.default_rng(0).permutation(1000)
    late = calibration.held_out(start, 0.05)
    assert late.sum() == 50
    assert start[late].min() > start[~late].max()
    assert not calibration.held_out(start, 0.0).any()


def test_what_was_fitted_is_a_sentence():
    training = {"combine": [0.2, 0.08, 0.79], "calibration": {"requests": 1024, "nll": 1.1, "nll_before": 1.16}}
    assert calibration.line(training) == (
        "weights of codes, identity and evidence: 0.20, 0.08, 0.79; on 1,024 held-out views the negative "
        "log-likelihood is 1.100, before 1.160")
