"""LambdaRank: what its features are, what its trees are learned from, and that they are kept."""

import numpy as np
import pytest

from data_pipelines.log import tasks
from data_pipelines.log.presence import Presence
from data_pipelines.log.split import Split
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import ReadReport, Tables
from experiments.baselines import fitting, lambdarank
from experiments.common.log import Log

HOUR = 3_600_000


@pytest.fixture(scope="module")
def log():
    """Person u watches author u mod 4 again and again, an hour at a time; everybody sees everybody else on air."""
    people, views = 24, 16
    author = np.repeat(np.arange(people) % 4, views).astype(np.int32)
    start = np.tile(np.arange(views) * 2 * HOUR, people) + np.repeat(np.arange(people), views)
    timelines = Timelines(np.arange(people + 1) * views, author, author, start, start + HOUR)
    tables = Tables(None, None, None, np.zeros(0), ReadReport("", 0, 0))
    tables.authors = range(4)
    return Log(tables, timelines, Presence.of(timelines, None, 4), Split(24 * HOUR, 28 * HOUR, 32 * HOUR), None, None)


def test_features_by_hand(log):
    task = tasks.strict_targets(log.views, log.presence, 24 * HOUR + 20, 24 * HOUR + 21)  # person 20, author 0
    assert task.candidates.tolist() == [0, 1, 2, 3]
    made = lambdarank.features(log.views, task, 24 * HOUR)
    assert made.shape == (4, len(lambdarank.FEATURES))
    column = dict(zip(lambdarank.FEATURES, made.T, strict=True))
    assert column["own views"].tolist() == [12, 0, 0, 0]
    assert column["been in this room"].tolist() == [1, 0, 0, 0]
    # Only person 20 and those before have begun to watch; the one who asks is not counted.
    assert column["viewers"].tolist() == [5, 5, 5, 5]
    assert column["rank of own views"].tolist() == [0, 1, 1, 1]
    assert column["rank of viewers"].tolist() == [0, 0, 0, 0]


def test_trees_learn_who_comes_back_and_are_kept(log, tmp_path):
    pytest.importorskip("lightgbm")
    validation = [tasks.strict_targets(log.views, log.presence, log.split.p1_ms, log.split.p2_ms)]
    test = tasks.strict_targets(log.views, log.presence, log.split.p2_ms)
    settings = lambdarank.Settings(trees=20, leaves=4, least=2, learning_rate=0.3)
    made = lambdarank.LambdaRank(settings, tmp_path / "run")
    made.fit(log, validation)
    assert (fitting.judge(made.score, [test]) == 1).all()
    trees = (tmp_path / "run" / "trees.txt").stat().st_mtime_ns
    again = lambdarank.LambdaRank(settings, tmp_path / "run")
    again.fit(log, validation)
    assert (tmp_path / "run" / "trees.txt").stat().st_mtime_ns == trees
    np.testing.assert_array_equal(again.score(test), made.score(test))
    with pytest.raises(ValueError, match="trees: 20 then, 5 now"):
        lambdarank.LambdaRank(lambdarank.Settings(trees=5, leaves=4, least=2, learning_rate=0.3), tmp_path / "run").fit(
            log, validation)
