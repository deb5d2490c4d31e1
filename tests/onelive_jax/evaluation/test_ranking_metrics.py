import json
import math

import numpy as np
import pytest

from onelive_jax.evaluation import bootstrap, ranking_metrics

BEST = 1 / math.log2(2)
SECOND = 1 / math.log2(3)
THIRD = 1 / math.log2(4)


def ranks(*scores, target=0):
    """Of requests whose candidates have these scores; the target stands at `target` in each."""
    offsets = np.append(0, np.cumsum([len(each) for each in scores]))
    return ranking_metrics.ranks(np.concatenate(scores), offsets, np.broadcast_to(target, len(scores)))


def test_ranks_counts_better_candidates_of_the_same_request():
    assert ranks([3.0, 1.0, 2.0], [0.5, 0.1], target=[2, 0]).tolist() == [[2, 2], [1, 1]]


def test_ties_span_every_place_and_do_not_depend_on_the_position():
    assert ranks(*[[5.0, 2.0, 2.0, 2.0, 1.0]] * 3, target=[1, 2, 3]).tolist() == [[2, 4]] * 3


def test_a_ranker_that_scores_everything_alike_gets_what_chance_gets():
    places = ranks(np.zeros(20))
    gains = ranking_metrics.gains(places)
    assert gains["hr@1"][0] == pytest.approx(1 / 20)
    assert gains["hr@10"][0] == pytest.approx(10 / 20)
    assert gains["hr@64"][0] == 1
    assert gains["ndcg@10"][0] == pytest.approx(sum(1 / math.log2(1 + k) for k in range(1, 11)) / 20)
    assert gains["mrr"][0] == pytest.approx(sum(1 / k for k in range(1, 21)) / 20)


def test_ties_are_the_mean_over_all_orders():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, size=(1, 6)).astype(float)
    exact = ranking_metrics.gains(ranks(*scores, target=2))
    shuffled = scores + 0.5 * rng.random((20_000, 6))
    drawn = ranking_metrics.gains(ranks(*shuffled, target=2))
    for name, value in exact.items():
        assert value[0] == pytest.approx(drawn[name].mean(), abs=0.01), name


def test_a_target_that_was_not_returned_is_a_miss_at_every_cutoff():
    places = ranks([1.0, -np.inf, -np.inf], target=1)
    assert np.isinf(places).all()
    assert all(value[0] == 0 for value in ranking_metrics.gains(places).values())


def test_nan_scores_raise_with_their_place():
    with pytest.raises(ValueError, match="request 1, candidate 1: the score is NaN"):
        ranking_metrics.ranks(np.array([0.0, 1.0, np.nan]), np.array([0, 1, 3]), np.array([0, 0]))


@pytest.mark.parametrize("position", [-1, 1])
def test_ragged_targets_must_be_candidates(position):
    with pytest.raises(ValueError, match=f"request 0: target_position={position} is outside its 1 candidates"):
        ranking_metrics.ranks(np.zeros(3), np.array([0, 1, 3]), np.array([position, 0]))


def test_ragged_offsets_must_cover_the_scores():
    with pytest.raises(ValueError, match="from 0 to 3"):
        ranking_metrics.ranks(np.zeros(3), np.array([0, 2]), np.array([0]))


def test_metrics_by_hand():
    result = ranking_metrics.metrics(np.array([1, 2, 11, 65]), np.array([True, True, False, False]))
    assert result["all"]["n"] == 4
    assert [result["all"][f"hr@{k}"] for k in (1, 10, 64, 128)] == [0.25, 0.5, 0.75, 1.0]
    assert result["all"]["ndcg@10"] == pytest.approx((BEST + SECOND) / 4)
    assert result["all"]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 11 + 1 / 65) / 4)
    assert result["repeat"]["n"] == result["new"]["n"] == 2
    assert result["repeat"]["ndcg@10"] == pytest.approx((BEST + SECOND) / 2)
    assert result["new"]["ndcg@10"] == 0
    assert result["new"]["hr@64"] == 0.5


def test_metrics_under_a_tie_by_hand():
    # Places 2 and 3 are equally likely.
    figures = ranking_metrics.metrics(np.array([[2, 3]]), np.array([True]))["all"]
    assert figures["ndcg@10"] == pytest.approx((SECOND + THIRD) / 2)
    assert figures["mrr"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    # Places 10 and 11: the second is beyond the cutoff.
    figures = ranking_metrics.metrics(np.array([[10, 11]]), np.array([True]))["all"]
    assert figures["hr@10"] == 0.5
    assert figures["ndcg@10"] == pytest.approx(1 / math.log2(11) / 2)


def test_empty_groups_have_no_figures_and_are_json():
    result = ranking_metrics.metrics(np.array([1]), np.array([True]))
    assert result["new"]["n"] == 0
    assert all(value is None for name, value in result["new"].items() if name != "n")
    nothing = ranking_metrics.metrics(np.zeros((0, 2)), np.zeros(0, bool))
    assert [nothing[group]["n"] for group in ranking_metrics.GROUPS] == [0, 0, 0]
    assert json.loads(json.dumps(nothing)) == nothing


@pytest.mark.parametrize("places", [[0], [1.5], [np.nan], [-1]])
def test_places_start_at_one_and_are_whole(places):
    with pytest.raises(ValueError, match="request 0: ranks"):
        ranking_metrics.metrics(np.array(places), np.array([True]))


def test_repeat_must_be_bool_of_the_same_length():
    with pytest.raises(ValueError, match="repeat must be bool"):
        ranking_metrics.metrics(np.array([1, 2]), np.array([1, 0]))
    with pytest.raises(ValueError, match="repeat must be bool"):
        ranking_metrics.metrics(np.array([1, 2]), np.array([True]))


def test_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(2).integers(0, 2, 2000).astype(float)
    low, high = bootstrap.mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_interval_is_seeded_holds_the_mean_and_narrows():
    rng = np.random.default_rng(3)
    few, many = rng.random(50), rng.random(5000)
    assert bootstrap.mean_interval(few, seed=1) == bootstrap.mean_interval(few, seed=1)
    assert bootstrap.mean_interval(few, seed=1) != bootstrap.mean_interval(few, seed=2)
    (low, high), (lower, upper) = bootstrap.mean_interval(few), bootstrap.mean_interval(many)
    assert low < few.mean() < high
    assert (upper - lower) < (high - low) / 5
    assert bootstrap.mean_interval(np.full(9, 0.25)) == [0.25, 0.25]


def test_lifts_are_paired_and_of_sums():
    rng = np.random.default_rng(4)
    shared = rng.random((400, 1))
    control, treatment = np.hstack([shared, 1 + shared]), np.hstack([1.1 * shared, 1 + shared])
    figures = lambda sums: np.column_stack([sums, sums[:, 0] / sums[:, 1]])  # noqa: E731
    found = bootstrap.lifts(control, treatment, figures)
    np.testing.assert_allclose(found.control[:2], control.sum(0))
    np.testing.assert_allclose(found.control[2], control[:, 0].sum() / control[:, 1].sum())
    # Whoever is drawn, a tenth more is a tenth more.
    for each in (found.lift, found.low, found.high):
        np.testing.assert_allclose(each, [0.1, 0.0, 0.1], atol=1e-12)
    same = bootstrap.lifts(control, control, figures)
    for each in (same.lift, same.low, same.high):
        np.testing.assert_array_equal(each, 0)
    # Unrelated arms: the interval of a difference of two means.
    other = bootstrap.lifts(shared, rng.random((400, 1)))
    assert 0.1 < other.high[0] - other.low[0] < 0.25
    assert np.isnan(bootstrap.lifts(0 * shared, shared).lift[0])


def test_difference_is_paired():
    rng = np.random.default_rng(4)
    baseline = rng.integers(2, 12, 400)
    better = ranking_metrics.difference(baseline - 1, baseline)
    own = ranking_metrics.metrics(baseline, np.ones(400, bool))["all"]["ndcg@10_interval"]
    assert better["n"] == 400
    assert 0 < better["interval"][0] < better["difference"] < better["interval"][1]
    assert better["interval"][1] - better["interval"][0] < own[1] - own[0]
    assert ranking_metrics.difference(baseline, baseline)["interval"] == [0, 0]
    with pytest.raises(ValueError, match="same requests"):
        ranking_metrics.difference(baseline[1:], baseline)


def test_groups_of_objectives_have_figures_of_their_own():
    places, repeat = np.array([1, 20, 2, 30]), np.array([True, False, True, False])
    groups = {"like": np.array([True, True, False, False]), "gift": np.zeros(4, bool)}
    result = ranking_metrics.metrics(places, repeat, groups=groups)
    assert result["like"]["n"] == 2
    assert result["like"]["hr@10"] == 0.5
    assert result["gift"]["n"] == 0


def test_hits_and_reciprocal_places_at_a_cutoff():
    ranks = np.array([[1, 1], [3, 3], [2, 5], [np.inf, np.inf]])
    hits, reciprocal = ranking_metrics.at_cutoff(ranks, 3)
    # Places 2 … 5 are equally likely: two of the four lie within the first three.
    np.testing.assert_allclose(hits, [1, 1, 2 / 4, 0])
    np.testing.assert_allclose(reciprocal, [1, 1 / 3, (1 / 2 + 1 / 3) / 4, 0])
    for k in (1, 10, 64, 128):
        np.testing.assert_allclose(ranking_metrics.at_cutoff(ranks, k)[0], ranking_metrics.gains(ranks)[f"hr@{k}"])
    np.testing.assert_allclose(ranking_metrics.at_cutoff(ranks, 1000)[1], ranking_metrics.gains(ranks)["mrr"])
    with pytest.raises(ValueError, match="cutoff=0"):
        ranking_metrics.at_cutoff(ranks, 0)
