"""Who shares an audience with whom, and how popular authors are: counts of past views, as of a few moments.

A history says what a person watched; these counts say what *others* who watched that also watched. A training example
reads the last snapshot before its moment, an evaluation and a live service the one at the end of training, so that no
example reads a view that began after it: neither the answer nor anything later.

Axes: V views, A authors, U users, E pairs of authors, S snapshots, R requests, T history items, K related authors,
n rooms.
"""

import io
import zlib
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numba
import numpy as np
from scipy import sparse

from data_pipelines.log.slicing import DAY_MS
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import HOUR_MS
from onelive_jax.files import write_whole

NEIGHBOURS = 128  # kept for an author, the most similar; with 32, validation NDCG@10 was .010 lower (Twitch, one seed)
LAST_AUTHORS = 256  # of a person that are paired: bounds the pairs of somebody who watches everything
SHRINK = 5.0  # added to the denominator of the cosine, so that one common viewer proves little
SNAPSHOTS = 32  # at most, no closer than a day
HOURS = 24
FIRST = np.iinfo(np.int64).min
HALF_LIFE_MS = 7 * DAY_MS
SIMILARITIES_MADE = 5  # figures that `related` computes, in the order of onelive_jax.batch.SIMILARITIES
TRENDS_MADE = 5  # figures of an author that `trends` gives, the last of batch.ROOM_FEATURES


class Snapshot(NamedTuple):
    """The counts of the views that were over at a moment.

    Attributes:
      ptr: int64 [A + 1], the neighbours of author a are ptr[a] … ptr[a + 1] − 1, ascending.
      neighbour: int32 [E]. cosine: float32 [E], common viewers / (√(viewers · viewers) + SHRINK).
      authors: float32 [A, 4], with `hours` what `trends` gives: log(1 + views, each halved per week of age), log(1 +
        all views), log(1 + mean number of people watching while anybody was), log(1 + mean hours of a room).
      hours: float32 [A, 24], log(1 + views that began near that hour of the day, each halved per four weeks).
    """

    ptr: np.ndarray
    neighbour: np.ndarray
    cosine: np.ndarray
    authors: np.ndarray
    hours: np.ndarray


class Audiences(NamedTuple):
    """Snapshots at ascending moments. times_ms: int64 [S]; snapshot 0 knows nothing, and holds until the next."""

    times_ms: np.ndarray
    snapshots: tuple[Snapshot, ...]
    utc_offset_ms: int

    @property
    def num_authors(self) -> int:
        return self.snapshots[0].ptr.size - 1

    def at(self, times_ms: np.ndarray) -> np.ndarray:
        """int64 [R], the last snapshot at or before each moment."""
        return np.searchsorted(self.times_ms, times_ms, side="right") - 1


def nothing() -> Audiences:
    """Of a log of which nothing is counted."""
    empty = Timelines(np.zeros(1, np.int64), *(np.zeros(0, kind) for kind in (np.int32, np.int32, np.int64, np.int64)))
    return Audiences(np.array([FIRST]), (snapshot(empty, 0, 0, 0),), 0)


def take_snapshots(views: Timelines, num_authors: int, end_ms: int, utc_offset_hours: float) -> Audiences:
    """Snapshots of the views that end by `end_ms`, the last one at that moment."""
    begin = int(views.start_ms.min(initial=end_ms))
    spacing = max(DAY_MS, -(-(end_ms - begin) // SNAPSHOTS))
    moments = np.arange(end_ms, begin, -spacing)[::-1]
    offset = round(utc_offset_hours * HOUR_MS)
    made = [snapshot(views.until(time), num_authors, int(time), offset) for time in (begin, *moments)]
    return Audiences(np.append(FIRST, moments), tuple(made), offset)


def stored(folder: Path, views: Timelines, num_authors: int, end_ms: int, utc_offset_hours: float) -> Audiences:
    """`take_snapshots`, or what an earlier call with the same views and moment kept in `folder` / audiences.npz."""
    marks = [zlib.crc32(np.ascontiguousarray(values)) for values in (views.user_ptr, views.author, views.start_ms)]
    key = np.array([end_ms, round(utc_offset_hours * HOUR_MS), SNAPSHOTS, NEIGHBOURS, num_authors, *marks], np.int64)
    file = folder / "audiences.npz"
    keep = True
    try:
        with np.load(file, allow_pickle=False) as kept:
            if np.array_equal(kept["key"], key):
                made = [Snapshot(*(kept[f"{name}_{s}"] for name in Snapshot._fields))
                        for s in range(kept["times_ms"].size)]
                return Audiences(kept["times_ms"], tuple(made), int(key[1]))
            keep = False  # of other settings, which the stages refuse: theirs stay
    except (OSError, ValueError, KeyError, BadZipFile):
        pass  # not there, of an earlier version or damaged: it is made anew
    made = take_snapshots(views, num_authors, end_ms, utc_offset_hours)
    if not keep:
        return made
    arrays = {f"{name}_{s}": value for s, snap in enumerate(made.snapshots) for name, value in snap._asdict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, key=key, times_ms=made.times_ms, **arrays)
    write_whole(file, buffer.getvalue())
    return made


def snapshot(views: Timelines, num_authors: int, time_ms: int, utc_offset_ms: int) -> Snapshot:
    """The counts of `views`, all of them over at `time_ms`."""
    ptr, neighbour, cosine = _neighbours(views, num_authors)
    age, author = time_ms - views.start_ms, views.author
    count = lambda weight: np.bincount(author, weight, minlength=num_authors)  # noqa: E731
    watched, on_air, rooms = _air_time(views, num_authors)
    authors = np.stack([count(np.exp2(-age / HALF_LIFE_MS)), count(None),
                        np.divide(watched, on_air, out=np.zeros(num_authors), where=on_air > 0),
                        np.divide(on_air, rooms * HOUR_MS, out=np.zeros(num_authors), where=rooms > 0)], -1)
    hour = (views.start_ms + utc_offset_ms) // HOUR_MS % HOURS
    hours = np.zeros((num_authors, HOURS))
    weight = np.exp2(-age / (4 * HALF_LIFE_MS))
    for shift, share in ((-1, 0.5), (0, 1.0), (1, 0.5)):
        np.add.at(hours, (author, (hour + shift) % HOURS), share * weight)
    return Snapshot(ptr, neighbour, cosine, np.log1p(authors).astype(np.float32), np.log1p(hours).astype(np.float32))


def _air_time(views: Timelines, num_authors: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 [A] three times: milliseconds watched, milliseconds in which anybody watched, rooms."""
    order = np.lexsort((views.start_ms, views.author))
    author, start, stop = views.author[order], views.start_ms[order], views.stop_ms[order]
    add = lambda values: np.bincount(author, values, minlength=num_authors)  # noqa: E731
    rooms = np.bincount(np.unique(views.author.astype(np.int64) << 32 | views.room) >> 32, minlength=num_authors)
    return add(stop - start), add(_newly_covered(author, start, stop)), rooms.astype(np.float64)


@numba.njit(nogil=True, cache=True)
def _newly_covered(author, start, stop):
    """int64 [V], of each view the time that no earlier view of its author covers; sorted by (author, start)."""
    result = np.zeros(author.size, np.int64)
    for i in range(author.size):
        if i == 0 or author[i] != author[i - 1]:
            covered = start[i]
        result[i] = max(stop[i] - max(start[i], covered), 0)
        covered = max(covered, stop[i])
    return result


def _neighbours(views: Timelines, num_authors: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ptr, neighbour, cosine) of a `Snapshot`."""
    user, author = _last_authors(views, num_authors)
    watched_UxA = sparse.csr_array((np.ones(user.size, np.float32), (user, author)),
                                   (max(views.num_users, 1), max(num_authors, 1)))
    viewers_A = np.bincount(author, minlength=num_authors).astype(np.float32)
    common = (watched_UxA.T @ watched_UxA).tocoo()
    apart = common.row != common.col
    a, b, count = common.row[apart], common.col[apart], common.data[apart]
    cosine = count / (np.sqrt(viewers_A[a] * viewers_A[b]) + SHRINK)
    order = np.lexsort((b, -cosine, a))
    first = np.searchsorted(a[order], np.arange(num_authors))
    kept = order[np.arange(order.size) - first[a[order]] < NEIGHBOURS]
    kept = kept[np.lexsort((b[kept], a[kept]))]
    ptr = np.append(0, np.cumsum(np.bincount(a[kept], minlength=num_authors))).astype(np.int64)
    return ptr, b[kept].astype(np.int32), cosine[kept].astype(np.float32)


def _last_authors(views: Timelines, num_authors: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (user, author), of each user the LAST_AUTHORS last watched ones."""
    key = views.users().astype(np.int64) * max(num_authors, 1) + views.author
    key, back = np.unique(key[::-1], return_index=True)  # the first from behind is the last view
    user, author = key // max(num_authors, 1), key % max(num_authors, 1)
    order = np.lexsort((back, user))
    user, author = user[order], author[order]
    place = np.arange(user.size) - np.searchsorted(user, user)
    return user[place < LAST_AUTHORS], author[place < LAST_AUTHORS]


def trends(audiences: Audiences, author: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
    """float32 [n, 5], the last of `onelive_jax.batch.ROOM_FEATURES`: what was counted of authors int [n] at moments
    int64 [n] or [1]; 0 of one who is newer than the counts."""
    known = np.flatnonzero(np.asarray(author) < audiences.num_authors)
    result = np.zeros((np.size(author), TRENDS_MADE), np.float32)
    times_ms = np.broadcast_to(times_ms, np.shape(author))[known]
    author, which = np.asarray(author)[known], audiences.at(times_ms)
    hour = (times_ms + audiences.utc_offset_ms) // HOUR_MS % HOURS
    for s in np.unique(which):
        rows, snap = which == s, audiences.snapshots[s]
        result[known[rows], :-1] = snap.authors[author[rows]]
        result[known[rows], -1] = snap.hours[author[rows], hour[rows]]
    return result


def related(audiences: Audiences, times_ms: np.ndarray, history, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Authors who share an audience with what a person watched.

    Args:
      times_ms: int64 [R]. history: the person's `History`, arrays [R, T, …]. size: K, the most similar are kept.

    Returns: (author int32 [R, K], ascending, −1 in front where there are fewer; similarity float32 [R, K, 5], see
      `onelive_jax.batch.SIMILARITIES`, 0 there).
    """
    which = audiences.at(np.asarray(times_ms, np.int64))
    author = np.full((which.size, size), -1, np.int32)
    similarity = np.zeros((which.size, size, SIMILARITIES_MADE), np.float32)
    items = history.author.shape[1]
    weights = np.zeros((which.size, items, 4), np.float32)
    weights[..., 0] = 1.0 / (1.0 + np.arange(items)[::-1])
    weights[..., 1] = history.habits[..., 0]  # log views
    weights[..., 2] = 1.0
    weights[..., 3] = np.exp(-np.expm1(history.habits[..., 2]) / 24)  # hours since the view
    for s in np.unique(which):
        rows = np.flatnonzero(which == s)
        snap = audiences.snapshots[s]
        _related(snap.ptr, snap.neighbour, snap.cosine, history.author[rows], history.mask[rows], weights[rows], rows,
                 author, similarity)
    return author, similarity


@numba.njit(nogil=True, cache=True)
def _related(ptr, neighbour, cosine, items_RxT, mask_RxT, weights_RxTxW, rows, author, similarity):
    num_authors, size = ptr.size - 1, author.shape[1]
    place = np.full(num_authors, -1, np.int64)
    found = np.empty(num_authors, np.int32)
    sums = np.zeros((num_authors, 5), np.float32)
    for r in range(rows.size):
        count = 0
        for t in range(items_RxT.shape[1]):
            item = items_RxT[r, t]
            if not mask_RxT[r, t] or item >= num_authors:
                continue
            for e in range(ptr[item], ptr[item + 1]):
                other, value = neighbour[e], cosine[e]
                if place[other] < 0:
                    place[other] = count
                    found[count] = other
                    sums[count] = 0.0
                    count += 1
                at = place[other]
                for w in range(4):
                    sums[at, w] += weights_RxTxW[r, t, w] * value
                sums[at, 4] = max(sums[at, 4], value)
        chosen = np.arange(count)
        if count > size:
            chosen = np.argsort(-sums[:count, 2], kind="mergesort")[:size]
        order = np.argsort(found[chosen])
        for k in range(order.size):
            at, to = chosen[order[k]], size - order.size + k
            author[rows[r], to] = found[at]
            similarity[rows[r], to] = np.log1p(10.0 * sums[at])
        for k in range(count):
            place[found[k]] = -1
