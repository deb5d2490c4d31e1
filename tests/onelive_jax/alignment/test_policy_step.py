"""The policy step: who gets a policy term, the first step, what it learns, the reference, logged feedback.

Axes: B batch, G candidates, N rooms on air.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.alignment import policy_step
from onelive_jax.batch import Feedback
from onelive_jax.config import AlignmentConfig, Config, DecodingConfig
from onelive_jax.reward.rewards import make_reward
from onelive_jax.training import supervised
from onelive_jax.training.train_state import TrainState
from tests.onelive_jax.random_batches import AUTHORS, BATCH, random_batch, random_params, small_config, small_model

BATCH_OF_4 = random_batch()
MODEL = small_model()
PARAMS = random_params(MODEL, BATCH_OF_4)
LIKED = np.linspace(-1, 1, AUTHORS).astype(np.float32)


def by_author(reward_params, request, rooms, feedback):
    """A reward that everyone shares: the later the author, the better."""
    return jnp.asarray(LIKED)[rooms.author], rooms.mask


def config_of(**alignment) -> Config:
    config = Config(model=small_config(), decoding=DecodingConfig(identity_weight=1.0))
    settings = {"share": 1.0, "group_size": 3, "steps": 50, "warmup_steps": 0, "learning_rate": 2e-3, "kl": 0.0,
                **alignment}
    return dataclasses.replace(config, alignment=AlignmentConfig(**settings))


def fresh(config: Config) -> tuple[policy_step.PolicyState, object]:
    tx = policy_step.make_policy_optimizer(config)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(1))
    return policy_step.with_reference(state), tx


def compiled(config: Config, reward=by_author, **kwargs):
    state, tx = fresh(config)
    return state, jax.jit(policy_step.make_policy_step(MODEL, tx, config, reward, **kwargs))


@pytest.mark.parametrize("share, rows, want_rows, want_steps", [
    (0.01, 8, 8, 80),    # 0.64 requests a step of 64: 8 at once in 2 steps of 25
    (0.1, 8, 8, 800),    # 6.4 a step: in 4 steps of 5
    (0.5, 8, 32, 1000), (1.0, 8, 64, 1000), (0.0, 8, 0, 0), (0.01, 1, 1, 640),
])
def test_a_share_of_the_requests_gets_a_policy_term(share, rows, want_rows, want_steps):
    config = AlignmentConfig(share=share, rows=rows)
    chosen = [policy_step.is_policy_step(step, config, 64) for step in range(1000)]
    assert policy_step.policy_rows(config, 64) == want_rows
    assert sum(chosen) == want_steps
    assert want_rows * want_steps == pytest.approx(share * 64 * 1000)
    gaps = np.diff(np.flatnonzero(chosen))
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1  # evenly spread


def test_the_first_step_has_ratio_one_and_later_ones_raise_the_reward():
    state, step = compiled(config_of(sampler="beam", supervised=0.0))
    state, metrics = step(state, BATCH_OF_4)
    np.testing.assert_allclose([metrics["ratio_min"], metrics["ratio_max"]], 1, atol=1e-4)
    np.testing.assert_allclose([metrics["kl"], metrics["clipped"]], 0, atol=1e-6)
    assert metrics["policy_requests"] == BATCH
    assert 0 < metrics["diversity"] <= 1
    first = float(metrics["reward_mean"])
    for _ in range(3):
        for _ in range(6):
            state, metrics = step(state, BATCH_OF_4)
        assert metrics["ratio_max"] > 1.01
        assert metrics["kl"] > 0
        np.testing.assert_allclose(metrics["reward_mean"], first, atol=1e-6)  # the reference has not moved
        before = state
        state = policy_step.sync_reference(state)
        jax.tree.map(np.testing.assert_array_equal, state.reference, before.params)
        _, metrics = step(state, BATCH_OF_4)
        assert metrics["ratio_max"] < 1.001
        first = float(metrics["reward_mean"])
    start = compiled(config_of(sampler="beam", supervised=0.0))[0]
    assert first > float(step(start, BATCH_OF_4)[1]["reward_mean"]) + 0.02


def test_drawn_proposals_begin_with_ratio_one_and_raise_the_reward():
    state, step = compiled(config_of(sampler="gumbel", loss="ecpo", supervised=0.0))
    start = state
    state, metrics = step(state, BATCH_OF_4)
    np.testing.assert_allclose([metrics["ratio_min"], metrics["ratio_max"]], 1, atol=1e-4)
    np.testing.assert_allclose(metrics["kl"], 0, atol=1e-6)
    for _ in range(40):
        state, _ = step(policy_step.sync_reference(state), BATCH_OF_4)
    # What the two propose, under one key.
    before = float(step(start.replace(key=state.key, step=state.step), BATCH_OF_4)[1]["reward_mean"])
    assert float(step(policy_step.sync_reference(state), BATCH_OF_4)[1]["reward_mean"]) > before + 0.02


def test_without_policy_term_it_is_the_supervised_step():
    config = config_of()
    state, step = compiled(config, with_policy=False)
    got, metrics = step(state, BATCH_OF_4)
    want = jax.jit(lambda p: supervised.losses(*MODEL.apply({"params": p}, BATCH_OF_4), BATCH_OF_4, config.model)[0])
    np.testing.assert_allclose(metrics["loss"], want(PARAMS), rtol=1e-5)
    assert want(got.params) < metrics["loss"]
    assert "ratio_max" not in metrics


def feedback_of(batch, reward, shown=3):
    """The first `shown` slots of every request were shown."""
    rooms = jax.tree.map(lambda x: x[:, :shown], batch.live)
    blank = np.zeros((BATCH, shown), np.float32)
    return Feedback(request=batch.request, rooms=rooms, outcomes=blank[..., None], known=blank[..., None] > 0,
                    reward=np.broadcast_to(np.float32(reward), blank.shape), rewarded=rooms.mask,
                    propensity=blank + np.float32(0.5), weight=batch.weight)


def test_logged_feedback_is_learned_from_by_its_propensity():
    config = config_of(sampler="logged", reward="feedback", loss="gbpo", supervised=0.0)
    state, step = compiled(config, make_reward("feedback"))
    # Smaller parameters: a policy that is sure of itself hardly learns from what it would not have shown.
    state = state.replace(params=jax.tree.map(lambda x: 0.3 * x, state.params))
    feedback = feedback_of(BATCH_OF_4, [1.0, -1.0, 0.0])
    _, first = step(state, BATCH_OF_4, None, feedback)
    for _ in range(10):
        state, metrics = step(state, BATCH_OF_4, None, feedback)
    assert float(metrics["policy_loss"]) < float(first["policy_loss"]) - 0.05
    assert first["candidates"] == pytest.approx(feedback.rooms.mask.sum() / feedback.rooms.mask.any(1).sum())
    with pytest.raises(ValueError, match="needs logged feedback of the same requests"):
        step(state, BATCH_OF_4)


def test_rows_are_drawn_without_padding():
    batch = BATCH_OF_4.replace(weight=np.array([0, 1, 1, 0], np.float32))
    for seed in range(5):
        part, _ = policy_step._draw_rows(batch, None, 2, jax.random.key(seed))
        assert sorted(np.asarray(part.target_author)) == sorted(batch.target_author[1:3])
    with pytest.raises(ValueError, match="config.alignment.share=0"):
        policy_step._draw_rows(batch, None, 0, jax.random.key(0))
