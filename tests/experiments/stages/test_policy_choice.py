"""What is said at the end of an alignment: the step that is handed on and why, A/B tests, the demonstration."""

import re

import numpy as np
import pytest

from experiments.stages import ab_test, demo, policy


def test_steps_after_a_loss_of_hr_are_not_handed_on():
    values = {0: 0.9, 5: 0.9, 10: 0.895, 15: 0.88, 20: 0.9}
    curve = [{"step": step, "hr@128": value, "ndcg@10": 0.5 - step / 100} for step, value in values.items()]
    assert policy.choose_step(curve) == 10
    assert policy.choose_step(curve[:3]) == 10
    assert policy.choose_step([curve[0], curve[3], curve[4]]) == 0
    assert "NDCG@10 falls (0.5000 → 0.4000)" in policy.handed_on({"validation": curve, "chosen_step": 10})


def test_a_step_of_lower_predicted_reward_than_step_0_is_not_handed_on():
    curve = [{"step": step, "hr@128": 0.9, "ndcg@10": 0.5, "predicted_reward": value}
             for step, value in {0: 0.3, 5: 0.4, 10: 0.2}.items()]
    assert policy.choose_step(curve) == 5
    assert "Step 5 is handed on" in policy.handed_on({"validation": curve, "chosen_step": 5})
    assert policy.choose_step([curve[0], curve[2]]) == 0
    assert "Step 0 is handed on" in policy.handed_on({"validation": curve, "chosen_step": 0})


def test_the_predicted_reward_is_that_of_the_best_rooms():
    offsets = np.array([0, 3, 4])
    value = policy.mean_of_best(np.array([1.0, 3.0, 2.0, -np.inf]), np.array([10.0, 1.0, 3.0, 7.0]), offsets, 2)
    assert value == pytest.approx((2.0 + 7.0) / 2)


def test_a_lift_over_nothing_is_not_available():
    lifts = dict.fromkeys(ab_test.ROWS, {"control": 1.0, "treatment": 1.1, "lift": 0.1, "low": 0.05, "high": 0.15})
    lifts["gift"] = {"control": 0.0, "treatment": 0.1} | dict.fromkeys(("lift", "low", "high"), float("nan"))
    lifts["share"] = lifts["click"] | {"low": float("nan"), "high": float("nan")}  # 0 in a resample
    table = ab_test.format_table(lifts)
    assert ab_test.format_table(ab_test.without_nan(lifts)) == table
    assert re.search(r"\nGift +0\.0000 +0\.1000 +n/a +n/a\n", table)
    assert re.search(r"\nShare +1\.0000 +1\.1000 +\+10\.00% +n/a\n", table)
    assert re.search(r"\nLike +1\.0000 +1\.1000 +\+10\.00% +\+5\.00% … \+15\.00% \*\n", table)
    assert ab_test.without_nan(lifts)["gift"] == {"control": 0.0, "treatment": 0.1, "lift": None, "low": None,
                                                  "high": None}


def test_the_demonstration_ends_in_three_sentences():
    groups = {"protocols": {"strict": {"all": {"n": 1000, "hr@10": 0.9, "ndcg@10": 0.7}}},
              "heuristics": {"viewers": {"all": {"ndcg@10": 0.4}}, "own_counts": {"all": {"ndcg@10": 0.6}}},
              "against_heuristics": {"own_counts": {"interval": (0.08, 0.12)}}}
    lifts = {"utility": {"lift": 0.031, "low": 0.02, "high": 0.04},
             "click": {"lift": -0.01, "low": -0.03, "high": 0.01}}
    ranking, alignment, clicks = demo.conclusion(groups, 130.4, lifts)
    assert "of 130 rooms on air" in ranking
    assert "90.0% of 1,000 test views" in ranking
    assert "better than the best heuristic, own_counts (0.700 against 0.600)" in ranking
    assert "worth more to people" in alignment
    assert "+3.1% (+2.0% … +4.0%)" in alignment
    assert "click as much as before: -1.0% (-3.0% … +1.0%)" in clicks
    lifts["utility"] |= {"lift": -0.02, "low": -0.03, "high": -0.01}
    assert "worth less to people" in demo.conclusion(groups, 130.4, lifts)[1]
