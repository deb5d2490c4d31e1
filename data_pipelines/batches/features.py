"""What the model reads of a person and of rooms, as plain functions of arrays: the one truth, offline and live.

Training, evaluation, feedback and the played platform call these with many requests of the past; a server calls them
with one request now and the state it holds. So a feature cannot differ between training and serving.

Axes: R requests, V views, n rooms of all requests (flat), N slots, T history items, L code levels.
"""

from collections.abc import Mapping

import numpy as np

from data_pipelines.log import audiences as counts
from data_pipelines.log.audiences import SIMILARITIES_MADE, TRENDS_MADE, Audiences
from data_pipelines.log.intervals import check_range
from data_pipelines.log.presence import OnAir
from data_pipelines.log.slicing import HABITS_MADE, HistoryArrays, HistorySettings, Views, slice_histories
from data_pipelines.log.timelines import clock
from data_pipelines.tables import HOUR_MS
from onelive_jax.batch import HABIT_FEATURES, ROOM_FEATURES, SIMILARITIES, History, LiveRooms, Request
from onelive_jax.config import DataConfig

ROOM_FEATURES_MADE = 2 + TRENDS_MADE  # features that `room_features` computes, in the order of ROOM_FEATURES


def check_feature_counts(room: int = len(ROOM_FEATURES), habit: int = len(HABIT_FEATURES),
                         similarity: int = len(SIMILARITIES)) -> None:
    """Raises RuntimeError where onelive_jax/batch.py names other features than are made: they would be zeros."""
    for name, named, made, home in (("ROOM_FEATURES", room, ROOM_FEATURES_MADE, "batches/features.py"),
                                    ("HABIT_FEATURES", habit, HABITS_MADE, "log/slicing.py"),
                                    ("SIMILARITIES", similarity, SIMILARITIES_MADE, "log/audiences.py")):
        if named != made:
            raise RuntimeError(f"onelive_jax/batch.py names {named} {name}, data_pipelines/{home} makes {made}: "
                               "a feature needs both its name and its computation")


check_feature_counts()


def room_features(viewers: np.ndarray, since_ms: np.ndarray, author: np.ndarray, times_ms: np.ndarray,
                  audiences: Audiences) -> np.ndarray:
    """float32 [n, R], see `onelive_jax.batch.ROOM_FEATURES`.

    Args: viewers: int [n], *other* people who watch. since_ms: int64 [n], when the room was first seen on air.
      author: int [n]. times_ms: int64 [n] or [1], the moment of the request. audiences: what is counted of authors.
    """
    age_hours = np.maximum(times_ms - since_ms, 0) / HOUR_MS
    now = np.stack([np.log(np.maximum(viewers, 1)), np.log1p(age_hours)], -1).astype(np.float32)
    return np.concatenate([now, counts.trends(audiences, author, times_ms)], -1)


def live_rooms(on_air: OnAir, codes: np.ndarray, times_ms: np.ndarray, slots: int, audiences: Audiences) -> LiveRooms:
    """The rooms on air of each request, padded to N = `slots`, in the order of `on_air`.

    Args:
      on_air: n rooms of R moments. codes: int32 [n, L], their semantic ids at that moment. times_ms: int64 [R].
      audiences: what is counted of their authors.

    Raises:
      ValueError: a request has more rooms than slots.
    """
    features = room_features(on_air.viewers, on_air.since_ms, on_air.author,
                             np.asarray(times_ms, np.int64)[on_air.moment], audiences)
    pad = lambda values: padded(values, on_air.offsets, slots)  # noqa: E731
    return LiveRooms(pad(on_air.author.astype(np.int32, copy=False)), pad(codes.astype(np.int32, copy=False)),
                     pad(features), pad(np.ones(on_air.author.size, bool)))


def padded(values: np.ndarray, offsets: np.ndarray, slots: int) -> np.ndarray:
    """[R, slots, …], zeros behind the values [n, …] of each request (rows offsets[r] … offsets[r + 1] − 1)."""
    count = np.diff(offsets)
    if count.size and count.max() > slots:
        raise ValueError(f"{count.max()} rooms of a request do not fit {slots} slots")
    out = np.zeros((count.size, slots, *values.shape[1:]), values.dtype)
    out[np.arange(slots) < count[:, None]] = values
    return out


def history_settings(config: DataConfig, sequence: str) -> HistorySettings:
    """How the history `sequence` ("live", "gift" or "video") is cut; a gift counts however short the view."""
    effective_ms = 0 if sequence == "gift" else round(1000 * config.effective_view_seconds)
    return HistorySettings(config.history_items, config.history_window, config.history_unit == "authors", effective_ms,
                           round(config.utc_offset_hours * HOUR_MS))


def histories(views: Views, first: np.ndarray, stop: np.ndarray, times_ms: np.ndarray,
              settings: HistorySettings) -> History:
    """The history of R requests: NumPy arrays [R, T, …], right-aligned.

    A history item is, by default, a *distinct author*: the last view of that author, with what is known of the viewer's
    habit with them, summed over the window. Sixty views of one streamer are one item with a count, so a short sequence
    remembers for a long time. Only views that started strictly before the request are seen, and a view still going on
    counts as far as it had been watched.

    Args:
      views: of all people. first, stop: int64 [R], the views of who asks are rows first … stop − 1. Of a log these are
        `Timelines.rows_of(users)`; of a live state, the block of the person's last views.
      times_ms: int64 [R].

    Raises:
      ValueError: rows that `views` does not have.
    """
    times_ms, rows = np.asarray(times_ms, np.int64), views.author.size
    first, stop = check_range("first view", first, rows + 1), check_range("end of views", stop, rows + 1)
    shape = (times_ms.size, settings.items)
    item = lambda: np.zeros(shape, np.int32)  # noqa: E731
    made = HistoryArrays(item(), np.zeros((*shape, views.codes.shape[1]), np.int32), item(), item(), item(),
                         np.zeros((*shape, HABITS_MADE), np.float32), np.zeros(shape, bool))
    slice_histories(views, first, stop, times_ms, settings, made)
    return History(**made._asdict())


def request(made: Mapping[str, History], times_ms: np.ndarray, audiences: Audiences, config: DataConfig) -> Request:
    """Requests at `times_ms` int64 [R] of people with these histories, by sequence. Related authors are those of the
    live history; a request without one has none."""
    hour, day = clock(times_ms, config.utc_offset_hours)
    if "live" in made:
        author, similarity = counts.related(audiences, times_ms, made["live"], config.related_authors)
    else:
        shape = hour.size, config.related_authors
        author, similarity = np.full(shape, -1, np.int32), np.zeros((*shape, SIMILARITIES_MADE), np.float32)
    return Request(dict(made), hour, day, np.zeros_like(hour), author, similarity)
