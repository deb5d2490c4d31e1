
import numpy as np
import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.simulator import formats, sessions, simulation
from data_pipelines.simulator.feed import Feed
from data_pipelines.simulator.reactions import Behaviour
from data_pipelines.simulator.world import DAY_MS, HOUR_MS, MINUTE_MS, START_MS, STEP_MS, make_world, rooms_on_air
from onelive_jax.config import SimulatorConfig

DEFAULT = SimulatorConfig(segment_seconds=180)
SMALL = SimulatorConfig(users=40, authors=30, days=4, seed=3)


@pytest.fixture(scope="module")
def default():
    return make_world(DEFAULT), simulation.simulate(DEFAULT)


@pytest.fixture(scope="module")
def small():
    return simulation.simulate(SMALL)


def test_the_same_seed_gives_the_same_log_and_another_seed_another(small):
    first, again = small, simulation.simulate(SMALL)
    for name in (*tables_lib.REQUIRED, *tables_lib.OPTIONAL):
        assert getattr(first, name).equals(getattr(again, name)), name
    other = simulation.simulate(SimulatorConfig(users=40, authors=30, days=4, seed=4))
    assert not other.interactions.equals(first.interactions)
    assert not other.rooms.equals(first.rooms)


@pytest.mark.parametrize("config", [
    DEFAULT, SimulatorConfig(users=60, authors=40, days=5, seed=2),
    SimulatorConfig(users=300, authors=3000, days=5, segment_seconds=3600)])
def test_figures_are_within_ten_percent_of_their_targets_at_any_size(config, default):
    tables = default[1] if config == DEFAULT else simulation.simulate(config)
    figures = simulation.calibration(tables)
    assert figures.keys() == simulation.TARGETS.keys()
    for name, (target, simulated) in figures.items():
        assert abs(simulated / target - 1) <= 0.1, (name, target, simulated)


def test_the_default_log_is_of_a_useful_size(default):
    assert 25_000 <= default[1].interactions["click"].sum() <= 60_000


def test_calibration_counts_what_it_says(small):
    tables = small
    log = tables.interactions.filter(pl.col("click"))
    repeats = 0
    for user in range(40):
        authors = log.filter(pl.col("user_id") == user)["author_id"].to_list()
        repeats += sum(author in authors[max(0, i - 16):i] for i, author in enumerate(authors))
    figures = simulation.calibration(tables)
    assert figures["repeat_share"][1] == pytest.approx(repeats / len(log))
    assert figures["gifts_per_100_clicks"][1] == pytest.approx(100 * (log["gift_value"] > 0).mean())


def test_people_watch_rooms_while_they_are_on_air_one_at_a_time(default):
    _, tables = default
    log = tables.interactions.join(tables.rooms, on="room_id", suffix="_room", maintain_order="left")
    stop = pl.col("start_ms") + pl.col("watch_ms")
    assert log.select((pl.col("start_ms") >= pl.col("start_ms_room")).all()).item()
    assert log.select((stop <= pl.col("end_ms")).all()).item()
    assert log.select((stop.shift().over("user_id") <= pl.col("start_ms")).fill_null(True).all()).item()
    assert log.filter(pl.col("click"))["watch_ms"].min() > 0
    assert log["start_ms"].min() >= START_MS
    assert log.select(stop.max()).item() <= START_MS + 14 * 24 * HOUR_MS
    assert tables.rooms_are_true_lifetimes


def test_an_author_has_one_room_at_a_time(default):
    rooms = default[1].rooms.sort("author_id", "start_ms")
    gap = pl.col("start_ms") - pl.col("end_ms").shift().over("author_id")
    assert rooms.select(gap.min()).item() >= 5 * MINUTE_MS


def test_segments_end_within_their_room_and_the_log(default, small):
    world, tables = default
    segments = tables.segments.join(tables.rooms, on="room_id", suffix="_room", maintain_order="left")
    age = segments["end_ms"] - segments["start_ms"]
    assert set((age % 180_000).unique()) == {STEP_MS}
    assert age.min() == STEP_MS
    assert (segments["end_ms"] <= segments["end_ms_room"]).all()
    assert segments["end_ms"].max() <= world.end_ms
    assert set(segments["room_id"]) == set(tables.rooms["room_id"])
    assert tables.segments.schema["embedding"] == pl.Array(pl.Float32, 32)
    _, _, coarse = simulation.rooms_until(make_world(SMALL), START_MS + 4 * DAY_MS, segment_seconds=180)
    fine = small.segments.join(coarse, on=["room_id", "end_ms"], how="semi", maintain_order="left")
    np.testing.assert_allclose(fine["embedding"].to_numpy(), coarse["embedding"].to_numpy(), rtol=1e-4, atol=1e-5)
    steps = coarse.select(pl.col("end_ms").diff().over("room_id").drop_nulls().unique()).to_series()
    assert steps.to_list() == [180_000]


def unexplained(embedding, content):
    """What a linear probe cannot read off an embedding."""
    weights, *_ = np.linalg.lstsq(embedding, content, rcond=None)
    return np.square(content - embedding @ weights).mean() / np.square(content).mean()


def test_segments_and_titles_show_the_content_of_their_own_moment(default):
    world, tables = default
    embedding, room, end = (tables.segments[name].to_numpy() for name in ("embedding", "room_id", "end_ms"))
    embedding, room, end = embedding[::40], room[::40], end[::40]
    right = unexplained(embedding, world.content(room, end - STEP_MS))
    assert right < 0.25
    assert right < unexplained(embedding, world.content(room, end - 10 * MINUTE_MS)) - 0.02
    title = tables.titles["embedding"].to_numpy()
    rooms = np.arange(len(title))
    start = unexplained(title, world.content(rooms, world.room_start_ms[rooms]))
    assert title.shape[1] == 128
    assert start < 0.25
    assert start < unexplained(title, world.content(rooms, world.room_start_ms[rooms] + HOUR_MS)) - 0.02
    np.testing.assert_array_equal(tables.rooms["title_embedding"].to_numpy(), rooms)


def test_a_segment_can_be_embedded_alone_and_at_any_moment():
    world = make_world(SMALL)
    room = np.array([3, 9, 20])
    end = world.room_start_ms[room] + 17 * STEP_MS
    together = world.embed(room, end)
    for i in range(3):
        np.testing.assert_allclose(world.embed(room[i:i + 1], end[i:i + 1])[0], together[i], rtol=1e-5, atol=1e-6)


def test_content_stays_near_the_topic_moves_slowly_and_jumps(default):
    world, _ = default
    rng = np.random.default_rng(0)
    room = rng.integers(world.room_author.size, size=200_000)
    life = world.room_end_ms[room] - world.room_start_ms[room]
    time = world.room_start_ms[room] + (rng.random(room.size) * (life - STEP_MS)).astype(np.int64)
    now, later = world.content(room, time), world.content(room, time + STEP_MS)
    assert np.linalg.norm(now, axis=1) == pytest.approx(1, abs=1e-5)
    assert (now * world.topic[world.room_author[room]]).sum(1).mean() > 0.75
    same = (now * later).sum(1)
    assert same.mean() > 0.98  # half a minute changes little
    assert 0.002 < (same < 0.9).mean() < 0.02  # and sometimes everything
    jumped = world.last_jump_ms(room, time) != world.last_jump_ms(room, time + STEP_MS)
    assert jumped.mean() == pytest.approx(1 / 120, rel=0.15)  # about once an hour
    assert same[~jumped].min() > 0.95  # without a jump nothing is sudden


def test_the_last_jump_is_the_moment_at_which_content_changed(default):
    world, _ = default
    room = np.arange(world.room_author.size)
    last = world.last_jump_ms(room, world.room_end_ms - 1)
    room, last = room[last >= 0], last[last >= 0]
    assert 0.5 < room.size / world.room_author.size < 1
    assert ((world.room_start_ms[room] < last) & (last < world.room_end_ms[room])).all()
    assert (world.last_jump_ms(room, last) == last).all()
    assert (world.last_jump_ms(room, last - 1) < last).all()
    across = (world.content(room, last - 1) * world.content(room, last)).sum(1)
    assert np.median(across) < 0.95


def test_the_played_period_has_rooms_of_its_own_which_the_log_does_not_show(default):
    world, tables = default
    assert world.play_end_ms == world.end_ms + 2 * DAY_MS
    assert (world.room_start_ms > world.end_ms).sum() > 100
    assert tables.rooms["start_ms"].max() < world.end_ms
    assert len(tables.rooms) < world.room_author.size


def test_affinity_is_that_of_the_taste_and_the_content_of_the_moment():
    world = make_world(SMALL)
    user, room = np.array([3, 7]), np.array([[0, 5], [2, 1]])
    time = world.room_start_ms[room] + 7 * STEP_MS + 12_345
    got = world.affinity(user, room, time)
    taste = world.taste(user, time[:, 0])
    for i in range(2):
        for j in range(2):
            now = world.content(room[i, j:j + 1], time[i, j:j + 1])[0]
            assert got[i, j] == pytest.approx(float(taste[i] @ now) * 8**0.5, abs=1e-5)
    late, last = (world.content(room, world.room_end_ms[room] + extra) for extra in (HOUR_MS, -1))
    np.testing.assert_array_equal(late, last)


def test_rooms_on_air_are_found_by_moment_and_by_author(default):
    world, _ = default
    times = START_MS + np.array([3, 20, 300]) * HOUR_MS
    offsets, room = rooms_on_air(world, times)
    for i, time in enumerate(times):
        wanted = np.flatnonzero((world.room_start_ms <= time) & (world.room_end_ms > time + STEP_MS))
        np.testing.assert_array_equal(room[offsets[i]:offsets[i + 1]], wanted)
        every = np.arange(-1, 150)
        found = world.room_of(every, np.full(every.size, time))
        assert found[0] == -1
        np.testing.assert_array_equal(np.sort(found[found >= 0]), wanted)
        assert (world.room_author[found[found >= 0]] == every[found >= 0]).all()


def test_propensities_are_the_frequencies_of_the_feed(default):
    world = default[0]
    feed = Feed(world, START_MS, world.end_ms)
    time = START_MS + (24 + 20) * HOUR_MS
    _, live = rooms_on_air(world, np.array([time]))
    author = world.room_author[live]
    assert live.size > 7
    n = 20_000
    known = np.full((n, 3), -1, np.int32)
    known[:, 0], known[:, 1] = author[2], author[5]
    seen, followed = np.zeros((n, 3), np.int8), np.zeros((n, 3), bool)
    seen[:, 0], followed[:, 1] = 4, True
    room, propensity, slot = feed.slates(np.full(n, time), known, seen, followed, 1.0, np.random.default_rng(0))
    assert (np.sort(room, axis=1)[:, 1:] != np.sort(room, axis=1)[:, :-1]).all()
    assert np.isin(room, live).all()
    assert ((slot == 0) == (room == live[2])).all()
    for r in live:  # first place: one propensity for each room, which is its frequency
        first = room[:, 0] == r
        if first.any():
            share = propensity[first, 0]
            assert np.ptp(share) < 1e-6
            assert first.mean() == pytest.approx(share[0], abs=4 * float(share[0] / n) ** 0.5)
    # Second place: the propensities of what could stand there, given the first place, sum to 1.
    given = room[:, 0] == live[2]
    total = sum(propensity[given & (room[:, 1] == r), 1][:1].sum() for r in live)
    assert total == pytest.approx(1, abs=0.01)


def test_slates_are_logged_with_unclicked_rooms(default):
    log = default[1].interactions
    assert log["click"].mean() < 0.3
    assert (log.filter(~pl.col("click"))["watch_ms"] == 0).all()
    slates = log.group_by("user_id", "start_ms").agg(
        pl.col("click").sum(), pl.col("position").n_unique().alias("places"), pl.len(), pl.col("position").max())
    assert slates["click"].max() == 1
    assert (slates["places"] == slates["len"]).all()
    assert (slates["position"] + 1 == slates["len"]).all()
    assert slates["len"].max() == 6
    by_place = log.group_by("position").agg(pl.col("click").mean()).sort("position")["click"]
    assert (by_place.diff().drop_nulls() < 0).all()  # position bias (and what the policy knows)
    disliked = log.filter(pl.col("negative"))
    assert 0.0005 < len(disliked) / len(log) < 0.02
    assert not disliked["click"].any()


def test_reactions_follow_true_affinity(default):
    world, tables = default
    log = tables.interactions
    start = log["start_ms"].to_numpy()[:, None]
    affinity = world.affinity(log["user_id"].to_numpy(), log["room_id"].to_numpy()[:, None], start)[:, 0]
    click = log["click"].to_numpy()
    assert click[affinity > 1].mean() > 3 * click[affinity < 0].mean()
    assert (affinity[log["negative"].to_numpy()] < 0).all()
    low, high = (click & (affinity < np.quantile(affinity[click], 0.25)),
                 click & (affinity > np.quantile(affinity[click], 0.75)))
    watch = log["watch_ms"].to_numpy()
    assert np.median(watch[high]) > 1.2 * np.median(watch[low])
    for name in ("like", "comment", "follow"):
        assert log[name].to_numpy()[high].mean() > 1.3 * log[name].to_numpy()[low].mean(), name


def hit_rates(world, tables, moments=800):
    """Share of views of the last two days whose author is ranked in the first three of those on air, by ranker."""
    log = tables.interactions.filter(pl.col("click"))
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
    (SimulatorConfig(segment_seconds=45), "config.simulator.segment_seconds=45"),
])
def test_settings_out_of_range_are_named(config, field):
    with pytest.raises(ValueError, match=field):
        simulation.simulate(config)


def test_users_in_several_blocks_are_all_played(monkeypatch):
    monkeypatch.setattr(sessions, "USERS_AT_ONCE", 16)
    monkeypatch.setattr(simulation, "solve", lambda *_: Behaviour())
    tables = simulation.simulate(SMALL)
    assert tables.interactions["user_id"].n_unique() > 30
    assert tables.interactions["user_id"].max() > 32


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["simulator", "--users=40", "--authors=30", "--days=4", "--seed=3", *arguments])
    simulation.main()


def test_the_command_writes_tables_and_prints_figures(small, tmp_path, monkeypatch, capsys):
    command(monkeypatch, f"--out_dir={tmp_path / 'log'}")
    assert tables_lib.load(tmp_path / "log").interactions.equals(small.interactions)
    printed = capsys.readouterr().out
    for name in simulation.TARGETS:
        assert name in printed
    assert printed.count("within 10 %") == len(simulation.TARGETS)
    tables_lib.save(small, tmp_path / "again")
    files = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert "segments.parquet" in files
    assert "titles.parquet" in files
    for name in files:  # to the byte
        assert (tmp_path / "log" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    with pytest.raises(SystemExit):
        command(monkeypatch, "--users=1", f"--out_dir={tmp_path}")
    assert "config.simulator.users=1 is outside" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["kuailive", "kuailive_m3"])
def test_other_forms_are_left_to_their_writer(form, small, tmp_path, monkeypatch):
    written = []
    for name in ("kuailive", "kuailive_m3"):
        monkeypatch.setattr(formats, f"write_{name}",
                            lambda tables, folder, name=name: written.append((name, tables, folder)))
    monkeypatch.setattr(simulation, "simulate", lambda config: small if config == SMALL else None)
    command(monkeypatch, f"--out_dir={tmp_path / 'log'}", f"--format={form}")
    (name, tables, folder), = written
    assert (name, folder) == (form, tmp_path / "log")
    assert tables is small
