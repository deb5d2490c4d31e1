"""Policy losses against values and gradients worked out by hand, dead groups, and the first step.

Axes: B groups, G candidates, P tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.alignment import policy_losses
from onelive_jax.alignment.policy_losses import LOSSES, Candidates, policy_loss
from onelive_jax.config import AlignmentConfig

ONE_GROUP = dict(reward_BxG=jnp.array([[3.0, 1.0]]), mask_BxG=jnp.ones((1, 2), bool))  # advantages +1 and -1


def value_and_gradient(loss, policy, old, reference=None, **settings):
    """Loss and its gradient by log-probability; arguments are probabilities [B, G, P]."""
    log_prob, old = jnp.log(jnp.asarray(policy)), jnp.log(jnp.asarray(old))
    reference = old if reference is None else jnp.log(jnp.asarray(reference))
    groups = {name: settings.pop(name) for name in Candidates._fields if name in settings}
    candidates = Candidates(old, reference, **{**ONE_GROUP, **groups})

    def total(x):
        return policy_loss(x, candidates, AlignmentConfig(loss=loss, **{"kl": 0.0, **settings}))

    (value, metrics), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(log_prob)
    return value, gradient, metrics


def test_advantages_by_hand():
    reward = jnp.array([[1.0, 2.0, 3.0, 9.0], [5.0, 5.0, 5.0, 5.0], [4.0, 8.0, 8.0, 8.0], [1.0, 2.0, 3.0, 4.0]])
    mask = jnp.array([[True, True, True, False], [True] * 4, [True, False, False, False], [False] * 4])
    advantage, dead = policy_losses.group_advantages(reward, mask)
    # Of 1, 2, 3: mean 2, variance 2/3. The fourth candidate does not count.
    np.testing.assert_allclose(advantage[0], [-np.sqrt(1.5), 0, np.sqrt(1.5), 0], rtol=1e-5)
    np.testing.assert_array_equal(advantage[1:], 0)
    np.testing.assert_array_equal(dead, [False, True, True, True])


def test_rounding_errors_of_equal_rewards_are_no_spread():
    reward = jnp.array([[0.1 + 0.2, 0.3, 0.3]], jnp.float32)
    advantage, dead = policy_losses.group_advantages(reward, jnp.ones((1, 3), bool))
    assert dead[0]
    assert not advantage.any()


def test_spread_is_relative_to_the_rewards():
    # 1000.1 is no float32: the mean of seven of them differs from them by rounding, and tells nothing apart.
    reward = jnp.stack([jnp.full(7, 1000.1), jnp.full(7, -1000.1), jnp.arange(7) * 1e-9])
    advantage, dead = policy_losses.group_advantages(reward, jnp.ones((3, 7), bool))
    assert dead.tolist() == [True, True, False]
    np.testing.assert_allclose(advantage[2], (np.arange(7) - 3) / 2, rtol=1e-5)  # the variance of 0 … 6 is 4


@pytest.mark.parametrize("loss", ["grpo", "ecpo", "gbpo"])
def test_a_policy_93_nats_above_its_proposer_gives_finite_numbers(loss):
    """One group in which the first candidate is far and bad, and a dead one in which all are far."""
    log_prob = jnp.array([[[93.0], [0.0]], [[93.0], [93.0]]]) - 93.0
    candidates = Candidates(jnp.full((2, 2, 1), -93.0), log_prob, jnp.array([[1.0, 3.0], [2.0, 2.0]]),
                            jnp.ones((2, 2), bool))
    config = AlignmentConfig(loss=loss, kl=0.0)
    (value, metrics), gradient = jax.value_and_grad(policy_loss, has_aux=True)(log_prob, candidates, config)
    # e^20 (1 + 93 - 20) in place of e^93, with slope e^20; the good one has ratio 1, and the group weighs a half.
    np.testing.assert_allclose(metrics["ratio_max"], 74 * np.exp(20), rtol=1e-5)
    # GBPO holds the proposer at 1 - π, which is 1e-30 at least: 69 nats.
    bad = {"grpo": 74 * np.exp(20), "ecpo": 1.3, "gbpo": (1 + np.log(1e30) - 20) * np.exp(20)}[loss]
    slope = {"grpo": np.exp(20), "ecpo": 1.3, "gbpo": np.exp(20)}[loss]
    np.testing.assert_allclose([value, gradient[0, 0, 0]], [(bad - 1) / 4, slope / 4], rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0)


def test_grpo_by_hand():
    # Ratios 1.5, 0.5 of the good candidate and 1.1, 0.5 of the bad one, clipped to 0.8 … 1.2:
    #   good: min(1.5, 1.2) = 1.2 (clipped), min(0.5, 0.8) = 0.5;     mean 0.85
    #   bad:  min(-1.1, -1.1) = -1.1,        min(-0.5, -0.8) = -0.8 (clipped); mean -0.95
    #   loss = -(0.85 - 0.95) / 2 = 0.05; the gradient of an unclipped token is -A · ratio / (2 candidates · 2 tokens).
    value, gradient, metrics = value_and_gradient("grpo", [[[0.3, 0.1], [0.22, 0.1]]], np.full((1, 2, 2), 0.2))
    np.testing.assert_allclose(value, 0.05, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[[0, -0.5 / 4], [1.1 / 4, 0]]], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([metrics["ratio_min"], metrics["ratio_max"], metrics["clipped"]], [0.5, 1.5, 0.75],
                               rtol=1e-5)
    np.testing.assert_allclose([metrics["reward_mean"], metrics["reward_spread"]], [2.0, 1.0])


def test_kl_by_hand():
    # k3 with π_ref/π = 2: 2 - log 2 - 1 = 0.306853, gradient 1 - 2 = -1; with 1/2: 1/2 + log 2 - 1 = 0.193147, 1/2.
    kl = policy_losses.k3_penalty(jnp.log(jnp.array([0.2, 0.4])), jnp.log(jnp.array([0.4, 0.2])))
    np.testing.assert_allclose(kl, [0.306853, 0.193147], rtol=1e-5)
    # Where the policy has all but given a token up: finite, and the gradient of exp(20) pulls it back.
    far, slope = jax.value_and_grad(lambda x: policy_losses.k3_penalty(x, jnp.float32(0.0)))(jnp.float32(-500.0))
    np.testing.assert_allclose([far, slope], [481 * np.exp(20), -np.exp(20)], rtol=1e-5)
    # Equal rewards leave the KL alone: 10 · mean over 2 candidates of 1 token; gradients 10 · (-1, 1/2) / 2.
    value, gradient, metrics = value_and_gradient("grpo", [[[0.2], [0.4]]], [[[0.2], [0.4]]], [[[0.4], [0.2]]], kl=10.0,
                                                  reward_BxG=jnp.ones((1, 2)))
    np.testing.assert_allclose([value, metrics["kl"]], [2.5, 0.25], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[[-5.0], [2.5]]], rtol=1e-5)


def test_ecpo_by_hand():
    # ε = 0.2, δ = 0.1. Good candidate, ratio 4: π_old' = π/1.3, ratio 1.3, clipped at 1.2, no gradient.
    # Bad candidate, ratio 4: held at 1.3, min(-1.3, -1.2) = -1.3, gradient 1.3 where GRPO has 4.
    policy, old = [[[0.8], [0.8]]], [[[0.2], [0.2]]]
    value, gradient, metrics = value_and_gradient("ecpo", policy, old, clip=0.2, delta=0.1)
    np.testing.assert_allclose(value, (-1.2 + 1.3) / 2, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[[0], [1.3 / 2]]], rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio_max"], 4.0, rtol=1e-5)  # what is watched is π/π_old itself
    np.testing.assert_allclose(value_and_gradient("grpo", policy, old)[1], [[[0], [4 / 2]]], rtol=1e-5)
    # Below the bound it is GRPO.
    for got, want in zip(value_and_gradient("ecpo", [[[0.1], [0.25]]], old)[:2],
                         value_and_gradient("grpo", [[[0.1], [0.25]]], old)[:2], strict=True):
        np.testing.assert_array_equal(got, want)


def test_gbpo_by_hand():
    # Good candidate (A = 1): π 0.4, π_old 0.2: π_old' 0.4, ratio 1. π 0.2, π_old 0.4: ratio 1/2.
    # Bad candidate (A = -1): π 0.4, π_old 0.2: π_old' = 1 - 0.4, ratio 2/3. π 0.8, π_old 0.4: 1 - 0.8 < 0.4, ratio 2.
    value, gradient, _ = value_and_gradient("gbpo", [[[0.4, 0.2], [0.4, 0.8]]], [[[0.2, 0.4], [0.2, 0.4]]])
    np.testing.assert_allclose(value, (-1.5 / 2 + (2 / 3 + 2) / 2) / 2, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[[-1 / 4, -0.5 / 4], [2 / 3 / 4, 2 / 4]]], rtol=1e-5)


def test_gbpo_is_bounded_by_binary_cross_entropy_whatever_was_logged():
    policy = np.array([[[1e-6], [0.5], [0.999999]]])
    for advantage, bound in ((1.0, np.ones_like(policy)), (-1.0, policy / (1 - policy))):
        _, gradient, _ = value_and_gradient("gbpo", policy, np.full((1, 3, 1), 1e-9), reward_BxG=jnp.zeros((1, 3)),
                                            mask_BxG=jnp.ones((1, 3), bool), advantage_BxG=jnp.full((1, 3), advantage))
        assert (np.abs(gradient) * 3 <= bound * 1.1).all(), (advantage, gradient)  # (a NaN is not below anything)


def test_dpo_by_hand():
    # h = Σ_p log π/π_ref: best log 2 + log 1 = 0.693147, worst log 1/2 + log 1/2 = -1.386294, β = 1/2:
    # -log σ(1.039721) = 0.302566, slope -β σ(-1.039721) = -0.130602. The candidate in between takes no part.
    value, gradient, _ = value_and_gradient(
        "dpo", [[[0.1, 0.1], [0.4, 0.2], [0.9, 0.9]]], np.full((1, 3, 2), 0.2), beta=0.5, kl=100.0,
        reward_BxG=jnp.array([[-1.0, 4.0, 0.0]]), mask_BxG=jnp.ones((1, 3), bool))
    slope = 0.5 / (1 + np.exp(1.039721))
    np.testing.assert_allclose(value, np.log1p(np.exp(-1.039721)), rtol=1e-5)
    np.testing.assert_allclose(gradient, [[[slope] * 2, [-slope] * 2, [0, 0]]], rtol=1e-4)


def test_reward_weighted_policy_gradient_by_hand():
    # -(mean of log 0.3, log 0.1) · 1 and · (-1) for log 0.2 twice; gradient -A / (2 candidates · 2 tokens).
    value, gradient, _ = value_and_gradient("reinforce", [[[0.3, 0.1], [0.2, 0.2]]], np.full((1, 2, 2), 0.5))
    np.testing.assert_allclose(value, -(np.log(0.03) / 2 - np.log(0.2)) / 2, rtol=1e-5)
    np.testing.assert_allclose(gradient, [[[-0.25] * 2, [0.25] * 2]], rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_dead_groups_have_no_gradient_and_are_counted(loss):
    """Rows: alive, no spread, one candidate, no candidate (which is no group at all)."""
    policy = np.random.default_rng(0).uniform(0.35, 0.45, (4, 3, 2))  # none is clipped
    reward = jnp.array([[1.0, 0.0, 2.0], [0.7, 0.7, 0.7], [3.0, 9.0, 9.0], [1.0, 2.0, 3.0]])
    mask = jnp.array([[True] * 3, [True] * 3, [True, False, False], [False] * 3])
    value, gradient, metrics = value_and_gradient(loss, policy, np.full((4, 3, 2), 0.4), reward_BxG=reward,
                                                  mask_BxG=mask)
    assert np.abs(gradient[0]).sum() > 0
    np.testing.assert_array_equal(gradient[1:], 0)
    np.testing.assert_allclose([metrics["groups"], metrics["dead_groups"]], [3, 2 / 3], rtol=1e-6)
    alone = value_and_gradient(loss, policy[:1], np.full((1, 3, 2), 0.4), reward_BxG=reward[:1], mask_BxG=mask[:1])
    np.testing.assert_allclose(value, alone[0] / 3, rtol=1e-5)  # dead groups dilute the mean, and say so
    # A batch without any candidate is 0 and finite throughout.
    empty = value_and_gradient(loss, policy, policy, reward_BxG=reward, mask_BxG=jnp.zeros((4, 3), bool))
    assert empty[0] == 0
    assert not empty[1].any()
    assert all(np.isfinite(x) for x in empty[2].values())


def test_a_group_with_given_advantages_teaches_where_one_of_them_is_not_0():
    """Shaped feedback: three rooms that were all watched for long are no dead group; three that say nothing are."""
    policy, advantage = np.full((3, 3, 1), 0.4), jnp.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    _, gradient, metrics = value_and_gradient("gbpo", policy, policy, reward_BxG=advantage, advantage_BxG=advantage,
                                              mask_BxG=jnp.ones((3, 3), bool))
    assert metrics["dead_groups"] == pytest.approx(1 / 3)
    assert (np.abs(gradient[:, :, 0]) > 0).tolist() == [[True] * 3, [False] * 3, [False, True, False]]


@pytest.mark.parametrize("loss", LOSSES)
def test_before_the_first_step_losses_pull_the_best_up_and_the_worst_down(loss):
    policy = np.random.default_rng(1).uniform(0.05, 0.95, (2, 4, 3))
    reward = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4)))
    _, gradient, metrics = value_and_gradient(loss, policy, policy, reward_BxG=reward, mask_BxG=jnp.ones((2, 4), bool),
                                              kl=1.0)
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1.0
    assert metrics["kl"] == 0.0
    assert metrics["clipped"] == 0.0
    best, worst = np.asarray(reward).argmax(1), np.asarray(reward).argmin(1)
    assert (gradient[np.arange(2), best] < 0).all()
    assert (gradient[np.arange(2), worst] > 0).all()


def test_masked_candidates_may_hold_anything():
    policy = np.array([[[0.3, 0.1], [0.22, 0.1], [1e-30, 1.0]]])
    settings = dict(reward_BxG=jnp.array([[3.0, 1.0, 1e6]]), mask_BxG=jnp.array([[True, True, False]]))
    value, gradient, metrics = value_and_gradient("grpo", policy, np.full((1, 3, 2), 0.2), **settings)
    np.testing.assert_allclose(value, 0.05, rtol=1e-5)
    np.testing.assert_array_equal(gradient[0, 2], 0)
    np.testing.assert_allclose(metrics["reward_mean"], 2.0)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="config.alignment.loss='ppo' is not one of 'grpo'"):
        policy_loss(jnp.zeros((1, 2, 1)), Candidates(*[jnp.zeros((1, 2, 1))] * 2, **ONE_GROUP),
                    AlignmentConfig(loss="ppo"))
