"""The logging policy of the simulated platform: biased, random, and of known probability.

Axes: n people who look for a room, S places of a slate, P authors a person knows, N rooms on air (never listed whole).

A room on air weighs b / W + HABIT · habit · log(1 + views among the person's last 16) + FOLLOW · follows, where b is
the room's popularity with an exploration floor, W the sum of b over all rooms on air, and habit how strong habits are
on this platform (`Behaviour.habit`): what is personal weighs as much on a large platform as on a small one. Places are
drawn from the top, in proportion to weight among the rooms that are not shown yet (Plackett-Luce, the same as Gumbel
top-k on the log weights). The *propensity* of an impression is that probability: of this room at this place, given the
rooms above it. The product along a slate is the probability of the slate.
"""

import numpy as np

from data_pipelines.simulator.reactions import SLATE
from data_pipelines.simulator.world import MINUTE_MS, STEP_MS, SimulatedWorld

POPULARITY_POWER, EXPLORATION = 0.5, 0.15
HABIT, FOLLOW = 0.40, 0.40
BIN_MS = 20 * MINUTE_MS  # rooms are drawn out of those on air at some moment of a bin; who is not on air now is redrawn
TRIES = (6, 30, 100, 300)  # draws at a time, as long as all of them are taken already


class Feed:
    """Slates of the logging policy for moments in [from_ms, to_ms)."""

    def __init__(self, world: SimulatedWorld, from_ms: int, to_ms: int):
        self.world, self.from_ms = world, from_ms
        share = np.exp(POPULARITY_POWER * world.popularity.astype(np.float64))
        base = (1 - EXPLORATION) * share / share.mean() + EXPLORATION
        self.base = base[world.room_author]
        # W and the number on air at any moment: what has started less what has ended.
        self.ends = np.sort(world.room_end_ms)
        by_end = np.argsort(world.room_end_ms, kind="stable")
        self.started = np.concatenate([[0.0], np.cumsum(self.base)])
        self.ended = np.concatenate([[0.0], np.cumsum(self.base[by_end])])
        bins = -(-(to_ms - from_ms) // BIN_MS)
        first = np.clip((world.room_start_ms - from_ms) // BIN_MS, 0, bins)
        stop = np.clip((world.room_end_ms - 1 - from_ms) // BIN_MS + 1, first, bins)
        self.bin_room = np.repeat(np.arange(first.size, dtype=np.int32), stop - first)
        starts = np.repeat(np.cumsum(stop - first) - (stop - first), stop - first)
        where = (np.repeat(first, stop - first) + np.arange(self.bin_room.size) - starts).astype(np.int32)
        order = np.argsort(where, kind="stable")
        self.bin_room = self.bin_room[order]
        self.bin_ptr = np.concatenate([[0], np.cumsum(np.bincount(where, minlength=bins))])
        self.cumulative = np.concatenate([[0.0], np.cumsum(self.base[self.bin_room])])

    def slates(self, time_ms: np.ndarray, known_nP: np.ndarray, seen_nP: np.ndarray, followed_nP: np.ndarray,
               habit: float, rng):
        """Draws slates.

        Args:
          time_ms: int64 [n]. known_nP: int32 [n, P], distinct authors that each person knows; -1 is none.
          seen_nP, followed_nP: int [n, P], views among the last 16 and whether they follow.
          habit: `Behaviour.habit`.

        Returns:
          room: int32 [n, S], -1 from where a slate ends (all rooms on air are shown, or all of TRIES found no new one).
          propensity: float32 [n, S], 1 where there is no room.
          slot: int8 [n, S], column of known_nP of a room whose author the person knows; -1 of others.
        """
        world, n = self.world, time_ms.size
        started = np.searchsorted(world.room_start_ms, time_ms, side="right")
        ended = np.searchsorted(self.ends, time_ms + STEP_MS, side="right")
        total = np.maximum(self.started[started] - self.ended[ended], 1e-300)
        personal_nP = world.room_of(known_nP, time_ms[:, None])
        there = personal_nP >= 0
        base_nP = np.where(there, self.base[personal_nP], 0) / total[:, None]
        weight_nP = base_nP + there * (HABIT * max(habit, 0.0) * np.log1p(seen_nP) + FOLLOW * followed_nP)
        others = started - ended - there.sum(1)
        rest = np.where(others > 0, np.maximum(1 - base_nP.sum(1), 1e-12), 0)
        room_nS = np.full((n, SLATE), -1, np.int32)
        propensity_nS = np.ones((n, SLATE), np.float32)
        slot_nS = np.full((n, SLATE), -1, np.int8)
        alive = np.ones(n, bool)
        for place in range(SLATE):
            mine = weight_nP.sum(1)
            alive &= mine + rest > 0
            point = rng.random(n) * (mine + rest)
            own = np.flatnonzero(alive & (point < mine))
            slot = (np.cumsum(weight_nP[own], axis=1) <= point[own, None]).sum(1)
            slot = np.minimum(slot, weight_nP.shape[1] - 1)
            room_nS[own, place], slot_nS[own, place] = personal_nP[own, slot], slot
            propensity_nS[own, place] = weight_nP[own, slot] / (mine + rest)[own]
            weight_nP[own, slot] = 0
            other = np.flatnonzero(alive & (point >= mine))
            drawn = self._others(time_ms[other], personal_nP[other], room_nS[other, :place], rng)
            alive[other[drawn < 0]] = False
            other, drawn = other[drawn >= 0], drawn[drawn >= 0]
            share = self.base[drawn] / total[other]
            room_nS[other, place] = drawn
            propensity_nS[other, place] = share / (mine + rest)[other]
            others[other] -= 1
            rest[other] = np.where(others[other] > 0, np.maximum(rest[other] - share, 1e-12), 0)
        return room_nS, np.clip(propensity_nS, 1e-9, 1), slot_nS

    def _others(self, time_ms, personal_nP, shown_nS, rng) -> np.ndarray:
        """int32 [n]: rooms on air in proportion to b, none of those given; -1 if all of TRIES found none."""
        world = self.world
        result = np.full(time_ms.size, -1, np.int32)
        pending = np.arange(time_ms.size)
        bin_ = (time_ms - self.from_ms) // BIN_MS
        low, high = self.cumulative[self.bin_ptr[bin_]], self.cumulative[self.bin_ptr[bin_ + 1]]
        taken = np.concatenate([personal_nP, shown_nS], axis=1)
        for tries in TRIES:
            point = low[pending, None] + rng.random((pending.size, tries)) * (high - low)[pending, None]
            at = np.searchsorted(self.cumulative, point, side="right") - 1
            room = self.bin_room[np.minimum(at, self.bin_room.size - 1)]
            now = time_ms[pending, None]
            good = (world.room_start_ms[room] <= now) & (world.room_end_ms[room] > now + STEP_MS)
            good &= ~(room[:, :, None] == taken[pending][:, None, :]).any(-1)
            found = good.any(1)
            result[pending[found]] = room[found, good.argmax(1)[found]]
            pending = pending[~found]
            if not pending.size:
                break
        return result
