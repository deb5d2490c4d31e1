"""No target is ranked by parameters that are younger than an interval; all arms read the same requests."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines.log import tasks
from experiments.stages import stream
from experiments.stages.event_source import LogSource
from experiments.stages.prequential import Judge
from experiments.stages.stream import StreamPlan, learn, make_learner

PLAN = StreamPlan(publish_minutes=60.0, save_minutes=240.0, batch_size=8)
PERIODS = {"frozen": 0, "daily": 24 * 60, "hourly": 60}


class Killed(Exception):
    pass


@pytest.fixture
def quick_step(monkeypatch):
    """A step that counts itself in the parameters, in place of one that takes long to compile."""
    def make(model, tx, config):
        return lambda state, batch: (state.replace(step=state.step + 1, params=jax.tree.map(
            lambda x: x + 1, state.params)), {"loss": batch.weight.sum()})

    monkeypatch.setattr(stream.supervised, "make_train_step", make)


def rank(params, request, rooms, user, time_ms):
    """Rooms with most viewers first, the order of slots among equals; the count of steps turns it round."""
    way = 1 if int(np.floor(params["head_bias"][0, 0])) % 2 else -1
    score = np.where(rooms.mask, way * rooms.features[..., 0] - 1e-3 * np.arange(rooms.mask.shape[1]), -np.inf)
    slot = np.argsort(-score, axis=1, kind="stable")
    return slot, np.take_along_axis(score, slot, 1), np.take_along_axis(rooms.mask, slot, 1)


def judged(finished, folder, die_at=None):
    """(columns, moments at which the arms' parameters were published, by arm) of one pass; killed at a publication."""
    config = dataclasses.replace(finished.config, serving=dataclasses.replace(finished.config.serving, spare_authors=2))
    trained = finished.trained
    log, from_ms = trained.log, trained.log.split.p1_ms
    source = LogSource(log, config, from_ms)
    learner = make_learner(config, log, trained.tokenizer, trained.params, source, from_ms, PLAN, folder)
    examples = learner.batches.examples
    judge = Judge(rank, examples.state, log.num_authors, 1.0, 64, learner.first_state.params, from_ms, PERIODS)
    examples.on_look, examples.on_author = judge.look, judge.new_author
    learner.batches.extras["judge"] = judge.to_arrays, judge.restore
    published = []

    def due(state, now_ms):
        if die_at is not None and len(published) == die_at:
            raise Killed
        judge.due(state.params, now_ms, examples.newcomers)
        published.append(now_ms)

    learn(learner, folder, {}, PLAN, lambda *_: None, due)
    return judge.columns(), published


def test_targets_are_those_of_the_strict_protocol_ranked_by_what_was_published_before(finished, tmp_path, quick_step):
    log = finished.trained.log
    columns, published = judged(finished, tmp_path / "straight")
    task = tasks.strict_targets(log.views, log.presence, log.split.p1_ms + 1)
    asked = sorted(zip(task.user.tolist(), task.time_ms.tolist(), task.target.tolist(), task.repeat.tolist(),
                       strict=True))
    assert sorted(zip(*(columns[name].tolist() for name in ("user", "time_ms", "author", "repeat")),
                      strict=True)) == asked
    assert len(asked) > 100
    assert not columns["unseen"].any()
    hour = 3_600_000
    # Nothing that was learned within the hour before a target ranks it; only what training left may be so young.
    learned = columns["time_ms"] - columns["age_hourly"] > log.split.p1_ms
    assert (columns["age_hourly"][learned] >= hour).all()
    assert learned.mean() > 0.8
    assert (columns["age_hourly"] <= columns["age_daily"]).all()
    np.testing.assert_array_equal(columns["age_frozen"], columns["time_ms"] - log.split.p1_ms)
    since = np.unique(columns["time_ms"] - columns["age_daily"])
    assert set(since.tolist()) <= {log.split.p1_ms, *published}
    same = columns["age_hourly"] == columns["age_frozen"]
    np.testing.assert_array_equal(columns["rank_hourly"][same], columns["rank_frozen"][same])
    assert (columns["rank_hourly"] != columns["rank_frozen"]).any()


def test_a_killed_evaluation_finds_what_one_that_was_left_alone_does(finished, tmp_path, quick_step):
    straight, _ = judged(finished, tmp_path / "straight")
    for publications in (6, 3):
        with pytest.raises(Killed):
            judged(finished, tmp_path / "killed", publications)
    resumed, _ = judged(finished, tmp_path / "killed")
    assert straight.keys() == resumed.keys()
    for name in straight:
        np.testing.assert_array_equal(resumed[name], straight[name], err_msg=name)
