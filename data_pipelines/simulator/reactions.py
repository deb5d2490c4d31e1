"""How people behave on the simulated platform: what they click, how long they stay, how they react, and on average.

Axes: n (person, room, moment) triples, S places of a slate, M looks at the room, O objectives.

A person reads a slate from the top. At each room they click with `click_chance`; if not, they read on with probability
READ_ON, else they stop: at most one click a slate, and lower places are seen less often. All that follows a click
(`draw_watch`, `reaction_rates`) depends on the affinity of the moment, and `values_given_click` is its exact mean.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.simulator.world import HOUR_MS, MINUTE_MS, SimulatedWorld, mix

OBJECTIVES = ("click", "long_view", "watch", "like", "comment", "follow", "share", "gift")
# The true utility of a request: the sum of the expected objectives, watch in minutes, gift in units of value. The
# weights make a typical click worth about 1.3, of which the click itself is a small part: to lure is not to serve.
UTILITY = {"click": 0.2, "long_view": 0.5, "watch": 0.01, "like": 4.0, "comment": 4.0, "follow": 5.0, "share": 5.0,
           "gift": 0.5}
LONG_VIEW_MIN = 10.0

SLATE = 6  # rooms on a screen
READ_ON = 0.88
# Log-odds of a click: at affinity 0, per unit of affinity, of fame and of lure, of a follow, of the room just left.
CLICK, AFFINITY, FAME, LURE, FOLLOW, JUST_LEFT = -3.4, 2.0, 0.35, 0.5, 0.8, -0.5
# Intended minutes are log-normal: change of their log median per unit of affinity, hold, fame and lure.
WATCH_SLOPE, WATCH_HOLD, WATCH_FAME, WATCH_LURE = 0.4, 0.3, 0.2, -0.35
# Minutes after which a person looks up; they leave at a look with a probability that is 0 until affinity has fallen by
# half of PATIENCE and 1 from three halves on, and then at LEFT_BY of the minutes of that look.
LOOKS_MIN = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256], np.float32)
PATIENCE, LEFT_BY, LONGEST_MIN, SHORTEST_MS = 1.6, 0.8, 600.0, 1000
# Reactions (in the order of REACTIONS): slope of the log rate with affinity, and the largest rate of a click.
REACTION_SLOPE = np.array([0.9, 0.6, 1.0, 0.5, 0.7], np.float32)
REACTION_MOST = np.array([3.0, 3.0, 0.6, 1.0, 0.9], np.float32)
GIFT_VALUE, GIFT_SPREAD = 15.0, 1.2  # mean value of a gift, spread of its log


@dataclass(frozen=True)
class Behaviour:
    """What is solved for, so that each world meets its targets; the defaults are near those of the default size.

    Attributes:
      habit: log-odds of a click per unit of log(1 + views of the author among the last 16).
      watch_log_median: log minutes intended at affinity 1. watch_spread: standard deviation of the log minutes.
      rates: scale of each of REACTIONS.
    """

    habit: float = 1.8
    watch_log_median: float = 2.15
    watch_spread: float = 2.17
    rates: tuple[float, ...] = (0.05, 0.06, 0.004, 0.003, 0.02)


def click_chance(world: SimulatedWorld, behaviour: Behaviour, author, affinity, seen, followed,
                 just_left) -> np.ndarray:
    """float32, probability of a click on a room that is looked at.

    Args (one shape): author int; affinity float32; seen int, views of the author among the person's last 16; followed
      bool; just_left bool, the person's last view was in this very room.
    """
    odds = (CLICK + AFFINITY * affinity + FAME * world.fame[author] + LURE * world.lure[author]
            + np.float32(behaviour.habit) * np.log1p(seen.astype(np.float32)) + np.float32(FOLLOW) * followed
            + np.float32(JUST_LEFT) * just_left)
    return (1 / (1 + np.exp(-odds))).astype(np.float32)


def read_slate(chance_nS: np.ndarray, there_nS: np.ndarray, click_nS: np.ndarray, on_nS: np.ndarray):
    """(examined bool [n, S], clicked bool [n, S]): what is looked at and what is clicked, at most one a row.

    Args: chance_nS, probability of a click; there_nS, whether the place holds a room (a slate ends where it does not);
      click_nS, on_nS: uniform numbers that decide a click and whether the person reads on after this place.
    """
    wants = there_nS & (click_nS < chance_nS)
    goes_on = np.cumprod(there_nS & ~wants & (on_nS < READ_ON), axis=1, dtype=np.int8).astype(bool)
    examined = there_nS.copy()
    examined[:, 1:] &= goes_on[:, :-1]
    return examined, examined & wants


def expected_read(chance_nS: np.ndarray, there_nS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probability of being examined, of being clicked), float64 [n, S]: the mean of `read`."""
    chance = np.where(there_nS, chance_nS, 0.0).astype(np.float64)
    onward = np.cumprod((1 - chance) * READ_ON * there_nS, axis=1)
    examined = there_nS.astype(np.float64)
    examined[:, 1:] *= onward[:, :-1]
    return examined, examined * chance


def boredom(world: SimulatedWorld, user, room, time_ms, affinity) -> np.ndarray:
    """float32 [n, M]: probability of having left by each of LOOKS_MIN because the content drifted away."""
    looks_nM = time_ms[:, None] + (LOOKS_MIN * MINUTE_MS).astype(np.int64)
    later_nM = world.affinity(user, np.broadcast_to(room[:, None], looks_nM.shape), looks_nM)
    drop = np.maximum.accumulate(affinity[:, None] - later_nM, axis=1)
    return np.clip(drop / PATIENCE - 0.5, 0, 1)


def draw_watch(world: SimulatedWorld, behaviour: Behaviour, user, room, time_ms, affinity, patience,
               normal) -> np.ndarray:
    """int64 [n], ms watched after a click; it ends with intent, with the drift of the content or with the room.

    Args: patience, uniform [n]; normal, standard normal [n]: the two random numbers of a view.
    """
    bored = boredom(world, user, room, time_ms, affinity) > patience[:, None]
    leave = np.where(bored.any(1), LEFT_BY * LOOKS_MIN[bored.argmax(1)], LONGEST_MIN)
    intent = np.exp(_log_minutes(world, behaviour, room, affinity) + behaviour.watch_spread * normal)
    watch = np.maximum((np.minimum(intent, leave) * MINUTE_MS).astype(np.int64), SHORTEST_MS)
    return np.minimum(watch, world.room_end_ms[room] - time_ms)


def reaction_rates(world: SimulatedWorld, behaviour: Behaviour, user, room, affinity, following) -> np.ndarray:
    """float32 [n, 5], mean number of each of REACTIONS: likes, comments and gifts of an hour's watch, follows and
    shares of a click. following, bool [n]: who follows already does not again."""
    author = world.room_author[room]
    log_rate = np.clip(affinity, -3, 3)[:, None] * REACTION_SLOPE + world.charm[author]
    rate = np.asarray(behaviour.rates, np.float32) * np.exp(log_rate)
    rate[:, 4] *= world.generosity[user]
    rate[:, 2] *= ~following
    return np.minimum(rate, REACTION_MOST)


def hour_share(watch_ms: np.ndarray) -> np.ndarray:
    """float: watch as a share of an hour, at most 1: what the rates of likes, comments and gifts are multiplied by."""
    return np.minimum(watch_ms / HOUR_MS, 1.0)


def values_given_click(world: SimulatedWorld, behaviour: Behaviour, user, room, time_ms, affinity,
                       following) -> np.ndarray:
    """float64 [n, O], mean of each objective after a click; watch in minutes, gift in units of value.

    Exact up to the shortest watch (SHORTEST_MS) and whole milliseconds. With F(m) the probability of having left by
    look m, E[min(X, cap)] is averaged over the caps: LEFT_BY of each look, the longest watch, and the room's end.
    """
    left_nM = boredom(world, user, room, time_ms, affinity).astype(np.float64)
    weight = np.diff(left_nM, axis=1, prepend=0.0, append=1.0)
    room_min = (world.room_end_ms[room] - time_ms) / MINUTE_MS
    cap = np.minimum(np.append(LEFT_BY * LOOKS_MIN, LONGEST_MIN), room_min[:, None])
    mean = _log_minutes(world, behaviour, room, affinity)[:, None].astype(np.float64)
    spread = behaviour.watch_spread
    long = (weight * (cap >= LONG_VIEW_MIN)).sum(1) * phi((mean[:, 0] - np.log(LONG_VIEW_MIN)) / spread)
    watch = (weight * _mean_of_capped(mean, spread, cap)).sum(1)
    hour = (weight * _mean_of_capped(mean, spread, np.minimum(cap, 60.0))).sum(1) / 60
    rate = reaction_rates(world, behaviour, user, room, affinity, following).astype(np.float64)
    one = np.ones_like(watch)
    return np.column_stack([one, long, watch, rate[:, 0] * hour, rate[:, 1] * hour, rate[:, 2], rate[:, 3],
                            rate[:, 4] * hour * GIFT_VALUE])


def utility(values: np.ndarray) -> np.ndarray:
    """float64 [...]: the weighted sum of objectives [..., O]."""
    # Not a matrix product: BLAS may sum one row otherwise than the same row among others.
    return np.einsum("...o,o->...", values, np.array([UTILITY[name] for name in OBJECTIVES]))


def dislike_chance(affinity: np.ndarray) -> np.ndarray:
    """float32: probability of an explicit dislike of a room that was looked at and not clicked."""
    return np.where(affinity < -0.5, 0.01 * np.exp(-np.clip(affinity, -3, 0)), 0.0).astype(np.float32)


def phi(x: np.ndarray) -> np.ndarray:
    """The standard normal distribution function, by linear interpolation (error below 1e-6)."""
    return np.interp(x, _GRID, _PHI)


_GRID = np.linspace(-7, 7, 7001)
_DENSITY = np.exp(-_GRID**2 / 2)
_PHI = np.concatenate([[0.0], np.cumsum(_DENSITY[1:] + _DENSITY[:-1])])
_PHI /= _PHI[-1]


def _log_minutes(world: SimulatedWorld, behaviour: Behaviour, room, affinity) -> np.ndarray:
    author = world.room_author[room]
    return (np.float32(behaviour.watch_log_median) + WATCH_SLOPE * (affinity - 1) + WATCH_HOLD * world.hold[author]
            + WATCH_FAME * world.fame[author] + WATCH_LURE * world.lure[author])


def _mean_of_capped(mean, spread, cap) -> np.ndarray:
    """E[min(X, cap)] of a log-normal X."""
    z = (np.log(np.maximum(cap, 1e-9)) - mean) / spread
    return np.exp(mean + spread**2 / 2) * phi(z - spread) + cap * phi(-z)


def uniform(key, what, purpose) -> np.ndarray:
    """float64 in (0, 1): a function of a request's key, a room or place, and a purpose."""
    return ((mix(key, what, purpose) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(key, what, purpose) -> np.ndarray:
    """Standard normal (Box and Muller); takes the numbers of two purposes, this and the next."""
    radius = np.sqrt(-2 * np.log(uniform(key, what, purpose)))
    return radius * np.cos(2 * np.pi * uniform(key, what, purpose + 1))


def poisson(mean: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """int32: Poisson numbers (at most 15) by inversion of the distribution function."""
    term = np.exp(-mean.astype(np.float64))
    reached, count = term.copy(), np.zeros(mean.shape, np.int32)
    for k in range(1, 16):
        count += uniform > reached
        term = term * mean / k
        reached += term
    return count
