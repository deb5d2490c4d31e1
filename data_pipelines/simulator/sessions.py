"""People's sessions under the logging policy of the simulated platform: every slate they are shown, and what they do.

Axes: n people who look for a room, S places of a slate, P authors a person knows, U users.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.simulator import reactions as people_lib
from data_pipelines.simulator.feed import Feed
from data_pipelines.simulator.reactions import Behaviour
from data_pipelines.simulator.world import DAY_MS, KEY, MINUTE_MS, START_MS, STEP_MS, TOPIC_WIDTH, SimulatedWorld

RECENT = 16  # views that a habit remembers
FOLLOWS = 8  # authors a person follows at a time
USERS_AT_ONCE = 20_000  # bounds the memory
# GIVE_UP: probability of leaving after a slate without a click.
SESSIONS_A_DAY, VIEWS_A_SESSION, GIVE_UP = 4.8, 3.0, 0.5


@dataclass
class People:
    """What the past left in people. recent: int32 [U, RECENT], authors of the last views, the newest first, -1 none;
    follows: int32 [U, FOLLOWS], the newest first; last_room: int32 [U]; free_at_ms: int64 [U], end of the last view."""

    recent: np.ndarray
    follows: np.ndarray
    last_room: np.ndarray
    free_at_ms: np.ndarray


def play_logging_policy(world: SimulatedWorld, feed: Feed, behaviour: Behaviour, people: People, users: np.ndarray,
                        from_ms: int, to_ms: int, seed: list[int]) -> dict[str, np.ndarray]:
    """All impressions of some people's sessions in [from_ms, to_ms); `people` is moved on in place.

    Returns one array a column: user_id, room_id, author_id, start_ms, watch_ms, click, position, propensity,
    follow, negative, affinity (float32, at the moment), repeat (bool, author among the last 16 views).
    """
    parts = [_play(world, feed, behaviour, people, part, from_ms, to_ms, np.random.default_rng([*seed, part[0]]))
             for part in np.split(users, range(USERS_AT_ONCE, users.size, USERS_AT_ONCE))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _play(world, feed, behaviour, people, users, from_ms, to_ms, rng) -> dict[str, np.ndarray]:
    """One turn is everybody's next slate, so time runs at each person's own pace and no loop is over people."""
    sessions = _session_keys(world, users, from_ms, to_ms, rng)
    n = users.size
    free_at = np.maximum(people.free_at_ms[users], from_ms)
    views_left = np.zeros(n, np.int64)
    recent, follows = people.recent[users], people.follows[users]
    last_room = people.last_room[users]
    active = np.arange(n)
    empty = np.empty(0, np.int64)
    none = np.empty((0, people_lib.SLATE))
    turns = [_impressions(world, Turn(empty, empty, none.astype(np.int32), *[none.astype(bool)] * 4,
                                      *[none.astype(np.float32)] * 2, empty, empty.astype(bool)))]
    while active.size:
        between = np.where(views_left[active] > 0, rng.exponential(20_000, active.size), 0).astype(np.int64)
        time = free_at[active] + between
        opens = views_left[active] <= 0
        upcoming = np.searchsorted(sessions[:-1], active * KEY + (time - from_ms), side="left")
        next_user, next_time = np.divmod(sessions[upcoming], KEY)
        time = np.where(opens, next_time + from_ms, time)
        going = (~opens | (next_user == active)) & (time < to_ms - STEP_MS)
        views_left[active[opens]] = rng.geometric(1 / VIEWS_A_SESSION, int(opens.sum()))
        active, time = active[going], time[going]
        if not active.size:
            break
        known, seen, followed = known_authors(recent[active], follows[active])
        room_nS, propensity_nS, slot_nS = feed.slates(time, known, seen, followed, behaviour.habit, rng)
        there = room_nS >= 0
        room_nS = np.maximum(room_nS, 0)
        user = users[active]
        affinity_nS = world.affinity(user, room_nS, np.broadcast_to(time[:, None], room_nS.shape))
        is_known, slot = slot_nS >= 0, np.maximum(slot_nS, 0)
        seen_nS = np.take_along_axis(seen, slot, axis=1) * is_known
        chance = people_lib.click_chance(
            world, behaviour, world.room_author[room_nS], affinity_nS, seen_nS,
            np.take_along_axis(followed, slot, axis=1) & is_known, room_nS == last_room[active][:, None])
        examined, clicked = people_lib.read_slate(chance, there, rng.random(there.shape, np.float32),
                                            rng.random(there.shape, np.float32))
        disliked = examined & ~clicked & (rng.random(there.shape, np.float32) < people_lib.dislike_chance(affinity_nS))
        row, place = np.nonzero(clicked)
        who, room, affinity = active[row], room_nS[row, place], affinity_nS[row, place]
        watch = people_lib.draw_watch(world, behaviour, users[who], room, time[row], affinity, rng.random(who.size),
                                      rng.standard_normal(who.size))
        watch = np.minimum(watch, to_ms - time[row])
        author = world.room_author[room]
        following = (follows[who] == author[:, None]).any(1)
        rate = people_lib.reaction_rates(world, behaviour, users[who], room, affinity, following)[:, 2]
        wants = rng.random(who.size) < rate
        turns.append(_impressions(world, Turn(time, user, room_nS, there, clicked, disliked, seen_nS > 0,
                                              propensity_nS, affinity_nS, watch, wants)))
        fans = who[wants]
        follows[fans] = np.column_stack([author[wants], follows[fans][:, :-1]])
        recent[who] = np.column_stack([author, recent[who][:, :-1]])
        stays = clicked.any(1) | (there.any(1) & (rng.random(active.size) >= GIVE_UP))
        views_left[active[~stays]] = 0
        free_at[active] = time + np.where(there.any(1), 5_000, MINUTE_MS)
        free_at[who] = time[row] + watch
        last_room[who] = room
        views_left[who] -= 1
    people.recent[users], people.follows[users], people.last_room[users] = recent, follows, last_room
    people.free_at_ms[users] = free_at
    return {name: np.concatenate([turn[name] for turn in turns]) for name in turns[0]}


class Turn(NamedTuple):
    """The next slates of n people and what they did: time int64 [n], user int [n]; of places [n, S]: room int32, there
    (it holds a room), clicked, disliked, repeat bool, propensity, affinity float32; of clicks, in the order of places:
    watch int64, in ms, and follow bool."""

    time: np.ndarray
    user: np.ndarray
    room: np.ndarray
    there: np.ndarray
    clicked: np.ndarray
    disliked: np.ndarray
    repeat: np.ndarray
    propensity: np.ndarray
    affinity: np.ndarray
    watch: np.ndarray
    follow: np.ndarray


def _impressions(world: SimulatedWorld, turn: Turn) -> dict[str, np.ndarray]:
    """Flat columns of the places of slates that hold a room."""
    row, place = np.nonzero(turn.there)
    room, click = turn.room[row, place], turn.clicked[row, place]
    watch, follow = np.zeros(row.size, np.int64), np.zeros(row.size, np.int32)
    watch[click], follow[click] = turn.watch, turn.follow
    return {"user_id": turn.user[row].astype(np.int32), "room_id": room, "author_id": world.room_author[room],
            "start_ms": turn.time[row], "watch_ms": watch, "click": click, "position": place.astype(np.int32),
            "propensity": turn.propensity[row, place], "follow": follow, "negative": turn.disliked[row, place],
            "affinity": turn.affinity[row, place], "repeat": turn.repeat[row, place]}


def known_authors(recent: np.ndarray, follows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(author int32, views among the last 16 int8, follows bool), [n, RECENT + FOLLOWS]; no author twice, -1 none."""
    both = np.concatenate([recent, follows], axis=1)
    same = both[:, :, None] == both[:, None, :]
    seen = same[:, :, :RECENT].sum(-1, dtype=np.int8)
    followed = same[:, :, RECENT:].any(-1)
    first = same.argmax(-1) == np.arange(both.shape[1])
    known = np.where(first & (both >= 0), both, -1)
    return known, np.where(known >= 0, seen, 0).astype(np.int8), followed & (known >= 0)


def first_people(world: SimulatedWorld, seed: int) -> People:
    """People as the log begins: no views, and half of the follows filled with authors they like."""
    users = world.activity.size
    rng = np.random.default_rng([seed, 4])
    follows = np.full((users, FOLLOWS), -1, np.int32)
    for first in range(0, users, USERS_AT_ONCE):
        part = slice(first, min(first + USERS_AT_ONCE, users))
        pool = rng.integers(world.topic.shape[0], size=(part.stop - first, 24))
        liking = np.einsum("nz,nmz->nm", world.day_taste[part], world.topic[pool]) * np.sqrt(TOPIC_WIDTH)
        score = liking + 0.5 * world.popularity[pool] + rng.gumbel(size=pool.shape)
        if world.movement is not None:  # nobody follows who has not begun
            score[world.movement.debut_ms[pool] > START_MS] -= 100.0
        follows[part, :FOLLOWS // 2] = np.take_along_axis(pool, np.argsort(-score, axis=1)[:, :FOLLOWS // 2], axis=1)
    return People(np.full((users, RECENT), -1, np.int32), follows, np.full(users, -1, np.int32),
                  np.full(users, START_MS, np.int64))


def opening_times(rng, size: int, from_ms: int, to_ms: int) -> np.ndarray:
    """int64 [size], moments in [from_ms, to_ms) at which people open the app: most in the evening."""
    quarter_ms = 15 * MINUTE_MS
    quarters = np.arange(from_ms // quarter_ms, -(-to_ms // quarter_ms))
    low, high = np.maximum(quarters * quarter_ms, from_ms), np.minimum((quarters + 1) * quarter_ms, to_ms)
    hour = quarters % 96 / 4
    cycle = np.cumsum(np.exp(1.2 * np.cos(2 * np.pi * (hour - 20.5) / 24)) * (high - low))
    at = np.minimum(np.searchsorted(cycle / cycle[-1], rng.random(size)), quarters.size - 1)
    return low[at] + (rng.random(size) * (high - low)[at]).astype(np.int64)


def _session_keys(world: SimulatedWorld, users, from_ms: int, to_ms: int, rng) -> np.ndarray:
    """Sorted (row of users) × KEY + ms since from_ms of all sessions, and one more that belongs to nobody."""
    days = (to_ms - from_ms) / DAY_MS
    count = rng.poisson(SESSIONS_A_DAY * world.activity[users] * days)
    since = opening_times(rng, int(count.sum()), from_ms, to_ms) - from_ms
    keys = np.sort(np.repeat(np.arange(users.size), count) * KEY + since)
    return np.append(keys, users.size * KEY)
