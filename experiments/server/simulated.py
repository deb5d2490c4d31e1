"""People of the simulated platform in front of the server: what they see comes over HTTP, what they do goes back.

Axes: n requests of a step, S places of a slate.
"""

import heapq
import itertools
import time
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np

from data_pipelines.live import events
from data_pipelines.live.replay import events_after
from data_pipelines.simulator import policies
from data_pipelines.simulator.platform import Outcomes, PlatformRequests
from data_pipelines.simulator.reactions import SLATE
from data_pipelines.simulator.simulation import rooms_until
from data_pipelines.simulator.world import MINUTE_MS, STEP_MS
from experiments.common import played
from experiments.common.log import Log
from experiments.common.tables import table
from onelive_jax.config import Config
from onelive_jax.tokenizer.semantic_ids import IdTable

STEP_S, TELL_S = 0.25, 5.0  # between two looks at the clock, and two reports to the page
ARMS = ("model", "viewers")
AT_ONCE = 5000  # events of a call
ROOM_EVENTS = (events.RoomStarted, events.Segment, events.RoomEnded)


@dataclass
class Arm:
    """What came of an arm so far."""

    requests: int = 0
    clicks: float = 0.0
    utility: float = 0.0

    def add(self, outcomes: Outcomes, rows: np.ndarray) -> None:
        self.requests += int(rows.sum())
        self.clicks += float(outcomes.clicked[rows].any(1).sum())
        self.utility += float(outcomes.utility[rows].sum())

    def figures(self) -> dict[str, float]:
        n = max(1, self.requests)
        return {"requests": self.requests, "ctr": self.clicks / n, "utility": self.utility / n}


class LivePlatform:
    """Attributes: arms: name → what came of it. off_air: rooms of answers that ended before they were shown. seconds:
    of every answer. sent: events."""

    def __init__(self, config: Config, log: Log, client: httpx.Client, speed: float, rate: float, minutes: float):
        """client: of a ready server, whose clock runs `speed` times as fast. rate: people who ask, a second.

        Raises: ValueError where the played period is shorter than `minutes`.
        """
        self.platform, self.client, self.speed, self.rate = played.make_platform(config, log), client, speed, rate
        self._people, self.seconds = log.tables.users["source_id"].to_list(), []
        world, self._began = self.platform.world, time.monotonic()
        self._first_ms = self._answer([0])[0]["at"]
        self.stop_ms = self._first_ms + round(minutes * 60_000 * speed)
        if self.stop_ms + MINUTE_MS > world.play_end_ms:
            most = (world.play_end_ms - self._first_ms) / 60_000 / speed
            raise ValueError(f"the played period ends after {most:.1f} minutes at --speed={speed:g}: lower --minutes "
                             "or --speed, or train with a longer config.simulator.play_days")
        self.arms, self.off_air, self.sent = {name: Arm() for name in ARMS}, 0, 0
        self._number = itertools.count()
        self._coming: list[tuple[int, int, events.Event]] = []
        rng = np.random.default_rng([config.seed, 1])
        self._treated = rng.permutation(config.simulator.users) % 2 == 0  # a person stays in their arm
        self._rng = rng
        self._expect(config, log)

    def run(self) -> None:
        """Until `minutes` are over."""
        self.send(self.now())
        last, told, minute, of_minute = self.now(), time.monotonic(), 0, {name: Arm() for name in ARMS}
        for step in itertools.count():
            time.sleep(STEP_S)
            now = self.now()
            if now >= self.stop_ms:
                break
            self.send(now)
            size = self._rng.poisson(self.rate * (now - last) / 1000 / self.speed)
            if size:
                outcomes = self.serve(size, step, last, now)
                for arm, rows in self._rows(outcomes.requests.user):
                    self.arms[arm].add(outcomes, rows)
                    of_minute[arm].add(outcomes, rows)
            last = now
            if time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                self._tell(minute, of_minute)
                if (told - self._began) // 60 > minute:
                    minute, of_minute = int((told - self._began) // 60), {name: Arm() for name in ARMS}
        self._tell(minute, of_minute)

    def now(self) -> int:
        """Milliseconds by the server's clock."""
        return self._first_ms + round(self.speed * 1000 * (time.monotonic() - self._began))

    def serve(self, size: int, seed: int, from_ms: int, to_ms: int) -> Outcomes:
        """So many people ask, see and react; what they do is expected by `send` at its time."""
        asked = self.platform.requests(min(size, 256), seed, from_ms, to_ms)
        rows = np.flatnonzero(self._treated[asked.user])
        answers = self._answer(asked.user[rows].tolist()) if rows.size else []
        rankings = {int(asked.key[row]): [int(room["room"]) for room in answer["rooms"]]
                    for row, answer in zip(rows, answers, strict=True)}
        most_watched = policies.viewers()

        def policy(told: PlatformRequests) -> np.ndarray:
            slates = most_watched(told)
            for row, key in enumerate(told.key.tolist()):
                if key in rankings:
                    on_air = set(told.room[told.offsets[row]:told.offsets[row + 1]].tolist())
                    slate = [room for room in rankings[key] if room in on_air]
                    self.off_air += len(rankings[key]) - len(slate)
                    slates[row] = (slate + [-1] * SLATE)[:SLATE]
            return slates

        outcomes = self.platform.play(policy, asked)
        self._react(outcomes)
        return outcomes

    def send(self, now_ms: int) -> None:
        """Posts all that has happened by now."""
        while self._coming and self._coming[0][0] <= now_ms:
            due = []
            while self._coming and self._coming[0][0] <= now_ms and len(due) < AT_ONCE:
                due.append(events.to_json(heapq.heappop(self._coming)[2]))
            self.client.post("/v1/events", json={"events": due}).raise_for_status()
            self.sent += len(due)

    def _answer(self, users: list[int]) -> list[dict[str, Any]]:
        began = time.perf_counter()
        reply = self.client.post("/v1/recommend/batch", json={"requests": [
            {"user": self._people[user], "k": SLATE, "deadline_ms": 60_000} for user in users]})
        reply.raise_for_status()
        self.seconds.append(time.perf_counter() - began)
        return reply.json()["answers"]

    def _expect(self, config: Config, log: Log) -> None:
        """Rooms, what they show, and the people who watch whatever is played: they alone are who "watches" at first."""
        world, until = self.platform.world, self.stop_ms + MINUTE_MS
        rooms, titles, segments = rooms_until(world, until, config.simulator.segment_seconds)
        tables = replace(self.platform.tables, rooms=rooms, titles=titles, segments=segments)
        # (Rooms of the log's last half minute are not in it yet; the server passes over those that it knows.)
        maker = log.batch_maker(IdTable.static(np.zeros((log.num_authors, config.tokenizer.levels), np.int32)), config)
        for event in events_after(world.end_ms - STEP_MS, tables, until, maker, until, config.tokenizer.follow_content):
            if isinstance(event, ROOM_EVENTS):
                self._will(event)
        for row, (user, room, start, stop) in enumerate(zip(*(x.tolist() for x in self.platform.background()),
                                                            strict=True)):
            if start < until:
                self._will(events.ViewStarted(f"crowd-{row}", start, f"crowd-{user}", str(room)))
                self._will(events.ViewEnded(f"crowd-{row}-end", stop, f"crowd-{user}", str(room)))

    def _will(self, event: events.Event) -> None:
        heapq.heappush(self._coming, (event.at, next(self._number), event))

    def _react(self, outcomes: Outcomes) -> None:
        user, time_ms = outcomes.requests.user.tolist(), outcomes.requests.time_ms.tolist()
        for row, place in np.argwhere(outcomes.examined).tolist():
            name, room = f"play-{next(self._number)}", str(outcomes.room[row, place])
            who, at = self._people[user[row]], time_ms[row]
            self._will(events.Impression(name, at, who, room, place))
            if outcomes.clicked[row, place]:
                watched = int(outcomes.watch_ms[row])
                self._will(events.ViewStarted(f"{name}-start", at, who, room))
                for kind, count in zip(events.REACTIONS, outcomes.counts[row].tolist(), strict=True):
                    if count:
                        worth = float(outcomes.observed["gift"][row]) if kind == "gift" else 0.0
                        self._will(events.Reaction(f"{name}-{kind}", at + watched // 2, kind, who, room, worth))
                self._will(events.ViewEnded(f"{name}-end", at + watched, who, room))

    def _rows(self, user: np.ndarray) -> list[tuple[str, np.ndarray]]:
        return [("model", self._treated[user]), ("viewers", ~self._treated[user])]

    def _tell(self, minute: int, arms: dict[str, Arm]) -> None:
        self.client.post("/v1/figures", json={"minute": minute, **{
            name: arm.figures() for name, arm in arms.items()}}).raise_for_status()


def format_arms(live: LivePlatform) -> str:
    """What came of both arms, and what the server did."""
    rows = [[name, f"{arm.requests}", f"{arm.figures()['ctr']:.3f}", f"{arm.figures()['utility']:.3f}"]
            for name, arm in live.arms.items()]
    batch = np.quantile(live.seconds, [0.5, 0.99]) * 1000
    return "\n".join([table(["arm", "requests", "click-through", "true utility"], rows), "",
                      f"{live.sent} events sent; a call with the people of {STEP_S} s took {batch[0]:.0f} ms (p99 "
                      f"{batch[1]:.0f} ms); {live.off_air} rooms of answers had ended, or did within "
                      f"{STEP_MS // 1000} s of simulated time"])
