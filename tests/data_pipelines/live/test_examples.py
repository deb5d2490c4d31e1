"""An example is what was known when a view began, and is learned from once, when the view is over."""

import chex
import jax
import numpy as np
import pytest

from data_pipelines.live import events
from data_pipelines.live.codes import LiveCodes
from data_pipelines.live.examples import Examples
from data_pipelines.live.names import AuthorRows
from data_pipelines.live.state import LiveState
from onelive_jax.config import Config

MINUTE, NOW = 60_000, 600_000_000
TRAINED, SPARE = 3, 1


def make_examples(lifetimes=True, limit=30.0):
    config = Config()
    config.data.history_items, config.data.history_window, config.data.live_slots = 4, 8, 4
    config.serving.spare_authors = SPARE
    rows = TRAINED + SPARE
    codes = LiveCodes(np.arange(2 * rows, dtype=np.int32).reshape(rows, 2), np.full(rows, np.iinfo(np.int64).min),
                      lambda author, values, profile: (np.full((len(author), 2), 9, np.int32),
                                              np.ones((len(author), 4), np.float32)),
                      TRAINED)
    return Examples(LiveState(config, AuthorRows(["a0", "a1", "a2"], SPARE), codes, lifetimes), 0, limit)


class Bus:
    def __init__(self, examples):
        self.examples, self.sent = examples, 0

    def __call__(self, kind, minute, received=None, event_id=None, **fields):
        self.sent += 1
        event = events.from_json({"type": kind, "id": event_id or f"e{self.sent}", "at": NOW + round(minute * MINUTE)}
                                 | fields)
        self.examples.take_in(event, NOW + round((minute if received is None else received) * MINUTE))


@pytest.fixture
def examples():
    return make_examples()


@pytest.fixture
def bus(examples):
    bus = Bus(examples)
    for number in range(3):
        bus("room_started", 0, room=f"r{number}", author=f"a{number}")
    return bus


def authors_on_air(example):
    return example.live.author[0][example.live.mask[0]].tolist()


def history(example):
    live = example.request.histories["live"]
    return live.author[0][live.mask[0]].tolist()


def test_a_view_is_learned_from_when_it_is_over_with_what_was_known_as_it_began(examples, bus):
    bus("view_started", 1, user="u", room="r1")
    bus("view_ended", 2, user="u", room="r1")
    bus("view_started", 3, user="u", room="r2")
    bus("view_started", 4, user="w", room="r0")  # after the look: nothing to u's example
    bus("room_ended", 5, room="r0")
    assert len(examples.ready) == 1
    assert examples.waiting == 2
    bus("view_ended", 9, user="u", room="r2")
    example = examples.ready[1]
    assert (example.target_author.tolist(), example.target_codes.tolist()) == ([2], [[4, 5]])
    assert history(example) == [1]
    assert authors_on_air(example) == [0, 1, 2]
    assert example.live.author[0, example.target_slot[0]] == 2
    np.testing.assert_array_equal(example.live.features[0, :3, 0], 0.0)  # nobody else watches: log(max(1, 0))
    assert examples.counts == {"learned from": 2}


def test_what_only_the_viewer_shows_is_not_on_air(examples):
    examples = make_examples(lifetimes=False)
    bus = Bus(examples)
    bus("view_started", 0, user="v", room="r0", author="a0")
    bus("view_started", 1, user="u", room="r1", author="a1")
    bus("view_started", 1, user="w", room="r0", author="a0")
    bus("view_ended", 2, user="u", room="r1")
    bus("view_ended", 2, user="w", room="r0")
    alone, joined = examples.ready
    assert authors_on_air(alone) == [0]
    assert alone.target_slot == -1
    assert sorted(authors_on_air(joined)) == [0, 1]
    assert joined.target_slot == 0
    assert np.expm1(joined.live.features[0, 0, 1]) == pytest.approx(1 / 60, rel=1e-4)  # r0 began a minute ago


def test_a_long_view_is_learned_from_at_the_limit_and_once(examples, bus):
    bus("view_started", 1, user="u", room="r1")
    bus("segment", 20, room="r0", embedding=[1.0])
    assert not examples.ready
    bus("segment", 31, room="r0", embedding=[1.0])
    assert len(examples.ready) == 1
    bus("view_ended", 40, user="u", room="r1")
    bus("view_ended", 41, user="u", room="r1")
    assert len(examples.ready) == 1
    assert examples.counts == {"learned from before its end": 1}


def test_doubled_events_count_once(examples, bus):
    for _ in range(2):
        bus("view_started", 1, event_id="start", user="u", room="r1")
    for minute in (2, 3):
        bus("view_ended", minute, event_id="end", user="u", room="r1")
    assert examples.counts == {"learned from": 1}
    assert examples.state.counts["event delivered again"] == 2


def test_an_end_before_its_start_is_joined_to_it(examples, bus):
    bus("view_ended", 2, user="u", room="r1")
    bus("view_started", 1.5, received=2, user="u", room="r1")
    bus("view_started", 3, user="v", room="r1")
    assert [example.target_author.tolist() for example in examples.ready] == [[1]]
    assert examples.state.counts["end of a view before its start"] == 1


def test_a_start_that_comes_too_late_is_history_and_no_example(examples, bus):
    bus("view_started", 1, received=10, user="u", room="r1")
    bus("view_ended", 11, user="u", room="r1")
    bus("view_started", 12, user="u", room="r2")
    bus("view_ended", 13, user="u", room="r2")
    assert examples.counts == {"began too long before its start arrived": 1, "learned from": 1}
    assert history(examples.ready[0]) == [1]


def test_a_view_of_no_length_is_no_example(examples, bus):
    bus("view_started", 1, user="u", room="r1")
    bus("view_ended", 1, user="u", room="r1")
    bus("view_started", 2, user="u", room="r2")
    bus("segment", 3, room="r0", embedding=[1.0])
    bus("view_ended", 2, user="u", room="r2")
    assert examples.counts == {"left at once": 2}
    assert not examples.ready
    assert not examples.waiting


def test_no_example_names_who_had_a_row_before(examples, bus):
    bus("room_started", 1, room="n1", author="new")
    bus("view_started", 2, user="u", room="n1")
    bus("view_started", 2, user="v", room="r1")
    bus("view_ended", 3, user="u", room="n1")
    bus("room_ended", 4, room="n1")
    assert examples.ready[0].target_author == TRAINED
    assert examples.newcomers == [TRAINED]
    bus("room_started", 5, room="m1", author="newer")  # the only spare row changes hands
    bus("view_ended", 6, user="v", room="r1")
    example, = examples.ready
    assert example.target_author == 1
    assert authors_on_air(example) == [0, 1, 2]
    assert examples.counts == {"learned from": 2, "of an author whose row went to another": 1}
    assert examples.newcomers == [TRAINED, TRAINED]


def test_examples_go_on_from_a_snapshot(examples, bus):
    from data_pipelines.live import snapshots

    def more(bus):
        bus.sent = 100
        bus("view_ended", 5, user="v", room="r2")
        bus("view_started", 6, user="u", room="r0")
        bus("view_ended", 8, user="u", room="r1")
        bus("view_ended", 9, user="u", room="r0")
        return bus.examples

    bus("view_started", 1, user="w", room="r0")
    bus("view_ended", 2, user="w", room="r0")
    bus("view_started", 3, user="u", room="r1")
    bus("view_started", 4, user="v", room="r2")  # not looked at yet
    state, kept = snapshots.to_arrays(examples.state), examples.to_arrays()
    other = make_examples()
    snapshots.restore(other.state, state)
    other.restore(kept)
    straight, resumed = more(bus), more(Bus(other))
    assert straight.counts == resumed.counts == {"learned from": 4}
    chex.assert_trees_all_equal(straight.take(4), resumed.take(4))
    assert jax.tree.leaves(straight.ready) == []
