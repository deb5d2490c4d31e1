import dataclasses
import math

import numpy as np
import pytest

from data_pipelines.log import own_counts, tasks
from data_pipelines.log.presence import Lifetimes, Presence
from data_pipelines.log.timelines import Timelines
from experiments.baselines import heuristics
from onelive_jax.evaluation import ranking_metrics

HOUR = 3_600_000
DAY = 24 * HOUR
# Training ends after day 5; the request comes at noon of day 10. Authors 0 … 3.
P1, NOW = 5 * DAY, 10 * DAY + 12 * HOUR


def timelines(*users):
    rows = [row for views in users for row in views]
    author, start = (np.array([row[i] for row in rows], np.int64) for i in range(2))
    return Timelines(user_ptr=np.cumsum([0, *map(len, users)]), author=author.astype(np.int32),
                     room=author.astype(np.int32), start_ms=start, stop_ms=start + HOUR)


def strict_targets(log, start_ms, lifetimes=None):
    return tasks.strict_targets(log, Presence.of(log, lifetimes), start_ms)


LOG = timelines(
    # The one who asks: author 0 at noon and at 14:00, author 1 at 11:00 after training ended.
    [(0, 12 * HOUR), (0, DAY + 14 * HOUR), (1, 6 * DAY + 11 * HOUR), (2, NOW)],
    [(0, 0), (1, HOUR), (2, 2 * HOUR), (2, NOW - 1)],
    [(0, 0), (2, HOUR), (0, NOW - 1)],
    [(1, 0), (2, HOUR), (2, 2 * HOUR), (1, NOW - 1), (2, NOW - 1)],
    [(3, NOW - 1)],
)
TASK = strict_targets(LOG, NOW)


def figures_of(task):
    return {name: ranking_metrics.metrics(ranking_metrics.ranks(score_C, task.offsets, task.position), task.repeat)
            for name, score_C in heuristics.scores(LOG, task, P1).items()}


def test_the_tiny_task_is_what_the_figures_below_suppose():
    assert TASK.user.tolist() == [0]
    assert TASK.candidates.tolist() == [0, 1, 2, 3]
    assert TASK.position.tolist() == [2]


def test_viewers_and_popularity_by_hand():
    scores = heuristics.scores(LOG, TASK, P1)
    assert scores["viewers"].tolist() == [1, 1, 2, 1]
    # Views that ended by day 5, several views of one user each counted.
    assert scores["popularity"].tolist() == [4, 2, 4, 0]


def test_own_counts_by_hand():
    count, decayed, same_time = heuristics.own_counts(LOG, TASK)
    assert count.tolist() == [2, 1, 0, 0]
    half_life = 28.0
    expected = [0.5 ** (10 / half_life) + 0.5 ** ((9 - 2 / 24) / half_life), 0.5 ** ((4 + 1 / 24) / half_life), 0, 0]
    np.testing.assert_allclose(decayed, expected, rtol=1e-12)
    # Noon and 11:00 are within 90 minutes of noon, 14:00 is not.
    assert same_time.tolist() == [1, 1, 0, 0]


def test_time_of_day_wraps_at_midnight_and_its_edge_counts():
    log = timelines([(0, 23 * HOUR), (0, 2 * DAY - 90 * 60_000), (0, 3 * DAY - 90 * 60_000 - 1), (0, 10 * DAY)],
                    [(0, 10 * DAY - 1)])
    task = strict_targets(log, 10 * DAY)
    assert heuristics.own_counts(log, task)[2].tolist() == [2]


def test_item_knn_by_hand():
    # Users of training: author 0 {0, 1, 2}, 1 {1, 3}, 2 {1, 2, 3}; without the one who asks 0 {1, 2}. The last views
    # are author 1 (position 0), then 0 (position 1), then 0 (position 2).
    def cosine(common, users_a, users_b):
        return common / (math.sqrt(users_a * users_b) + 5)

    expected = [cosine(1, 2, 2) + cosine(2, 2, 2) * (1 / 2 + 1 / 3),
                cosine(2, 2, 2) + cosine(1, 2, 2) * (1 / 2 + 1 / 3),
                cosine(2, 3, 2) + cosine(2, 3, 2) * (1 / 2 + 1 / 3),
                0]
    np.testing.assert_allclose(heuristics.item_knn(LOG, TASK, P1), expected, rtol=1e-12)
    one = heuristics.item_knn(LOG, TASK, P1, heuristics.Weights(knn_views=1))
    np.testing.assert_allclose(one, [cosine(1, 2, 2), cosine(2, 2, 2), cosine(2, 3, 2), 0], rtol=1e-12)


def test_item_knn_equals_a_plain_count_whatever_the_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, 20 * DAY, (90, 40)))
    log = timelines(*[[(int(rng.integers(30)), int(start)) for start in row] for row in starts])
    task = strict_targets(log, 15 * DAY)
    assert len(task.user) > 100
    training, owner = log.stop_ms <= P1, log.users()
    seen = [set(owner[training & (log.author == author)].tolist()) for author in range(30)]
    expected = np.zeros(len(task.candidates))
    for r, (user, t) in enumerate(zip(task.user, task.time_ms, strict=True)):
        last = log.author[(owner == user) & (log.start_ms < t)][::-1][:16]
        for c in range(task.offsets[r], task.offsets[r + 1]):
            a = seen[task.candidates[c]] - {user}
            for position, viewed in enumerate(last):
                b = seen[viewed] - {user}
                expected[c] += len(a & b) / (math.sqrt(len(a) * len(b)) + 5) / (1 + position)
    np.testing.assert_allclose(heuristics.item_knn(log, task, P1), expected, rtol=1e-12)
    whole = heuristics.scores(log, task, P1)
    monkeypatch.setattr(own_counts, "CHUNK", 100)
    for name, score in heuristics.scores(log, task, P1).items():
        np.testing.assert_array_equal(score, whole[name])


def test_the_rankers_are_sums_of_their_parts():
    weights = heuristics.Weights(same_time_weight=0.5, knn_weight=3.0)
    scores = heuristics.scores(LOG, TASK, P1, weights)
    _, decayed, same_time = heuristics.own_counts(LOG, TASK, weights)
    np.testing.assert_allclose(scores["own_counts_time"], decayed + 0.5 * same_time, atol=heuristics.TIE)
    np.testing.assert_allclose(scores["own_counts_knn"] - scores["own_counts_time"],
                               3 * heuristics.item_knn(LOG, TASK, P1, weights), atol=1e-12)


def test_equal_counts_are_ordered_by_popularity_and_never_the_other_way_round():
    score = heuristics.scores(LOG, TASK, P1)["own_counts"]
    assert score[0] > score[1] > score[2] > score[3]  # 2, 1, then 0 with 4 views in training, then 0 with none
    assert abs(score - [2, 1, 0, 0]).max() < heuristics.TIE


def test_views_after_training_change_own_counts_only():
    later = timelines(*[[(1, 7 * DAY)] * 3 for _ in range(4)])
    longer = Timelines(np.concatenate([LOG.user_ptr, LOG.user_ptr[-1] + later.user_ptr[1:]]),
                       np.concatenate([LOG.author, later.author]), np.concatenate([LOG.room, later.room]),
                       np.concatenate([LOG.start_ms, later.start_ms]), np.concatenate([LOG.stop_ms, later.stop_ms]))
    before, after = heuristics.scores(LOG, TASK, P1), heuristics.scores(longer, TASK, P1)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_the_answer_itself_is_never_read():
    blind = dataclasses.replace(TASK, target=TASK.target * 0, position=TASK.position * 0, repeat=~TASK.repeat)
    for name, score in heuristics.scores(LOG, blind, P1).items():
        np.testing.assert_array_equal(score, heuristics.scores(LOG, TASK, P1)[name])


def test_an_author_nobody_has_watched_can_be_on_air():
    rooms = Lifetimes(np.array([2, 17]), np.zeros(2, np.int64), np.full(2, 20 * DAY), np.array([40, 41]))
    task = strict_targets(LOG, NOW, lifetimes=rooms)
    scores = heuristics.scores(LOG, task, P1)
    assert task.candidates.tolist() == [2, 17]
    assert all(score[1] == 0 for score in scores.values())


def test_evaluate_scores_every_ranker():
    result = figures_of(TASK)
    assert list(result) == ["viewers", "popularity", "own_counts", "own_counts_time", "own_counts_knn",
                            "own_counts_knn_unseen"]
    assert result["viewers"]["all"]["hr@1"] == 1
    # Author 0 has as many views in training as the target: half a hit.
    assert result["popularity"]["all"]["hr@1"] == 0.5
    assert result["own_counts"]["new"]["mrr"] == pytest.approx(1 / 3)
    assert result["own_counts"]["repeat"]["n"] == 0


def test_a_period_without_targets_gives_empty_figures():
    result = figures_of(strict_targets(LOG, 99 * DAY))
    assert {figures["all"]["n"] for figures in result.values()} == {0}


def test_tune_finds_the_weights_that_rank_the_targets_first():
    # Everybody returns to what they saw yesterday, not to what they saw more often long ago.
    asking = [[(0, HOUR), (0, 3 * HOUR), (0, 5 * HOUR), (1, 39 * DAY), (1, 40 * DAY + user)] for user in range(5)]
    log = timelines(*asking, [(0, 40 * DAY - 1), (1, 40 * DAY - 1)])
    task = strict_targets(log, 40 * DAY)
    start = heuristics.Weights(half_life_hours=10_000.0, knn_weight=0.0, same_time_weight=0.0)
    tuned = heuristics.tune(log, task, 30 * DAY, half_life_hours=(10_000, 48), same_time_weight=(0.0,),
                            knn_weight=(0.0,), start=start)
    assert tuned == dataclasses.replace(start, half_life_hours=48.0)

    def ndcg(weights):
        score = heuristics.scores(log, task, 30 * DAY, weights)["own_counts_time"]
        return ranking_metrics.gains(ranking_metrics.ranks(score, task.offsets, task.position))["ndcg@10"].mean()

    assert ndcg(start) < ndcg(tuned) == 1


def test_tune_keeps_the_start_where_nothing_is_better():
    start = heuristics.Weights(half_life_hours=123.0, knn_weight=7.0)
    log = timelines([(0, 0), (0, DAY)], [(0, DAY - 1)])
    assert heuristics.tune(log, strict_targets(log, DAY), DAY // 2, start=start) == start


def test_tune_needs_targets():
    with pytest.raises(ValueError, match="valid_hours"):
        heuristics.tune(LOG, strict_targets(LOG, 99 * DAY), P1)


def test_broadcasts_seen_before_come_last():
    # In this log a room is its author: the one who asks has been in rooms 0 and 1, and enters 2 only now.
    assert heuristics.already_seen(LOG, TASK).tolist() == [True, True, False, False]
    scores = heuristics.scores(LOG, TASK, P1)
    assert scores["own_counts_knn_unseen"][[0, 1]].max() < scores["own_counts_knn_unseen"][[2, 3]].min()
    np.testing.assert_allclose(np.diff(scores["own_counts_knn_unseen"][:2]), np.diff(scores["own_counts_knn"][:2]))
