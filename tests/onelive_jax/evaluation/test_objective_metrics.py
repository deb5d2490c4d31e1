"""AUC against all pairs, calibration by hand. Axes: R rows."""

import numpy as np
import pytest

from onelive_jax.evaluation import objective_metrics as metrics


def auc_of_pairs(score, label):
    """Every row is a positive of weight y and a negative of weight 1 - y."""
    won = (score[:, None] > score[None]) + 0.5 * (score[:, None] == score[None])
    mass = label[:, None] * (1 - label[None])
    return (won * mass).sum() / mass.sum()


@pytest.mark.parametrize("soft", [False, True])
def test_auc_is_the_share_of_pairs(soft):
    rng = np.random.default_rng(0)
    score = rng.integers(0, 12, 80) / 12  # many ties
    label = rng.random(80) if soft else (rng.random(80) < 0.3).astype(float)
    assert metrics.auc(score, label) == pytest.approx(auc_of_pairs(score, label))
    user = rng.integers(0, 9, 80)
    user[(label == 1) & (rng.random(80) < 0.3)] += 20  # viewers with positives only
    within, users = metrics.user_auc(user, score, label)
    both = [u for u in np.unique(user) if 0 < label[user == u].sum() < (user == u).sum()]
    each = [auc_of_pairs(score[user == u], label[user == u]) for u in both]
    assert users == len(both) > 3
    assert soft or len(both) < len(np.unique(user))
    assert within == pytest.approx(np.average(each, weights=[(user == u).sum() for u in both]))


def test_user_auc_by_hand():
    # Viewer 4 is ranked right (AUC 1, 3 rows), viewer 7 wrong (AUC 0, 2 rows), viewer 9 has no negative.
    within, users = metrics.user_auc([4, 7, 4, 9, 7, 4], [0.9, 0.2, 0.5, 0.1, 0.3, 0.4], [1, 1, 0, 1, 0, 0])
    assert (within, users) == (pytest.approx(3 / 5), 2)


def test_what_is_not_defined_is_none():
    assert metrics.auc(np.array([0.1, 0.2]), np.array([1.0, 1.0])) is None
    assert metrics.auc(np.zeros(0), np.zeros(0)) is None
    assert metrics.user_auc(np.zeros(0, int), np.zeros(0), np.zeros(0)) == (None, 0)
    assert metrics.calibration(np.zeros(0), np.zeros(0)) == {"ece": None, "ratio": None}
    assert metrics.calibration(np.array([0.5]), np.array([0.0])) == {"ece": 0.5, "ratio": None}


def test_calibration_by_hand():
    # Two bins: predictions 0.1, 0.3 with labels 0, 1 (gap 0.3), 0.8, 0.8 with labels 1, 1 (gap 0.2).
    figures = metrics.calibration([0.8, 0.1, 0.3, 0.8], [1, 0, 1, 1], bins=2)
    assert figures == {"ece": pytest.approx(0.25), "ratio": pytest.approx(0.5 / 0.75)}


def test_the_order_of_rows_with_equal_predictions_does_not_count():
    label = np.arange(100) < 50
    for order in (np.arange(100), np.arange(100)[::-1], np.random.default_rng(0).permutation(100)):
        assert metrics.calibration(np.full(100, 0.5), label[order])["ece"] == pytest.approx(0, abs=1e-12)


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="row 1: score 0.5 must be finite and label 3.0 in 0 … 1"):
        metrics.auc([0.1, 0.5], [0, 3])
    with pytest.raises(ValueError, match=r"\[R\] each"):
        metrics.auc([0.1, 0.5], [0])


def test_report():
    known = np.array([[True, False]] * 4)
    label = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    report = metrics.objective_report(("click", "gift"), [1, 1, 2, 2], np.full((4, 2), 0.5), [0.9, 0.1, 0.9, 0.1],
                                      label, known)
    assert report["click"]["auc"] == 0.5
    assert report["click"]["score_auc"] == report["click"]["score_user_auc"] == 1.0
    assert report["click"]["ratio"] == 1.0
    assert report["gift"]["rows"] == 0
    assert report["gift"]["auc"] is None
