"""Telling authors of one id apart: the pieces by hand, and the whole study on a tiny run."""

import json
import shutil

import numpy as np
import pytest

from data_pipelines.content import author_content
from experiments import collisions, scoring
from onelive_jax import evaluation
from onelive_jax.tokenizer.semantic_ids import IdTable


def test_numbers_within_an_id_and_their_wrap():
    ids = np.array([[1, 2], [0, 0], [1, 2], [1, 2], [0, 0]])
    digit, over = collisions.numbered(ids, codes=2)
    np.testing.assert_array_equal(digit, [0, 0, 1, 0, 1])  # the third author of (1, 2) wraps
    assert over == 1
    table = IdTable.dynamic(ids, [2], [50], [[3, 3]])
    longer, over = collisions.with_digit(table, codes=4)
    assert over == 0
    np.testing.assert_array_equal(longer.codes_at(np.arange(5), 0), [[1, 2, 0], [0, 0, 0], [1, 2, 1], [1, 2, 2],
                                                                     [0, 0, 1]])
    np.testing.assert_array_equal(longer.codes_at(2, 60), [3, 3, 1])  # the number stays


def test_ties_are_broken_and_nothing_else_is_moved():
    scores = np.array([1.0, 1.0, 3.0, -np.inf, 2.0, 2.0, 2.0, 5.0])
    second = np.array([0.1, 0.9, 0.0, 7.0, 0.5, 0.5, 0.2, -1.0])
    broken = collisions.break_ties(scores, second, np.array([0, 4, 8]))
    np.testing.assert_array_equal(broken, [0 + 1, 2, 3, -np.inf, 1, 1, 0, 2])
    rng = np.random.default_rng(0)
    scores, second = rng.integers(0, 5, 200).astype(np.float32), rng.integers(0, 5, 200).astype(np.float32)
    broken = collisions.break_ties(scores, second, np.array([0, 200]))
    for i, j in rng.integers(0, 200, (300, 2)):
        assert np.sign(broken[i] - broken[j]) == np.sign((scores[i] - scores[j]) * 10 + (second[i] - second[j]))


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory):
    """(workdir, figures) of a seed; the whole model and the tokenizer are those of the shared run."""
    workdir = tmp_path_factory.mktemp("collisions")
    shutil.copytree(finished.workdir, workdir / "identity")
    for part in ("data", "examples", "tokenizer"):
        shutil.copytree(finished.workdir / part, workdir / "codes" / part)
    return workdir, collisions.run_seed(finished.config, 0, workdir)


def test_the_four_ways_are_judged_on_the_same_targets(finished, study):
    workdir, figures = study
    assert json.loads((workdir / "result.json").read_text()) == figures
    assert collisions.run_seed(finished.config, 0, workdir) == figures  # from the file
    log, ids = finished.trained.log, finished.trained.tokenizer.ids
    task = scoring.targets(log, finished.config, "test", "strict")
    test = figures["splits"]["test"]
    shared = 0
    for r in range(task.user.size):
        on_air = task.candidates[task.offsets[r]:task.offsets[r + 1]]
        codes = ids.codes_at(on_air, task.time_ms[r])
        shared += (codes == ids.codes_at(task.target[r], task.time_ms[r])).all(axis=1).sum() > 1
    assert 0 < shared == test["targets_sharing_an_id_on_air"] < test["targets"]
    assert list(test["ways"]) == list(collisions.WAYS)
    for way in test["ways"].values():
        assert way["all"]["n"] == test["targets"]
        assert way[collisions.SHARED]["n"] == shared
    whole = finished.trained.report["protocols"]["strict"]["all"]
    assert test["ways"]["identity head"]["all"]["ndcg@10"] == pytest.approx(whole["ndcg@10"], abs=1e-6)
    # The towers order authors of one id and move nothing else: targets with an id of their own keep their rank, so that
    # all that is gained or lost, is among the targets whose id is shared.
    order, tower = test["ways"]["random order"], test["ways"]["tower score"]
    for figure in ("ndcg@10", "hr@1", "hr@10", "mrr"):
        alone = [way["all"][figure] * test["targets"] - way[collisions.SHARED][figure] * shared
                 for way in (order, tower)]
        assert alone[0] == pytest.approx(alone[1], abs=1e-4), figure
    assert tower[collisions.SHARED]["mrr"] != order[collisions.SHARED]["mrr"]
    text = collisions.format_study([figures])
    assert all(way in text for way in collisions.WAYS)
    assert f"{test['targets']} ({shared})" in text


def test_tower_scores_are_those_of_user_and_author_at_the_moment(finished):
    config, made, log = finished.config, finished.trained.tokenizer, finished.trained.log
    task = scoring.targets(log, config, "test", "strict")
    content = author_content(log.tables, log.split.p1_ms)
    scores = collisions.tower_scores(made, config, log, content, task)
    assert scores.shape == task.candidates.shape
    assert np.abs(scores).max() <= 1 + 1e-5  # cosines
    r = task.user.size // 2
    on_air = task.candidates[task.offsets[r]:task.offsets[r + 1]]
    row = content.row_at(on_air, np.full(len(on_air), task.time_ms[r]))
    authors = made.embeddings(config, on_air, content.values(row), row >= 0)
    end = log.views.seen_before(task.user[r:r + 1], task.time_ms[r:r + 1])[0]
    before = np.arange(max(end - config.tokenizer.history_items, log.views.user_ptr[task.user[r]]), end)
    at = content.row_at(log.views.author[before], log.views.start_ms[before])
    user = collisions.towers.user_embeddings(
        made.params, config.tokenizer, made.author_views, log.views.author[before][None],
        np.ones((1, len(before)), bool), content.values(at)[None], (at >= 0)[None], made.attributes_AxS)
    np.testing.assert_allclose(scores[task.offsets[r]:task.offsets[r + 1]], authors @ user[0], atol=1e-5)
    ranks = collisions.ranked(scores, task)
    assert evaluation.gains(ranks)["mrr"].mean() > 0
