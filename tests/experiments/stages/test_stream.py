"""Learning from the stream: the examples are those of training, and a killed run ends as one that was left alone."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.live.examples import Look
from experiments.stages import stream
from experiments.stages.event_source import FolderSource, LogSource, open_source
from experiments.stages.stream import StreamPlan, learn, make_learner
from onelive_jax.training.checkpoints import restore_params

PLAN = StreamPlan(publish_minutes=120.0, batch_size=8)


class Killed(Exception):
    """Nothing is saved on the way out."""


class Killing:
    """A source that kills who reads it at the n-th event."""

    def __init__(self, source, events):
        self.source, self.events, self.first = source, events, source.first

    def after(self, position):
        for coming in self.source.after(position):
            self.events -= 1
            if self.events < 0:
                raise Killed
            yield coming


@pytest.fixture
def config(finished):
    return dataclasses.replace(finished.config, serving=dataclasses.replace(finished.config.serving, spare_authors=2))


@pytest.fixture
def quick_step(monkeypatch):
    """A step that adds up what it reads, in place of one that takes long to compile."""
    def make(model, tx, config):
        def step(state, batch):
            total = sum(jnp.sum(jnp.asarray(leaf, jnp.float32)) for leaf in jax.tree.leaves(batch))
            params = jax.tree.map(lambda x: x * 0.999 + 1e-6 * total, state.params)
            return state.replace(step=state.step + 1, params=params), {"loss": total}

        return step

    monkeypatch.setattr(stream.supervised, "make_train_step", make)


def learner_of(config, finished, folder, source, on_look=None):
    trained = finished.trained
    return make_learner(config, trained.log, trained.tokenizer, trained.params, source, trained.log.split.p1_ms, PLAN,
                        folder, on_look)


def learned(config, finished, folder, source):
    """(the last state, the batches, moments of publications) of one life."""
    learner, moments = learner_of(config, finished, folder, source), []
    state = learn(learner, folder, {"plan": "test"}, PLAN, lambda state, now_ms: moments.append(now_ms))
    return state, learner.batches, moments


def test_what_was_known_as_a_view_began_is_what_the_batches_of_the_log_say(config, finished, tmp_path):
    log, looks = finished.trained.log, []
    learner = learner_of(config, finished, tmp_path, LogSource(log, config, log.split.p1_ms), looks.append)
    for _, received_ms, event in learner.batches.source.after(0):
        learner.batches.examples.take_in(event, received_ms)
    learner.batches.examples.look()
    maker = log.batch_maker(finished.trained.tokenizer.ids, config)
    assert sum(look.user.size for look in looks) == (log.views.start_ms > log.split.p1_ms).sum() > 100
    for look in looks:
        times = np.full(look.user.size, look.time_ms)
        on_air = maker.on_air(look.user.astype(np.int32), times)
        np.testing.assert_array_equal(look.on_air.offsets, on_air.offsets)
        for name in ("author", "viewers", "since_ms"):
            np.testing.assert_array_equal(getattr(look.on_air, name), getattr(on_air, name), err_msg=name)
        np.testing.assert_array_equal(look.codes, maker.ids.codes_at(on_air.author, times[on_air.moment]))
        chex.assert_trees_all_close(look.request, maker.request(look.user, times), rtol=1e-6)
    assert isinstance(looks[0], Look)


def test_a_killed_run_ends_as_one_that_was_left_alone(config, finished, tmp_path, quick_step):
    log = finished.trained.log
    source = LogSource(log, config, log.split.p1_ms)
    straight, batches, moments = learned(config, finished, tmp_path / "straight", source)
    assert batches.taken == int(straight.step) > 10
    assert len(moments) > 4
    assert moments[:-1] == sorted(set(moments[:-1]))
    assert not any(moment % 7_200_000 for moment in moments[:-1])
    for events in (30, 2500, 900, 1500):  # of each life; the first has no checkpoint yet
        with pytest.raises(Killed):
            learned(config, finished, tmp_path / "killed", Killing(source, events))
    resumed, again, _ = learned(config, finished, tmp_path / "killed", source)
    chex.assert_trees_all_equal(resumed.params, straight.params)
    chex.assert_trees_all_equal(resumed.opt_state, straight.opt_state)
    assert (again.events, again.taken, again.position) == (batches.events, batches.taken, batches.position)
    assert again.examples.counts == batches.examples.counts
    assert again.state.counts == batches.state.counts
    lines = [[json.loads(line)["train/loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
             for run in ("straight", "killed")]
    assert lines[0] == lines[1]


def test_new_authors_take_reserved_rows_and_are_learned(config, finished, tmp_path, quick_step):
    """Events of a service, as lines of JSON; two of three new streamers find a row."""
    log = finished.trained.log
    now, people = log.split.end_ms, log.tables.users["source_id"].to_list()
    lines = []

    def happens(kind, minute, **fields):
        lines.append({"type": kind, "id": f"n{len(lines)}", "at": now + round(minute * 60_000)} | fields)

    for number in range(3):
        happens("room_started", 1, room=f"new{number}", author=f"nobody{number}")
    for person in range(16):
        happens("view_started", 2 + person / 10, user=people[person], room=f"new{person % 2}")
        happens("view_ended", 6 + person / 10, user=people[person], room=f"new{person % 2}")
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "day.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sorted(
        lines, key=lambda line: line["at"])))
    source, from_ms = open_source(str(tmp_path / "events"), config, log, False)
    assert from_ms == now
    assert isinstance(source, FolderSource)
    trained = finished.trained
    learner = make_learner(config, log, trained.tokenizer, trained.params, source, from_ms, PLAN, tmp_path / "stream")
    before = np.asarray(learner.first_state.params["author_table"])
    state = learn(learner, tmp_path / "stream", {}, PLAN, lambda *_: None)
    batches = learner.batches
    assert batches.state.counts["new author"] == 2
    assert batches.state.counts["new author without a row"] == 1
    assert batches.examples.counts["learned from"] == 16
    assert int(state.step) == 2
    assert sorted(batches.rows.said) == [log.num_authors, log.num_authors + 1]
    assert not before[log.num_authors:].any()
    assert np.abs(np.asarray(state.params["author_table"])[log.num_authors:]).min() > 0
    published = restore_params(tmp_path / "stream")
    np.testing.assert_array_equal(published["author_table"], state.params["author_table"])


def test_lines_that_are_no_events_are_named(config, finished, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"type": "room_ended", "id": "x", "at": 1, "room": "r"}\n{"type": "x"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: event None: type='x' is not one of"):
        list(FolderSource(tmp_path).after(0))
    with pytest.raises(FileNotFoundError, match="is no folder: give"):
        open_source(str(tmp_path / "nothing"), config, finished.trained.log, False)
    with pytest.raises(FileNotFoundError, match="neither events.sqlite nor"):
        FolderSource(tmp_path / "nothing")


def test_events_go_on_behind_a_position(tmp_path):
    rows = [{"received_ms": 10 * n, "event": {"type": "room_ended", "id": f"e{n}", "at": n, "room": "r"}}
            for n in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(position, received, event.id) for position, received, event in FolderSource(tmp_path).after(2)]
    assert found == [(3, 20, "e2"), (4, 30, "e3")]
