"""A simulated live-streaming platform: the one source whose true preferences are known.

    python -m data_pipelines.simulator --out_dir=/tmp/platform --users=400 --authors=150 --days=14

Authors have a topic, a heavy-tailed popularity and a weekly schedule. The content of a room drifts every 30 seconds
around its author's topic and sometimes jumps (a song, a sale, a battle). People have tastes that change with the hour,
habits and follows; they open the app in sessions with a daily cycle, choose among the rooms on air by affinity,
popularity, habit and follow, and leave when the content drifts away from what they came for.

Axes: n users who take their next view, N rooms on air (padded), M later looks at the room, Z topic width.
"""

import argparse
from dataclasses import fields

import numpy as np
import polars as pl

from data_pipelines.simulated_world import DAY_MS, HOUR_MS, MINUTE_MS, START_MS, STEP_MS, TOPIC_WIDTH, World, make_world
from data_pipelines.tables import INTERACTIONS, ReadReport, Tables, save, sort_interactions, validate
from onelive_jax.config import SimulatorConfig

BIN_MS = 600_000  # rooms on air are listed by bins of ten minutes
EMBEDDING_WIDTH = 32
RECENT = 16  # views that a habit remembers; also the window of the repeat share
FOLLOWS = 8  # authors a person follows at a time
PAIRS_AT_ONCE = 2_000_000  # (user, room on air) pairs of a loop turn: bounds the memory

# Utilities of a room on air, per unit: true affinity (one standard deviation), log popularity, log(1 + recent views
# of the author), a follow, and having just left that very room.
AFFINITY, POPULARITY, HABIT, FOLLOW, JUST_LEFT = 2.3, 0.45, 3.5, 1.8, -1.0
SESSIONS_A_DAY, VIEWS_A_SESSION = 3.0, 3.0
# Minutes after which a person looks up and may leave, if affinity fell by this many standard deviations.
LOOKS_MIN = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
PATIENCE = 1.6
# Intended watch time: log-normal, log-median in minutes at average affinity, its slope and its spread.
WATCH_LOG_MEDIAN, WATCH_SLOPE, WATCH_SPREAD = 2.28, 0.35, 2.1

# figure → target. Repeat share and watch time: Twitch; ratios to 100 clicks: KuaiLive; rooms on air: ours.
TARGETS = {"repeat_share": 0.61, "watch_mean_min": 30.0, "watch_median_min": 10.0, "comments_per_100_clicks": 4.0,
           "likes_per_100_clicks": 3.7, "gifts_per_100_clicks": 1.5, "evening_rooms_on_air": 30.0}


def simulate(config: SimulatorConfig, segment_steps: int = 6) -> Tables:
    """The log of a simulated platform, in canonical form; the same config gives the same tables.

    Args:
      config: size, length and seed.
      segment_steps: one content segment is kept for every so many windows of 30 s (6: one in three minutes), to keep
        the table small; a room's first window is always kept.
    """
    if segment_steps < 1:
        raise ValueError(f"segment_steps={segment_steps} must be at least 1")
    world = make_world(config)
    on_air = _rooms_by_bin(world)
    users_at_once = max(16, min(4096, PAIRS_AT_ONCE // on_air.shape[1]))
    turns = []
    for first in range(0, config.users, users_at_once):
        users = np.arange(first, min(first + users_at_once, config.users))
        turns += _play(world, on_air, users, np.random.default_rng([config.seed, 1, first]))
    if not turns:
        raise ValueError("nobody watched anything: simulate more users, authors or days")
    views = {name: np.concatenate([turn[name] for turn in turns]) for name in turns[0]}
    interactions = _react(world, views, np.random.default_rng([config.seed, 2]))
    rng = np.random.default_rng([config.seed, 3])
    rooms = pl.DataFrame({
        "room_id": np.arange(world.room_author.size, dtype=np.int32), "author_id": world.room_author,
        "start_ms": world.room_start_ms, "end_ms": world.room_end_ms,
        "category": world.author_genre[world.room_author],
        "title_embedding": np.full(world.room_author.size, -1, np.int32)})
    authors = _ids("author_id", config.authors).with_columns(
        pl.Series("fans", np.round(1e6 * np.exp(world.popularity + rng.normal(0, 0.3, config.authors))), pl.Float32))
    report = ReadReport(f"simulated platform, seed {config.seed}", len(interactions), len(interactions))
    return validate(Tables(interactions, rooms, authors, _ids("user_id", config.users), report,
                           segments=_segments(world, rng, segment_steps), videos=_videos(world, rng),
                           rooms_are_true_lifetimes=True))


def _play(world: World, on_air: np.ndarray, users: np.ndarray, rng) -> list[dict[str, np.ndarray]]:
    """Views of some users: one turn is everybody's next view, so time runs at each person's own pace."""
    sessions = _session_keys(world, users, rng)
    n = users.size
    free_at = np.full(n, START_MS, np.int64)  # end of the last view
    views_left = np.zeros(n, np.int64)
    recent = np.full((n, RECENT), -1, np.int32)
    last_room = np.full(n, -1, np.int32)
    follows = _first_follows(world, users, rng)
    active = np.arange(n)
    turns = []
    while active.size:
        between = np.where(views_left[active] > 0, rng.exponential(20_000, active.size), 0).astype(np.int64)
        time = free_at[active] + between
        opens = views_left[active] <= 0
        upcoming = np.searchsorted(sessions, active * _USER_KEY + (time - START_MS), side="left")
        padded = np.append(sessions, np.int64(n) * _USER_KEY)
        next_user, next_time = np.divmod(padded[upcoming], _USER_KEY)
        time = np.where(opens, next_time + START_MS, time)
        going = np.where(opens, next_user == active, True) & (time < world.end_ms)
        views_left[active[opens]] = rng.geometric(1 / VIEWS_A_SESSION, int(opens.sum()))
        active, time = active[going], time[going]
        if not active.size:
            break
        room_nN = on_air[(time - START_MS) // BIN_MS]
        mask, room_nN = room_nN >= 0, np.maximum(room_nN, 0)
        mask &= world.room_start_ms[room_nN] <= time[:, None]
        mask &= world.room_end_ms[room_nN] > time[:, None] + STEP_MS
        author_nN = np.where(mask, world.room_author[room_nN], -2)
        affinity_nN = world.affinity(users[active], room_nN, np.broadcast_to(time[:, None], room_nN.shape))
        seen = (author_nN[:, :, None] == recent[active][:, None, :]).sum(-1)
        followed = (author_nN[:, :, None] == follows[active][:, None, :]).any(-1)
        utility = (AFFINITY * affinity_nN + POPULARITY * world.popularity[author_nN] + HABIT * np.log1p(seen)
                   + FOLLOW * followed + JUST_LEFT * (room_nN == last_room[active][:, None])
                   + rng.gumbel(size=room_nN.shape))
        choice = np.where(mask, utility, -np.inf).argmax(1)
        rows = np.arange(active.size)
        found = mask[rows, choice]
        views_left[active[~found]] = 0  # nobody on air: the session is over
        free_at[active[~found]] = time[~found] + MINUTE_MS
        who, rows = active[found], rows[found]
        room, time = room_nN[rows, choice[found]], time[found]
        watch, affinity = _watch(world, users[who], room, time, affinity_nN[rows, choice[found]], rng)
        author = world.room_author[room]
        wants = rng.random(who.size) < 0.01 * np.exp(np.minimum(affinity, 3))
        follow = wants & ~(follows[who] == author[:, None]).any(1)
        fans = who[follow]
        follows[fans] = np.column_stack([author[follow], follows[fans][:, :-1]])
        recent[who] = np.column_stack([author, recent[who][:, :-1]])
        last_room[who], free_at[who] = room, time + watch
        views_left[who] -= 1
        turns.append({"user_id": users[who].astype(np.int32), "room_id": room, "author_id": author, "start_ms": time,
                      "watch_ms": watch, "affinity": affinity, "follow": follow.astype(np.int32)})
    return turns


# Sessions of all users are one sorted array of user × _USER_KEY + ms since the start: the next one is a bisection.
_USER_KEY = np.int64(1 << 42)


def _session_keys(world: World, users: np.ndarray, rng) -> np.ndarray:
    days = (world.end_ms - START_MS) // DAY_MS
    count = rng.poisson(SESSIONS_A_DAY * world.activity[users] * days)
    quarter = np.arange(96) / 4
    cycle = np.cumsum(np.exp(1.2 * np.cos(2 * np.pi * (quarter - 20.5) / 24)))
    total = int(count.sum())
    bucket = np.searchsorted(cycle / cycle[-1], rng.random(total))
    offset = rng.integers(days, size=total) * DAY_MS + ((bucket + rng.random(total)) * 15 * MINUTE_MS).astype(np.int64)
    return np.sort(np.repeat(np.arange(users.size), count) * _USER_KEY + offset)


def _rooms_by_bin(world: World) -> np.ndarray:
    """int32 [bins, N]: rooms on air at some moment of each ten minutes of the log, padded with -1."""
    bins = (world.end_ms - START_MS) // BIN_MS
    first = np.clip((world.room_start_ms - START_MS) // BIN_MS, 0, None)
    stop = np.clip((world.room_end_ms - 1 - START_MS) // BIN_MS + 1, first, bins)
    room = np.repeat(np.arange(first.size, dtype=np.int32), stop - first)
    starts = np.repeat(np.cumsum(stop - first) - (stop - first), stop - first)
    where = np.repeat(first, stop - first) + np.arange(room.size) - starts
    order = np.argsort(where, kind="stable")
    room, where = room[order], where[order]
    slot = np.arange(room.size) - np.searchsorted(where, where)
    table = np.full((bins, int(slot.max(initial=0)) + 1), -1, np.int32)
    table[where, slot] = room
    return table


def _first_follows(world: World, users: np.ndarray, rng) -> np.ndarray:
    """int32 [n, FOLLOWS]: authors that people follow when the log begins (half of the slots; -1 is free)."""
    pool = rng.integers(world.topic.shape[0], size=(users.size, 24))
    liking = np.einsum("nz,nmz->nm", world.day_taste[users], world.topic[pool]) * np.sqrt(TOPIC_WIDTH)
    score = liking + 0.5 * world.popularity[pool] + rng.gumbel(size=pool.shape)
    best = np.take_along_axis(pool, np.argsort(-score, axis=1)[:, :FOLLOWS // 2], axis=1)
    return np.column_stack([best, np.full((users.size, FOLLOWS - FOLLOWS // 2), -1)]).astype(np.int32)


def _watch(world: World, user, room, time, affinity, rng) -> tuple[np.ndarray, np.ndarray]:
    """(watch_ms int64 [n], mean affinity while watching float32 [n]); ends with intent, drift, room or log."""
    looks_nM = time[:, None] + LOOKS_MIN * MINUTE_MS
    later_nM = world.affinity(user, np.broadcast_to(room[:, None], looks_nM.shape), looks_nM)
    bored = later_nM < affinity[:, None] - PATIENCE * (0.5 + rng.random((user.size, 1)))
    first = bored.argmax(1)
    leave = np.where(bored.any(1), LOOKS_MIN[first] * rng.uniform(0.6, 1.0, user.size), np.inf)
    intent = np.exp(WATCH_LOG_MEDIAN + WATCH_SLOPE * (affinity - 1) + WATCH_SPREAD * rng.normal(size=user.size))
    minutes = np.minimum(np.minimum(intent, leave), 600)
    watch = np.maximum((minutes * MINUTE_MS).astype(np.int64), 5_000)
    watch = np.minimum(watch, np.minimum(world.room_end_ms[room], world.end_ms) - time)
    seen = looks_nM <= (time + watch)[:, None]
    mean = (affinity + (later_nM * seen).sum(1)) / (1 + seen.sum(1))
    return watch, mean.astype(np.float32)


def _react(world: World, views: dict[str, np.ndarray], rng) -> pl.DataFrame:
    """The interactions table: likes, comments, gifts, shares and dislikes drawn from affinity and watch time.

    Each rate is scaled so that its expected number per 100 clicks is the target; who and when is left to affinity.
    """
    liking = np.clip(views["affinity"], -3, 3)
    hours = np.minimum(views["watch_ms"] / HOUR_MS, 1.0)

    def rate(target_per_100: float, appeal: np.ndarray) -> np.ndarray:
        return target_per_100 / 100 * appeal / appeal.mean()

    n = liking.size
    gift = rng.random(n) < rate(TARGETS["gifts_per_100_clicks"],
                                world.generosity[views["user_id"]] * np.exp(0.7 * liking) * np.sqrt(hours))
    frame = pl.DataFrame({name: views[name] for name in ("user_id", "room_id", "author_id", "start_ms", "watch_ms",
                                                         "follow")}).with_columns(
        pl.lit(True).alias("click"),
        pl.Series("like", rng.poisson(rate(TARGETS["likes_per_100_clicks"], np.exp(liking) * np.sqrt(hours))),
                  pl.Int32),
        pl.Series("comment", rng.poisson(rate(TARGETS["comments_per_100_clicks"], np.exp(0.6 * liking) * hours)),
                  pl.Int32),
        pl.Series("share", rng.poisson(rate(0.3, np.exp(0.5 * liking))), pl.Int32),
        pl.Series("gift_value", np.where(gift, np.round(rng.lognormal(2.0, 1.2, n), 1), 0), pl.Float32),
        pl.Series("negative", rng.random(n) < rate(0.3, np.exp(-liking))),
    )
    return sort_interactions(frame.select(*INTERACTIONS))


def _segments(world: World, rng, segment_steps: int) -> pl.DataFrame:
    """Segments: a fixed random non-linear view of the content (two layers, tanh), and noise."""
    steps = np.diff(world.content_ptr)
    room = np.repeat(np.arange(steps.size, dtype=np.int32), steps)
    step = np.arange(room.size) - world.content_ptr[room]
    keep = np.nonzero(step % segment_steps == 0)[0]
    hidden = rng.normal(size=(TOPIC_WIDTH, 64)).astype(np.float32)
    out = rng.normal(scale=64**-0.5, size=(64, EMBEDDING_WIDTH)).astype(np.float32)
    embedding = np.tanh(world.content[keep] @ hidden) @ out
    embedding += rng.normal(scale=0.1, size=embedding.shape).astype(np.float32)
    end = world.room_start_ms[room[keep]] + (step[keep] + 1) * STEP_MS
    return pl.DataFrame({"room_id": room[keep], "end_ms": end,
                         "embedding": pl.Series(embedding, dtype=pl.Array(pl.Float32, EMBEDDING_WIDTH))})


def _videos(world: World, rng, per_day: float = 4.0, pool: int = 48) -> pl.DataFrame:
    """Short videos that people watched: of authors close to their taste, out of a random pool at a time."""
    days = (world.end_ms - START_MS) // DAY_MS
    user = np.repeat(np.arange(world.activity.size), rng.poisson(per_day * days * world.activity))
    time = START_MS + rng.integers(days * DAY_MS, size=user.size)
    author = np.empty(user.size, np.int32)
    for part in np.array_split(np.arange(user.size), max(1, user.size // 65536)):
        offered = rng.integers(world.topic.shape[0], size=(part.size, pool))
        liking = np.einsum("nz,nmz->nm", world.taste(user[part], time[part]), world.topic[offered])
        best = (2 * np.sqrt(TOPIC_WIDTH) * liking + rng.gumbel(size=liking.shape)).argmax(1)
        author[part] = offered[np.arange(part.size), best]
    watch = (rng.lognormal(np.log(15_000), 0.8, user.size)).astype(np.int64)
    frame = pl.DataFrame({"user_id": user.astype(np.int32), "author_id": author, "start_ms": time, "watch_ms": watch})
    return frame.sort("user_id", "start_ms", "author_id")


def calibration(tables: Tables) -> dict[str, tuple[float, float]]:
    """figure → (target, simulated), for every figure of `TARGETS`; the constants were tuned at the default size."""
    log = tables.interactions.filter(pl.col("click"))
    user, author = log["user_id"].to_numpy(), log["author_id"].to_numpy()
    repeat = np.zeros(len(log), bool)
    for back in range(1, RECENT + 1):
        repeat[back:] |= (user[back:] == user[:-back]) & (author[back:] == author[:-back])
    minutes = log["watch_ms"].to_numpy() / MINUTE_MS
    evenings = np.arange(int(log["start_ms"].min()) // DAY_MS, int(log["start_ms"].max()) // DAY_MS + 1) * DAY_MS
    moments = (evenings[:, None] + np.arange(19, 23) * HOUR_MS).ravel()
    opened, closed = (np.sort(tables.rooms[name].to_numpy()) for name in ("start_ms", "end_ms"))
    on_air = np.searchsorted(opened, moments, side="right") - np.searchsorted(closed, moments, side="right")
    found = {"repeat_share": repeat.mean(), "watch_mean_min": minutes.mean(), "watch_median_min": np.median(minutes),
             "comments_per_100_clicks": 100 * log["comment"].mean(), "likes_per_100_clicks": 100 * log["like"].mean(),
             "gifts_per_100_clicks": 100 * (log["gift_value"] > 0).mean(), "evening_rooms_on_air": on_air.mean()}
    return {name: (target, float(found[name])) for name, target in TARGETS.items()}


def _ids(key: str, n: int) -> pl.DataFrame:
    return pl.DataFrame({key: np.arange(n, dtype=np.int32), "source_id": [str(i) for i in range(n)]})


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the log of a simulated live-streaming platform.")
    parser.add_argument("--out_dir", required=True, help="folder for the canonical tables (made if missing)")
    for f in fields(SimulatorConfig):
        parser.add_argument(f"--{f.name}", type=int, default=f.default, help=f.metadata["doc"])
    options = vars(parser.parse_args())
    out_dir = options.pop("out_dir")
    try:
        tables = simulate(SimulatorConfig(**options))
        save(tables, out_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("\n".join(tables.report.lines()))
    for name, (target, simulated) in calibration(tables).items():
        print(f"{name:26s} target {target:7.2f}   simulated {simulated:7.2f}")


if __name__ == "__main__":
    main()
