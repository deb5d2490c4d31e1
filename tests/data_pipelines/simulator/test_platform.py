import numpy as np
import polars as pl
import pytest

from data_pipelines.simulator import policies
from data_pipelines.simulator import reactions as people_lib
from data_pipelines.simulator.platform import Platform, compare, to_interactions
from data_pipelines.simulator.reactions import OBJECTIVES, UTILITY
from data_pipelines.simulator.world import DAY_MS, HOUR_MS
from onelive_jax.config import SimulatorConfig

CONFIG = SimulatorConfig(users=120, authors=60, days=6, seed=1, segment_seconds=600)


@pytest.fixture(scope="module")
def platform():
    return Platform(CONFIG)


@pytest.fixture(scope="module")
def requests(platform):
    return platform.requests(10_000, seed=0)


@pytest.fixture(scope="module")
def outcomes(platform, requests):
    return {"random": platform.play(policies.random(), requests),
            "viewers": platform.play(policies.viewers(), requests),
            "own counts": platform.play(policies.own_counts(), requests),
            "oracle": platform.play(policies.oracle(platform), requests)}


def test_knowing_more_serves_people_better(outcomes):
    for better, worse in (("oracle", "own counts"), ("own counts", "viewers"), ("viewers", "random")):
        lifts = compare(outcomes[worse], outcomes[better])
        assert lifts["click"].low > 0, (better, worse, lifts["click"])
        assert lifts["utility"].low > 0, (better, worse, lifts["utility"])


def test_observed_outcomes_average_to_the_expected_ones(outcomes):
    for name, arm in outcomes.items():
        for objective, seen in arm.observed.items():
            mean = arm.expected[objective]
            error = (seen - mean).std() / len(seen) ** 0.5
            assert abs((seen - mean).mean()) < 4.5 * error, (name, objective, seen.mean(), mean.mean())
        worth = sum(UTILITY[objective] * arm.expected[objective] for objective in OBJECTIVES)
        np.testing.assert_allclose(arm.utility, worth, rtol=1e-9)


def test_values_after_a_click_are_the_means_of_the_draws(platform):
    world, behaviour, rng, n = platform.world, platform.behaviour, np.random.default_rng(0), 40_000
    batch = platform.rooms_for(platform.requests(6, seed=3))
    for i in range(6):
        user = np.full(n, batch.user[i])
        room = np.full(n, batch.room[batch.offsets[i] + 1])
        time = np.full(n, batch.time_ms[i])
        affinity = world.affinity(user[:1], room[:1, None], time[:1, None])[0].repeat(n)
        watch = people_lib.draw_watch(world, behaviour, user, room, time, affinity, rng.random(n),
                                      rng.standard_normal(n))
        truth = platform.true_values(user[:1], room[:1], time[:1], given_click=True)
        minutes = watch / 60_000
        assert minutes.mean() == pytest.approx(truth["watch"][0], abs=4.5 * minutes.std() / n**0.5)
        assert (minutes >= 10).mean() == pytest.approx(truth["long_view"][0], abs=0.012)
        rate = people_lib.reaction_rates(world, behaviour, user[:1], room[:1], affinity[:1], np.zeros(1, bool))
        likes = rate[0, 0] * people_lib.hour_share(watch)
        assert likes.mean() == pytest.approx(truth["like"][0], rel=0.02)


def test_the_same_room_gets_the_same_answer_from_the_same_request(platform, requests, outcomes):
    oracle = outcomes["oracle"]
    shown = oracle.room[:, :1]
    alone = platform.play(lambda batch: shown, requests)
    first = oracle.clicked[:, 0]
    np.testing.assert_array_equal(alone.clicked[:, 0], first)
    np.testing.assert_array_equal(alone.watch_ms[first], oracle.watch_ms[first])
    np.testing.assert_array_equal(alone.counts[first], oracle.counts[first])
    # Behind another room that is not clicked the answer does not change either.
    other = outcomes["viewers"].room[:, 0]
    swapped = platform.play(lambda batch: np.column_stack([np.where(other == shown[:, 0], -1, other), shown]), requests)
    second = swapped.examined[:, 1] & (other != shown[:, 0])
    assert second.sum() > 1000
    np.testing.assert_array_equal(swapped.clicked[second, 1], first[second])


def test_answers_do_not_depend_on_the_other_requests(platform, requests, outcomes):
    part = type(requests)(*(column[500:700] for column in requests))
    again = platform.play(policies.viewers(), part)
    for name in ("room", "examined", "clicked", "watch_ms", "counts", "utility"):
        np.testing.assert_array_equal(getattr(again, name), getattr(outcomes["viewers"], name)[500:700], name)
    other = platform.requests(200, seed=1)
    assert not np.array_equal(other.time_ms, requests.time_ms[:200])


def test_requests_lie_in_the_played_period_and_follow_activity(platform):
    world = platform.world
    requests = platform.requests(20_000, seed=5)
    assert (np.diff(requests.time_ms) >= 0).all()
    assert world.end_ms <= requests.time_ms[0]
    assert requests.time_ms[-1] < world.play_end_ms
    asked = np.bincount(requests.user, minlength=CONFIG.users)
    assert np.corrcoef(asked, world.activity)[0, 1] > 0.95
    hour = requests.time_ms % DAY_MS // HOUR_MS
    assert (hour == 20).sum() > 4 * (hour == 6).sum()
    late = platform.requests(100, 0, world.end_ms + HOUR_MS, world.end_ms + 2 * HOUR_MS)
    assert ((late.time_ms >= world.end_ms + HOUR_MS) & (late.time_ms < world.end_ms + 2 * HOUR_MS)).all()
    with pytest.raises(ValueError, match="played period"):
        platform.requests(10, 0, world.end_ms, world.play_end_ms + 1)


def test_a_batch_lists_rooms_on_air_and_other_peoples_views(platform, requests):
    batch = platform.rooms_for(requests)
    owner = np.repeat(np.arange(batch.user.size), np.diff(batch.offsets))
    time = batch.time_ms[owner]
    assert (platform.world.room_start_ms[batch.room] <= time).all()
    assert (platform.world.room_end_ms[batch.room] > time).all()
    assert batch.viewers.min() == 0
    assert batch.viewers.max() < CONFIG.users
    assert batch.viewers.sum() > batch.user.size  # someone is there
    assert (batch.author == platform.world.room_author[batch.room]).all()
    assert batch.log is platform.tables


def test_the_oracle_of_an_objective_is_best_at_it(platform):
    requests = platform.requests(1500, seed=9)
    watch = platform.play(policies.oracle(platform, "watch"), requests).expected["watch"].mean()
    gift = platform.play(policies.oracle(platform, "gift"), requests).expected["watch"].mean()
    assert watch > 1.02 * gift
    with pytest.raises(ValueError, match="objective='gifts' is not one of"):
        policies.oracle(platform, "gifts")


@pytest.mark.parametrize("ranking, message", [
    (lambda batch: batch.room[:1], "must return room ids as integers"),
    (lambda batch: np.full((batch.user.size, 2), 10**6), "request 0: room 1000000 at place 0 is not on air"),
    (lambda batch: np.repeat(batch.room[batch.offsets[:-1], None], 2, axis=1), "stands in the ranking twice"),
    (lambda batch: (batch.room[batch.offsets[:-1], None], np.zeros((batch.user.size, 1))), "propensity must be above"),
])
def test_wrong_rankings_are_refused(ranking, message, platform):
    with pytest.raises(ValueError, match=message):
        platform.play(ranking, platform.requests(20, seed=2))


def test_padding_shortens_a_slate(platform):
    requests = platform.requests(50, seed=2)
    nothing = platform.play(lambda batch: np.full((50, 3), -1), requests)
    assert not nothing.examined.any()
    assert not nothing.utility.any()
    assert not nothing.clicked.any()
    rooms = platform.play(lambda batch: np.column_stack([np.full(50, -1), batch.room[batch.offsets[:-1]]]), requests)
    assert rooms.examined[:, 0].all()
    assert (rooms.room[:, 1:] == -1).all()


def test_a_comparison_is_paired_by_user_and_needs_the_same_requests(platform, requests, outcomes):
    control, treatment = outcomes["viewers"], outcomes["oracle"]
    same = compare(control, control)
    assert all(lift.low == lift.lift == lift.high == 0 for lift in same.values())
    lifts = compare(control, treatment, expected=True)
    assert set(lifts) == {"exposure", *OBJECTIVES, "utility", "click_through"}
    assert lifts["watch"].lift == pytest.approx(
        treatment.expected["watch"].mean() / control.expected["watch"].mean() - 1)
    assert lifts["watch"].low < lifts["watch"].lift < lifts["watch"].high
    assert lifts["click_through"].control == pytest.approx(
        control.expected["click"].sum() / control.expected["exposure"].sum())
    assert "utility" in lifts
    with pytest.raises(ValueError, match="different requests"):
        compare(control, platform.play(policies.random(), platform.requests(10_000, seed=1)))


def test_a_round_is_appended_to_the_log_and_moves_people_on():
    platform = Platform(SimulatorConfig(users=40, authors=30, days=4, seed=3, segment_seconds=600))
    world, before = platform.world, platform.tables
    first = platform.play(policies.logging_policy(platform), platform.requests(400, 0, to_ms=world.end_ms + DAY_MS))
    assert 0 < first.propensity.min() < 1
    rows = to_interactions(first, platform)
    assert len(rows) == (first.room >= 0).sum()
    assert rows["click"].sum() == first.clicked.sum()
    assert rows["watch_ms"].sum() == first.watch_ms.sum()
    assert rows["like"].sum() == first.counts[:, 0].sum()
    platform.append(first)
    after = platform.tables
    assert len(after.interactions) == len(before.interactions) + len(rows)
    assert after.rooms.head(len(before.rooms)).equals(before.rooms)
    assert len(after.rooms) > len(before.rooms)
    user = int(first.requests.user[first.clicked.any(1)][-1])
    clicks = after.interactions.filter((pl.col("user_id") == user) & pl.col("click")).sort("start_ms")
    np.testing.assert_array_equal(platform.people.recent[user, :3], clicks["author_id"].tail(3).to_numpy()[::-1])
    second = platform.requests(300, 1, from_ms=world.end_ms + DAY_MS)
    habit = platform.play(policies.own_counts(), second)
    assert habit.utility.mean() > platform.play(policies.random(), second).utility.mean()
    platform.append(habit)
    assert platform.tables.interactions.filter(pl.col("propensity") == 1).height > 0


def test_a_platform_without_a_played_period_is_refused():
    with pytest.raises(ValueError, match="config.simulator.play_days=0"):
        Platform(SimulatorConfig(play_days=0))


def test_the_command_prints_the_ladder(platform, monkeypatch, capsys):
    monkeypatch.setattr(policies, "Platform", lambda config: platform)
    monkeypatch.setattr("sys.argv", ["policies", "--requests=300"])
    policies.main()
    printed = capsys.readouterr().out
    for line in ("viewers over random", "own counts over viewers", "oracle over own counts"):
        assert line in printed
