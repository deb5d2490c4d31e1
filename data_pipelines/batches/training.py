"""Requests, rooms on air and training batches of a log, made when they are needed.

Axes: R requests, V views, L code levels, N rooms on air.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.batches import features
from data_pipelines.log import draws
from data_pipelines.log.audiences import Audiences, nothing
from data_pipelines.log.intervals import check_range
from data_pipelines.log.presence import OnAir, Presence
from data_pipelines.log.slicing import Views
from data_pipelines.log.timelines import Timelines
from onelive_jax.batch import Batch, LiveRooms, Request
from onelive_jax.config import DataConfig
from onelive_jax.tokenizer.semantic_ids import IdTable

# Rooms are drawn, not every one looked at, where more than this many times the wanted number is on air.
DRAW_FROM = 4


@dataclass
class RequestMaker:
    """Requests of a log's people at any moment.

    Attributes:
      views: all watched views. ids: who is called what when. config: how long a history is, and of what.
      others: what further sequences are made of: "gift" (the views with a gift) and "video" (short videos).
      audiences: what is counted of authors; nothing by default.

    Raises: ValueError where the config asks for a sequence that the log does not have.
    """

    views: Timelines
    ids: IdTable
    config: DataConfig
    others: Mapping[str, Timelines] = field(default_factory=dict)
    audiences: Audiences = field(default_factory=nothing)

    def __post_init__(self):
        for name in self.config.sequences:
            if name != "live" and name not in self.others:
                raise ValueError(f"config.data.sequences asks for {name!r}, which this log does not have (it has "
                                 f"{', '.join(('live', *self.others))}): leave it out")

    @functools.cached_property
    def history_views(self) -> dict[str, Views]:
        """What the histories of each sequence are cut from. Codes are looked up once, not in every batch."""
        result = {}
        for name in self.config.sequences:
            timelines = self.timelines(name)
            author, stop_ms = timelines.by_start
            codes = np.ascontiguousarray(self.ids.codes_at(author, timelines.start_ms), np.int32)
            result[name] = Views(author, timelines.start_ms, stop_ms, codes)
        return result

    def timelines(self, sequence: str) -> Timelines:
        return self.views if sequence == "live" else self.others[sequence]

    def request(self, users: np.ndarray, times_ms: np.ndarray) -> Request:
        """Requests of `users` int [R] at `times_ms` int64 [R]. Raises ValueError for a user not of the log."""
        made = {name: features.histories(views, *self.timelines(name).rows_of(users), times_ms,
                                         features.history_settings(self.config, name))
                for name, views in self.history_views.items()}
        return features.request(made, times_ms, self.audiences, self.config)


@dataclass
class BatchMaker:
    """Everything that turns (user, moment) of a log into arrays.

    Attributes: presence: who is on air when; all others as in `RequestMaker`.
    """

    views: Timelines
    presence: Presence
    ids: IdTable
    config: DataConfig
    others: Mapping[str, Timelines] = field(default_factory=dict)
    audiences: Audiences = field(default_factory=nothing)

    def __post_init__(self):
        self.requests = RequestMaker(self.views, self.ids, self.config, self.others, self.audiences)

    def request(self, users: np.ndarray, times_ms: np.ndarray) -> Request:
        """`RequestMaker.request`."""
        return self.requests.request(users, times_ms)

    def on_air(self, users: np.ndarray, times_ms: np.ndarray, own_rows: bool = False) -> OnAir:
        """`Presence.at`."""
        return self.presence.at(times_ms, users, own_rows)

    def live_rooms(self, on_air: OnAir, times_ms: np.ndarray, slots: int, target: np.ndarray | None = None,
                   rng: np.random.Generator | np.ndarray | None = None) -> tuple[LiveRooms, np.ndarray]:
        """Pads rooms on air to N = `slots`.

        Args:
          on_air: from `on_air(…)`. times_ms: int64 [R].
          target: int32 [R], the author watched; it keeps its slot when there are more rooms than slots.
          rng: a generator or a key for each request (data_pipelines/log/draws.py), by which rooms are left out then
            (uniformly). Required only in that case.

        Returns: the rooms, and int32 [R] the slot of the target (−1: not on air, or no target given).
        """
        return chosen_rooms(on_air, self.ids.codes_at, times_ms, slots, self.audiences, target, rng)

    def batch(self, view: np.ndarray, rng: np.random.Generator | np.ndarray) -> Batch:
        """A training batch of the views `view` int64 [B] (indices into the views); `rng` as in `live_rooms`."""
        users, times, target = self._user(view), self.views.start_ms[view], self.views.author[view]
        slots = self.config.live_slots
        if self.presence.largest_load > DRAW_FROM * slots:
            on_air = self.presence.draw(times, users, slots, target, rng)
        else:
            on_air = self.on_air(users, times)
        return self.batch_of(self.request(users, times), on_air, times, target, rng)

    def batch_of(self, request: Request, on_air: OnAir, times_ms: np.ndarray, target: np.ndarray,
                 rng: np.random.Generator | np.ndarray) -> Batch:
        """The training batch of requests and rooms on air that are made already; target: int32 [B], who was watched."""
        rooms, slot = self.live_rooms(on_air, times_ms, self.config.live_slots, target, rng)
        return Batch(request, rooms, target, self.ids.codes_at(target, times_ms), slot,
                     np.ones(target.size, np.float32))

    def shown_by_others(self, view: np.ndarray) -> np.ndarray:
        """bool [n]: views whose author others (or a true lifetime) show to be on air when the view starts."""
        return self.presence.shows(self.views.author[view], self.views.start_ms[view], self._user(view))

    def _user(self, view: np.ndarray) -> np.ndarray:
        view = check_range("view", view, self.views.author.size)
        return np.searchsorted(self.views.user_ptr, view, side="right") - 1


def chosen_rooms(on_air: OnAir, codes_at: Callable[[np.ndarray, np.ndarray], np.ndarray], times_ms: np.ndarray,
                 slots: int, audiences: Audiences, target: np.ndarray | None = None,
                 rng: np.random.Generator | np.ndarray | None = None) -> tuple[LiveRooms, np.ndarray]:
    """`BatchMaker.live_rooms`, where `codes_at` (author int [n], times int64 [n]) → int32 [n, L] says who is called
    what."""
    times_ms = np.asarray(times_ms, np.int64)
    is_target = np.zeros(on_air.author.size, bool)
    if target is not None:
        is_target = on_air.author == np.asarray(target)[on_air.moment]
    if (np.diff(on_air.offsets) > slots).any():
        # Within each request: the target first, then a random order; the first `slots` stay.
        moment = on_air.moment
        order = np.lexsort((draws.uniform(rng, moment, times_ms.size, purpose=2), ~is_target, moment))
        kept = np.sort(order[np.arange(moment.size) - on_air.offsets[moment] < slots])
        on_air, is_target = on_air.take(kept), is_target[kept]
    moment = on_air.moment
    rooms = features.live_rooms(on_air, codes_at(on_air.author, times_ms[moment]), times_ms, slots, audiences)
    target_slot = np.full(times_ms.size, -1, np.int32)
    target_slot[moment[is_target]] = (np.arange(moment.size) - on_air.offsets[moment])[is_target]
    return rooms, target_slot
