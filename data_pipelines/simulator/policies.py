"""Heuristic policies of the played platform: what a trained policy is measured against, from no knowledge to all of it.

    python -m data_pipelines.simulator.policies --seed=0 --requests=20000

plays each against the one that knows less, and prints the lifts.

Each function returns a policy: PlatformRequests → room ids int32 [n, SLATE], best first, -1 padding.

Axes: n requests, C candidates of all requests (flat).
"""

import argparse
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import polars as pl
from tabulate import tabulate

from data_pipelines.log import own_counts as own_views
from data_pipelines.log.timelines import Timelines
from data_pipelines.simulator.platform import Platform, PlatformRequests, Policy, compare
from data_pipelines.simulator.reactions import OBJECTIVES, SLATE
from data_pipelines.simulator.sessions import known_authors
from data_pipelines.simulator.world import DAY_MS, mix
from data_pipelines.tables import Tables
from onelive_jax.config import SimulatorConfig

SCORED_AT_ONCE = 200_000
_TIES = 1000  # purpose of the hash that orders ties


def random() -> Policy:
    """Any room on air, each as likely."""
    return lambda asked: top(asked, np.zeros(asked.room.size))


def viewers() -> Policy:
    """The rooms that most other people watch now."""
    return lambda asked: top(asked, asked.viewers)


def own_counts(half_life_days: float = 14.0) -> Policy:
    """The person's own clicks on the author in the log so far, halved per half-life; ties by current viewers."""
    log, views = None, None

    def policy(asked: PlatformRequests) -> np.ndarray:
        nonlocal log, views
        if asked.log is not log:  # the log grew
            log, views = asked.log, _clicks(asked.log)
        counts, = own_views.own_counts(views, asked.user, asked.time_ms, asked.offsets, asked.author,
                                       lambda age: np.exp2(-age / (half_life_days * DAY_MS))[None])
        return top(asked, counts + 1e-9 * asked.viewers)

    return policy


def _clicks(log: Tables) -> Timelines:
    rows = log.interactions.filter(pl.col("click"))
    ptr = np.searchsorted(rows["user_id"].to_numpy(), np.arange(len(log.users) + 1))
    start = rows["start_ms"].to_numpy()
    return Timelines(ptr, rows["author_id"].to_numpy(), rows["room_id"].to_numpy(), start,
                     start + rows["watch_ms"].to_numpy())


def oracle(platform: Platform, objective: str = "utility") -> Policy:
    """Knows true affinity: the rooms of the highest expected objective, or utility, once looked at.

    Raises:
      ValueError: no such objective.
    """
    if objective not in (*OBJECTIVES, "utility"):
        raise ValueError(f"objective={objective!r} is not one of {', '.join((*OBJECTIVES, 'utility'))}")

    def policy(asked: PlatformRequests) -> np.ndarray:
        owner = np.repeat(np.arange(asked.user.size), np.diff(asked.offsets))
        score = np.empty(asked.room.size)
        for first in range(0, score.size, SCORED_AT_ONCE):
            part = slice(first, first + SCORED_AT_ONCE)
            score[part] = platform.true_values(asked.user[owner[part]], asked.room[part],
                                               asked.time_ms[owner[part]])[objective]
        return top(asked, score)

    return policy


def logging_policy(platform: Platform, seed: int = 0) -> Callable[[PlatformRequests], tuple[np.ndarray, np.ndarray]]:
    """The biased policy that wrote the log, with its propensities."""
    def policy(asked: PlatformRequests) -> tuple[np.ndarray, np.ndarray]:
        first = int(asked.key[0]) if asked.key.size else 0
        people = platform.people
        known = known_authors(people.recent[asked.user], people.follows[asked.user])
        room, propensity, _ = platform.feed.slates(asked.time_ms, *known, platform.behaviour.habit,
                                                   np.random.default_rng([seed, first]))
        return room, propensity

    return policy


def top(asked: PlatformRequests, score_C: np.ndarray, k: int = SLATE) -> np.ndarray:
    """int32 [n, k]: the rooms of each request with the highest scores; ties are in a random, reproducible order."""
    owner = np.repeat(np.arange(asked.user.size), np.diff(asked.offsets))
    order = np.lexsort((mix(asked.key[owner], asked.room, _TIES), -score_C, owner))
    place = np.arange(order.size) - asked.offsets[owner]
    kept = place < k
    result = np.full((asked.user.size, k), -1, np.int32)
    result[owner[kept], place[kept]] = asked.room[order[kept]]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Plays the heuristic policies on a simulated platform.")
    parser.add_argument("--requests", type=int, default=20_000, help="requests that every policy answers")
    for f in fields(SimulatorConfig):
        parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default, help=f.metadata["doc"])
    options = vars(parser.parse_args())
    if (count := options.pop("requests")) < 1:
        parser.error(f"--requests={count} must be 1 or more")
    try:
        platform = Platform(SimulatorConfig(**options))
    except ValueError as error:
        parser.error(str(error))
    requests = platform.requests(count, seed=0)
    ladder = {"random": random(), "viewers": viewers(), "own counts": own_counts(), "oracle": oracle(platform)}
    arms = {name: platform.play(policy, requests) for name, policy in ladder.items()}
    names = list(arms)
    for worse, better in zip(names, names[1:], strict=False):
        rows = [[name, f"{x.control:.4f}", f"{x.treatment:.4f}", f"{x.lift:+.2%}", f"{x.low:+.2%} … {x.high:+.2%}"]
                for name, x in compare(arms[worse], arms[better]).items()]
        print(f"\n{better} over {worse}\n\n" + tabulate(
            rows, ["per request", "control", "treatment", "lift", "95 % interval by user"], disable_numparse=True,
            colalign=("left", "right", "right", "right", "right")))


if __name__ == "__main__":
    main()
