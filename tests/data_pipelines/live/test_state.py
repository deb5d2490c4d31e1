"""One rule for each thing that a real bus does: doubled, reordered, late, lost, skewed, unknown."""

import json

import chex
import numpy as np
import pytest

from data_pipelines.live import events, snapshots
from data_pipelines.live.codes import LiveCodes
from data_pipelines.live.names import AuthorRows
from data_pipelines.live.pending import Deadlines
from data_pipelines.live.requests import make_requests
from data_pipelines.live.state import LiveState
from data_pipelines.log.content import Pools
from onelive_jax.config import Config

MINUTE = 60_000
NOW = 10_000 * MINUTE
TRAINED, SPARE, LEVELS, WIDTH = 3, 2, 2, 2


def encode(author, values, profile):
    """Codes that say what was read: the rounded x_30s; of a newcomer without content, the profile's fans, or 99."""
    if values is None:
        codes = np.full((len(author), LEVELS), (profile or {}).get("fans", 99), np.int32)
        return codes, np.zeros((len(author), 4), np.float32)
    return np.round(values[:, :LEVELS]).astype(np.int32), np.tile(values[:, 2:], 2).astype(np.float32)


def make_state(lifetimes=True, **serving):
    config = Config()
    config.data.history_items, config.data.history_window = 4, 8
    config.data.sequences = ("live", "gift")
    config.serving.spare_authors = SPARE
    for name, value in serving.items():
        setattr(config.serving, name, value)
    rows = TRAINED + SPARE
    codes = LiveCodes(np.zeros((rows, LEVELS), np.int32), np.full(rows, np.iinfo(np.int64).min), encode, TRAINED,
                      Pools.empty(rows, WIDTH))
    return LiveState(config, AuthorRows(["a0", "a1", "a2"], SPARE), codes, lifetimes)


class Bus:
    """Delivers events with ids of their own; `minute` counts from NOW."""

    def __init__(self, state):
        self.state, self.sent = state, 0

    def __call__(self, kind, minute, received=None, **fields):
        self.sent += 1
        event = events.from_json({"type": kind, "id": f"e{self.sent}", "at": NOW + round(minute * MINUTE)} | fields)
        self.state.apply(event, NOW + round((minute if received is None else received) * MINUTE))
        return event


@pytest.fixture
def state():
    return make_state()


@pytest.fixture
def bus(state):
    return Bus(state)


def watched_authors(state, user, minute):
    history = make_requests(state, [state.users.row(user)], NOW + minute * MINUTE).histories["live"]
    return history.author[history.mask].tolist()


def watched_hours(state, user, minute):
    history = make_requests(state, [state.users.row(user)], NOW + minute * MINUTE).histories["live"]
    return round(float(np.expm1(history.habits[0, -1, 1])), 4)


def test_a_room_begins_is_watched_and_ends(state, bus):
    bus("room_started", 0, room="r", author="a1")
    bus("view_started", 1, user="u", room="r")
    bus("view_started", 2, user="v", room="r")
    assert (state.shown(1).name, state.watching[1], state.since_ms[1]) == ("r", 2, NOW)
    assert state.own_rooms(state.users.row("u")) == [(1, 1, NOW)]
    bus("view_ended", 5, user="u", room="r")
    assert (state.watching[1], state.own_rooms(state.users.row("u"))) == (1, [])
    bus("room_ended", 6, room="r")
    assert state.shown(1) is None
    assert (watched_authors(state, "u", 7), watched_hours(state, "u", 60)) == ([1], round(4 / 60, 4))


def test_an_event_counts_once_however_often_it_is_delivered(state, bus):
    bus("room_started", 0, room="r", author="a1")
    event = bus("view_started", 1, user="u", room="r")
    assert not state.apply(event, NOW + 9 * MINUTE)
    bus("view_started", 1, user="u", room="r")  # the same view under another id
    bus("room_started", 1, room="r", author="a1")
    assert state.watching[1] == 1
    for reason in ("event delivered again", "view delivered again", "room is on air already"):
        assert state.counts[reason] == 1


def test_what_comes_before_its_room_waits_for_it(state, bus):
    bus("view_started", 1, user="u", room="r")
    bus("segment", 1, room="r", embedding=[7.0, 3.0])
    assert state.counts["before its room"] == 2
    bus("room_started", 0, room="r", author="a1")
    assert state.watching[1] == 1
    assert state.codes.at(1, NOW + MINUTE).tolist() == [7, 3]


def test_few_events_wait_and_the_others_are_counted():
    state = make_state(waiting_events=2)
    bus = Bus(state)
    for room in ("x", "y", "z"):
        bus("view_started", 1, user="u", room=room)
    assert (state.counts["of an unknown room"], len(state.waiting)) == (1, 2)
    bus("room_started", 0, room="x", author="a1")
    bus("room_started", 0, room="z", author="a2")
    assert state.watching[:3].tolist() == [0, 0, 1]


def test_an_end_that_comes_before_its_start_ends_it(state, bus):
    bus("room_started", 0, room="r", author="a1")
    bus("view_ended", 5, user="u", room="r")
    bus("view_started", 1, user="u", room="r")
    assert state.watching[1] == 0
    assert watched_hours(state, "u", 60) == round(4 / 60, 4)
    bus("room_ended", 9, room="q")
    bus("room_started", 2, room="q", author="a2")
    assert state.shown(2) is None


def test_a_room_that_ended_takes_no_more(state, bus):
    bus("room_started", 0, room="r", author="a1")
    bus("room_ended", 5, room="r")
    bus("segment", 6, room="r", embedding=[7.0, 3.0])
    bus("room_started", 4, room="r", author="a1")
    bus("room_ended", 7, room="r")
    assert (state.shown(1), state.codes.at(1, NOW + 9 * MINUTE).tolist()) == (None, [0, 0])
    for reason in ("segment of a room that ended", "start of a room that ended", "end of a room that ended"):
        assert state.counts[reason] == 1
    bus("room_started", 8, room="r", author="a1")  # the id again, for a new broadcast
    assert state.shown(1).start_ms == NOW + 8 * MINUTE


def test_a_segment_counts_once_and_a_view_carries_the_codes_of_its_moment(state, bus):
    bus("room_started", 0, room="r", author="a1")
    bus("segment", 1, room="r", embedding=[4.0, 4.0])
    bus("segment", 1, room="r", embedding=[4.0, 4.0])
    bus("segment", 2, room="r", embedding=[2.0, 2.0])
    bus("view_started", 1.5, user="u", room="r")  # late: at its moment the codes were others
    bus("segment", 3, room="r", embedding=[1.0, 2.0, 3.0])
    state.codes.flush()
    assert state.codes.pools.total[1].tolist() == [6, 6]
    assert (state.counts["segment late or delivered again"], state.counts["embedding of another width"]) == (1, 1)
    history = make_requests(state, [0], NOW + 9 * MINUTE).histories["live"]
    assert history.codes[0, -1].tolist() == [4, 4]
    assert state.codes.at(1, NOW + 9 * MINUTE).tolist() == [2, 2]


def test_a_view_without_an_end_is_over_when_its_room_is_or_after_its_longest_time():
    state = make_state(grace_seconds=120.0, view_hours=1.0)
    bus = Bus(state)
    bus("room_started", 0, room="r", author="a1")
    bus("room_started", 0, room="q", author="a2")
    bus("view_started", 1, user="u", room="r")
    bus("view_started", 2, user="v", room="q")
    bus("room_ended", 10, room="r")
    state.advance(NOW + 11 * MINUTE)
    assert state.watching[1] == 1  # its end may still come
    state.advance(NOW + 13 * MINUTE)
    assert (state.watching[1], state.watching[2], state.counts["view without an end"]) == (0, 1, 1)
    assert watched_hours(state, "u", 100) == round(9 / 60, 4)
    state.advance(NOW + 62 * MINUTE)
    assert (state.watching[2], state.counts["view without an end"], watched_hours(state, "v", 100)) == (0, 2, 1.0)


def test_a_room_without_an_end_is_off_air_after_its_longest_life():
    state = make_state(room_hours=1.0)
    Bus(state)("room_started", 0, room="r", author="a1")
    state.advance(NOW + 59 * MINUTE)
    assert state.shown(1) is not None
    state.advance(NOW + 60 * MINUTE)
    assert (state.shown(1), state.counts["room without an end"]) == (None, 1)


def test_clocks_that_are_wrong_are_counted(state, bus):
    bus("room_started", 600, received=0, room="r", author="a1")
    assert (state.counts["clock ahead"], state.shown(1).start_ms) == (1, NOW)
    bus("room_started", -60 * 30, received=0, room="q", author="a2")
    assert (state.counts["too late"], state.shown(2)) == (1, None)


def test_new_authors_have_rows_of_their_own_and_the_longest_silent_one_gives_its_up(state, bus):
    bus("room_started", 0, room="r", author="n0")
    bus("room_started", 1, room="q", author="n1")
    bus("segment", 2, room="r", embedding=[5.0, 6.0])
    bus("view_started", 2, user="u", room="r")
    bus("view_ended", 3, user="u", room="r")
    rows = [state.authors.row(name) for name in ("n0", "n1")]
    assert rows == [3, 4]
    assert state.codes.at(3, NOW + 9 * MINUTE).tolist() == [5, 6]
    assert state.codes.at(4, NOW + 9 * MINUTE).tolist() == [99, 99]  # no content yet
    bus("room_started", 4, room="s", author="n2")
    assert (state.authors.row("n2"), state.counts["new author without a row"]) == (-1, 1)
    bus("room_ended", 5, room="r")
    bus("room_started", 6, room="s", author="n2")
    assert (state.authors.row("n2"), state.authors.row("n0"), state.counts["author row recycled"]) == (3, -1, 1)
    # Nothing of the one before is left: neither codes nor pools nor anybody's history.
    assert state.codes.at(3, NOW + 9 * MINUTE).tolist() == [99, 99]
    assert state.codes.pools.count[3] == 0
    assert watched_authors(state, "u", 9) == []


def test_where_only_views_are_logged_a_room_is_on_air_while_others_watch():
    state = make_state(lifetimes=False)
    bus = Bus(state)
    bus("view_started", 0, user="u", room="r", author="a1")
    u = state.users.row("u")
    assert (state.shown(1).name, state.own_rooms(u)) == ("r", [(1, -1, 0)])
    bus("view_started", 1, user="v", room="q", author="a1")
    assert state.shown(1).name == "q"
    assert state.own_rooms(u) == [(1, 1, NOW + MINUTE)]
    assert state.own_rooms(state.users.row("v")) == [(1, 1, NOW)]
    bus("view_ended", 2, user="v", room="q")
    bus("view_ended", 3, user="u", room="r")
    assert state.shown(1) is None
    bus("view_started", 9, user="u", room="r", author="a1")
    assert state.since_ms[1] == NOW  # first seen on air then


def test_a_gift_enters_its_sequence_when_the_view_is_over(state, bus):
    bus("room_started", 0, room="r", author="a1")
    bus("view_started", 1, user="u", room="r")
    bus("gift", 2, user="u", room="r", value=3.0)
    gifts = lambda minute: make_requests(  # noqa: E731
        state, [0], NOW + minute * MINUTE).histories["gift"].mask.sum()
    assert gifts(3) == 0
    bus("view_ended", 4, user="u", room="r")
    assert (gifts(4), gifts(5)) == (0, 1)


def test_recent_views_that_are_given_stand_for_what_is_known(state, bus):
    bus("room_started", 0, room="r", author="a1")
    bus("view_started", 1, user="u", room="r")
    given = [("a2", NOW - 3 * MINUTE, 60_000), ("nobody", NOW, 5)]
    live = make_requests(state, [0, 0, -1], NOW + 9 * MINUTE, {1: given, 2: given}).histories["live"]
    assert [live.author[row][live.mask[row]].tolist() for row in range(3)] == [[1], [2], [2]]


def random_events(rng, count):
    """A busy evening, delivered out of order, some of it twice."""
    made = []
    for i in range(count):
        room, user = f"r{rng.integers(12)}", f"u{rng.integers(9)}"
        kind = rng.choice(["room_started", "room_ended", "segment", "view_started", "view_ended", "gift"],
                          p=[0.15, 0.05, 0.2, 0.3, 0.25, 0.05])
        value = {"type": str(kind), "id": f"x{i}", "at": int(NOW + i * 1000 + rng.integers(-9000, 9000)), "room": room}
        value |= {"author": f"a{int(room[1:]) % 5}"} if kind == "room_started" else {}
        value |= {"embedding": rng.integers(0, 9, WIDTH).tolist()} if kind == "segment" else {}
        value |= {"user": user} if kind in ("view_started", "view_ended", "gift") else {}
        made += [events.from_json(value)] * int(rng.integers(1, 3))
    return [made[i] for i in np.argsort(np.arange(len(made)) + rng.normal(0, 5, len(made)))]


def test_a_snapshot_goes_on_exactly_as_the_state_did():
    rng = np.random.default_rng(0)
    state, coming = make_state(), random_events(rng, 600)
    for event in coming[:500]:
        state.apply(event, event.at)
    arrays = {name: np.array(values) for name, values in snapshots.to_arrays(state).items()}
    again = make_state()
    snapshots.restore(again, arrays)
    for event in coming[500:]:
        assert state.apply(event, event.at) == again.apply(event, event.at)
    ours, theirs = snapshots.to_arrays(state), snapshots.to_arrays(again)
    meta = [json.loads(each.pop(snapshots.META).tobytes()) for each in (ours, theirs)]
    assert sorted(meta[0].pop("deadlines")) == sorted(meta[1].pop("deadlines"))
    assert meta[0] == meta[1]
    chex.assert_trees_all_equal(ours, theirs)
    assert len(state.counts) > 12


def test_a_snapshot_of_another_model_is_refused():
    state = make_state()
    arrays = snapshots.to_arrays(state)
    with pytest.raises(ValueError, match="true_lifetimes.*delete it"):
        snapshots.restore(make_state(lifetimes=False), arrays)
    state.codes.codes = state.codes.codes[:, :1]
    with pytest.raises(ValueError, match="another model"):
        snapshots.restore(state, arrays)


def test_a_profile_places_a_newcomer_until_content_does(state, bus):
    bus("author_profile", 0, author="new", features={"fans": 7.0})
    bus("author_profile", 0, author="a1", features={"fans": 8.0})
    assert state.counts["profile of a trained author"] == 1
    bus("room_started", 1, room="r", author="new")
    row = state.authors.row("new")
    assert state.codes.codes[row].tolist() == [7, 7]
    bus("author_profile", 2, author="new", features={"fans": 9.0})
    assert state.codes.codes[row].tolist() == [9, 9]
    kept = snapshots.to_arrays(state)
    again = make_state()
    snapshots.restore(again, kept)
    assert again.profiles == {"new": {"fans": 9.0}}
    bus("segment", 3, room="r", embedding=[1.0, 2.0])
    state.codes.flush()
    bus("author_profile", 4, author="new", features={"fans": 6.0})
    assert state.codes.codes[row].tolist() == [1, 2]


def test_what_is_over_leaves_no_deadlines_behind(state, bus):
    state.deadlines = Deadlines(state._is_open, few=8)
    bus("room_started", 0, room="r", author="a1")
    bus("view_started", 0.5, user="stays", room="r")
    for i in range(100):
        bus("view_started", 1 + i, user="u", room="r")
        bus("view_ended", 1.5 + i, user="u", room="r")
    assert len(state.deadlines) <= 9
    state.advance(NOW + 24 * 60 * MINUTE + MINUTE)
    assert state.counts["view without an end"] == 1
    assert state.watching[1] == 0


def test_an_event_that_ends_in_an_error_is_counted_and_the_next_goes_on(state, bus, caplog):
    state.codes.encode = None
    bus("room_started", 0, room="r", author="new")
    assert state.counts["event that could not be taken in"] == 1
    assert "could not be taken in" in caplog.text
    bus("room_started", 0, room="other", author="a1")
    assert state.shown(1).name == "other"
