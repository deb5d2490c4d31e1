"""The played platform's requests as the model's arrays, and batches of rounds that were played and answered.

Axes: n requests, R requests of a part, N rooms on air (padded), S places of a slate.
"""

import logging
from dataclasses import dataclass, field

import jax
import numpy as np

from data_pipelines.batches import features
from data_pipelines.batches.feedback import LEFT_AT_ONCE_MS, MINUTE_MS
from data_pipelines.batches.training import RequestMaker
from data_pipelines.log.audiences import Audiences
from data_pipelines.log.presence import OnAir
from data_pipelines.log.store import timeline_arrays
from data_pipelines.log.timelines import Timelines, other_timelines
from data_pipelines.simulator.platform import Outcomes, Platform, PlatformRequests
from data_pipelines.simulator.world import SimulatedWorld
from data_pipelines.tables import Tables
from onelive_jax.batch import Batch, Feedback, LiveRooms
from onelive_jax.config import Config
from onelive_jax.reward.rewards import shape_feedback
from onelive_jax.tokenizer.semantic_ids import IdTable

logger = logging.getLogger(__name__)


@dataclass
class PlatformArrays:
    """Turns what a policy is told (`PlatformRequests`) into the model's arrays.

    Attributes:
      config: of the run. ids: who is called what, the played period included. platform: what is played.
      audiences: what was counted of authors in the training log.
      slots: N, rooms on air at the busiest moment, up to the next multiple of 32: one shape.
    """

    config: Config
    ids: IdTable
    platform: Platform
    audiences: Audiences
    slots: int = field(init=False)
    _log: Tables | None = field(default=None, init=False, repr=False)
    _requests: RequestMaker | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        world = self.platform.world
        starts, ends = np.sort(world.room_start_ms), np.sort(world.room_end_ms)
        at = starts[(starts >= world.end_ms) & (starts < world.play_end_ms)]
        at = np.append(at, world.end_ms)
        busiest = np.searchsorted(starts, at, side="right") - np.searchsorted(ends, at, side="right")
        self.slots = -(-int(busiest.max()) // 32) * 32

    def requests(self, log: Tables) -> RequestMaker:
        """Of histories as `log` has them; made anew only when the log has grown."""
        if log is not self._log:
            arrays = timeline_arrays(log)
            self._log, self._requests = log, RequestMaker(Timelines.from_arrays(arrays), self.ids, self.config.data,
                                                          other_timelines(log, arrays), self.audiences)
        return self._requests

    def rooms(self, asked: PlatformRequests, row: np.ndarray) -> LiveRooms:
        """LiveRooms [R, N] of requests `row` int64 [R]; slot i is the i-th room of the request."""
        count = np.diff(asked.offsets)[row]
        flat = np.repeat(asked.offsets[row] - (np.cumsum(count) - count), count) + np.arange(count.sum())
        room, author, times = asked.room[flat], asked.author[flat], asked.time_ms[row]
        on_air = OnAir(np.append(0, np.cumsum(count)), author, room, asked.viewers[flat],
                       self.platform.world.room_start_ms[room])
        return features.live_rooms(on_air, self.ids.codes_at(author, times[on_air.moment]), times, self.slots,
                                   self.audiences)


@dataclass
class Round:
    """What was asked, what came of it, and the histories that the policy read (without this round)."""

    asked: PlatformRequests
    outcomes: Outcomes
    requests: RequestMaker


class RoundsMaker:
    """(batch, feedback) of played requests, exactly as they were served: rooms on air, viewers, histories so far.

    Attributes: rounds; clicked: int64, requests with a click, numbered over all rounds: the others have no target, and
    take no part, with what was disliked there.

    Raises: ValueError without any click.
    """

    def __init__(self, arrays: PlatformArrays, rounds: list[Round], now_ms: int):
        self.arrays, self.rounds = arrays, rounds
        self.first = np.append(0, np.cumsum([round.asked.user.size for round in rounds]))
        self.clicked = np.concatenate([low + np.flatnonzero(round.outcomes.clicked.any(1))
                                       for low, round in zip(self.first, rounds, strict=False)])
        if not self.clicked.size:
            raise ValueError("nobody clicked in any round so far: nothing can be learned. Set --requests higher")
        self.reward = rewards_of(arrays.platform.world, rounds, now_ms)

    def batch(self, row: np.ndarray, rng: np.ndarray) -> tuple[Batch, Feedback]:
        """Of requests `row` int64 [B]. Nothing is drawn: `rng` is not read."""
        parts, order = [], []
        number = np.searchsorted(self.first, row, side="right") - 1
        for i in np.unique(number):
            at = np.flatnonzero(number == i)
            parts.append(self._of_round(i, row[at] - self.first[i]))
            order.append(at)
        back = np.argsort(np.concatenate(order))
        return jax.tree.map(lambda *x: np.concatenate(x)[back], *parts)

    def _of_round(self, i: int, row: np.ndarray) -> tuple[Batch, Feedback]:
        asked, outcomes = self.rounds[i].asked, self.rounds[i].outcomes
        world, live = self.arrays.platform.world, self.arrays.rooms(asked, row)
        request = self.rounds[i].requests.request(asked.user[row], asked.time_ms[row])
        room = outcomes.room[row]
        shown = room >= 0
        author = np.where(shown, world.room_author[room], 0)
        same = (live.author[:, None] == author[..., None]) & live.mask[:, None]
        slot = np.where(shown, same.argmax(-1), 0)
        codes, values = (np.take_along_axis(x, slot[..., None], 1) for x in (live.codes, live.features))
        rooms = LiveRooms(author.astype(np.int32), codes, values, shown)
        empty = np.zeros((*room.shape, 1), np.float32)
        ones = np.ones(row.size, np.float32)
        feedback = Feedback(request, rooms, empty, empty > 0, self.reward[i][row], shown,
                            np.where(shown, outcomes.propensity[row], 0).astype(np.float32), ones)
        at, place = np.arange(row.size), outcomes.clicked[row].argmax(1)
        batch = Batch(request, live, author[at, place].astype(np.int32), codes[at, place],
                      slot[at, place].astype(np.int32), ones)
        return batch, feedback


def rewards_of(world: SimulatedWorld, rounds: list[Round], now_ms: int) -> list[np.ndarray]:
    """float32 [n, S] a round: −1, 0 or 1 (`shape_feedback` over all rounds), 0 without a click or dislike.

    now_ms: what lies after it is not known: a room that is still on air is as long as it has been so far.
    """
    judged = [np.nonzero(round.outcomes.clicked | round.outcomes.negative) for round in rounds]

    def pick(of):
        return np.concatenate([of(round)[request, place] for round, (request, place) in zip(rounds, judged,
                                                                                            strict=True)])

    def of_request(of):
        return np.concatenate([of(round)[request] for round, (request, _) in zip(rounds, judged, strict=True)])

    room, clicked, negative = (pick(lambda r, name=name: getattr(r.outcomes, name))
                               for name in ("room", "clicked", "negative"))
    user, watch = of_request(lambda r: r.asked.user), of_request(lambda r: r.outcomes.watch_ms) * clicked
    length = (np.minimum(world.room_end_ms[room], now_ms) - world.room_start_ms[room]) / MINUTE_MS
    value, counts = shape_feedback(user, length, watch / MINUTE_MS, negative | (clicked & (watch < LEFT_AT_ONCE_MS)))
    # A request without a click is not trained on: a dislike there is counted, and not used.
    used = of_request(lambda r: r.outcomes.clicked.any(1))
    logger.info("rewards of %d rounds: %s, %d of them of requests without a click and left out", len(rounds),
                ", ".join(f"{count:,} {name}" for name, count in counts.items()), int((~used).sum()))
    result, values = [], iter(np.split(value, np.cumsum([request.size for request, _ in judged])[:-1]))
    for round, at in zip(rounds, judged, strict=True):
        result.append(np.zeros(round.outcomes.room.shape, np.float32))
        result[-1][at] = next(values)
    return result
