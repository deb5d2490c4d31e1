"""A simulated world that moves: tastes drift, topics come and go, authors are new, and some rooms are for everybody.

All of it is off by default; then nothing is drawn, and the world is to the bit what it was without.

Axes: A authors, R rooms, U users, Z topic width, C cosines of a drift, n persons with a moment each.
"""

from dataclasses import dataclass

import numpy as np

from onelive_jax.config import SimulatorConfig

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
TASTE_PERIODS_DAYS = np.array([5.0, 11.0])  # each person's own are within a factor 1.4 of these
TREND_PERIODS_DAYS = np.array([2.5, 4.0, 7.0])  # of what everybody likes
EVENT_BOOST = 2.5  # affinity of everybody for a room that is an event
EVENT_HOURS = 1.5  # an event is a room at least so long


@dataclass
class Movement:
    """Attributes:
      debut_ms: int64 [A], before which an author has no room.
      event_boost: float32 [R], what is added to everybody's affinity for a room.
      trend: length of the common part of all tastes, beside the own one of length 1. drift: length of each person's
        drift (root mean square).
      trend_wave, trend_phase: float64 [C], radians per ms and radians; trend_direction: float32 [2, C, Z], before and
        after `jump_ms` (far in the future where nothing jumps).
      wave, phase: float32 [U, C]; direction: float32 [U, C, Z], unit vectors.
    """

    debut_ms: np.ndarray
    event_boost: np.ndarray
    trend: float
    drift: float
    trend_wave: np.ndarray
    trend_phase: np.ndarray
    trend_direction: np.ndarray
    jump_ms: int
    wave: np.ndarray
    phase: np.ndarray
    direction: np.ndarray

    def common(self, time_ms: np.ndarray) -> np.ndarray:
        """float32 [n, Z]: what everybody likes at n moments, of length about 1."""
        swing = np.sqrt(2 / self.trend_wave.size) * np.cos(time_ms[:, None] * self.trend_wave + self.trend_phase)
        way = self.trend_direction[(time_ms >= self.jump_ms).astype(np.int64)]
        return np.einsum("nc,ncz->nz", swing.astype(np.float32), way)

    def moved(self, taste: np.ndarray, user: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        """float32 [n, Z], not scaled: tastes [n, Z] of n people at n moments with their drift and the common part."""
        swing = np.sqrt(2 / self.wave.shape[1]) * np.cos(time_ms[:, None] * self.wave[user] + self.phase[user])
        own = np.einsum("nc,ncz->nz", swing.astype(np.float32), self.direction[user])
        return taste + np.float32(self.drift) * own + np.float32(self.trend) * self.common(time_ms)


def moves(config: SimulatorConfig) -> bool:
    return any((config.taste_drift, config.trends, config.new_authors, config.shared_events))


def make_movement(config: SimulatorConfig, start_ms: int, width: int) -> Movement:
    """How the world of a seed moves (without its events, see `draw_events`)."""
    rng = np.random.default_rng([config.seed, 12])
    periods = rng.uniform(0.85, 1.15, TREND_PERIODS_DAYS.size) * TREND_PERIODS_DAYS * DAY_MS
    cosines = (config.users, TASTE_PERIODS_DAYS.size)
    own = TASTE_PERIODS_DAYS * DAY_MS * np.exp(np.log(1.4) * rng.uniform(-1, 1, cosines))
    # Each week begins so large a share of authors for the first time, one after the other.
    place, a_week = rng.permutation(config.authors), max(config.new_authors * config.authors, 1e-9)
    days = config.days + config.play_days
    coming = np.ceil(config.new_authors * config.authors * days / 7)
    debut = np.where(place < coming, (place + rng.random(config.authors)) / a_week * 7, -1.0)
    return Movement(
        debut_ms=np.where(debut < 0, np.iinfo(np.int64).min, start_ms + debut * DAY_MS).astype(np.int64),
        event_boost=np.zeros(0, np.float32), trend=config.trends, drift=config.taste_drift,
        trend_wave=2 * np.pi / periods, trend_phase=rng.uniform(0, 2 * np.pi, TREND_PERIODS_DAYS.size),
        trend_direction=_unit(rng.normal(size=(2, TREND_PERIODS_DAYS.size, width))),
        jump_ms=start_ms + round(config.jump_day * DAY_MS) if config.jump_day else np.iinfo(np.int64).max,
        wave=(2 * np.pi / own).astype(np.float32), phase=(2 * np.pi * rng.random(cosines)).astype(np.float32),
        direction=_unit(rng.normal(size=(*cosines, width))))


def draw_events(movement: Movement, config: SimulatorConfig, start_ms: np.ndarray, end_ms: np.ndarray) -> None:
    """Chooses the rooms int64 [R] that everybody watches: `shared_events` a day, among the long ones."""
    rng = np.random.default_rng([config.seed, 13])
    movement.event_boost = np.zeros(start_ms.size, np.float32)
    long = np.flatnonzero(end_ms - start_ms >= EVENT_HOURS * HOUR_MS)
    count = min(round(config.shared_events * (config.days + config.play_days)), long.size)
    movement.event_boost[rng.choice(long, count, replace=False)] = EVENT_BOOST


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
