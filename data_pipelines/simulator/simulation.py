"""A simulated live-streaming platform: the one source whose true preferences are known.

    python -m data_pipelines.simulator --out_dir=/tmp/platform --users=400 --authors=150 --days=14 [--format=kuailive]

Authors have a topic, a heavy-tailed popularity and a weekly schedule. The content of a room drifts around its author's
topic and sometimes jumps (a song, a sale, a battle). People have tastes that change with the hour, habits and follows;
they open the app in sessions with a daily cycle, are shown slates by a biased logging policy (simulated_feed.py), click
at most one room of a slate (simulated_people.py), and leave when the content drifts away from what they came for.
What is known of real platforms is met by solving, for each world, for the strength of habit, the length of watches and
the rates of reactions: see `calibration`.
"""

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.simulator import formats
from data_pipelines.simulator import reactions as people_lib
from data_pipelines.simulator.feed import Feed
from data_pipelines.simulator.reactions import Behaviour
from data_pipelines.simulator.sessions import RECENT, People, first_people, play_logging_policy
from data_pipelines.simulator.world import (
    DAY_MS,
    EMBEDDING_WIDTH,
    MINUTE_MS,
    START_MS,
    STEP_MS,
    TITLE_WIDTH,
    TOPIC_WIDTH,
    SimulatedWorld,
    make_world,
)
from data_pipelines.tables import INTERACTIONS, LOGGED, ReadReport, Tables, save, sort_interactions, validate
from onelive_jax.config import SimulatorConfig

FORMATS = ("canonical", "kuailive", "kuailive_m3")
ROWS_AT_ONCE = 200_000  # bounds the memory
# The pilot that `solve` plays: about so many clicks, at most so many rounds; the tolerance grows with the rounds.
PILOT_CLICKS, PILOT_ROUNDS, PILOT_TOLERANCE = 12_000, 8, 0.02

# figure → target. Repeat share and watch time: Twitch; ratios to 100 clicks: KuaiLive.
TARGETS = {"repeat_share": 0.61, "watch_mean_min": 30.0, "watch_median_min": 10.0, "comments_per_100_clicks": 4.0,
           "likes_per_100_clicks": 3.7, "gifts_per_100_clicks": 1.5}
WITHIN = 0.10


@dataclass
class Simulation:
    """A world, how its people behave, the state they are in when the log ends, and the log."""

    world: SimulatedWorld
    behaviour: Behaviour
    people: People
    tables: Tables


def simulate(config: SimulatorConfig) -> Tables:
    """The log of a simulated platform, in canonical form; the same config gives the same tables.

    Raises:
      ValueError: a setting is out of range (its name is in the message), or nobody ever watched anything.
    """
    return run(config).tables


def run(config: SimulatorConfig) -> Simulation:
    """`simulate`, with what is true of the platform beside its log."""
    world = make_world(config)
    feed = Feed(world, START_MS, world.end_ms)
    behaviour = solve(world, feed, config)
    people = first_people(world, config.seed)
    rows = play_logging_policy(world, feed, behaviour, people, np.arange(config.users), START_MS, world.end_ms,
                               [config.seed, 1])
    if not rows["click"].any():
        raise ValueError("nobody watched anything: simulate more users, authors or days")
    behaviour = _solve_rates(world, behaviour, rows)
    interactions = _react(world, behaviour, rows, np.random.default_rng([config.seed, 2]))
    return Simulation(world, behaviour, people, _tables(world, config, interactions))


def solve(world: SimulatedWorld, feed: Feed, config: SimulatorConfig) -> Behaviour:
    """Habit, length and spread of watches with which a pilot (some of the people, all days) meets its targets."""
    users = np.arange(min(config.users, max(100, PILOT_CLICKS // (9 * config.days))))
    behaviour, best, best_error = Behaviour(), Behaviour(), np.inf
    slope, last = 0.1, None
    for turn in range(PILOT_ROUNDS):
        rows = play_logging_policy(world, feed, behaviour, first_people(world, config.seed), users, START_MS,
                                   world.end_ms, [config.seed, 1])
        clicked = rows["click"]
        if not clicked.any():
            return behaviour
        minutes = rows["watch_ms"][clicked] / MINUTE_MS
        repeat, mean, median = rows["repeat"][clicked].mean(), minutes.mean(), np.median(minutes)
        found = np.array([repeat, mean, median])
        wanted = np.array([TARGETS[name] for name in ("repeat_share", "watch_mean_min", "watch_median_min")])
        error = np.abs(found / wanted - 1).max()
        if error < best_error:
            best, best_error = behaviour, error
        if error < PILOT_TOLERANCE * (1 + turn / 2):
            break
        if last is not None and abs(behaviour.habit - last[0]) > 0.02:
            slope = np.clip((repeat - last[1]) / (behaviour.habit - last[0]), 0.02, 0.2)
        last = behaviour.habit, repeat
        ratio = np.log((wanted[1] / wanted[2]) / (mean / median))
        behaviour = replace(
            behaviour, habit=float(np.clip(behaviour.habit + (wanted[0] - repeat) / slope, -4, 8)),
            watch_log_median=float(np.clip(behaviour.watch_log_median + np.log(wanted[2] / median), 0, 5)),
            watch_spread=float(np.clip(behaviour.watch_spread + 1.2 * ratio, 0.3, 4)))
    return best


def _click_rates(world: SimulatedWorld, behaviour: Behaviour, rows) -> np.ndarray:
    """float32 [clicks, 5]: mean number of each of REACTIONS of each click, given how long it was watched."""
    click = rows["click"]
    rate = people_lib.reaction_rates(world, behaviour, rows["user_id"][click], rows["room_id"][click],
                                     rows["affinity"][click], np.zeros(int(click.sum()), bool))
    rate[:, [0, 1, 4]] *= people_lib.hour_share(rows["watch_ms"][click])[:, None]
    return rate


def _solve_rates(world: SimulatedWorld, behaviour: Behaviour, rows) -> Behaviour:
    """Rates of likes, comments and gifts whose expected numbers per 100 clicks are the targets."""
    target = {0: "likes_per_100_clicks", 1: "comments_per_100_clicks", 4: "gifts_per_100_clicks"}
    for _ in range(8):  # the largest rate of a click is capped, so one division is not quite enough
        mean = _click_rates(world, behaviour, rows).mean(0, dtype=np.float64)
        rates = [rate * TARGETS[target[i]] / 100 / mean[i] if i in target else rate
                 for i, rate in enumerate(behaviour.rates)]
        behaviour = replace(behaviour, rates=tuple(float(rate) for rate in rates))
    return behaviour


def _react(world: SimulatedWorld, behaviour: Behaviour, rows, rng) -> pl.DataFrame:
    """The interactions table. Numbers of reactions are drawn by systematic sampling in a random order of the clicks.

    Each click has its own mean, as in a Poisson draw, but the total is the sum of the means, rounded: a small world
    meets its targets as well as a large one.
    """
    click = np.flatnonzero(rows["click"])
    rate = _click_rates(world, behaviour, rows)
    count = np.zeros((rows["click"].size, rate.shape[1]), np.int32)
    for i in (0, 1, 3, 4):
        order = rng.permutation(click.size)
        edges = np.floor(np.cumsum(rate[order, i], dtype=np.float64) + rng.random())
        count[click[order], i] = np.diff(edges, prepend=0.0)
    spread = people_lib.GIFT_SPREAD
    size = people_lib.GIFT_VALUE * rng.lognormal(-spread**2 / 2, spread, count.shape[0])
    columns = {name: rows[name] for name in (*INTERACTIONS, *LOGGED) if name in rows}
    frame = pl.DataFrame(columns | {
        "like": count[:, 0], "comment": count[:, 1], "share": count[:, 3],
        "gift_value": np.where(count[:, 4] > 0, np.maximum(np.round(count[:, 4] * size, 1), 0.1), 0)}).with_columns(
            pl.col("gift_value").cast(pl.Float32))
    return sort_interactions(frame.select(*INTERACTIONS, *LOGGED))


def _tables(world: SimulatedWorld, config: SimulatorConfig, interactions: pl.DataFrame) -> Tables:
    rng = np.random.default_rng([config.seed, 3])
    fans = np.round(1e6 * np.exp(world.popularity + rng.normal(0, 0.3, config.authors)))
    authors = _ids("author_id", config.authors).with_columns(pl.Series("fans", fans, pl.Float32))
    report = ReadReport(f"simulated platform, seed {config.seed}", len(interactions), len(interactions))
    rooms, titles, segments = rooms_until(world, world.end_ms, config.segment_seconds)
    return validate(Tables(interactions, rooms, authors, _ids("user_id", config.users), report, segments=segments,
                           videos=_videos(world, rng), titles=titles, rooms_are_true_lifetimes=True))


def rooms_until(world: SimulatedWorld, time_ms: int,
                segment_seconds: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(rooms, titles, segments) as far as a log that ends at time_ms knows them.

    Rooms are those with a whole segment by then, with their true ends; of the segments, those that have ended. A room's
    first 30 seconds are its first segment, and one follows every segment_seconds.
    """
    count = int(np.searchsorted(world.room_start_ms, time_ms - STEP_MS, side="right"))
    room = np.arange(count, dtype=np.int32)
    start, end = world.room_start_ms[:count], world.room_end_ms[:count]
    rooms = pl.DataFrame({
        "room_id": room, "author_id": world.room_author[:count], "start_ms": start, "end_ms": end,
        "category": world.author_genre[world.room_author[:count]], "title_embedding": room})
    titles = pl.DataFrame({"title_id": room, "embedding": _embeddings(world.embed_title, TITLE_WIDTH, room)})
    every = segment_seconds * 1000
    number = (np.minimum(end, time_ms) - start - STEP_MS) // every + 1
    owner = np.repeat(room, number)
    age = STEP_MS + every * (np.arange(owner.size) - np.repeat(np.cumsum(number) - number, number))
    moment = start[owner] + age
    segments = pl.DataFrame({"room_id": owner, "end_ms": moment,
                             "embedding": _embeddings(world.embed, EMBEDDING_WIDTH, owner, moment)})
    return rooms, titles, segments


def _embeddings(view, width: int, *columns: np.ndarray) -> pl.Series:
    result = np.empty((columns[0].size, width), np.float32)
    for first in range(0, len(result), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        result[part] = view(*(column[part] for column in columns))
    return pl.Series(result, dtype=pl.Array(pl.Float32, width))


def _videos(world: SimulatedWorld, rng, per_day: float = 4.0, pool: int = 24) -> pl.DataFrame:
    """Short videos that people watched: of authors close to their taste, out of a random pool at a time."""
    days = (world.end_ms - START_MS) // DAY_MS
    user = np.repeat(np.arange(world.activity.size), rng.poisson(per_day * days * world.activity))
    time = START_MS + rng.integers(days * DAY_MS, size=user.size)
    author = np.empty(user.size, np.int32)
    for part in np.split(np.arange(user.size), range(65536, user.size, 65536)):
        offered = rng.integers(world.topic.shape[0], size=(part.size, pool))
        liking = np.einsum("nz,nmz->nm", world.taste(user[part], time[part]), world.topic[offered])
        gumbel = -np.log(np.maximum(rng.standard_exponential(liking.shape, np.float32), 1e-30))
        score = 2 * np.sqrt(TOPIC_WIDTH) * liking + gumbel
        author[part] = offered[np.arange(part.size), score.argmax(1)]
    watch = (rng.lognormal(np.log(15_000), 0.8, user.size)).astype(np.int64)
    frame = pl.DataFrame({"user_id": user.astype(np.int32), "author_id": author, "start_ms": time, "watch_ms": watch})
    return frame.sort("user_id", "start_ms", "author_id", "watch_ms")


def calibration(tables: Tables) -> dict[str, tuple[float, float]]:
    """figure → (target, simulated), for every figure of `TARGETS`; watches and reactions are those of clicked rows."""
    log = tables.interactions.filter(pl.col("click"))
    user, author = log["user_id"].to_numpy(), log["author_id"].to_numpy()
    repeat = np.zeros(len(log), bool)
    for back in range(1, RECENT + 1):
        repeat[back:] |= (user[back:] == user[:-back]) & (author[back:] == author[:-back])
    minutes = log["watch_ms"].to_numpy() / MINUTE_MS
    found = {"repeat_share": repeat.mean(), "watch_mean_min": minutes.mean(), "watch_median_min": np.median(minutes),
             "comments_per_100_clicks": 100 * log["comment"].mean(), "likes_per_100_clicks": 100 * log["like"].mean(),
             "gifts_per_100_clicks": 100 * (log["gift_value"] > 0).mean()}
    return {name: (target, float(found[name])) for name, target in TARGETS.items()}


def _ids(key: str, n: int) -> pl.DataFrame:
    return pl.DataFrame({key: np.arange(n, dtype=np.int32), "source_id": np.arange(n).astype(str)})


def _write(tables: Tables, form: str, out_dir: str) -> None:
    if form == "canonical":
        save(tables, out_dir)
        return
    {"kuailive": formats.write_kuailive, "kuailive_m3": formats.write_kuailive_m3}[form](tables, Path(out_dir))


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the log of a simulated live-streaming platform.")
    parser.add_argument("--out_dir", required=True, help="folder for the tables (made if missing)")
    parser.add_argument("--format", default="canonical", choices=FORMATS, help="form of the files")
    for f in fields(SimulatorConfig):
        parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default, help=f.metadata["doc"])
    options = vars(parser.parse_args())
    out_dir, form = options.pop("out_dir"), options.pop("format")
    try:
        tables = simulate(SimulatorConfig(**options))
        _write(tables, form, out_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("\n".join(tables.report.lines()))
    print(f"{int(tables.interactions['click'].sum()):,} of them clicked")
    for name, (target, simulated) in calibration(tables).items():
        verdict = "within 10 %" if abs(simulated / target - 1) <= WITHIN else "NOT within 10 %"
        print(f"{name:26s} target {target:7.2f}   simulated {simulated:7.2f}   {verdict}")


