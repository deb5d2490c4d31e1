"""Telling authors of one id apart: the pieces by hand, and the whole study on a tiny run."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.log.content import author_content
from experiments.common import scoring, tower_scores
from experiments.stages.policy import Judge
from experiments.stages.recommend import recommend
from experiments.stages.run import run
from experiments.stages.supervised import load_supervised
from experiments.studies import collisions
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.evaluation import ranking_metrics
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
    assert json.loads((workdir / "result.json").read_text())["result"] == figures
    assert collisions.run_seed(finished.config, 0, workdir) == figures  # from the file
    other = copy.deepcopy(finished.config)
    other.decoding.beams = 3
    with pytest.raises(ValueError, match=r"made with other settings \(decoding.beams: 16 then, 3 now\)"):
        collisions.run_seed(other, 0, workdir)
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
    assert (workdir / "digit" / "data").readlink() == Path("../codes/data")  # one log, declared


def test_tower_scores_are_those_of_user_and_author_at_the_moment(finished):
    config, made, log = finished.config, finished.trained.tokenizer, finished.trained.log
    task = scoring.targets(log, config, "test", "strict")
    content = author_content(log.tables, log.split.p1_ms)
    r = np.array([0, task.user.size // 2, task.user.size - 1])
    on_air = [task.candidates[task.offsets[i]:task.offsets[i + 1]] for i in r]
    padded = np.zeros((3, max(map(len, on_air))), np.int32)
    for row, authors in zip(padded, on_air, strict=True):
        row[:len(authors)] = authors
    scores = tower_scores.TowerScores(made, config, log).rooms(task.user[r], task.time_ms[r], padded)
    assert scores.shape == padded.shape
    assert np.abs(scores).max() <= 1 + 1e-5  # cosines
    for i, authors, row_scores in zip(r, on_air, scores, strict=True):
        row = content.row_at(authors, np.full(len(authors), task.time_ms[i]))
        author_NxD = made.encoder.towers.authors(authors, content.values(row), row >= 0)
        end = log.views.seen_before(task.user[i:i + 1], task.time_ms[i:i + 1])[0]
        before = np.arange(max(end - config.tokenizer.history_items, log.views.user_ptr[task.user[i]]), end)
        at = content.row_at(log.views.author[before], log.views.start_ms[before])
        user_1xD = made.encoder.towers.users(log.views.author[before][None], np.ones((1, len(before)), bool),
                                             content.values(at)[None], (at >= 0)[None])
        np.testing.assert_allclose(row_scores[:len(authors)], author_NxD @ user_1xD[0], atol=1e-5)


def test_the_commands_break_ties_where_codes_alone_decide(finished, study, make_config):
    """Serving and evaluation give one order, which is that of the codes and, within an id, of the towers."""
    workdir, log, tokenizer = study[0], finished.trained.log, finished.trained.tokenizer
    config = make_config(model__identity=False)
    model, params, _ = load_supervised(config, workdir / "codes", log)
    assert tower_scores.tie_breaker(finished.trained.model, tokenizer, finished.config, log) is None
    assert tower_scores.tie_breaker(model, tokenizer, make_config(
        model__identity=False, decoding__tie_break="fixed"), log) is None
    ties = tower_scores.tie_breaker(model, tokenizer, config, log)
    assert isinstance(tower_scores.tie_breaker(finished.trained.model, tokenizer, make_config(
        decoding__identity_weight=0.0), log), tower_scores.TowerScores)

    maker, rank = log.batch_maker(tokenizer.ids, config), scoring.make_ranker(model, config, tokenizer, log)
    task = scoring.targets(log, config, "test", "strict")
    places, scores = (scoring.score(each, params, maker, task) for each in (rank, dataclasses.replace(rank, ties=None)))
    serve = make_recommender(model, config.decoding, k=64)
    told_apart = 0
    for r in range(0, task.user.size, 20):
        part = slice(task.offsets[r], task.offsets[r + 1])
        user, time, authors = task.user[r:r + 1], task.time_ms[r:r + 1], task.candidates[part]
        tower = ties.rooms(user, time, authors[None])[0]
        order = np.lexsort((-tower, -scores[part]))
        np.testing.assert_array_equal(np.argsort(-places[part]), order)
        told_apart += len(authors) - len(np.unique(scores[part]))
        rooms = recommend(config, log, tokenizer.ids, serve, params, int(user[0]), int(time[0]), ties)
        assert [row["author"] for row in rooms] == [str(a) for a in authors[order]]
    assert told_apart > 0
    # What a training run is selected by, and what judges a policy, is the ranking of the report.
    figures = [ranking_metrics.metrics(ranking_metrics.ranks(each, task.offsets, task.position), task.repeat)["all"]
               for each in (places, scores)]
    assert scoring.validate(rank, params, maker, task)["mrr"] == figures[0]["mrr"] != figures[1]["mrr"]
    judge = Judge(config, log, tokenizer, model, None, None)
    np.testing.assert_array_equal(scoring.score(judge.rank, params, maker, task), places)


def test_a_report_breaks_ties_too(finished, study, make_config):
    """`run`, all of whose stages are done: its report is of the decoding that the study calls "tower score"."""
    workdir, figures = study
    config = make_config(model__identity=False)
    report = run(config, workdir / "codes").report["protocols"]["strict"]
    tower, order = (figures["splits"]["test"]["ways"][way]["all"] for way in ("tower score", "random order"))
    for figure in ("ndcg@10", "hr@1", "mrr"):
        assert report["all"][figure] == pytest.approx(tower[figure], abs=1e-6)
    assert tower["mrr"] != order["mrr"]
