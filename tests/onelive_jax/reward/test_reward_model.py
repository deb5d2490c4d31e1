"""The reward model: what each candidate sees, where gradients end, its losses by hand.

Axes: B batch, C candidates, O objectives.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.batch import OBJECTIVES, Feedback
from onelive_jax.config import RewardConfig
from onelive_jax.reward.model import RewardModel, labels, reward_losses
from tests.onelive_jax.random_batches import (
    AUTHOR_DIM,
    AUTHORS,
    BATCH,
    CODES,
    LEVELS,
    ROOMS,
    paths,
    random_batch,
    random_params,
    with_history,
)

BATCH_OF_4 = random_batch()
LIVE = BATCH_OF_4.live
CONFIG = RewardConfig(dim=16, num_heads=2, mlp_dim=24, tower_dim=6, dropout=0.0)
MODEL = RewardModel(CONFIG, LEVELS, CODES, AUTHORS, AUTHOR_DIM, ("click", "watch", "gift"))
PARAMS = random_params(MODEL, BATCH_OF_4.request, LIVE)
RUN = jax.jit(lambda p, request, rooms: MODEL.apply({"params": p}, request, rooms))


def test_shapes_and_that_a_candidate_does_not_see_the_others():
    logits, score = RUN(PARAMS, BATCH_OF_4.request, LIVE)
    assert logits.shape == (BATCH, ROOMS, 3)
    assert score.shape == (BATCH, ROOMS)
    turned = jax.tree.map(lambda x: x[:, ::-1], LIVE)
    other_logits, other_score = RUN(PARAMS, BATCH_OF_4.request, turned)
    np.testing.assert_allclose(other_logits[:, ::-1], logits, atol=1e-5)
    np.testing.assert_allclose(other_score[:, ::-1], score, atol=1e-5)


def test_what_is_masked_is_not_read_and_an_empty_history_is_finite():
    history = BATCH_OF_4.request.histories["live"]
    noise = with_history(BATCH_OF_4, author=np.where(history.mask, history.author, 3),
                         habits=np.where(history.mask[..., None], history.habits, 9.0).astype(np.float32))
    want = RUN(PARAMS, BATCH_OF_4.request, LIVE)
    for a, b in zip(RUN(PARAMS, noise.request, LIVE), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    empty = with_history(BATCH_OF_4, mask=np.zeros_like(history.mask))
    assert all(np.isfinite(x).all() for x in RUN(PARAMS, empty.request, LIVE))


def test_the_history_room_and_moment_are_read():
    logits, score = RUN(PARAMS, BATCH_OF_4.request, LIVE)
    history = BATCH_OF_4.request.histories["live"]
    changes = {
        "history": (with_history(BATCH_OF_4, codes=(history.codes + 1) % CODES).request, LIVE),
        "hour": (BATCH_OF_4.request.replace(hour=(BATCH_OF_4.request.hour + 5) % 24), LIVE),
        "codes": (BATCH_OF_4.request, LIVE.replace(codes=(LIVE.codes + 1) % CODES)),
        "author": (BATCH_OF_4.request, LIVE.replace(author=(LIVE.author + 1) % AUTHORS)),
        "features": (BATCH_OF_4.request, LIVE.replace(features=LIVE.features + 1)),
    }
    for name, (request, rooms) in changes.items():
        other_logits, other_score = RUN(PARAMS, request, rooms)
        assert np.abs(other_logits - logits).max() > 1e-3, name
        assert np.abs(other_score - score).max() > 1e-3, name


def test_the_ensemble_hands_no_gradient_back():
    score_of = lambda p: MODEL.apply({"params": p}, BATCH_OF_4.request, LIVE)[1].sum()  # noqa: E731
    for name, gradient in paths(jax.jit(jax.grad(score_of))(PARAMS)).items():
        assert bool(np.abs(gradient).max() > 0) == name.startswith("ensemble/"), name


def test_labels_by_hand():
    outcome = jnp.array([[[1.0, 0.0, 1.0], [0.0, 9.0, 0.0], [1.0, 500.0, 0.0]]])
    got = labels(outcome, ("click", "watch", "gift"), 99.0)
    np.testing.assert_allclose(got, [[[1, 0, 1], [0, 0.5, 0], [1, 1, 0]]], rtol=1e-5)  # log 10 / log 100 = 1/2
    np.testing.assert_array_equal(labels(outcome[..., :1], ("click",), 99.0), outcome[..., :1])


def test_losses_by_hand():
    """Two candidates, the second of an unknown gift; a third slot without a room; a row of padding."""
    mask = np.array([[True, True, False], [True, True, True]])
    rooms = jax.tree.map(lambda x: jnp.asarray(x[:2, :3]), LIVE).replace(mask=jnp.asarray(mask))
    known = np.array([[[True, True], [True, False], [True, True]], [[True, True]] * 3])
    outcomes = np.array([[[1, 1], [0, 0], [1, 1]], [[1, 1]] * 3], np.float32)
    feedback = Feedback(request=None, rooms=rooms, outcomes=jnp.asarray(outcomes), known=jnp.asarray(known),
                        reward=None, rewarded=None, propensity=None, weight=jnp.array([1.0, 0.0]))
    score = jnp.array([[0.5, -1.0, 9.0], [9.0, 9.0, 9.0]])

    def lose(**settings):
        return reward_losses(jnp.zeros((2, 3, 2)), score, feedback, ("click", "gift"), jnp.array([0.25, 0.001]),
                             jnp.array([3.0, 1.0]), dataclasses.replace(CONFIG, ensemble_loss=2.0, **settings))

    total, metrics = lose(ensemble_labels=1.0)
    # Heads at probability 1/2: log 2 each. Score with a = log(1 + e^-0.5) for a click of base rate 1/4 (· 4/2), with
    # b = log(1 + e^0.5)/2 for the look at it, c = log(1 + e^-1)/2 for the look at the other; gift: rate held at 0.01.
    a, b, c = np.log1p(np.exp(-0.5)), np.log1p(np.exp(0.5)) / 2, np.log1p(np.exp(-1)) / 2
    click, gift = (2 * a + b + c) / 2, 50 * a + b
    np.testing.assert_allclose([metrics["loss_click"], metrics["loss_gift"]], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_ensemble"], (3 * click + gift) / 4, rtol=1e-5)
    np.testing.assert_allclose(total, 2 * np.log(2) + 2 * (3 * click + gift) / 4, rtol=1e-5)
    np.testing.assert_allclose([metrics["rate_click"], metrics["rate_gift"]], [0.5, 1.0])
    # Half of the targets from the heads: clicks 3/4 and 1/4 instead of 1 and 0, a gift of 3/4.
    _, metrics = lose(ensemble_labels=0.5)
    click = (1.5 * a + b + 0.5 * np.log1p(np.exp(1)) + c) / 2
    np.testing.assert_allclose(metrics["loss_ensemble"], (3 * click + 37.5 * a + b) / 4, rtol=1e-5)
    # A click is worth 2 and a gift 10: voices 2 · 0.25 to 10 · 0.01, times the weights 3 and 1.
    _, metrics = lose(ensemble_labels=1.0, objective_values=(2.0, 0, 0, 0, 0, 0, 0, 10.0))
    click = (2 * a + b + c) / 2
    np.testing.assert_allclose(metrics["loss_ensemble"], (1.5 * click + 0.1 * gift) / 1.6, rtol=1e-5)
    # Of those who pass a room by half read on: the click takes all of the attention, the other half; mean 1 − 3/8.
    _, metrics = lose(ensemble_labels=1.0, read_on=0.5)
    click, gift = (2 * a + b / 0.625 + 0.5 * c / 0.625) / 2, 50 * a + b / 0.625
    np.testing.assert_allclose(metrics["loss_ensemble"], (3 * click + gift) / 4, rtol=1e-5)


def test_the_score_is_worth_over_attention():
    """Its odds at the minimum of the loss are Σ value · probability over what the look takes, both over their means."""
    probability, rate, values = np.array([0.4, 0.02]), np.array([0.2, 0.05]), (1.0, 0, 0, 0, 0, 0, 0, 6.0)
    logits = jnp.asarray(np.log(probability / (1 - probability)))[None, None]
    known = np.ones((1, 1, 2), bool)
    feedback = Feedback(request=None, rooms=jax.tree.map(lambda x: jnp.asarray(x[:1, :1]), LIVE).replace(
        mask=jnp.ones((1, 1), bool)), outcomes=jnp.zeros((1, 1, 2)), known=jnp.asarray(known), reward=None,
        rewarded=None, propensity=None, weight=jnp.ones(1))
    settings = dataclasses.replace(CONFIG, ensemble_labels=0.0, objective_values=values, read_on=0.8)

    def ensemble(score):
        return reward_losses(logits, score.reshape(1, 1), feedback, ("click", "gift"), jnp.asarray(rate), jnp.ones(2),
                             settings)[1]["loss_ensemble"]

    odds = ((0.4 + 6 * 0.02) / (0.2 + 6 * 0.05)) / ((1 - 0.8 * 0.6) / (1 - 0.8 * 0.8))
    np.testing.assert_allclose(jax.grad(ensemble)(jnp.log(odds)), 0.0, atol=1e-6)
    assert jax.grad(ensemble)(jnp.log(odds) + 0.1) > 1e-3


@pytest.mark.parametrize("objectives", [(), ("gift", "click"), ("click", "click"), ("applause",)])
def test_objectives_must_be_some_of_the_known_ones(objectives):
    model = dataclasses.replace(MODEL, objectives=objectives, parent=None)
    with pytest.raises(ValueError, match="must be some of " + ", ".join(OBJECTIVES)):
        jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH_OF_4.request, LIVE))
