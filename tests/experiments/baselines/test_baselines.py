"""Every baseline learns what a tiny log has to teach, and never reads what it may not."""

import dataclasses

import numpy as np
import pytest

from experiments.baselines import fitting
from onelive_jax.training import metrics
from tests.experiments.baselines.rings import AUTHORS, LOG, SHORT, TEST, VALIDATION, chains, log_of, made


@pytest.mark.parametrize("name", ["sasrec", "sampled", "kuaiformer", "tiger", "onerec"])
def test_a_sequence_model_learns_what_follows_what(name, tmp_path):
    baseline = made(name, tmp_path / name)
    baseline.fit(LOG, VALIDATION)
    places = fitting.judge(baseline.score, TEST)
    # Chance is 1 in 12. (Two codes an author are harder to learn in a few steps than one row of a table.)
    assert (places == 1).all(1).mean() > (0.95 if name in ("sasrec", "sampled", "kuaiformer") else 0.4)


def test_lightgcn_leaves_log_2_and_knows_who_is_like_whom(tmp_path):
    baseline = made("lightgcn", tmp_path / "lightgcn")
    baseline.fit(LOG, VALIDATION)
    losses = [line["train/loss"] for line in metrics.read(tmp_path / "lightgcn") if "train/loss" in line]
    assert losses[0] > 0.66
    assert losses[-1] < 0.5
    # People who begin alike have the same edges, so their vectors rank alike.
    users, authors = baseline.vectors
    assert np.corrcoef(users[0] @ authors.T, users[AUTHORS] @ authors.T)[0, 1] > 0.9


@pytest.mark.parametrize("name", ["sasrec", "kuaiformer", "lightgcn"])
def test_nothing_is_learned_from_behind_the_training_period(name, tmp_path):
    """A log whose validation and test views are others gives the same parameters."""
    views = chains()
    late = views.start_ms >= LOG.split.p1_ms
    other = log_of(dataclasses.replace(views, author=np.where(late, 0, views.author).astype(np.int32)))
    few = dataclasses.replace(SHORT, steps=3, validate_every=3)
    scores = []
    for number, log in enumerate((LOG, other)):
        baseline = made(name, tmp_path / str(number) / name, few)
        baseline.fit(log, VALIDATION)
        baseline.views = LOG.views
        scores.append(baseline.score(TEST[0]))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5, atol=1e-6)
