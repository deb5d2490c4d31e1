"""A trained model as a policy of the played platform: requests in, rooms on air ranked by the real beam search.

Every request is answered under a live index of its own moment, with the person's history as the platform's log has it
so far. Shapes are fixed (requests of a chunk, rooms on air at the busiest moment), so that everything compiles once.

Axes: n requests, R requests of a chunk, N rooms on air (padded), S places of a slate, C candidates of all requests.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from data_pipelines.batches.training import BatchMaker
from data_pipelines.log.content import author_content
from data_pipelines.log.presence import OnAir
from data_pipelines.log.store import timeline_arrays
from data_pipelines.log.timelines import Timelines
from data_pipelines.simulator import policies
from data_pipelines.simulator.platform import Batch, Platform, Policy
from data_pipelines.simulator.reactions import SLATE, uniform
from data_pipelines.simulator.simulation import rooms_until
from data_pipelines.tables import Tables
from experiments.common.log import Log, other_sequences
from experiments.stages.tokenizer import Tokenizer, segment_codes
from onelive_jax.alignment import rollouts
from onelive_jax.batch import LiveRooms
from onelive_jax.config import Config
from onelive_jax.decoding import live_index
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.model.onelive import OneLive
from onelive_jax.tokenizer import semantic_ids

logger = logging.getLogger(__name__)
CHUNK = 64
_DRAW = 2000  # purpose of the random numbers that a stochastic policy draws with


def make_platform(config: Config, log: Log) -> Platform:
    """The platform whose log a workdir was trained on.

    Raises: ValueError where the log is not a simulated one, or the simulator now makes another.
    """
    if config.data.source != "simulated":
        raise ValueError(f"config.data.source={config.data.source!r} cannot be played: only the simulated platform can")
    platform = Platform(config.simulator)
    if not platform.tables.interactions.equals(log.tables.interactions):
        raise ValueError("the simulator now makes another log than the one that the workdir was trained on: train "
                         "again in another --workdir")
    return platform


def played_ids(config: Config, log: Log, platform: Platform, tokenizer: Tokenizer) -> semantic_ids.IdTable:
    """The table of semantic ids, extended by the codes of what rooms show in the played period, each from its moment
    on: the stored towers and codebooks read the segments that the world holds."""
    world, tables = platform.world, platform.tables
    rooms, titles, segments = rooms_until(world, world.play_end_ms, config.simulator.segment_seconds)
    whole = dataclasses.replace(tables, rooms=rooms, titles=titles, segments=segments)
    content = author_content(whole, log.split.p1_ms)
    if content is None or not config.tokenizer.follow_content:
        return tokenizer.ids
    new = np.flatnonzero(content.from_ms > world.end_ms)
    codes = segment_codes(tokenizer.encoder, content, new)
    extended = tokenizer.ids.extend(content.author[new], content.from_ms[new], codes)
    if extended.late:
        logger.warning("%d of %d segments of the played period are older than their author's last and left out",
                       extended.late, new.size)
    return extended.table


@dataclass
class Asker:
    """Turns what a policy is told (`platform.Batch`) into the model's arrays.

    Attributes:
      config: of the run. ids: from `played_ids`. platform: what is played. slots: N, rooms on air at the busiest
        moment, up to the next multiple of 32.
    """

    config: Config
    ids: semantic_ids.IdTable
    platform: Platform
    slots: int = 0
    _log: Tables | None = field(default=None, repr=False)
    _maker: BatchMaker | None = field(default=None, repr=False)

    def __post_init__(self):
        world = self.platform.world
        starts, ends = np.sort(world.room_start_ms), np.sort(world.room_end_ms)
        at = starts[(starts >= world.end_ms) & (starts < world.play_end_ms)]
        at = np.append(at, world.end_ms)
        busiest = np.searchsorted(starts, at, side="right") - np.searchsorted(ends, at, side="right")
        self.slots = -(-int(busiest.max()) // 32) * 32
        # Rooms need no history: they are made without one, whatever the log.
        self._rooms = BatchMaker(None, None, self.ids, self.config.data, dict.fromkeys(self.config.data.sequences))

    def maker(self, log: Tables) -> BatchMaker:
        """Of histories as `log` has them; made anew only when the log has grown."""
        if log is not self._log:
            arrays = timeline_arrays(log)
            views = Timelines(*(arrays[name] for name in ("user_ptr", "author", "room", "start_ms", "stop_ms")))
            others = other_sequences(log, arrays)
            self._log, self._maker = log, BatchMaker(views, None, self.ids, self.config.data, others)
        return self._maker

    def on_air(self, batch: Batch, row: np.ndarray) -> OnAir:
        """The rooms on air of requests `row` int64 [R], in the order of `batch.room`."""
        count = np.diff(batch.offsets)[row]
        flat = np.repeat(batch.offsets[row] - (np.cumsum(count) - count), count) + np.arange(count.sum())
        since = self.platform.world.room_start_ms[batch.room[flat]]
        return OnAir(np.append(0, np.cumsum(count)), batch.author[flat], batch.room[flat], batch.viewers[flat], since)

    def rooms(self, batch: Batch, row: np.ndarray) -> LiveRooms:
        """LiveRooms [R, N]; slot i is the i-th room of the request."""
        return self._rooms.live_rooms(self.on_air(batch, row), batch.time_ms[row], self.slots)[0]


def best(asker: Asker, model: OneLive, params: Any, k: int = SLATE) -> Policy:
    """The k rooms that decoding ranks first."""
    recommend = make_recommender(model, asker.config.decoding, k=k)
    rank = jax.jit(lambda params, request, rooms: recommend(params, request, live_index.from_rooms(
        rooms, model.num_codes)))

    def policy(batch: Batch) -> np.ndarray:
        shown = np.full((batch.user.size, k), -1, np.int32)
        for row, kept in chunks(batch.user.size):
            request = asker.maker(batch.log).request(batch.user[row], batch.time_ms[row])
            ranking = rank(params, request, asker.rooms(batch, row))
            slot, valid = np.asarray(ranking.slot), np.asarray(ranking.valid)
            room = batch.room[np.minimum(batch.offsets[row][:, None] + slot, batch.room.size - 1)]
            shown[row[:kept]] = np.where(valid, room, -1)[:kept]
        return shown

    return policy


def drawer(asker: Asker, model: OneLive) -> Callable[[Any], Policy]:
    """Parameters → policy, compiled once for all of them: a slate of rooms drawn one after another without replacement
    from π(room) ∝ exp(score of decoding) (Gumbel top-k).

    With its propensity: π(room), the probability of being drawn first, for every place. That is the policy's own
    probability of the room, which learning from the log compares with. Random numbers are a function of the request's
    key and the room: two policies that give a room the same score draw it alike.
    """
    weight = asker.config.decoding.identity_weight

    @jax.jit
    def log_probs(params, request, rooms):
        opened = model.apply({"params": params}, request, rooms, weight, method="open")
        return rollouts.room_log_probs(model, params, opened, rooms)

    def policy(params: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        size = batch.user.size, SLATE
        shown, propensity = np.full(size, -1, np.int32), np.ones(size, np.float32)
        for row, kept in chunks(batch.user.size):
            request = asker.maker(batch.log).request(batch.user[row], batch.time_ms[row])
            rooms = asker.rooms(batch, row)
            log_pi = np.asarray(log_probs(params, request, rooms))
            room = batch.room[np.minimum(batch.offsets[row][:, None] + np.arange(asker.slots), batch.room.size - 1)]
            noise = -np.log(-np.log(uniform(batch.key[row][:, None], room, _DRAW)))
            slot = np.argsort(-np.where(rooms.mask, log_pi + noise, -np.inf), axis=1)[:, :SLATE]
            there, room, chance = (np.take_along_axis(x, slot, 1) for x in (rooms.mask, room, np.exp(log_pi)))
            shown[row[:kept]] = np.where(there, room, -1)[:kept]
            # (A probability that rounds to 0 is still one.)
            propensity[row[:kept]] = np.where(there, np.clip(chance, 1e-12, 1.0), 1.0)[:kept]
        return shown, propensity

    return lambda params: functools.partial(policy, params)


def chunks(n: int):
    """(row int64 [CHUNK], how many of them are new) of n requests; the last chunk is filled up: one shape."""
    for low in range(0, n, CHUNK):
        yield np.minimum(np.arange(low, low + CHUNK), n - 1), min(CHUNK, n - low)


def heuristics(platform: Platform) -> dict[str, Policy]:
    """Policies without a model, by name."""
    return {"random": policies.random(), "viewers": policies.viewers(), "own_counts": policies.own_counts(),
            "logging": policies.logging_policy(platform), "oracle": policies.oracle(platform)}


def make_asker(config: Config, log: Log, platform: Platform, tokenizer: Tokenizer) -> Asker:
    return Asker(config, played_ids(config, log, platform, tokenizer), platform)
