"""The simulated platform, played: policies are asked for rankings in the period after the log, and people react.

    platform = Platform(0)
    requests = platform.requests(20_000, seed=1)
    control = platform.play(policies.viewers(), requests)
    treatment = platform.play(policies.oracle(platform), requests)
    print(table(compare(control, treatment)))

Common random numbers: every draw is a hash of (request, room or place, purpose). Two policies that show the same room
to the same request get the same click, watch and reactions from it, wherever in the slate and whatever else is shown.

Axes: n requests, C candidates of all requests (flat), S places of a slate, O objectives, U users who asked,
B resamples.
"""

import copy
from dataclasses import dataclass
from typing import Callable, NamedTuple

import numpy as np
import polars as pl

from data_pipelines.simulator import reactions as people_lib
from data_pipelines.simulator.feed import Feed
from data_pipelines.simulator.reactions import OBJECTIVES, SLATE
from data_pipelines.simulator.sessions import FOLLOWS, RECENT, opening_times, play_logging_policy
from data_pipelines.simulator.simulation import rooms_until, run
from data_pipelines.simulator.world import KEY, MINUTE_MS, STEP_MS, mix, rooms_on_air
from data_pipelines.tables import INTERACTIONS, LOGGED, Tables, sort_interactions, validate
from onelive_jax.config import SimulatorConfig
from onelive_jax.evaluation import bootstrap

CANDIDATES_AT_ONCE = 2_000_000  # bounds the memory of what is asked together
# Purposes of random numbers; those of places and of reactions are followed by as many more as there are.
_CLICK, _DISLIKE, _PATIENCE, _WATCH, _GIFT_SIZE, _READ_ON, _REACTION = 1, 2, 3, 4, 6, 100, 200


class PlayRequests(NamedTuple):
    """user: int32 [n]. time_ms: int64 [n]. key: uint64 [n], what the random numbers of each request are drawn from."""

    user: np.ndarray
    time_ms: np.ndarray
    key: np.ndarray


class PlatformRequests(NamedTuple):
    """What a policy is told.

    Attributes:
      user: int32 [n]. time_ms: int64 [n]. key: uint64 [n].
      offsets: int64 [n + 1]; rooms on air of request i are offsets[i] : offsets[i + 1] of the next three, by room id.
      room, author: int32 [C]. viewers: int32 [C], other people who watch it now.
      log: the platform's tables so far; people's histories are in log.interactions.
    """

    user: np.ndarray
    time_ms: np.ndarray
    key: np.ndarray
    offsets: np.ndarray
    room: np.ndarray
    author: np.ndarray
    viewers: np.ndarray
    log: Tables


# A policy returns room ids int32 [n, k], best first, -1 padding; or those and their propensities float32 [n, k].
Policy = Callable[[PlatformRequests], np.ndarray | tuple[np.ndarray, np.ndarray]]


@dataclass
class Outcomes:
    """What a policy's rankings led to.

    Attributes:
      requests: as they were asked.
      observed: "exposure" (impressions that were looked at) and each of OBJECTIVES → float64 [n]; watch in minutes,
        gift in units of value; long_view is a watch of at least LONG_VIEW_MIN.
      expected: the same names → float64 [n], means over all random numbers given the ranking.
      utility: float64 [n], sum of UTILITY × expected objectives: the true multi-objective utility.
      room: int32 [n, S], what was shown, -1 where nothing. examined, clicked, negative: bool [n, S].
      propensity: float32 [n, S], 1 where the policy gave none (a deterministic policy).
      watch_ms: int64 [n]. counts: int32 [n, 5], numbers of REACTIONS. Both are 0 without a click.
    """

    requests: PlayRequests
    observed: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    utility: np.ndarray
    room: np.ndarray
    examined: np.ndarray
    clicked: np.ndarray
    negative: np.ndarray
    propensity: np.ndarray
    watch_ms: np.ndarray
    counts: np.ndarray

    @property
    def clicked_room(self) -> np.ndarray:
        """int32 [n]: room that was clicked, -1 without."""
        return np.where(self.clicked, self.room, -1).max(1).astype(np.int32)


class Platform:
    """A simulated world, its log, and the period after the log in which policies are played.

    Args:
      config: size, lengths and seed; or a seed, with the default size.

    Attributes: world; behaviour; people, the state the log so far has left people in; tables, the log so far; feed, the
      logging policy's in the played period. People of the logging policy go on in the background all the while: they
      are the current viewers of rooms, and are not in the log.

    Raises:
      ValueError: a setting is out of range, or play_days is 0.
    """

    def __init__(self, config: SimulatorConfig | int):
        self.config = SimulatorConfig(seed=config) if isinstance(config, int) else config
        if self.config.play_days < 1:
            raise ValueError("config.simulator.play_days=0: there is no period to play; set it to at least 1")
        simulation = run(self.config)
        self.world, self.behaviour = simulation.world, simulation.behaviour
        self.people, self.tables = simulation.people, simulation.tables
        world = self.world
        self.feed = Feed(world, world.end_ms, world.play_end_ms)
        background = play_logging_policy(world, self.feed, self.behaviour, copy.deepcopy(self.people),
                                         np.arange(self.config.users), world.end_ms, world.play_end_ms,
                                         [self.config.seed, 5])
        clicked = background["click"]
        user, room, start, watch = (background[name][clicked].astype(np.int64)
                                    for name in ("user_id", "room_id", "start_ms", "watch_ms"))
        self._starts = np.sort(room * KEY + start - world.end_ms)
        self._stops = np.sort(room * KEY + start + watch - world.end_ms)
        order = np.lexsort((start, user))
        self._own = (user * KEY + start - world.end_ms)[order], room[order], (start + watch)[order]

    def requests(self, n: int, seed: int, from_ms: int | None = None, to_ms: int | None = None) -> PlayRequests:
        """n requests of people by their activity at moments by the hour, in order of time.

        Args: from_ms, to_ms: part of the played period (all of it if not given): a round of online learning.

        Raises:
          ValueError: the part is empty or not in the played period.
        """
        low = self.world.end_ms if from_ms is None else from_ms
        high = self.world.play_end_ms if to_ms is None else to_ms
        if not self.world.end_ms <= low < high <= self.world.play_end_ms:
            raise ValueError(f"[{low}, {high}) must be a part of the played period, "
                             f"[{self.world.end_ms}, {self.world.play_end_ms}), that is not empty")
        rng = np.random.default_rng([self.config.seed, 6, seed])
        share = np.cumsum(self.world.activity, dtype=np.float64)
        user = np.minimum(np.searchsorted(share / share[-1], rng.random(n)), share.size - 1)
        key = mix(np.arange(n), np.int64(seed), np.int64(self.config.seed))
        return PlayRequests(user.astype(np.int32), np.sort(opening_times(rng, n, low, high)), key)

    def background(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(user, room, start_ms, stop_ms) of the views of the played period that go on whatever is played: int64 [V]
        each, by user and time."""
        key, room, stop = self._own
        return key // KEY, room, key % KEY + self.world.end_ms, stop

    def rooms_for(self, requests: PlayRequests) -> PlatformRequests:
        """What a policy is told of these requests."""
        offsets, room = rooms_on_air(self.world, requests.time_ms)
        owner = np.repeat(np.arange(requests.user.size), np.diff(offsets))
        viewers = self._viewers(requests.user[owner].astype(np.int64), room.astype(np.int64), requests.time_ms[owner])
        return PlatformRequests(*requests, offsets, room, self.world.room_author[room], viewers, self.tables)

    def play(self, policy: Policy, requests: PlayRequests) -> Outcomes:
        """Shows each request the first SLATE rooms of the policy's ranking; at most one of them is clicked.

        Raises:
          ValueError: a ranking has another number of rows, or holds a room that is not on air or stands in it twice.
        """
        moments = np.searchsorted(self.world.room_start_ms, requests.time_ms, side="right") - np.searchsorted(
            np.sort(self.world.room_end_ms), requests.time_ms, side="right")
        block = np.cumsum(moments) // CANDIDATES_AT_ONCE
        parts = []
        for part in np.split(np.arange(block.size), np.flatnonzero(np.diff(block)) + 1):
            asked = PlayRequests(*(column[part] for column in requests))
            told = self.rooms_for(asked)
            result = policy(told)
            rooms, propensity = result if isinstance(result, tuple) else (result, None)
            first = int(part[0]) if part.size else 0
            parts.append(self._react(asked, *_slates(told, np.asarray(rooms), propensity, first)))
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        names = ("exposure", *OBJECTIVES)
        observed = dict(zip(names, joined.pop("observed").T, strict=True))
        expected = dict(zip(names, joined.pop("expected").T, strict=True))
        return Outcomes(requests, observed, expected, **joined)

    def true_values(self, user: np.ndarray, room: np.ndarray, time_ms: np.ndarray,
                    given_click: bool = False) -> dict[str, np.ndarray]:
        """Each of OBJECTIVES and "utility" → float64 [n], expected for n (user, room, moment) once the room is looked
        at ("click" is then the probability of a click); or once it is clicked."""
        chance, _, values = self._truth(np.asarray(user), np.asarray(room)[:, None], np.asarray(time_ms))
        values = values[:, 0] if given_click else chance[:, :1] * values[:, 0]
        return dict(zip(OBJECTIVES, values.T, strict=True)) | {"utility": people_lib.utility(values)}

    def append(self, outcomes: Outcomes) -> None:
        """Adds a round to the log, with the rooms, titles and segments that are known by its end, and moves people's
        habits and follows on. Rounds should follow each other in time."""
        world = self.world
        rows = to_interactions(outcomes, self)
        stop = max(int((rows["start_ms"] + rows["watch_ms"]).max() or 0), world.end_ms) + STEP_MS
        known = self.tables.rooms["start_ms"].max() + STEP_MS
        rooms, titles, segments = rooms_until(world, max(stop, known), self.config.segment_seconds)
        log = sort_interactions(pl.concat([self.tables.interactions, rows]))
        report = copy.deepcopy(self.tables.report)
        report.rows_read += len(rows)
        report.rows_kept += len(rows)
        self.tables = validate(Tables(log, rooms, self.tables.authors, self.tables.users, report, segments,
                                      self.tables.videos, titles, rooms_are_true_lifetimes=True))
        row = np.flatnonzero(outcomes.clicked.any(1))
        row = row[np.lexsort((outcomes.requests.time_ms[row], outcomes.requests.user[row]))]
        user, room = outcomes.requests.user[row], outcomes.clicked_room[row]
        nth = np.arange(row.size) - np.searchsorted(user, user)
        for turn in range(int(nth.max(initial=-1)) + 1):  # the turn-th click of everybody at once
            at = nth == turn
            who, author = user[at], world.room_author[room[at]]
            self.people.recent[who] = np.column_stack([author, self.people.recent[who][:, :RECENT - 1]])
            self.people.last_room[who] = room[at]
            fan = (outcomes.counts[row[at], 2] > 0) & ~(self.people.follows[who] == author[:, None]).any(1)
            self.people.follows[who[fan]] = np.column_stack(
                [author[fan], self.people.follows[who[fan]][:, :FOLLOWS - 1]])

    def _viewers(self, user, room, time_ms) -> np.ndarray:
        moment = room * KEY + time_ms - self.world.end_ms
        count = np.searchsorted(self._starts, moment, side="right") - np.searchsorted(self._stops, moment, side="right")
        key, own_room, own_stop = self._own
        last = np.searchsorted(key, user * KEY + time_ms - self.world.end_ms, side="right") - 1
        if key.size:  # the one who asks is not among the others: their own background view must not give them away
            last = np.maximum(last, 0)
            count -= (key[last] // KEY == user) & (own_room[last] == room) & (own_stop[last] > time_ms) & (
                key[last] % KEY + self.world.end_ms <= time_ms)
        return count.astype(np.int32)

    def _truth(self, user, room_nM, time_ms):
        """(chance of a click float64 [n, M], affinity float32 [n, M], values after a click float64 [n, M, O])."""
        world, shape = self.world, room_nM.shape
        author_nM = world.room_author[room_nM]
        seen = (self.people.recent[user][:, None, :] == author_nM[:, :, None]).sum(-1)
        followed = (self.people.follows[user][:, None, :] == author_nM[:, :, None]).any(-1)
        affinity = world.affinity(user, room_nM, np.broadcast_to(time_ms[:, None], shape))
        chance = people_lib.click_chance(world, self.behaviour, author_nM, affinity, seen, followed,
                                         room_nM == self.people.last_room[user][:, None])
        who, when = np.repeat(user, shape[1]), np.repeat(time_ms, shape[1])
        values = people_lib.values_given_click(world, self.behaviour, who, room_nM.ravel(), when, affinity.ravel(),
                                               followed.ravel())
        return chance.astype(np.float64), affinity, values.reshape(*shape, len(OBJECTIVES))

    def _react(self, requests: PlayRequests, room_nS, propensity_nS) -> dict[str, np.ndarray]:
        world, behaviour = self.world, self.behaviour
        user, time, key = requests
        there = room_nS >= 0
        room = np.maximum(room_nS, 0)
        chance, affinity, values = self._truth(user, room, time)
        place = np.broadcast_to(np.arange(SLATE), room.shape)
        looked, click = people_lib.expected_read(chance, there)
        expected = np.column_stack([looked.sum(1), np.einsum("ns,nso->no", click, values)])
        examined, clicked = people_lib.read_slate(chance, there, people_lib.uniform(key[:, None], room, _CLICK),
                                            people_lib.uniform(key[:, None], place, _READ_ON))
        dislikes = people_lib.uniform(key[:, None], room, _DISLIKE) < people_lib.dislike_chance(affinity)
        negative = examined & ~clicked & dislikes

        row, at = np.nonzero(clicked)
        who, chosen, liking, when, number = user[row], room[row, at], affinity[row, at], time[row], key[row]
        watch = people_lib.draw_watch(world, behaviour, who, chosen, when, liking,
                                      people_lib.uniform(number, chosen, _PATIENCE),
                                      people_lib.normal(number, chosen, _WATCH))
        following = (self.people.follows[who] == world.room_author[chosen][:, None]).any(1)
        rate = people_lib.reaction_rates(world, behaviour, who, chosen, liking, following)
        rate[:, [0, 1, 4]] *= people_lib.hour_share(watch)[:, None]
        drawn = people_lib.uniform(number[:, None], chosen[:, None], _REACTION + np.arange(rate.shape[1]))
        count = people_lib.poisson(rate, drawn)
        count[:, 2] = drawn[:, 2] < rate[:, 2]  # one follows once
        spread = people_lib.GIFT_SPREAD
        size = people_lib.GIFT_VALUE * np.exp(spread * people_lib.normal(number, chosen, _GIFT_SIZE) - spread**2 / 2)
        minutes = watch / MINUTE_MS
        observed = np.zeros((user.size, 1 + len(OBJECTIVES)))
        observed[:, 0] = examined.sum(1)
        observed[row, 1:] = np.column_stack([np.ones(row.size), minutes >= people_lib.LONG_VIEW_MIN, minutes,
                                             count[:, :4], count[:, 4] * size])
        watch_ms, counts = np.zeros(user.size, np.int64), np.zeros((user.size, rate.shape[1]), np.int32)
        watch_ms[row], counts[row] = watch, count
        return {"observed": observed, "expected": expected, "utility": people_lib.utility(expected[:, 1:]),
                "room": room_nS, "examined": examined, "clicked": clicked, "negative": negative,
                "propensity": propensity_nS, "watch_ms": watch_ms, "counts": counts}


def to_interactions(outcomes: Outcomes, platform: Platform) -> pl.DataFrame:
    """The impressions as rows of the interactions table, with position and propensity, in canonical order."""
    row, place = np.nonzero(outcomes.room >= 0)
    room, click = outcomes.room[row, place], outcomes.clicked[row, place]
    count = outcomes.counts[row] * click[:, None]
    frame = pl.DataFrame({
        "user_id": outcomes.requests.user[row], "room_id": room, "author_id": platform.world.room_author[room],
        "start_ms": outcomes.requests.time_ms[row], "watch_ms": outcomes.watch_ms[row] * click, "click": click,
        "like": count[:, 0], "comment": count[:, 1], "follow": count[:, 2], "share": count[:, 3],
        "gift_value": (outcomes.observed["gift"][row] * click).astype(np.float32),
        "negative": outcomes.negative[row, place], "position": place.astype(np.int32),
        "propensity": outcomes.propensity[row, place]})
    return sort_interactions(frame.select(*INTERACTIONS, *LOGGED))


def _slates(asked: PlatformRequests, rooms: np.ndarray, propensity, first: int) -> tuple[np.ndarray, np.ndarray]:
    """(room int32 [n, S], propensity float32 [n, S]) of a checked ranking; `first`: number of the first request."""
    n = asked.user.size
    if rooms.ndim != 2 or rooms.shape[0] != n or not np.issubdtype(rooms.dtype, np.integer):
        raise ValueError(f"a policy must return room ids as integers [{n}, k], not {rooms.dtype} {list(rooms.shape)}")
    if propensity is not None and np.shape(propensity) != rooms.shape:
        raise ValueError(f"propensities have the shape {np.shape(propensity)}, the ranking {rooms.shape}")
    slate = np.full((n, SLATE), -1, np.int32)
    chance = np.ones((n, SLATE), np.float32)
    width = min(SLATE, rooms.shape[1])
    slate[:, :width] = rooms[:, :width]
    if propensity is not None:
        chance[:, :width] = np.where(slate[:, :width] >= 0, np.asarray(propensity)[:, :width], 1)
        if not ((chance > 0) & (chance <= 1)).all():
            raise ValueError("a propensity must be above 0 and at most 1")
    owner = np.repeat(np.arange(n), np.diff(asked.offsets))
    on_air = np.append(owner * KEY + asked.room, n * KEY)
    asked = np.arange(n)[:, None] * KEY + slate
    known = (on_air[np.searchsorted(on_air, asked)] == asked) | (slate < 0)
    if not known.all():
        row, place = np.argwhere(~known)[0]
        raise ValueError(f"request {first + row}: room {slate[row, place]} at place {place} is not on air then")
    again = (slate[:, :, None] == slate[:, None, :]) & (slate >= 0)[:, :, None] & ~np.eye(SLATE, dtype=bool)
    if again.any():
        row, place, _ = np.argwhere(again)[0]
        raise ValueError(f"request {first + row}: room {slate[row, place]} stands in the ranking twice")
    order = np.argsort(slate < 0, axis=1, kind="stable")  # padding goes last: an empty place would end the slate
    return np.take_along_axis(slate, order, axis=1), np.take_along_axis(chance, order, axis=1)


class Lift(NamedTuple):
    """Means per request of two arms, the relative lift, and the ends of its 95 % interval (nan where control is 0)."""

    control: float
    treatment: float
    lift: float
    low: float
    high: float


def compare(control: Outcomes, treatment: Outcomes, expected: bool = False, resamples: int = 1000,
            seed: int = 0) -> dict[str, Lift]:
    """Lifts of treatment over control in exposure, each of OBJECTIVES, utility and click_through (clicks per exposure).

    Paired bootstrap over users: both arms of a resample hold the same people. Utility is always the expected one;
    with expected=True so is the rest.

    Raises:
      ValueError: the arms did not answer the same requests.
    """
    for one, other in zip(control.requests, treatment.requests, strict=True):
        if not np.array_equal(one, other):
            raise ValueError("the two arms answered different requests: play both policies on the same ones")
    _, user = np.unique(control.requests.user, return_inverse=True)
    people = int(user.max()) + 1

    def sums(arm: Outcomes) -> tuple[list[str], np.ndarray]:
        columns = (arm.expected if expected else arm.observed) | {"utility": arm.utility}
        return list(columns), np.column_stack([np.bincount(user, column, people) for column in columns.values()])

    names, control_UO = sums(control)
    _, treatment_UO = sums(treatment)
    exposure, click = names.index("exposure"), names.index("click")

    def figures(sums_BxO: np.ndarray) -> np.ndarray:
        return np.column_stack([sums_BxO, sums_BxO[:, click] / sums_BxO[:, exposure]])

    found = bootstrap.lifts(control_UO, treatment_UO, figures, resamples, seed)
    scale = np.append(np.full(len(names), user.size), 1)
    found = found._replace(control=found.control / scale, treatment=found.treatment / scale)
    return {name: Lift(*map(float, each)) for name, each in zip([*names, "click_through"], zip(*found, strict=True),
                                                                strict=True)}
