"""What is true of the simulated platform: authors, schedules, rooms whose content drifts, and people's tastes.

Axes: A authors, R rooms, J jumps of content (all rooms, flat), U users, Z topic width, C cosines of a drift,
E embedding width; n pairs of a person or a room with a moment; N rooms on air.

Nothing is stored per half minute: the content of a room is a function of (room, moment), so that millions of rooms fit
in memory and a segment of any moment, in the log or in the played period after it, can be embedded.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.simulator.movement import Movement, draw_events, make_movement, moves
from onelive_jax.config import SimulatorConfig, check_ranges

START_MS = 1_746_403_200_000  # Monday 2025-05-05 00:00 UTC, which is also the platform's local time
STEP_MS = 30_000  # jumps fall on whole steps of a room's age, and a content segment is the view of one step
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
TOPIC_WIDTH, GENRES = 8, 12
EMBEDDING_WIDTH, TITLE_WIDTH = 32, 128
REACTIONS = ("like", "comment", "follow", "share", "gift")

DRIFT_SIZE = 0.55  # length of the drift (root mean square) beside a topic of length 1
DRIFT_PERIODS_MIN = np.array([60.0, 150.0, 400.0], np.float32)  # each room's own are within a factor 1.4 of these
JUMPS_AN_HOUR, THEME_SHARE = 1.0, 0.6  # a jump goes to a genre's theme, else back to the topic
EMBEDDING_NOISE = 0.1
CHARM_SPREAD = 0.6
KEY = np.int64(1) << np.int64(42)  # (id, time) pairs are sorted as id × KEY + milliseconds


@dataclass
class SimulatedWorld:
    """What is true of the platform, beyond what its log shows.

    Attributes:
      seed: of the world.
      genre: float32 [GENRES, Z], unit vectors. topic: float32 [A, Z], unit vectors. author_genre: int32 [A].
      popularity: float32 [A], log of the share of attention that an author gets.
      fame: float32 [A], uniform, mean 0, variance 1, in the order of popularity: the popular are a little better.
      lure: float32 [A], N(0, 1): how much more an author's cover promises than the room keeps. charm: float32
        [A, 5], log of what moves people to each of REACTIONS, mean of exp is 1. hold: float32 [A], N(0, 1): how long
        people stay.
      room_author: int32 [R]; room_start_ms, room_end_ms: int64 [R]; rooms sorted by (start, author).
      wave, phase: float32 [R, C], radians per ms and radians of a drift's cosines; direction: uint8 [R, C], a row of
        `directions`, float32 [256, Z], unit vectors.
      jump_size: length of a theme beside an author's topic, whose length is 1.
      movement: how the world moves (movement.py); None where it does not.
      jump_key: int64 [J] ascending, room × KEY + ms since the room's start; jump_theme: int8 [J], a genre, or -1.
      day_taste, evening_taste: float32 [U, Z], unit vectors; the taste moves from one to the other with the hour.
      activity: float32 [U], mean 1. generosity: float32 [U], mean 1, heavy-tailed.
      end_ms: end of the log. play_end_ms: end of the played period that follows it.
    """

    seed: int
    genre: np.ndarray
    topic: np.ndarray
    author_genre: np.ndarray
    popularity: np.ndarray
    fame: np.ndarray
    lure: np.ndarray
    charm: np.ndarray
    hold: np.ndarray
    room_author: np.ndarray
    room_start_ms: np.ndarray
    room_end_ms: np.ndarray
    wave: np.ndarray
    phase: np.ndarray
    direction: np.ndarray
    directions: np.ndarray
    jump_key: np.ndarray
    jump_theme: np.ndarray
    day_taste: np.ndarray
    evening_taste: np.ndarray
    activity: np.ndarray
    generosity: np.ndarray
    end_ms: int
    play_end_ms: int
    jump_size: float
    movement: Movement | None = None

    def __post_init__(self):
        # Which room of an author covers a moment is one bisection among that author's rooms.
        key = self.room_author * KEY + (self.room_start_ms - START_MS + DAY_MS)
        self._by_author = np.argsort(key).astype(np.int32)
        self._author_key = key[self._by_author]

    def taste(self, user: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        """float32 [n, Z]: unit tastes of n users at n moments."""
        hour = (time_ms % DAY_MS) / HOUR_MS
        evening = ((1 + np.cos(2 * np.pi * (hour - 21) / 24)) / 2)[..., None].astype(np.float32)
        taste = unit(self.day_taste[user] * (1 - evening) + self.evening_taste[user] * evening)
        return taste if self.movement is None else unit(self.movement.moved(taste, user, time_ms))

    def content(self, room: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        """float32 [..., Z]: unit vectors of what rooms show at moments (two arrays of one shape).

        The author's topic + a smooth stationary drift (three cosines) + the theme of the last jump. Moments outside a
        room's life are moved to its nearest end.
        """
        age = self._age(room, time_ms)
        at = self.topic[self.room_author[room]]
        scale = np.float32(DRIFT_SIZE * np.sqrt(2 / DRIFT_PERIODS_MIN.size))
        age_ms = age.astype(np.float32)  # to 4 ms at ten hours: nothing to a drift that takes minutes
        for c in range(DRIFT_PERIODS_MIN.size):
            swing = scale * np.cos(self.wave[room, c] * age_ms + self.phase[room, c])
            at += swing[..., None] * self.directions[self.direction[room, c]]
        last, jumped = self._last_jump(room, age)
        theme = np.where(jumped, self.jump_theme[last] if self.jump_theme.size else -1, -1)
        at += np.append(np.float32(self.jump_size) * self.genre, np.zeros((1, TOPIC_WIDTH), np.float32), axis=0)[theme]
        return unit(at)

    def last_jump_ms(self, room: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        """int64, the shape of the arguments: when the content last jumped by that moment; -1 where it has not yet."""
        last, jumped = self._last_jump(room, self._age(room, time_ms))
        key = self.jump_key[last] if self.jump_key.size else np.zeros_like(last)
        return np.where(jumped, key % KEY + self.room_start_ms[room], -1)

    def affinity(self, user: np.ndarray, room: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        """float32 [n, M]: true affinity of user n for rooms [n, M] at moments [n, M], about N(0, 1) over all pairs.

        The taste is that of each row's first moment; moments outside a room's life are moved to its nearest end.
        """
        taste = self.taste(user, time_ms[:, 0])
        affinity = np.einsum("nz,nmz->nm", taste, self.content(room, time_ms)) * np.float32(np.sqrt(TOPIC_WIDTH))
        return affinity if self.movement is None else affinity + self.movement.event_boost[room]

    def room_of(self, author: np.ndarray, time_ms: np.ndarray, margin_ms: int = STEP_MS) -> np.ndarray:
        """int32, the shape of author: its room that is on air at a moment and for margin_ms more; -1 where none is."""
        key = np.maximum(author, 0) * KEY + (time_ms - START_MS + DAY_MS)
        room = self._by_author[np.maximum(np.searchsorted(self._author_key, key, side="right") - 1, 0)]
        found = (self.room_author[room] == author) & (self.room_start_ms[room] <= time_ms)
        return np.where(found & (self.room_end_ms[room] > time_ms + margin_ms), room, np.int32(-1))

    def embed(self, room: np.ndarray, end_ms: np.ndarray) -> np.ndarray:
        """float32 [n, E]: embeddings of the 30-second segments of n rooms that end at n moments.

        A fixed random non-linear view (two layers, tanh) of the content in the middle of the segment, and a noise that
        is a function of the room and the segment.
        """
        rng = np.random.default_rng([self.seed, 10])
        step = (end_ms - self.room_start_ms[room]) // STEP_MS
        return self._view(rng, self.content(room, end_ms - STEP_MS // 2), room, step, EMBEDDING_WIDTH)

    def embed_title(self, room: np.ndarray) -> np.ndarray:
        """float32 [n, 128]: title embeddings of n rooms: a view of another kind of what they show as they begin."""
        rng = np.random.default_rng([self.seed, 11])
        return self._view(rng, self.content(room, self.room_start_ms[room]), room, np.zeros_like(room), TITLE_WIDTH)

    def _view(self, rng, content, room, step, width: int) -> np.ndarray:
        hidden = rng.normal(size=(TOPIC_WIDTH, 64)).astype(np.float32)
        out = rng.normal(scale=64**-0.5, size=(64, width)).astype(np.float32)
        # Noise without a generator's state: the sum of two rows of a table that a hash of (room, step) picks.
        noise = rng.normal(scale=EMBEDDING_NOISE * 2**-0.5, size=(4096, width)).astype(np.float32)
        bits = mix(room, step, 0)
        embedding = np.tanh(content @ hidden) @ out
        embedding += noise[(bits & np.uint64(4095)).astype(np.int64)]
        embedding += noise[(bits >> np.uint64(32) & np.uint64(4095)).astype(np.int64)]
        return embedding

    def _age(self, room: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        start = self.room_start_ms[room]
        return np.clip(time_ms - start, 0, self.room_end_ms[room] - 1 - start)

    def _last_jump(self, room: np.ndarray, age: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index of the last jump at or before that age, whether the room has one)."""
        last = np.searchsorted(self.jump_key, room * KEY + age, side="right") - 1
        if not self.jump_key.size:
            return np.zeros_like(last), np.zeros(last.shape, bool)
        jumped = (last >= 0) & (self.jump_key[last] // KEY == room)
        return np.where(jumped, last, 0), jumped


def make_world(config: SimulatorConfig) -> SimulatedWorld:
    """The platform of a seed: two calls with the same config give the same world.

    Raises:
      ValueError: a setting is out of range (its name is in the message), or nobody is ever on air.
    """
    check_ranges(config, "config.simulator")
    if config.segment_seconds % 30:
        raise ValueError(f"config.simulator.segment_seconds={config.segment_seconds} must be a multiple of 30")
    rng = np.random.default_rng([config.seed, 0])
    genre = unit(rng.normal(size=(GENRES, TOPIC_WIDTH)))
    author_genre = rng.integers(GENRES, size=config.authors).astype(np.int32)
    topic = unit(genre[author_genre] + rng.normal(scale=0.2, size=(config.authors, TOPIC_WIDTH)))
    place = rng.permutation(config.authors)
    popularity = -0.9 * np.log(1 + place).astype(np.float32)
    fame = (3**0.5 * (1 - (2 * place + 1) / config.authors)).astype(np.float32)
    # Half of the variance is the genre's: what moves people to a reaction can be learned from content.
    width = 2 + len(REACTIONS)
    traits = (rng.standard_normal((GENRES, width), np.float32)[author_genre]
              + rng.standard_normal((config.authors, width), np.float32)) * np.float32(0.5**0.5)
    lure, hold = np.ascontiguousarray(traits[:, :2].T)
    charm = CHARM_SPREAD * traits[:, 2:] - np.float32(CHARM_SPREAD**2 / 2)

    author, start, end = _schedule(rng, config)
    movement = make_movement(config, START_MS, TOPIC_WIDTH) if moves(config) else None
    if movement is not None:
        there = start >= movement.debut_ms[author]
        author, start, end = author[there], start[there], end[there]
        draw_events(movement, config, start, end)
    if not author.size:
        raise ValueError("no author ever went on air: simulate more authors or days")
    cosines = (author.size, DRIFT_PERIODS_MIN.size)
    period_ms = MINUTE_MS * DRIFT_PERIODS_MIN * np.exp(np.log(1.4) * rng.uniform(-1, 1, cosines)).astype(np.float32)
    wave = (2 * np.pi / period_ms).astype(np.float32)
    phase = (2 * np.pi * rng.random(cosines, np.float32)).astype(np.float32)
    direction = rng.integers(256, size=cosines, dtype=np.uint8)
    directions = unit(rng.normal(size=(256, TOPIC_WIDTH)))
    jump_key, jump_theme = _jumps(rng, end - start)

    loved = rng.random((config.users, GENRES)).argsort(axis=1)[:, :3]
    own = rng.normal(scale=0.2, size=(config.users, TOPIC_WIDTH))
    day = unit(genre[loved[:, 0]] + 0.5 * genre[loved[:, 1]] + own)
    evening = unit(genre[loved[:, 2]] + 0.5 * genre[loved[:, 0]] + own)
    activity = rng.gamma(2.0, 0.5, config.users).astype(np.float32)
    generosity = rng.lognormal(-0.5, 1.0, config.users).astype(np.float32)
    log_end = START_MS + config.days * DAY_MS
    return SimulatedWorld(config.seed, genre, topic, author_genre, popularity, fame, lure, charm, hold, author, start,
                          end, wave, phase, direction, directions, jump_key, jump_theme, day, evening, activity,
                          generosity, log_end, log_end + config.play_days * DAY_MS, config.jump_size, movement)


def _schedule(rng, config: SimulatorConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(author int32, start_ms int64, end_ms int64) of every room; an author has one room at a time.

    The day before the log is played too, so that the platform is not empty when the log begins.
    """
    weekdays = rng.random((config.authors, 7)) < 0.75
    kind = rng.random(config.authors)
    hour = np.where(kind < 0.55, rng.normal(19.5, 2.0, config.authors),
                    np.where(kind < 0.8, rng.normal(13, 3.0, config.authors), rng.uniform(0, 24, config.authors)))
    days = np.arange(-1, config.days + config.play_days)
    airs = weekdays[:, days % 7] & (rng.random((config.authors, days.size), np.float32) < 0.9)
    author, day = np.nonzero(airs)
    begin = days[day] * 24 + hour[author] + rng.normal(0, 0.5, author.size)
    start = START_MS + (begin * HOUR_MS).astype(np.int64)
    minutes = np.clip(rng.lognormal(np.log(180), 0.55, author.size), 10, 600)
    order = np.lexsort((start, author))
    author, start, minutes = author[order], start[order], minutes[order]
    gap = np.where(author[1:] == author[:-1], np.diff(start) / MINUTE_MS - 5, np.inf)
    minutes[:-1] = np.minimum(minutes[:-1], gap)
    last_ms = START_MS + (config.days + config.play_days) * DAY_MS
    keep = (minutes >= 10) & (start < last_ms) & (start >= START_MS - DAY_MS)
    author, start, minutes = author[keep], start[keep], minutes[keep]
    order = np.lexsort((author, start))
    steps = (minutes[order] * MINUTE_MS // STEP_MS).astype(np.int64)
    return author[order].astype(np.int32), start[order], start[order] + steps * STEP_MS


def _jumps(rng, life_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(jump_key int64 [J] ascending, jump_theme int8 [J]): Poisson moments in each room, on whole steps of its age."""
    count = rng.poisson(life_ms / HOUR_MS * JUMPS_AN_HOUR)
    room = np.repeat(np.arange(life_ms.size), count)
    step = 1 + (rng.random(room.size) * (life_ms[room] // STEP_MS - 1)).astype(np.int64)
    key = np.unique(room * KEY + step * STEP_MS)
    theme = np.where(rng.random(key.size) < THEME_SHARE, rng.integers(GENRES, size=key.size), -1)
    return key, theme.astype(np.int8)


def rooms_on_air(world: SimulatedWorld, time_ms: np.ndarray, margin_ms: int = STEP_MS) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int64 [n + 1], room int32 [N]): rooms on air at each of n moments and for margin_ms more, by room."""
    longest = int((world.room_end_ms - world.room_start_ms).max())
    first = np.searchsorted(world.room_start_ms, time_ms - longest)
    stop = np.searchsorted(world.room_start_ms, time_ms, side="right")
    count = stop - first
    moment = np.repeat(np.arange(count.size), count)
    room = np.arange(moment.size) - np.repeat(np.cumsum(count) - count, count) + first[moment]
    on_air = world.room_end_ms[room] > time_ms[moment] + margin_ms
    offsets = np.concatenate([[0], np.cumsum(np.bincount(moment[on_air], minlength=count.size))])
    return offsets.astype(np.int64), room[on_air].astype(np.int32)


def unit(x: np.ndarray) -> np.ndarray:
    """float32: x scaled to length 1 along its last axis."""
    x = np.asarray(x, np.float32)
    return x / np.sqrt(np.einsum("...z,...z->...", x, x))[..., None]


def mix(first: np.ndarray, second: np.ndarray, third: np.ndarray | int) -> np.ndarray:
    """uint64: 64 well-mixed bits of three integers (splitmix64), the same whatever else is asked and in what order."""
    bits = np.zeros(1, np.uint64)
    for number in (first, second, third):
        bits = bits ^ np.asarray(number).astype(np.uint64)
        bits = bits + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return bits
