"""The reward step learns objectives, its state carries base rates and weights, IPPO by hand.

Axes: B batch, C candidates, O objectives.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from onelive_jax.batch import Feedback
from onelive_jax.config import Config, MeshConfig, RewardConfig
from onelive_jax.reward import reward_step
from onelive_jax.reward.model import RewardModel
from onelive_jax.sharding import partitioning
from onelive_jax.training import train_state
from tests.onelive_jax.random_batches import (
    AUTHOR_DIM,
    AUTHORS,
    BATCH,
    CODES,
    LEVELS,
    ROOMS,
    random_batch,
    random_params,
)

BATCH_OF_4 = random_batch()
OBJECTIVES = ("click", "gift")
CONFIG = Config(reward=RewardConfig(dim=16, num_heads=2, mlp_dim=24, tower_dim=6, steps=200, warmup_steps=0,
                                    learning_rate=1e-2))
MODEL = RewardModel(CONFIG.reward, LEVELS, CODES, AUTHORS, AUTHOR_DIM, OBJECTIVES)


def feedback_of() -> Feedback:
    """Even authors are clicked; of the gift, nothing is known."""
    rooms = BATCH_OF_4.live
    outcomes = np.stack([rooms.author % 2 == 0, np.zeros_like(rooms.mask)], -1).astype(np.float32)
    known = np.stack([rooms.mask, np.zeros_like(rooms.mask)], -1)
    blank = np.zeros((BATCH, ROOMS), np.float32)
    return Feedback(request=BATCH_OF_4.request, rooms=rooms, outcomes=outcomes * known, known=known, reward=blank,
                    rewarded=blank > 0, propensity=blank, weight=np.ones(BATCH, np.float32))


def test_it_learns_what_is_known_and_keeps_base_rates():
    tx = reward_step.make_reward_optimizer(CONFIG)
    feedback = feedback_of()
    params = random_params(MODEL, feedback.request, feedback.rooms)
    state = train_state.TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(0))
    state = reward_step.with_objectives(state, len(OBJECTIVES))
    step = jax.jit(reward_step.make_reward_step(MODEL, tx, CONFIG))
    state = reward_step.with_objective_weights(state, np.array([1.5, 0.5]))
    for i in range(60):
        state, metrics = step(state, feedback)
        if i == 0:
            first = metrics
    assert metrics["loss_click"] < min(0.2, first["loss_click"] / 2)
    assert metrics["loss_ensemble"] < first["loss_ensemble"] / 2
    assert metrics["loss_gift"] == 0.0
    assert float(metrics["weight_click"]) == 1.5
    observed = feedback.outcomes[..., 0].sum() / feedback.rooms.mask.sum()
    kept = 0.99**60
    np.testing.assert_allclose(state.base_rate_O, [kept * 0.1 + (1 - kept) * observed, 0.1], rtol=1e-4)
    assert int(state.step) == 60


def test_the_state_is_placed_like_any_other():
    """Base rates are no parameters: they lie on every device, and checkpoints find their shape."""
    mesh = partitioning.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    tx = reward_step.make_reward_optimizer(CONFIG)
    init = lambda key: MODEL.init(key, BATCH_OF_4.request, BATCH_OF_4.live)["params"]  # noqa: E731
    state = train_state.abstract_state(init, tx, mesh, lambda state: reward_step.with_objectives(state, 2))
    assert state.base_rate_O.shape == state.objective_weight_O.shape == (2,)
    assert state.base_rate_O.sharding.is_fully_replicated


def test_ippo_by_hand():
    # Lags 0.1, 0.3 and unknown: mean 0.2, factors e^-1, e^1 and 1 at rate 10; then a mean of 1.
    got = reward_step.ippo_weights(np.ones(3), [0.8, 0.9, None], [0.7, 0.6, 0.5], rate=10.0, limit=8.0)
    want = np.exp([-1, 1, 0])
    np.testing.assert_allclose(got, want / want.mean(), rtol=1e-5)
    # Even lags change nothing; an objective can neither vanish nor take all.
    np.testing.assert_allclose(reward_step.ippo_weights(np.ones(2), [0.8, 0.7], [0.7, 0.6], 10.0, 8.0), 1, rtol=1e-5)
    weight = np.ones(2)
    for _ in range(20):
        weight = reward_step.ippo_weights(weight, [0.9, 0.9], [0.9, 0.5], rate=10.0, limit=4.0)
    np.testing.assert_allclose(weight, [1 / 4, 7 / 4], rtol=1e-6)
    # Five objectives, one far ahead: 2 and four of 3/4, not 2.909 and so on, which a mean of 1 made of a clipped 2.
    weight = reward_step.ippo_weights(np.ones(5), [0.9] * 5, [0.1] + [0.9] * 4, rate=10.0, limit=2.0)
    np.testing.assert_allclose(weight, [2, 3 / 4, 3 / 4, 3 / 4, 3 / 4], rtol=1e-6)


def test_the_author_table_starts_from_the_tokenizer():
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), BATCH_OF_4.request, BATCH_OF_4.live))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), meta.unbox(shapes)["params"])
    state = train_state.TrainState(jnp.int32(0), params, None, jax.random.key(0))
    embedding = np.random.default_rng(0).normal(size=(AUTHORS, AUTHOR_DIM))
    changed = train_state.with_author_table(state, embedding)
    np.testing.assert_allclose(changed.params["author_table"], embedding, rtol=1e-6)
    assert changed.params["author_table"].dtype == jnp.float32
    assert all(changed.params[name] is params[name] for name in params if name != "author_table")
    with pytest.raises(ValueError, match="both must come from one run"):
        train_state.with_author_table(state, embedding[:-1])
