"""What is asked of a ranker: requests, the authors on air at each, and which one was watched.

Axes: V watched views, R requests, C candidates of all requests (flat), A authors, U users.

Two protocols. *strict*: the authors on air are those that rows of **other** people show at that moment (or the
rooms' true lifetimes, where a log has them), and every such view of the period is a target. *liverec*: the tested
person's own row counts too, and only a person's last view is a target; for comparison with published work only,
because a room that only the tested person was seen in gives the answer away.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.log.presence import Presence
from data_pipelines.log.timelines import Timelines

REPEAT_VIEWS = 16


@dataclass(frozen=True)
class Task:
    """Requests and their candidates.

    Attributes:
      user: int64 [R], who asks.
      view: int64 [R], the view that followed, as an index into the views.
      time_ms: int64 [R], when: the start of that view.
      target: int32 [R], the author watched.
      repeat: bool [R], the target is among the authors of the last 16 views that began before time_ms.
      offsets: int64 [R + 1], candidates of request r are offsets[r] : offsets[r + 1].
      candidates: int32 [C], authors on air, ascending within a request, none twice.
      rooms: int32 [C], the room in which that author is on air.
      viewers: int32 [C], *other* people's views of that author at time_ms.
      position: int64 [R], the target's position among its request's candidates.
      dropped: views of the period that are no request, by reason.
    """

    user: np.ndarray
    view: np.ndarray
    time_ms: np.ndarray
    target: np.ndarray
    repeat: np.ndarray
    offsets: np.ndarray
    candidates: np.ndarray
    rooms: np.ndarray
    viewers: np.ndarray
    position: np.ndarray
    dropped: dict[str, int]


def strict_targets(views: Timelines, presence: Presence, start_ms: int, stop_ms: int | None = None,
                   max_targets: int | None = None, seed: int = 0) -> Task:
    """Every view of a period whose author others show to be on air, against all authors on air at its start.

    A person's first view of the log is not a target: nothing is known of them. "First" goes by the order of the
    views, so of two views that begin together only one is first.

    Args:
      views: all watched views of the log. presence: who is on air when, `Presence.of(views, lifetimes)`.
      start_ms, stop_ms: the period, start ≤ view's start < stop; no stop means to the end of the log.
      max_targets: at most this many views of the period are kept, drawn at random (for large logs).
      seed: of that draw.
    """
    chosen, dropped = _in_period(views, start_ms, stop_ms)
    return _task(views, presence, chosen, dropped, False, max_targets, seed)


def liverec_targets(views: Timelines, presence: Presence, start_ms: int, stop_ms: int | None = None,
                    max_targets: int | None = None, seed: int = 0) -> Task:
    """LiveRec's protocol: a person's last view of the log, if it starts in the period; their own row puts it on air.

    Arguments as in `strict_targets`. A person's first view is no target here either.
    """
    chosen, dropped = _in_period(views, start_ms, stop_ms)
    last = chosen + 1 == views.user_ptr[views.users()[chosen] + 1]
    dropped["not the user's last view"] = int((~last).sum())
    return _task(views, presence, chosen[last], dropped, True, max_targets, seed)


def full_ranking(views: Timelines, num_authors: int, start_ms: int, stop_ms: int | None = None, requests: int = 512,
                 max_targets: int | None = None, seed: int = 0) -> list[Task]:
    """Every view of a period against *all* authors: for logs in which all of them are always to be had.

    The candidates of many requests would not fit into memory, so there is a task for every `requests` of them, whose
    candidates are one array, read by all. Arguments as in `strict_targets`.
    """
    view_R, dropped = _in_period(views, start_ms, stop_ms)
    if max_targets is not None and len(view_R) > max_targets:
        dropped["not drawn (max_targets)"] = len(view_R) - max_targets
        view_R = np.sort(np.random.default_rng(seed).choice(view_R, max_targets, replace=False))
    everyone = np.tile(np.arange(num_authors, dtype=np.int32), min(requests, len(view_R)))
    result = []
    for low in range(0, len(view_R), requests):
        view = view_R[low:low + requests]
        candidates = everyone[:len(view) * num_authors]
        result.append(Task(
            user=views.users()[view].astype(np.int64), view=view, time_ms=views.start_ms[view],
            target=views.author[view], repeat=is_repeat(views, view),
            offsets=np.arange(len(view) + 1, dtype=np.int64) * num_authors, candidates=candidates, rooms=candidates,
            viewers=np.ones_like(candidates), position=views.author[view].astype(np.int64), dropped=dropped))
    return result


def is_repeat(views: Timelines, view_R: np.ndarray, window: int = REPEAT_VIEWS) -> np.ndarray:
    """bool [R], whether the author of a view is among its user's last `window` views that began strictly earlier.

    Args:
      view_R: int64 [R], indices into the views.
    """
    user_R = views.users()[view_R]
    first_R, end_R = views.user_ptr[user_R], views.seen_before(user_R, views.start_ms[view_R])
    repeat_R = np.zeros(len(view_R), bool)
    for back in range(1, window + 1):
        at_R = np.maximum(end_R - back, 0)
        repeat_R |= (end_R - back >= first_R) & (views.author[at_R] == views.author[view_R])
    return repeat_R


def _in_period(views: Timelines, start_ms: int, stop_ms: int | None) -> tuple[np.ndarray, dict[str, int]]:
    """Views that start in the period and are not their user's first, and how many were first."""
    inside = views.start_ms >= start_ms
    if stop_ms is not None:
        inside &= views.start_ms < stop_ms
    chosen = np.flatnonzero(inside)
    first = chosen == views.user_ptr[views.users()[chosen]]
    return chosen[~first], {"the user's first view": int(first.sum())}


def _task(views: Timelines, presence: Presence, view_R: np.ndarray, dropped: dict[str, int], own_rows: bool,
          max_targets: int | None, seed: int) -> Task:
    if max_targets is not None and len(view_R) > max_targets:
        dropped["not drawn (max_targets)"] = len(view_R) - max_targets
        view_R = np.sort(np.random.default_rng(seed).choice(view_R, max_targets, replace=False))
    user_R, time_R, target_R = views.users()[view_R], views.start_ms[view_R], views.author[view_R]
    on_air = presence.at(time_R, user_R, own_rows)
    sizes_R, request_C = np.diff(on_air.offsets), on_air.moment
    hit_C = on_air.author == target_R[request_C]
    kept_R = np.bincount(request_C[hit_C], minlength=len(view_R)) > 0
    dropped["nobody else shows the author on air" if presence.viewers is None else "author has no room on air"] = int(
        (~kept_R).sum())
    kept_C = kept_R[request_C]
    offsets = np.concatenate([[0], np.cumsum(sizes_R[kept_R])]).astype(np.int64)
    return Task(
        user=user_R[kept_R].astype(np.int64), view=view_R[kept_R], time_ms=time_R[kept_R], target=target_R[kept_R],
        repeat=is_repeat(views, view_R[kept_R]), offsets=offsets, candidates=on_air.author[kept_C],
        rooms=on_air.room[kept_C], viewers=on_air.viewers[kept_C],
        position=np.flatnonzero(hit_C[kept_C]) - offsets[:-1], dropped=dropped)
