"""Requests, rooms on air and training batches, made from views when they are needed.

Axes: R requests, T history items, L code levels, N rooms on air.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.log import draws
from data_pipelines.log.intervals import first_not_below
from data_pipelines.log.presence import HOUR_MS, NOBODY, OnAir, Presence
from data_pipelines.log.timelines import Timelines, clock, histories
from onelive_jax.batch import Batch, LiveRooms, Request
from onelive_jax.config import DataConfig
from onelive_jax.tokenizer.semantic_ids import IdTable

# A room is drawn, not every one looked at, where more than this many times the wanted number is on air.
DRAW_FROM = 4
NEW_TO_AIR_HOURS = 1.0  # age given to a room that nobody but the asking person was seen in


@dataclass
class BatchMaker:
    """Everything that turns (user, moment) into arrays.

    Attributes:
      views: all watched views. presence: who is on air when.
      ids: who is called what when.
      config: how long a history is, and of what.
      others: what further sequences are made of: "gift" (the views with a gift) and "video" (short videos).

    Raises: ValueError where the config asks for a sequence that the log does not have.
    """

    views: Timelines
    presence: Presence
    ids: IdTable
    config: DataConfig
    others: Mapping[str, Timelines] = field(default_factory=dict)

    def __post_init__(self):
        for name in self.config.sequences:
            if name != "live" and name not in self.others:
                raise ValueError(f"config.data.sequences asks for {name!r}, which this log does not have (it has "
                                 f"{', '.join(('live', *self.others))}): leave it out")

    @functools.cached_property
    def codes(self) -> dict[str, np.ndarray]:
        """int32 [V, L] of each sequence: what a view's author was called when it began. Looked up once, not a batch."""
        def of(views: Timelines) -> np.ndarray:
            return np.ascontiguousarray(self.codes_at(views.author, views.start_ms), np.int32)

        return {name: of(self.timelines(name)) for name in self.config.sequences}

    def codes_at(self, author: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """`ids.codes_at` of known authors int [n] at moments int64 [n], in a compiled loop."""
        after = first_not_below(self.ids.ptr, self.ids.from_ms, np.asarray(author, np.int64),
                                np.asarray(times_ms, np.int64) + 1)
        return self.ids.codes[after - 1]

    def timelines(self, sequence: str) -> Timelines:
        return self.views if sequence == "live" else self.others[sequence]

    def request(self, users: np.ndarray, times_ms: np.ndarray) -> Request:
        """Requests of `users` int32 [R] at `times_ms` int64 [R]."""
        c = self.config
        effective_ms = {"live": round(1000 * c.effective_view_seconds), "video": round(1000 * c.effective_view_seconds)}
        made = {name: histories(self.timelines(name), self.codes[name], users, times_ms, items=c.history_items,
                                window=c.history_window, unit=c.history_unit, utc_offset_hours=c.utc_offset_hours,
                                effective_ms=effective_ms.get(name, 0)) for name in c.sequences}
        hour, day = clock(times_ms, c.utc_offset_hours)
        return Request(made, hour, day, np.zeros_like(hour))

    def on_air(self, users: np.ndarray, times_ms: np.ndarray, own_rows: bool = False) -> OnAir:
        """Authors on air at each moment as others (or, with `own_rows`, everybody) show them, authors ascending.

        With `own_rows` (the liverec protocol) the numbers beside a room still know nothing of the asking person's
        view: it would be the answer.
        """
        if not own_rows:
            return self.presence.at(times_ms, users)
        on_air = self.presence.at(times_ms, np.full(len(times_ms), NOBODY, np.int32))
        others = self.presence.at(times_ms, users)
        row = np.repeat(np.arange(len(times_ms)), np.diff(on_air.offsets))
        width = int(on_air.author.max(initial=0)) + 1
        wanted = row * width + on_air.author
        keys = np.repeat(np.arange(len(times_ms)), np.diff(others.offsets)) * width + others.author
        keys = np.append(keys, np.iinfo(np.int64).max)  # nobody's: there may be no other person at all
        at = np.searchsorted(keys, wanted)
        known = keys[at] == wanted
        on_air.viewers = np.where(known, np.append(others.viewers, 1)[at], 1).astype(np.int32)
        on_air.since_ms = np.where(known, np.append(others.since_ms, 0)[at],
                                   times_ms[row] - round(NEW_TO_AIR_HOURS * HOUR_MS))
        return on_air

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
        num = len(times_ms)
        count = np.diff(on_air.offsets)
        row = np.repeat(np.arange(num), count)
        slot = np.arange(row.size) - on_air.offsets[row]
        is_target = np.zeros(row.size, bool) if target is None else on_air.author == np.asarray(target)[row]
        index = np.arange(row.size)
        if (count > slots).any():
            # Within each request: the target first, then a random order; the first `slots` stay.
            order = np.lexsort((draws.uniform(rng, row, num, purpose=2), ~is_target, row))
            kept = np.sort(order[slot < slots])
            index, row, is_target = kept, row[kept], is_target[kept]
            slot = np.arange(row.size) - np.searchsorted(row, row)
        author = on_air.author[index]
        times = np.asarray(times_ms, np.int64)[row]
        features = np.stack([np.log(np.maximum(on_air.viewers[index], 1)),
                             np.log1p(np.maximum(times - on_air.since_ms[index], 0) / HOUR_MS)], -1)
        codes = self.codes_at(author, times)

        def place(value, dtype, *tail):
            out = np.zeros((num, slots, *tail), dtype)
            out[row, slot] = value
            return out

        rooms = LiveRooms(place(author, np.int32), place(codes, np.int32, codes.shape[-1]),
                          place(features, np.float32, 2), place(True, bool))
        target_slot = np.full(num, -1, np.int32)
        target_slot[row[is_target]] = slot[is_target]
        return rooms, target_slot

    def batch(self, view: np.ndarray, rng: np.random.Generator | np.ndarray) -> Batch:
        """A training batch of the views `view` int64 [B] (indices into the views); `rng` as in `live_rooms`."""
        users, times = self._user(view), self.views.start_ms[view]
        target = self.views.author[view]
        slots = self.config.live_slots
        if self.presence.largest_load > DRAW_FROM * slots:
            on_air = self.presence.draw(times, users, slots, target, rng)
        else:
            on_air = self.on_air(users, times)
        rooms, slot = self.live_rooms(on_air, times, slots, target, rng)
        return Batch(self.request(users, times), rooms, target, self.codes_at(target, times), slot,
                     np.ones(view.size, np.float32))

    def shown_by_others(self, view: np.ndarray) -> np.ndarray:
        """bool [n]: views whose author others (or a true lifetime) show to be on air when the view starts."""
        return self.presence.shows(self.views.author[view], self.views.start_ms[view], self._user(view))

    def _user(self, view: np.ndarray) -> np.ndarray:
        return (np.searchsorted(self.views.user_ptr, view, side="right") - 1).astype(np.int32)
