"""Figures of a log, as a data scientist would want them before training (drawn by data_pipelines/report.py).

Axes: V views, R rooms, S segments.
"""

import numpy as np
import polars as pl

from data_pipelines.log.presence import room_ends
from data_pipelines.log.tasks import REPEAT_VIEWS, is_repeat
from data_pipelines.log.timelines import Timelines, clock
from data_pipelines.tables import HOUR_MS, Tables

LAGS_MIN = (0.5, 1, 2, 5, 10, 20, 40, 80, 160)
PAIRS = 20_000  # of segments, drawn for each point of the drift


def summary(tables: Tables) -> dict[str, int | float]:
    """name → figure; whole numbers are counts."""
    log = tables.interactions
    views = log.filter(pl.col("watch_ms") > 0)
    result: dict[str, int | float] = {
        "people": len(tables.users), "authors": len(tables.authors), "rooms": len(tables.rooms),
        "rows of interactions": len(log), "watched views": len(views),
        "shown but not entered": int((~log["click"]).sum()), "rooms with a view": log["room_id"].n_unique(),
        "rooms still on air": int(tables.rooms["end_ms"].null_count()),
    }
    if len(views):
        stop = views["start_ms"] + views["watch_ms"]
        result["days"] = float((stop.max() - views["start_ms"].min()) / (24 * HOUR_MS))
        result["views a person, mean"] = len(views) / max(views["user_id"].n_unique(), 1)
        result["views a person, median"] = float(views.group_by("user_id").len()["len"].median())
        result["share of the busiest 1 % of authors"] = _share_of_top(views["author_id"].to_numpy(), 0.01)
        result[f"repeat share (last {REPEAT_VIEWS} views)"] = float(_repeats(views).mean())
    if tables.segments is not None:
        result["segments"] = len(tables.segments)
    if tables.videos is not None:
        result["short-video views"] = len(tables.videos)
    if tables.titles is not None:
        result["titles"] = len(tables.titles)
    return result


def _share_of_top(author: np.ndarray, share: float) -> float:
    counts = np.sort(np.bincount(author))[::-1]
    counts = counts[counts > 0]
    return float(counts[:max(1, round(share * counts.size))].sum() / counts.sum())


def hour_of_week(start_ms: np.ndarray, utc_offset_hours: float) -> np.ndarray:
    """float64 [168], share of views that start in each local hour, Monday 0:00 first."""
    hour, day = clock(start_ms, utc_offset_hours)
    return np.bincount(day * 24 + hour, minlength=168) / max(start_ms.size, 1)


def rooms_on_air(tables: Tables, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """(hours since the first view, rooms on air then), over the span of the views."""
    log = tables.interactions
    if not len(log):
        return np.zeros(0), np.zeros(0, np.int64)
    begin, end = int(log["start_ms"].min()), int((log["start_ms"] + log["watch_ms"]).max())
    moments = np.linspace(begin, end, points).astype(np.int64)
    opened = np.sort(tables.rooms["start_ms"].to_numpy())
    closed = np.sort(room_ends(tables, end + 1)[0])
    count = np.searchsorted(opened, moments, side="right") - np.searchsorted(closed, moments, side="right")
    return (moments - begin) / HOUR_MS, count


def _repeats(views: pl.DataFrame) -> np.ndarray:
    """bool [V], `tasks.is_repeat` of every view."""
    user, start = views["user_id"].to_numpy(), views["start_ms"].to_numpy()
    ptr = np.searchsorted(user, np.arange(int(user.max(initial=-1)) + 2))
    timelines = Timelines(ptr, views["author_id"].to_numpy(), views["room_id"].to_numpy(), start,
                          start + views["watch_ms"].to_numpy())
    return is_repeat(timelines, np.arange(user.size))


def repeat_by_experience(views: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(views of the person before, share of repeats) in buckets that double; buckets under 20 views are left out."""
    user = views["user_id"].to_numpy()
    if not user.size:
        return np.zeros(0), np.zeros(0)
    first = np.searchsorted(user, user)
    before = np.arange(user.size) - first
    repeat, kept = _repeats(views), before > 0
    bucket = np.log2(np.maximum(before, 1)).astype(int)
    count = np.bincount(bucket[kept])
    share = np.bincount(bucket[kept], weights=repeat[kept]) / np.maximum(count, 1)
    enough = count >= 20
    return 2.0 ** np.flatnonzero(enough), share[enough]


def objective_rates(tables: Tables) -> dict[str, float]:
    """Events per 100 clicks; `gift` counts views with a gift, `negative` all rows with the mark."""
    log = tables.interactions
    clicks = int(log["click"].sum())
    if not clicks:
        return {}
    count = {name: int((log[name] > 0).sum()) for name in ("like", "comment", "follow", "share")}
    count |= {"gift": int((log["gift_value"] > 0).sum()), "negative": int(log["negative"].sum())}
    if "satisfaction" in log.columns:
        count["answers on satisfaction"] = len(log) - log["satisfaction"].null_count()
    return {name: 100 * value / clicks for name, value in count.items()}


def content_drift(tables: Tables, seed: int = 0) -> dict[str, np.ndarray | float]:
    """Mean cosine of two segments: of one room by their distance in time, of two rooms of one author, of any two.

    Returns: {"minutes" [n], "same_room" [n], "same_author", "anybody"}; NaN where there is no such pair.
    """
    rng = np.random.default_rng(seed)
    segments = tables.segments
    room, end = segments["room_id"].to_numpy(), segments["end_ms"].to_numpy()
    values = segments["embedding"].to_numpy()
    author = tables.rooms["author_id"].to_numpy()[room]

    def cosine(a, b):
        x, y = (values[rows].astype(np.float64) for rows in (a, b))
        norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        return float(((x * y).sum(1)[norm > 0] / norm[norm > 0]).mean()) if (norm > 0).any() else float("nan")

    one = rng.integers(room.size, size=PAIRS)
    minutes, same_room = [], []
    # (room, end) ascends, so the segment `lag` later in the same room is found by one search.
    span = int(end.max() - end.min()) + 1
    key = room.astype(np.int64) * 2 * span + (end - end.min())
    for lag in LAGS_MIN:
        step = round(lag * 60_000)
        found = np.searchsorted(key, key[one] + step)
        inside = found < room.size
        a, b = one[inside], found[inside]
        near = (room[a] == room[b]) & (end[b] - end[a] <= 1.25 * step)
        if near.sum() >= 20:
            minutes.append(lag)
            same_room.append(cosine(a[near], b[near]))
    other = rng.integers(room.size, size=PAIRS)
    apart = room[one] != room[other]
    by_author = np.argsort(author, kind="stable")
    first = np.searchsorted(author[by_author], author[one])
    many = np.searchsorted(author[by_author], author[one], side="right") - first
    mate = by_author[first + (rng.random(PAIRS) * many).astype(np.int64)]
    different = room[mate] != room[one]
    return {"minutes": np.array(minutes), "same_room": np.array(same_room),
            "same_author": cosine(one[different], mate[different]) if different.any() else float("nan"),
            "anybody": cosine(one[apart], other[apart]) if apart.any() else float("nan")}
