"""A trained model as a policy of the played platform: requests in, rooms on air ranked by the real beam search.

Every request is answered under a live index of its own moment, with the person's history as the platform's log has it
so far. Shapes are fixed (requests of a chunk, rooms on air at the busiest moment), so that everything compiles once.

Axes: n requests, R requests of a chunk, N rooms on air (padded), S places of a slate, C candidates of all requests.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from data_pipelines.batches.played import PlatformArrays
from data_pipelines.log.content import Content, author_content
from data_pipelines.simulator import policies
from data_pipelines.simulator.platform import Platform, PlatformRequests, Policy
from data_pipelines.simulator.reactions import SLATE, uniform
from data_pipelines.simulator.simulation import rooms_until
from experiments.common.log import Log
from experiments.common.tower_scores import tie_breaker
from experiments.stages.tokenizer import Tokenizer, segment_codes
from onelive_jax.alignment import rollouts
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


def played_content(config: Config, log: Log, platform: Platform) -> Content | None:
    """The content of rooms in the log and in the played period, which the world holds."""
    world = platform.world
    rooms, titles, segments = rooms_until(world, world.play_end_ms, config.simulator.segment_seconds)
    whole = dataclasses.replace(platform.tables, rooms=rooms, titles=titles, segments=segments)
    return author_content(whole, log.split.p1_ms)


def played_ids(config: Config, content: Content | None, platform: Platform,
               tokenizer: Tokenizer) -> semantic_ids.IdTable:
    """The table of semantic ids, extended by the codes of what rooms show in the played period, each from its moment
    on: the stored towers and codebooks read `played_content`."""
    if content is None or not config.tokenizer.follow_content:
        return tokenizer.ids
    new = np.flatnonzero(content.from_ms > platform.world.end_ms)
    codes = segment_codes(tokenizer.encoder, content, new)
    extended = tokenizer.ids.extend(content.author[new], content.from_ms[new], codes)
    if extended.late:
        logger.warning("%d of %d segments of the played period are older than their author's last and left out",
                       extended.late, new.size)
    return extended.table


def ranking(model: OneLive, config: Config, log: Log, platform: Platform, tokenizer: Tokenizer,
            k: int = SLATE) -> Callable[[Any], Policy]:
    """Parameters → policy, compiled once for all of them: the k rooms that decoding ranks first, as in the report."""
    content = played_content(config, log, platform)
    arrays = PlatformArrays(config, played_ids(config, content, platform, tokenizer), platform, log.audiences)
    recommend = make_recommender(model, config.decoding, k=k)
    ties = tie_breaker(model, tokenizer, config, log, content)
    rank = jax.jit(lambda params, request, rooms, tie_score: recommend(params, request, live_index.from_rooms(
        rooms, model.num_codes), tie_score))

    def policy(params: Any, asked: PlatformRequests) -> np.ndarray:
        requests = arrays.requests(asked.log)
        if ties is not None:
            ties.views = requests.views  # histories grow as the platform is played
        shown = np.full((asked.user.size, k), -1, np.int32)
        for row, kept in chunks(asked.user.size):
            user, time, rooms = asked.user[row], asked.time_ms[row], arrays.rooms(asked, row)
            tie_score = None if ties is None else ties.rooms(user, time, rooms.author)
            made = rank(params, requests.request(user, time), rooms, tie_score)
            slot, valid = np.asarray(made.slot), np.asarray(made.valid)
            room = asked.room[np.minimum(asked.offsets[row][:, None] + slot, asked.room.size - 1)]
            shown[row[:kept]] = np.where(valid, room, -1)[:kept]
        return shown

    return lambda params: functools.partial(policy, params)


def drawer(arrays: PlatformArrays, model: OneLive) -> Callable[[Any], Policy]:
    """Parameters → policy, compiled once for all of them: a slate of rooms drawn one after another without replacement
    from π(room) ∝ exp(score of decoding) (Gumbel top-k).

    With its propensity: π(room), the probability of being drawn first, for every place. That is the policy's own
    probability of the room, which learning from the log compares with. Random numbers are a function of the request's
    key and the room: two policies that give a room the same score draw it alike.
    """
    weight = arrays.config.decoding.identity_weight

    @jax.jit
    def log_probs(params, request, rooms):
        opened = model.apply({"params": params}, request, rooms, weight, method="open")
        return rollouts.room_log_probs(model, params, opened, rooms)

    def policy(params: Any, asked: PlatformRequests) -> tuple[np.ndarray, np.ndarray]:
        size = asked.user.size, SLATE
        shown, propensity = np.full(size, -1, np.int32), np.ones(size, np.float32)
        for row, kept in chunks(asked.user.size):
            request = arrays.requests(asked.log).request(asked.user[row], asked.time_ms[row])
            rooms = arrays.rooms(asked, row)
            log_pi = np.asarray(log_probs(params, request, rooms))
            room = asked.room[np.minimum(asked.offsets[row][:, None] + np.arange(arrays.slots), asked.room.size - 1)]
            noise = -np.log(-np.log(uniform(asked.key[row][:, None], room, _DRAW)))
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


def platform_arrays(config: Config, log: Log, platform: Platform, tokenizer: Tokenizer) -> PlatformArrays:
    content = played_content(config, log, platform)
    return PlatformArrays(config, played_ids(config, content, platform, tokenizer), platform, log.audiences)
