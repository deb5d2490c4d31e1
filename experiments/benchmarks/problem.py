"""The problem that benchmarks time, its random inputs, and how calls are timed.

Axes: B batch, T history items, L levels, K codes, N rooms on air.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from onelive_jax.batch import HABIT_FEATURES, ROOM_FEATURES, SIMILARITIES, Batch, History, LiveRooms, Request
from onelive_jax.config import DataConfig, DecodingConfig, ModelConfig
from onelive_jax.decoding import live_index
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.model.onelive import OneLive


@dataclass(frozen=True)
class ModelSizes:
    """The problem that is timed; the defaults are those of the targets.

    Attributes:
      model: 4.5 M parameters with the tables below, 3.1 M of them in decoder blocks, dropout on.
      history: T. levels, codes: L, K. authors, author_dim: rows and width of the identity table.
      batch: B of training. contrasted: rooms on air of a training example. rooms: N when decoding.
      searches: (beams, B, limit in ms of one decode). gains: (layers, least ratio of throughput with to without MTP).
      gain_search: (beams, B) of that ratio. square: side of the large matrix product.
    """

    model: ModelConfig = field(default_factory=lambda: ModelConfig(dim=160, num_layers=4, num_heads=4, num_groups=2,
                                                                   mlp_dim=704))
    history: int = 20
    levels: int = 3
    codes: int = 256
    authors: int = 12_000
    author_dim: int = 64
    batch: int = 64
    contrasted: int = 128
    rooms: int = 12_000
    searches: tuple[tuple[int, int, float], ...] = ((10, 1, 4.0), (10, 16, 20.0), (50, 1, 10.0), (128, 1, 20.0))
    gains: tuple[tuple[int, float], ...] = ((6, 3.5), (3, 2.0))
    gain_search: tuple[int, int] = (128, 16)
    square: int = 1024

RELATED = DataConfig().related_authors


def random_request(rng: np.random.Generator, sizes: ModelSizes, batch: int) -> Request:
    """NumPy arrays [B, …]; a tenth of the history is padding."""
    def draw(high, *shape):
        return rng.integers(0, high, (batch, *shape), dtype=np.int32)

    T = sizes.history
    history = History(author=draw(sizes.authors, T), codes=draw(sizes.codes, T, sizes.levels), hour=draw(24, T),
                      day=draw(7, T), week=draw(16, T),
                      habits=rng.normal(size=(batch, T, len(HABIT_FEATURES))).astype(np.float32),
                      mask=np.broadcast_to(np.arange(T) >= T // 10, (batch, T)).copy())
    related = np.sort(draw(sizes.authors, RELATED), 1)
    return Request({"live": history}, draw(24), draw(7), np.zeros(batch, np.int32), related,
                   rng.random((batch, RELATED, len(SIMILARITIES)), np.float32))


def random_rooms(rng: np.random.Generator, sizes: ModelSizes, *shape: int) -> LiveRooms:
    """NumPy arrays [*shape, …], every slot on air."""
    return LiveRooms(author=rng.integers(0, sizes.authors, shape, dtype=np.int32),
                     codes=rng.integers(0, sizes.codes, (*shape, sizes.levels), dtype=np.int32),
                     features=rng.normal(size=(*shape, len(ROOM_FEATURES))).astype(np.float32),
                     mask=np.ones(shape, bool))


def random_batch(rng: np.random.Generator, sizes: ModelSizes) -> Batch:
    """A training batch whose targets are on air."""
    live = random_rooms(rng, sizes, sizes.batch, sizes.contrasted)
    row, slot = np.arange(sizes.batch), rng.integers(0, sizes.contrasted, sizes.batch, dtype=np.int32)
    return Batch(random_request(rng, sizes, sizes.batch), live, target_author=live.author[row, slot],
                 target_codes=live.codes[row, slot], target_slot=slot, weight=np.ones(sizes.batch, np.float32))


def make_model(sizes: ModelSizes, config: ModelConfig) -> OneLive:
    return OneLive(config, sizes.levels, sizes.codes, sizes.authors, sizes.author_dim)


def random_parameters(model: OneLive, batch: Batch) -> Any:
    """Float32 parameters of the right shapes; `model.init` would first have to be compiled."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: meta.unbox(model.init(key, batch)["params"]), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.05 * rng.normal(size=x.shape), jnp.float32), shapes)


def time_interleaved(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call. The functions take turns, so that a busy moment of the machine hits all of them."""
    for function in functions.values():
        function()  # compiles
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def caller(model: OneLive, params: Any, index: live_index.LiveIndex, beams: int,
           requests: list[Request]) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """A function that answers one of the requests after the other and has the ranking on the host when it returns."""
    recommend = make_recommender(model, DecodingConfig(beams=beams, capacity=index.capacity))
    turn = 0

    def call() -> tuple[np.ndarray, np.ndarray]:
        nonlocal turn
        turn += 1
        ranking = recommend(params, requests[turn % len(requests)], index)
        return jax.device_get((ranking.slot, ranking.score))

    return call
