"""Ranking the rooms on air for many requests, each at its own moment, and what the rankings are worth.

Axes: R requests, N rooms on air (padded), C candidates of all requests (flat).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.batches.training import BatchMaker
from data_pipelines.log import tasks
from data_pipelines.log.presence import OnAir
from experiments.common.log import Log
from experiments.common.tower_scores import TowerScores, tie_breaker
from experiments.stages.tokenizer import Tokenizer
from onelive_jax.batch import LiveRooms, Request
from onelive_jax.config import Config
from onelive_jax.decoding import live_index
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.model.onelive import OneLive
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.sharding.processes import on_this_process

CHUNK = 64
PROTOCOLS = ("strict", "liverec")
SPLITS = ("validation", "test")


def make_task(log: Log, config: Config, split: str, protocol: str) -> tasks.Task:
    """The targets of a split under a protocol. Raises ValueError for a name that is neither."""
    if split not in SPLITS or protocol not in PROTOCOLS:
        raise ValueError(f"split={split!r} must be one of {SPLITS} and protocol={protocol!r} one of {PROTOCOLS}")
    low, high = (log.split.p1_ms, log.split.p2_ms) if split == "validation" else (log.split.p2_ms, None)
    make = tasks.strict_targets if protocol == "strict" else tasks.liverec_targets
    return make(log.views, log.presence, low, high, config.data.max_targets)


def targets(log: Log, config: Config, split: str, protocol: str) -> tasks.Task:
    """As `make_task`. Raises ValueError where the split has no target."""
    task = make_task(log, config, split, protocol)
    if not task.user.size:
        raise ValueError(f"the {split} period has no target under the {protocol} protocol (left out: {task.dropped}); "
                         f"make config.data.{'valid' if split == 'validation' else 'test'}_hours longer")
    return task


@dataclass
class Ranker:
    """A model's one ranking of rooms on air. Validation, judging, studies and the report all rank by it.

    Attributes:
      search: jitted (params, requests [R], rooms on air [R, N], tie score [R, N] or None) → (slot, score, valid).
      ties: what tells rooms of one id apart where codes alone decide (`tower_scores.tie_breaker`), or None.
    """

    search: Callable
    ties: TowerScores | None

    def __call__(self, params: Any, request: Request, rooms: LiveRooms, user_R: np.ndarray,
                 time_ms_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(slot, score, valid), each [R, N], best first. With `ties`, scores are places in an order without ties: the
        first 0, the next −1, …"""
        if self.ties is None:
            return self.search(params, request, rooms, None)
        tie_score = self.ties.rooms(user_R, time_ms_R, rooms.author)
        slot, _, valid = self.search(params, request, rooms, tie_score)
        return slot, np.broadcast_to(-np.arange(slot.shape[1], dtype=np.float32), slot.shape), valid


def make_ranker(model: OneLive, config: Config, tokenizer: Tokenizer, log: Log) -> Ranker:
    """The ranking of `config.decoding`, ties included."""
    @jax.jit
    def search(params, request, rooms, tie_score):
        recommend = make_recommender(model, config.decoding, k=rooms.author.shape[-1])
        ranking = recommend(params, request, live_index.from_rooms(rooms, model.num_codes), tie_score)
        return ranking.slot, ranking.score, ranking.valid

    return Ranker(search, tie_breaker(model, tokenizer, config, log))


def on_all_devices(config: Config, maker: BatchMaker, model: OneLive, *params: Any) -> tuple:
    """(model, *params) over `process_mesh`: parameters lie as `partitioning.RULES` say, and the requests of a chunk are
    split over data and fsdp. With one device, as they are."""
    mesh = partitioning.process_mesh(config.mesh)
    if mesh is None:
        return model, *params
    example = maker.batch(np.zeros(1, np.int64), np.random.default_rng(0))
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), example)["params"])
    shardings = partitioning.logical_to_sharding(boxed, mesh)
    return on_mesh(model, mesh), *(jax.device_put(each, shardings) for each in params)


def score(rank: Ranker | Callable, params, maker: BatchMaker, task: tasks.Task, own_rows: bool = False,
          part: tuple[int, int] = (0, 1)) -> np.ndarray:
    """float32 [C]: what decoding says of every candidate of `task`; −inf for rooms that the beams did not return.

    Args: rank, from `make_ranker`, or a function like it; own_rows, True for a task of the liverec protocol; part,
      (i, n): only the i-th of n shares of the requests, −inf for all others.

    The candidates are decoded under a live index of their own moment, so a score is that of the real search.
    """
    on_air = maker.on_air(task.user.astype(np.int32), task.time_ms, own_rows)
    if not np.array_equal(on_air.author, task.candidates) or not np.array_equal(on_air.offsets, task.offsets):
        raise ValueError("the rooms on air are not the candidates of the task: protocol and own_rows must agree")
    count = np.diff(task.offsets)
    slots = -(-max(int(count.max(initial=1)), maker.config.live_slots) // 32) * 32
    scores = np.full(task.candidates.size, -np.inf, np.float32)
    for low in range(CHUNK * part[0], task.user.size, CHUNK * part[1]):
        # The last chunk is filled up, so that there is one shape and one compilation.
        r = np.minimum(np.arange(low, low + CHUNK), task.user.size - 1)
        begin, length = task.offsets[r], count[r]
        flat = np.concatenate([np.arange(b, b + n) for b, n in zip(begin, length, strict=True)])
        chunk = OnAir(np.append(0, np.cumsum(length)), on_air.author[flat], on_air.room[flat], on_air.viewers[flat],
                      on_air.since_ms[flat])
        rooms, _ = maker.live_rooms(chunk, task.time_ms[r], slots)
        request = maker.request(task.user[r], task.time_ms[r])
        slot, value, valid = map(np.asarray, rank(params, request, rooms, task.user[r], task.time_ms[r]))
        row, _ = np.nonzero(valid)
        scores[begin[row] + slot[valid]] = value[valid]
    return scores


def evaluate_task(rank, params, maker: BatchMaker, task: tasks.Task, own_rows: bool = False) -> dict:
    """`evaluation.metrics` of the model on a task; arguments as in `score`."""
    scores = score(rank, params, maker, task, own_rows)
    return ranking_metrics.metrics(ranking_metrics.ranks(scores, task.offsets, task.position), task.repeat)


def validate(rank, params, maker: BatchMaker, task: tasks.Task) -> dict[str, float]:
    """The figures that a training run watches: NDCG@10, its parts on repeat and new targets, HR@1, HR@10, MRR.

    Every process calls it; each scores a share of the requests.
    """
    scores = score(rank, on_this_process(params), maker, task, part=(jax.process_index(), jax.process_count()))
    if jax.process_count() > 1:
        scores = multihost_utils.process_allgather(scores).max(0)
    result = ranking_metrics.metrics(ranking_metrics.ranks(scores, task.offsets, task.position), task.repeat)
    figures = {name: result["all"][name] for name in ("ndcg@10", "hr@1", "hr@10", "mrr")}
    for group in ("repeat", "new"):
        if result[group]["n"]:
            figures[f"ndcg@10_{group}"] = result[group]["ndcg@10"]
    return figures
