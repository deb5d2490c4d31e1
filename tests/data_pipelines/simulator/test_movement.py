"""A world that moves; and one that does not is what it was."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from data_pipelines.log.split import cut
from data_pipelines.simulator.simulation import simulate
from data_pipelines.simulator.world import DAY_MS, START_MS, make_world
from onelive_jax.config import SimulatorConfig
from onelive_jax.files import sha256

STILL = SimulatorConfig(users=40, authors=30, days=6, play_days=1)
MOVING = dataclasses.replace(STILL, taste_drift=0.8, trends=1.0, new_authors=0.3, shared_events=2.0)
USERS = np.arange(40)


def cosine(world, one_day, other_day):
    one, other = (world.taste(USERS, np.full(40, START_MS + round(day * DAY_MS))) for day in (one_day, other_day))
    return float((one * other).sum(1).mean())


def test_a_world_that_does_not_move_is_what_it_was():
    world = make_world(STILL)
    assert world.movement is None
    # Of the world before there was movement: whole numbers, which are the same on every machine.
    found = sha256(world.room_author, world.room_start_ms, world.room_end_ms, world.jump_key, world.jump_theme)
    assert found == "10138eac75931445482941aad6fe3f1cb4cc3c77af9e5dd679258cd8bed66e16"


def test_tastes_move_apart_within_days_and_return_the_next_hour():
    world = make_world(MOVING)
    assert cosine(world, 2.0, 2.02) > 0.99
    assert cosine(world, 2.0, 5.0) < 0.8
    assert cosine(make_world(STILL), 2.0, 5.0) == pytest.approx(1.0, abs=1e-5)  # the same hour


def test_what_everybody_likes_is_common():
    world = make_world(dataclasses.replace(MOVING, taste_drift=0.0, trends=3.0))
    taste = world.taste(USERS, np.full(40, START_MS + 3 * DAY_MS))
    still = make_world(STILL).taste(USERS, np.full(40, START_MS + 3 * DAY_MS))
    assert np.linalg.norm(taste.mean(0)) > np.linalg.norm(still.mean(0)) + 0.2


def test_a_jump_changes_it_at_once():
    world = make_world(dataclasses.replace(MOVING, trends=2.0, jump_day=4.0))
    assert cosine(world, 3.98, 4.02) < 0.9 < cosine(world, 3.9, 3.94)


def test_new_authors_begin_all_the_time_and_nobody_else():
    world = make_world(dataclasses.replace(MOVING, authors=400))
    first = np.full(400, np.inf)
    np.minimum.at(first, world.room_author, world.room_start_ms)
    new = world.movement.debut_ms > START_MS
    assert new.sum() == 0.3 * 400  # a week with its played day
    assert (first[new] >= world.movement.debut_ms[new]).all()
    of_the_last_days = (first > START_MS + 2 * DAY_MS) & np.isfinite(first)
    assert 0.1 < of_the_last_days.mean() < 0.35


def test_an_event_is_for_everybody():
    world = make_world(MOVING)
    room = int(np.flatnonzero(world.movement.event_boost)[0])
    assert (world.movement.event_boost > 0).sum() == 2 * 7
    at = np.full((40, 1), world.room_start_ms[room] + 1)
    before = dataclasses.replace(world.movement, event_boost=np.zeros_like(world.movement.event_boost))
    plain = dataclasses.replace(world, movement=before)
    np.testing.assert_allclose(world.affinity(USERS, np.full((40, 1), room), at)
                               - plain.affinity(USERS, np.full((40, 1), room), at), 2.5, rtol=1e-5)


def test_a_log_is_cut_to_what_was_known_then():
    tables = simulate(MOVING)
    time_ms = START_MS + 3 * DAY_MS
    part = cut(tables, time_ms)
    whole = tables.interactions.filter(pl.col("start_ms") < time_ms)
    assert len(part.interactions) == len(whole)
    assert int((part.interactions["start_ms"] + part.interactions["watch_ms"]).max()) <= time_ms
    assert part.segments["end_ms"].max() <= time_ms
    assert part.rooms["end_ms"].is_null().sum() > 0  # still on air
    assert len(part.authors) < len(tables.authors)
    rooms, names = part.rooms["source_id"].to_list(), part.authors["source_id"].to_list()
    for room, author in part.interactions.select("room_id", "author_id").rows():
        assert tables.rooms["author_id"][int(rooms[room])] == int(names[author])
    some = part.rooms.row(len(part.rooms) // 2, named=True)
    title = tables.titles["embedding"][tables.rooms["title_embedding"][int(some["source_id"])]]
    assert part.titles["embedding"][some["title_embedding"]].to_list() == title.to_list()
