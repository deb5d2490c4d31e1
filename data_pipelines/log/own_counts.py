"""How often people have watched the authors that they can choose from: the one count that heuristics, policies and
answers share. Axes: R requests, C candidates of all requests (flat), P pairs of a view and a candidate, W weights."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from data_pipelines.log.presence import expand
from data_pipelines.log.timelines import Timelines

# Pairs that are held at a time.
CHUNK = 4_000_000


def own_counts(views: Timelines, user_R: np.ndarray, time_ms_R: np.ndarray, offsets: np.ndarray, author_C: np.ndarray,
               weigh: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Weighted numbers of each person's own views of each candidate that began before the request.

    Args:
      user_R: int [R]. time_ms_R: int64 [R]. offsets: int64 [R + 1], candidates of request r are offsets[r] :
        offsets[r + 1] of author_C, in any order.
      weigh: (ages of views, ms, int64 [P]) → what each counts, float [W, P].

    Returns: float64 [W, C].
    """
    width = 1 + int(max(views.author.max(initial=0), author_C.max(initial=0)))
    request_C = np.repeat(np.arange(len(user_R)), np.diff(offsets))
    key, at_C = np.unique(request_C * width + author_C, return_inverse=True)
    first_R, end_R = views.user_ptr[user_R], views.seen_before(user_R, time_ms_R)
    result = np.zeros((len(weigh(np.zeros(0, np.int64))), len(key)))
    for requests in chunks(end_R - first_R):
        view, owner = expand(first_R[requests], (end_R - first_R)[requests])
        request = requests.start + owner
        place, found = look_up(key, request * width + views.author[view])
        age = (time_ms_R[request] - views.start_ms[view])[found]
        for row, weight in enumerate(weigh(age)):
            result[row] += np.bincount(place[found], weight, minlength=len(key))
    return result[:, at_C]


def chunks(pairs_R: np.ndarray) -> Iterator[slice]:
    """Runs of requests whose pairs number about `CHUNK` (a single request may exceed it)."""
    block_R = np.cumsum(pairs_R) // CHUNK
    edges = np.flatnonzero(np.diff(block_R, prepend=-1) > 0)
    for start, stop in itertools.pairwise(np.append(edges, len(pairs_R))):
        yield slice(int(start), int(stop))


def look_up(sorted_keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position of each wanted key and whether it is there at all; positions are safe to index with where it is."""
    if not len(sorted_keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return place, sorted_keys[place] == wanted
