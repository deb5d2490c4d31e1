"""What is true of the simulated platform: authors, schedules, rooms whose content drifts, and people's tastes.

Axes: A authors, R rooms, S content steps of 30 s (all rooms, flat), U users, Z topic width; n requests of M rooms.
"""

from dataclasses import dataclass

import numpy as np

from onelive_jax.config import SimulatorConfig, check_ranges

START_MS = 1_746_403_200_000  # Monday 2025-05-05 00:00 UTC, which is also the platform's local time
STEP_MS = 30_000  # content changes once a step
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
TOPIC_WIDTH, GENRES = 8, 12


@dataclass
class World:
    """What is true of the platform, beyond what its log shows.

    Attributes:
      genre: float32 [GENRES, Z], unit vectors. topic: float32 [A, Z], unit vectors. author_genre: int32 [A].
      popularity: float32 [A], log of the share of attention that an author gets.
      room_author: int32 [R]; room_start_ms, room_end_ms: int64 [R]; rooms sorted by (start, author).
      content_ptr: int64 [R + 1]; content: float32 [S, Z], room r is at content[content_ptr[r] + s], s
        steps after its start.
      day_taste, evening_taste: float32 [U, Z], unit vectors; the taste moves from one to the other with the hour.
      activity: float32 [U], mean 1. generosity: float32 [U], mean 1, heavy-tailed.
      end_ms: end of the log.
    """

    genre: np.ndarray
    topic: np.ndarray
    author_genre: np.ndarray
    popularity: np.ndarray
    room_author: np.ndarray
    room_start_ms: np.ndarray
    room_end_ms: np.ndarray
    content_ptr: np.ndarray
    content: np.ndarray
    day_taste: np.ndarray
    evening_taste: np.ndarray
    activity: np.ndarray
    generosity: np.ndarray
    end_ms: int

    def taste(self, user: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        """float32 [n, Z]: unit tastes of n users at n moments."""
        hour = (time_ms % DAY_MS) / HOUR_MS
        evening = ((1 + np.cos(2 * np.pi * (hour - 21) / 24)) / 2)[:, None].astype(np.float32)
        return unit(self.day_taste[user] * (1 - evening) + self.evening_taste[user] * evening)

    def affinity(self, user: np.ndarray, room: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        """float32 [n, M]: true affinity of user n for rooms [n, M] at moments [n, M], about N(0, 1) over all pairs.

        The taste is that of each row's first moment; moments outside a room's life are moved to its nearest end.
        """
        taste = self.taste(user, time_ms[:, 0])
        step = (time_ms - self.room_start_ms[room]) // STEP_MS
        length = self.content_ptr[room + 1] - self.content_ptr[room]
        now = self.content[self.content_ptr[room] + np.clip(step, 0, length - 1)]
        return np.einsum("nz,nmz->nm", taste, now) * np.float32(np.sqrt(TOPIC_WIDTH))


def make_world(config: SimulatorConfig) -> World:
    """The platform of a seed: two calls with the same config give the same world."""
    check_ranges(config, "config.simulator")
    rng = np.random.default_rng([config.seed, 0])
    genre = unit(rng.normal(size=(GENRES, TOPIC_WIDTH)))
    author_genre = rng.integers(GENRES, size=config.authors).astype(np.int32)
    topic = unit(genre[author_genre] + rng.normal(scale=0.2, size=(config.authors, TOPIC_WIDTH)))
    popularity = -0.9 * np.log(1 + rng.permutation(config.authors)).astype(np.float32)

    author, start, steps = _schedule(rng, config)
    if not author.size:
        raise ValueError("no author ever went on air: simulate more authors or days")
    content_ptr = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    content = _drifting_content(rng, topic[author], genre, steps, content_ptr)

    loved = rng.random((config.users, GENRES)).argsort(axis=1)[:, :3]
    own = rng.normal(scale=0.2, size=(config.users, TOPIC_WIDTH))
    day = unit(genre[loved[:, 0]] + 0.5 * genre[loved[:, 1]] + own)
    evening = unit(genre[loved[:, 2]] + 0.5 * genre[loved[:, 0]] + own)
    activity = rng.gamma(2.0, 0.5, config.users).astype(np.float32)
    generosity = rng.lognormal(-0.5, 1.0, config.users).astype(np.float32)
    return World(genre, topic, author_genre, popularity, author, start, start + steps * STEP_MS, content_ptr, content,
                 day, evening, activity, generosity, START_MS + config.days * DAY_MS)


def _schedule(rng, config: SimulatorConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(author int32, start_ms int64, steps int64) of every room; an author has one room at a time.

    The day before the log is played too, so that the platform is not empty when the log begins.
    """
    weekdays = rng.random((config.authors, 7)) < 0.75
    kind = rng.random(config.authors)
    hour = np.where(kind < 0.55, rng.normal(19.5, 2.0, config.authors),
                    np.where(kind < 0.8, rng.normal(13, 3.0, config.authors), rng.uniform(0, 24, config.authors)))
    days = np.arange(-1, config.days)
    airs = weekdays[:, days % 7] & (rng.random((config.authors, days.size)) < 0.9)
    author, day = np.nonzero(airs)
    begin = days[day] * 24 + hour[author] + rng.normal(0, 0.5, author.size)
    start = START_MS + (begin * HOUR_MS).astype(np.int64)
    minutes = np.clip(rng.lognormal(np.log(180), 0.55, author.size), 10, 600)
    order = np.lexsort((start, author))
    author, start, minutes = author[order], start[order], minutes[order]
    gap = np.where(author[1:] == author[:-1], np.diff(start) / MINUTE_MS - 5, np.inf)
    minutes[:-1] = np.minimum(minutes[:-1], gap)
    keep = (minutes >= 10) & (start < START_MS + config.days * DAY_MS)
    author, start, minutes = author[keep], start[keep], minutes[keep]
    order = np.lexsort((author, start))
    return author[order].astype(np.int32), start[order], (minutes[order] * MINUTE_MS // STEP_MS).astype(np.int64)


def _drifting_content(rng, topic, genre, steps, content_ptr) -> np.ndarray:
    """float32 [S, Z]: the topic, a slow drift (time constant 30 min) and a theme that jumps about once an hour."""
    slow, jump = np.float32(1 / 60), 1 / 120
    content = np.empty((content_ptr[-1], TOPIC_WIDTH), np.float32)
    longest_first = np.argsort(-steps, kind="stable")  # rooms still on air at a step are then a prefix
    topic, ends = topic[longest_first], steps[longest_first]
    offset = rng.normal(scale=0.2, size=topic.shape).astype(np.float32)
    theme = np.zeros_like(topic)
    for step in range(int(ends[0])):
        n = int(np.searchsorted(-ends, -step, side="left"))  # rooms with more than `step` steps
        noise = rng.normal(scale=0.2 * np.sqrt(2 * slow), size=(n, TOPIC_WIDTH)).astype(np.float32)
        offset[:n] = offset[:n] * (1 - slow) + noise
        jumps = np.nonzero(rng.random(n) < jump)[0]
        theme[jumps] = 0.9 * genre[rng.integers(GENRES, size=jumps.size)] * (rng.random((jumps.size, 1)) < 0.6)
        content[content_ptr[longest_first[:n]] + step] = topic[:n] + offset[:n] + theme[:n]
    return unit(content)


def unit(x: np.ndarray) -> np.ndarray:
    """float32: x scaled to length 1 along its last axis."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
