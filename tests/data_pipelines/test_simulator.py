import numpy as np
import polars as pl
import pytest

from data_pipelines import simulator
from data_pipelines import tables as tables_lib
from data_pipelines.simulated_world import HOUR_MS, MINUTE_MS, START_MS, STEP_MS, make_world
from onelive_jax.config import SimulatorConfig

SMALL = SimulatorConfig(users=40, authors=30, days=4, seed=3)


@pytest.fixture(scope="module")
def default():
    config = SimulatorConfig()
    return make_world(config), simulator.simulate(config)


def test_the_same_seed_gives_the_same_log_and_another_seed_another():
    first, again = simulator.simulate(SMALL), simulator.simulate(SMALL)
    for name in (*tables_lib.REQUIRED, *tables_lib.OPTIONAL):
        assert getattr(first, name).equals(getattr(again, name)), name
    other = simulator.simulate(SimulatorConfig(users=40, authors=30, days=4, seed=4))
    assert not other.interactions.equals(first.interactions)
    assert not other.rooms.equals(first.rooms)


def test_figures_are_near_their_targets(default):
    figures = simulator.calibration(default[1])
    tolerance = {"repeat_share": 0.05, "watch_mean_min": 4.0, "watch_median_min": 1.5, "comments_per_100_clicks": 0.6,
                 "likes_per_100_clicks": 0.6, "gifts_per_100_clicks": 0.3, "evening_rooms_on_air": 10.0}
    assert figures.keys() == tolerance.keys()
    for name, (target, simulated) in figures.items():
        assert abs(simulated - target) <= tolerance[name], (name, target, simulated)
    assert 30_000 <= len(default[1].interactions) <= 60_000


def test_calibration_counts_what_it_says():
    tables = simulator.simulate(SMALL)
    log = tables.interactions.filter(pl.col("click"))
    repeats = 0
    for user in range(40):
        authors = log.filter(pl.col("user_id") == user)["author_id"].to_list()
        repeats += sum(author in authors[max(0, i - 16):i] for i, author in enumerate(authors))
    figures = simulator.calibration(tables)
    assert figures["repeat_share"][1] == pytest.approx(repeats / len(log))
    moments = [START_MS + (24 * day + hour) * HOUR_MS for day in range(4) for hour in (19, 20, 21, 22)]
    on_air = [len(tables.rooms.filter((pl.col("start_ms") <= t) & (pl.col("end_ms") > t))) for t in moments]
    assert figures["evening_rooms_on_air"][1] == pytest.approx(np.mean(on_air))


def test_people_watch_rooms_while_they_are_on_air_one_at_a_time(default):
    _, tables = default
    log = tables.interactions.join(tables.rooms, on="room_id", suffix="_room", maintain_order="left")
    stop = pl.col("start_ms") + pl.col("watch_ms")
    assert log.select((pl.col("start_ms") >= pl.col("start_ms_room")).all()).item()
    assert log.select((stop <= pl.col("end_ms")).all()).item()
    assert log.select((stop.shift().over("user_id") <= pl.col("start_ms")).fill_null(True).all()).item()
    assert log["watch_ms"].min() > 0
    assert log["start_ms"].min() >= START_MS
    assert log.select(stop.max()).item() <= START_MS + 14 * 24 * HOUR_MS
    assert tables.rooms_are_true_lifetimes


def test_an_author_has_one_room_at_a_time(default):
    rooms = default[1].rooms.sort("author_id", "start_ms")
    gap = pl.col("start_ms") - pl.col("end_ms").shift().over("author_id")
    assert rooms.select(gap.min()).item() >= 5 * MINUTE_MS


def test_segments_end_within_their_room_every_three_minutes(default):
    _, tables = default
    segments = tables.segments.join(tables.rooms, on="room_id", suffix="_room", maintain_order="left")
    age = segments["end_ms"] - segments["start_ms"]
    assert set((age % (6 * STEP_MS)).unique()) == {STEP_MS}
    assert (segments["end_ms"] <= segments["end_ms_room"]).all()
    assert set(segments["room_id"]) == set(tables.rooms["room_id"])
    assert tables.segments.schema["embedding"] == pl.Array(pl.Float32, 32)


def test_segments_show_the_content_of_their_own_window():
    # What a linear probe reads off the embedding must be the content of that window, not of a shifted one.
    world, tables = make_world(SMALL), simulator.simulate(SMALL, segment_steps=1)
    embedding = tables.segments["embedding"].to_numpy()
    assert len(embedding) == len(world.content)

    def unexplained(content):
        weights, *_ = np.linalg.lstsq(embedding, content, rcond=None)
        return np.square(content - embedding @ weights).mean() / np.square(content).mean()

    right = unexplained(world.content)
    assert right < 0.25
    assert right < unexplained(np.roll(world.content, 20, axis=0)) - 0.02


def test_content_stays_near_the_topic_and_moves(default):
    world, _ = default
    room = np.repeat(np.arange(world.room_author.size), np.diff(world.content_ptr))
    own = np.einsum("sz,sz->s", world.content, world.topic[world.room_author[room]])
    assert own.mean() > 0.75
    step = np.einsum("sz,sz->s", world.content[1:], world.content[:-1])[room[1:] == room[:-1]]
    assert step.mean() > 0.98  # half a minute changes little
    assert 0.002 < (step < 0.9).mean() < 0.02  # and sometimes everything


def test_affinity_is_that_of_the_taste_and_the_content_of_the_moment():
    world = make_world(SMALL)
    user, room = np.array([3, 7]), np.array([[0, 5], [2, 1]])
    time = world.room_start_ms[room] + 7 * STEP_MS + 12_345
    got = world.affinity(user, room, time)
    taste = world.taste(user, time[:, 0])
    for i in range(2):
        for j in range(2):
            now = world.content[world.content_ptr[room[i, j]] + 7]
            assert got[i, j] == pytest.approx(float(taste[i] @ now) * 8**0.5, abs=1e-5)
    late = world.affinity(user, room, world.room_end_ms[room] + HOUR_MS)
    last = world.content[world.content_ptr[room + 1] - 1]
    tastes = world.taste(user, (world.room_end_ms[room] + HOUR_MS)[:, 0])
    np.testing.assert_allclose(late, np.einsum("nz,nmz->nm", tastes, last) * 8**0.5, rtol=1e-5)


def test_reactions_follow_true_affinity(default):
    world, tables = default
    log = tables.interactions
    start = log["start_ms"].to_numpy()[:, None]
    affinity = world.affinity(log["user_id"].to_numpy(), log["room_id"].to_numpy()[:, None], start)[:, 0]
    low, high = affinity < np.quantile(affinity, 0.25), affinity > np.quantile(affinity, 0.75)
    watch = log["watch_ms"].to_numpy()
    assert np.median(watch[high]) > 1.2 * np.median(watch[low])
    for name in ("like", "comment", "follow"):
        assert log[name].to_numpy()[high].mean() > 1.3 * log[name].to_numpy()[low].mean(), name
    assert log["negative"].to_numpy()[low].mean() > 2 * log["negative"].to_numpy()[high].mean()


def hit_rates(world, tables, moments=400):
    """Share of views of the last two days whose author is ranked in the first three of those on air, by ranker."""
    log = tables.interactions
    user, author, room, start = (log[name].to_numpy() for name in ("user_id", "author_id", "room_id", "start_ms"))
    cut = world.end_ms - 48 * HOUR_MS
    counts = np.zeros((world.day_taste.shape[0], world.topic.shape[0]))
    np.add.at(counts, (user[start < cut], author[start < cut]), 1)
    hits, new_hits = {}, {}
    for i in np.random.default_rng(0).choice(np.nonzero(start >= cut)[0], moments, replace=False):
        live = np.nonzero((world.room_start_ms <= start[i]) & (world.room_end_ms > start[i]))[0]
        popular = counts.sum(0)[world.room_author[live]]
        own = counts[user[i], world.room_author[live]]
        truth = world.affinity(user[i:i + 1], live[None], np.full((1, live.size), start[i]))[0]
        target = np.nonzero(live == room[i])[0][0]
        for name, score in (("popularity", popular), ("own counts", own + 1e-6 * popular), ("affinity", truth)):
            hit = (score > score[target]).sum() < 3
            hits.setdefault(name, []).append(hit)
            if own[target] == 0:
                new_hits.setdefault(name, []).append(hit)
    return [{name: np.mean(values) for name, values in group.items()} for group in (hits, new_hits)]


def test_habit_and_content_both_beat_popularity(default):
    every, new = hit_rates(*default)
    assert every["own counts"] > every["popularity"] + 0.2
    assert new["affinity"] > new["popularity"] + 0.15


@pytest.mark.parametrize("config, field", [
    (SimulatorConfig(users=1), "config.simulator.users=1"), (SimulatorConfig(authors=0), "config.simulator.authors=0"),
    (SimulatorConfig(days=2), "config.simulator.days=2"), (SimulatorConfig(seed=-1), "config.simulator.seed=-1"),
])
def test_settings_out_of_range_are_named(config, field):
    with pytest.raises(ValueError, match=field):
        simulator.simulate(config)


def test_users_in_several_chunks_are_all_played(monkeypatch):
    monkeypatch.setattr(simulator, "PAIRS_AT_ONCE", 1)  # 16 users at a time
    tables = simulator.simulate(SMALL)
    assert tables.interactions["user_id"].n_unique() > 30
    assert tables.interactions["user_id"].max() > 32


def test_the_command_writes_tables_and_prints_figures(tmp_path, monkeypatch, capsys):
    arguments = ["simulator", f"--out_dir={tmp_path / 'log'}", "--users=40", "--authors=30", "--days=4", "--seed=3"]
    monkeypatch.setattr("sys.argv", arguments)
    simulator.main()
    assert tables_lib.load(tmp_path / "log").interactions.equals(simulator.simulate(SMALL).interactions)
    printed = capsys.readouterr().out
    for name in simulator.TARGETS:
        assert name in printed
    monkeypatch.setattr("sys.argv", arguments[:1] + ["--users=1", f"--out_dir={tmp_path}"])
    with pytest.raises(SystemExit):
        simulator.main()
    assert "config.simulator.users=1 is outside" in capsys.readouterr().err
