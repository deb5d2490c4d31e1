import dataclasses

import numpy as np
import polars as pl
import pytest

from data_pipelines.batches.feedback import (
    FeedbackMaker,
    PairMaker,
    Shown,
    objectives_of,
    read_shown,
    satisfaction_scale,
)
from data_pipelines.batches.training import BatchMaker
from data_pipelines.log import draws
from data_pipelines.log.presence import NOBODY, Lifetimes, Presence
from data_pipelines.log.store import timeline_arrays
from data_pipelines.log.timelines import Timelines
from data_pipelines.simulator.simulation import simulate
from data_pipelines.tables import AUTHORS, HOUR_MS, INTERACTIONS, LOGGED, ROOMS, USERS, ReadReport, Tables
from onelive_jax.batch import ROOM_FEATURES
from onelive_jax.config import DataConfig, SimulatorConfig
from onelive_jax.tokenizer.semantic_ids import IdTable

OBJECTIVES = ("click", "watch", "like")


@pytest.fixture(scope="module")
def tables():
    return simulate(SimulatorConfig(users=60, authors=25, days=3, seed=2, segment_seconds=600, play_days=0))


def make_maker(tables):
    views = Timelines.from_arrays(timeline_arrays(tables))
    rooms = Lifetimes(*(tables.rooms[name].to_numpy() for name in ("author_id", "start_ms", "end_ms", "room_id")))
    presence = Presence.of(views, rooms, len(tables.authors))
    ids = IdTable.static(np.random.default_rng(0).integers(4, size=(len(tables.authors), 2)))
    return BatchMaker(views, presence, ids, DataConfig(history_items=4, history_window=8, live_slots=32))


def test_requests_are_slates_and_what_lies_below_a_click_is_unknown(tables):
    shown = read_shown(tables, make_maker(tables).presence, OBJECTIVES, 600)
    log = tables.interactions
    assert shown.counts["requests"] == log.select("user_id", "start_ms").n_unique()
    assert shown.counts["rooms"] == len(log) == shown.author.size
    assert np.diff(shown.ptr).max() == 6
    for r in np.random.default_rng(0).choice(shown.user.size, 40, replace=False):
        rows = slice(shown.ptr[r], shown.ptr[r + 1])
        slate = log.filter((pl.col("user_id") == int(shown.user[r])) & (pl.col("start_ms") == int(shown.time_ms[r])))
        slate = slate.sort("position")
        np.testing.assert_array_equal(shown.room[rows], slate["room_id"])
        click = slate["click"].to_numpy()
        known = np.arange(click.size) <= (click.argmax() if click.any() else click.size)
        np.testing.assert_array_equal(shown.known[rows], known)
        np.testing.assert_allclose(shown.outcomes[rows, 1], slate["watch_ms"] / 60_000, rtol=1e-6)
        np.testing.assert_array_equal(shown.outcomes[rows, 2], slate["like"].to_numpy() > 0)
    assert set(np.unique(shown.reward)) == {-1.0, 0.0, 1.0}
    assert (shown.reward[~shown.click & ~log.sort("user_id", "start_ms", "position")["negative"].to_numpy()] == 0).all()


def test_a_period_holds_only_what_was_over_by_its_end(tables):
    log = tables.interactions
    cut = int(log["start_ms"].median())
    shown = read_shown(tables, make_maker(tables).presence, OBJECTIVES, 600, to_ms=cut, over_by_ms=cut)
    watch = shown.outcomes[:, 1] * 60_000
    assert (np.repeat(shown.time_ms, np.diff(shown.ptr)) + watch <= cut + 1).all()
    early = log.filter(pl.col("start_ms") < cut)
    late = early.filter(pl.col("start_ms") + pl.col("watch_ms") > cut).select("user_id", "start_ms").n_unique()
    assert shown.counts["requests not over by then"] == late > 0
    with pytest.raises(ValueError, match="no request"):
        read_shown(tables, make_maker(tables).presence, OBJECTIVES, 600, from_ms=10**14)


def test_a_batch_describes_rooms_as_the_live_index_does(tables):
    maker = make_maker(tables)
    shown = read_shown(tables, make_maker(tables).presence, OBJECTIVES, 600)
    made = FeedbackMaker(maker, shown, 6)
    row = np.flatnonzero(shown.clicked_row >= 0)[:50]
    feedback = made.batch(row, np.random.default_rng(0))
    assert feedback.rooms.mask.sum() == np.diff(shown.ptr)[row].sum()
    np.testing.assert_array_equal(feedback.outcomes[:, 0, 0], np.ones(50))  # the clicked room comes first
    assert (feedback.outcomes[:, 1:, 0] == 0).all()
    users, times = shown.user[row], shown.time_ms[row]
    live, _ = maker.live_rooms(maker.on_air(users, times), times, 32)
    for i in range(50):
        for c in np.flatnonzero(feedback.rooms.mask[i]):
            at = np.flatnonzero(live.mask[i] & (live.author[i] == feedback.rooms.author[i, c]))[0]
            np.testing.assert_allclose(feedback.rooms.features[i, c], live.features[i, at], rtol=1e-6)
            np.testing.assert_array_equal(feedback.rooms.codes[i, c], live.codes[i, at])
    few = FeedbackMaker(maker, shown, 2).batch(row, np.random.default_rng(0))
    assert (few.outcomes[:, 0, 0] == 1).all()
    assert few.rooms.author.shape == (50, 2)


def test_pairs_are_of_the_same_requests(tables):
    maker = make_maker(tables)
    pairs = PairMaker(FeedbackMaker(maker, read_shown(tables, maker.presence, OBJECTIVES, 600), 6))
    row = pairs.with_target[:20]
    batch, feedback = pairs.batch(row, np.random.default_rng(0))
    np.testing.assert_array_equal(batch.target_author, feedback.rooms.author[:, 0])
    assert (batch.target_slot >= 0).all()
    np.testing.assert_array_equal(batch.live.author[np.arange(20), batch.target_slot], batch.target_author)


def test_a_log_of_views_alone_is_contrasted_with_rooms_on_air(tables):
    """As Twitch: no impressions, no reactions, no propensity."""
    views = tables.interactions.filter(pl.col("click")).drop("position", "propensity")
    alone = tables.__class__(views, tables.rooms, tables.authors, tables.users, tables.report,
                             rooms_are_true_lifetimes=True)
    shown = read_shown(alone, make_maker(alone).presence, objectives_of({"long_view": None}), 600)
    assert shown.objectives == ("click", "long_view", "watch")
    assert shown.counts["requests"] == len(views)
    maker = make_maker(alone)
    row = np.arange(0, len(views), 7)[:40]
    feedback = FeedbackMaker(maker, shown, 5).batch(row, np.random.default_rng(0))
    np.testing.assert_array_equal(feedback.rooms.author[:, 0], shown.author[row])
    np.testing.assert_array_equal(feedback.outcomes[:, :, 0].sum(1), np.ones(40))
    assert not feedback.rewarded[:, 1:].any()
    assert not feedback.propensity.any()
    for i in range(40):
        drawn = feedback.rooms.author[i, 1:][feedback.rooms.mask[i, 1:]]
        on_air = maker.on_air(shown.user[row[i:i + 1]], shown.time_ms[row[i:i + 1]]).author
        assert np.isin(drawn, on_air).all()
        assert drawn.size == min(4, (on_air != shown.author[row[i]]).sum())
        assert len(set(drawn.tolist()) | {int(shown.author[row[i]])}) == len(drawn) + 1


def random_log(seed: int) -> Tables:
    """A log of views alone, by people who enter any room on air as readily as another, for at most 10 minutes."""
    rng = np.random.default_rng(seed)
    authors, rooms_each, people, views = 40, 60, 300, 9000
    life_ms, end_ms = HOUR_MS, rooms_each * 2 * HOUR_MS
    start = np.arange(rooms_each)[:, None] * 2 * HOUR_MS + rng.integers(2 * HOUR_MS, size=authors)  # [room, author]
    time = np.sort(rng.integers(2 * HOUR_MS, end_ms, views))
    on_air = (start[..., None] <= time) & (time < start[..., None] + life_ms)
    room = np.array([rng.choice(np.flatnonzero(each)) for each in on_air.reshape(-1, views).T])
    user = rng.integers(people, size=views)
    nothing = dict.fromkeys(("like", "comment", "follow", "share", "gift_value", "negative"), np.zeros(views, int))
    watch_ms = np.minimum(600_000, start.ravel()[room] + life_ms - time)
    frame = pl.DataFrame({"user_id": user, "room_id": room, "author_id": room % authors, "start_ms": time,
                          "watch_ms": watch_ms, "click": nothing["like"] == 0} | nothing)
    frame = frame.select(*INTERACTIONS).cast(INTERACTIONS).sort("user_id", "start_ms")
    ids = lambda n, schema: pl.DataFrame({name: range(n) for name in schema}).cast(schema)  # noqa: E731
    rooms = pl.DataFrame({"room_id": range(authors * rooms_each), "author_id": list(range(authors)) * rooms_each,
                          "start_ms": start.ravel(), "end_ms": start.ravel() + life_ms, "category": -1,
                          "title_embedding": -1}).cast(ROOMS)
    return Tables(frame, rooms, ids(authors, AUTHORS), ids(people, USERS), ReadReport("test", views, views))


def auc(feedback, feature: int) -> float:
    """How often a feature of the watched room is above that of another candidate."""
    values, mask = feedback.rooms.features[..., feature], feedback.rooms.mask
    ahead = np.sign(values[:, :1] - values[:, 1:]) / 2 + 0.5
    return float(ahead[mask[:, 1:]].mean())


def test_random_clicks_are_not_told_by_what_the_clicker_leaves_behind():
    """Views that nobody else's view confirms are no requests: the age of their rooms would give them away."""
    tables = random_log(0)
    views = Timelines.from_arrays(timeline_arrays(tables))
    presence = Presence.of(views, None, 40)
    shown = read_shown(tables, presence, ("click", "watch"), 600)
    alone = shown.counts["views of a room that nobody else shows"]
    assert shown.user.size + alone == 9000
    assert alone > 300
    assert presence.shows(shown.author, shown.time_ms, shown.user).all()
    maker = BatchMaker(views, presence, IdTable.static(np.zeros((40, 2), int)), DataConfig())
    for candidates in (5, 40):
        feedback = FeedbackMaker(maker, shown, candidates).batch(np.arange(shown.user.size), np.random.default_rng(0))
        for feature in range(len(ROOM_FEATURES)):  # without the rule .42 and .43
            assert auc(feedback, feature) == pytest.approx(0.5, abs=0.025), ROOM_FEATURES[feature]


def test_one_unclicked_row_makes_one_slate():
    """It used to turn every view of the log into a slate without rivals."""
    tables = random_log(1)
    views = Timelines.from_arrays(timeline_arrays(tables))
    presence = Presence.of(views, None, 40)
    maker = BatchMaker(views, presence, IdTable.static(np.zeros((40, 2), int)), DataConfig())
    before = read_shown(tables, presence, ("click", "watch"), 600)
    row = tables.interactions[:1].with_columns(click=pl.lit(False), watch_ms=pl.lit(0, pl.Int64),
                                               start_ms=pl.col("start_ms") + 1)
    more = pl.concat([tables.interactions, row]).sort("user_id", "start_ms")
    after = read_shown(dataclasses.replace(tables, interactions=more), presence, ("click", "watch"), 600)
    assert after.user.size == before.user.size + 1
    assert after.counts["slates"] == after.slate.sum() == 1
    assert after.click[after.ptr[:-1][after.slate]].tolist() == [False]
    all_rows = np.arange(after.user.size)
    feedback = FeedbackMaker(maker, after, 8).batch(all_rows, draws.keys_of(0, all_rows))
    rooms = feedback.rooms.mask.sum(1)
    assert rooms[after.slate].tolist() == [1]
    assert rooms[~after.slate].mean() > 6
    assert feedback.outcomes[..., 0].sum() == before.user.size
    np.testing.assert_array_equal(feedback.rooms.author[:, 0], after.author[after.ptr[:-1]])


def slates(*rows) -> Shown:
    """Of (user, room, position, click) rows at one moment; room r is of author r."""
    user, room, position, click = (list(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows), int)
    frame = pl.DataFrame({"user_id": user, "room_id": room, "author_id": room, "start_ms": zeros + 1000, "click": click,
                          "watch_ms": 60_000 * np.array(click), "position": position, "propensity": zeros}
                         | dict.fromkeys(("like", "comment", "follow", "share", "gift_value", "negative"), zeros))
    frame = frame.select(*INTERACTIONS, *LOGGED).cast(INTERACTIONS | LOGGED)
    tables = dataclasses.replace(random_log(0), interactions=frame)
    start = np.zeros(40, np.int64)
    presence = Presence(start, start + 10**6, np.arange(40), np.arange(40), NOBODY)
    return read_shown(tables, presence, ("click", "watch"), 600)


def test_what_lies_below_the_last_click_is_unknown_and_both_clicks_count():
    shown = slates((0, 5, 0, False), (0, 6, 1, True), (0, 7, 2, False), (0, 8, 3, True), (0, 9, 4, False))
    assert shown.slate.tolist() == [True]
    assert shown.known.tolist() == [True, True, True, True, False]
    assert shown.outcomes[:, 0].tolist() == [0, 1, 0, 1, 0]


def test_a_position_that_is_not_logged_is_no_place_at_the_top():
    shown = slates((0, 5, 0, False), (0, 6, -1, True), (0, 7, 1, True), (0, 8, 2, False),  # where was room 6?
                   (1, 5, 0, True), (1, 6, 1, False))
    assert shown.known.tolist() == [True] * 5 + [False]
    assert shown.counts["slates without all their positions"] == 1
    assert shown.counts["rooms below a click"] == 1


def test_satisfaction_is_known_of_those_who_were_asked_alone(tables):
    log = tables.interactions
    answers = pl.Series([None, 2.0, 5.0, 3.5, None, 9.0], dtype=pl.Float32).gather(np.arange(len(log)) % 6)
    log = log.with_columns(satisfaction=pl.when("click").then(answers))
    asked = dataclasses.replace(tables, interactions=log)
    cut = int(log["start_ms"].median())
    scale = satisfaction_scale(asked, cut)
    assert scale == (2.0, 9.0)
    assert satisfaction_scale(tables, cut) is None
    assert satisfaction_scale(asked, 0) is None
    maker = make_maker(tables)
    plain = read_shown(tables, maker.presence, OBJECTIVES, 600)
    shown = read_shown(asked, maker.presence, (*OBJECTIVES, "satisfaction"), 600, scale=(2.0, 5.0))
    np.testing.assert_array_equal(shown.outcomes[:, :3], plain.outcomes)
    wanted = {2.0: 0.0, 5.0: 1.0, 3.5: 0.5, 9.0: 1.0}  # beyond the scale is at its end
    told = log.sort("user_id", "start_ms", "position", maintain_order=True)["satisfaction"].to_list()
    np.testing.assert_allclose(shown.outcomes[:, 3], [wanted.get(answer, 0.0) for answer in told], rtol=1e-6)
    np.testing.assert_array_equal(shown.answered, [answer is not None for answer in told])
    row = np.arange(shown.user.size)
    one, other = (FeedbackMaker(maker, s, 6).batch(row, draws.keys_of(0, row)) for s in (plain, shown))
    np.testing.assert_array_equal(other.known[..., :3], one.known)
    assert other.known[..., 3].sum() == shown.answered.sum() > 10
    assert not other.known[..., 3][other.outcomes[..., 0] == 0].any()
    assert (other.outcomes[..., 3][~other.known[..., 3]] == 0).all()
