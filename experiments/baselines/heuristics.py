"""What a person would try in an afternoon: the rankers that a trained model has to beat, printed beside every result.

Axes: V watched views, R requests, C candidates of all requests (flat), A authors, U users, P pairs.

Nothing is learned but the few numbers of `Weights`. Popularity and co-occurrence are counted over training views
only (those that ended by p1); a user's own counts read every view of theirs that began before the request.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Sequence

import numpy as np
from scipy import sparse

from data_pipelines.log import own_counts as own
from data_pipelines.log.presence import expand
from data_pipelines.log.tasks import Task
from data_pipelines.log.timelines import Timelines
from onelive_jax.evaluation import ranking_metrics

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
# Small beside any difference of scores that means something, large beside float64's rounding.
TIE = 1e-6


@dataclass(frozen=True)
class Weights:
    """Numbers of the heuristics. The defaults were tuned on the validation period of a Twitch log.

    Attributes:
      half_life_hours: age at which a view counts half.
      same_time_weight: weight of a view near the same time of the day, whatever its age.
      same_time_minutes: how near, either way.
      knn_weight: weight of item-kNN beside the counts.
      knn_views: last views that item-kNN reads.
      knn_shrink: added to the denominator of the cosine, so that one common viewer proves little.
    """

    half_life_hours: float = 672.0
    same_time_weight: float = 0.25
    same_time_minutes: float = 90.0
    knn_weight: float = 2.0
    knn_views: int = 16
    knn_shrink: float = 5.0


def scores(views: Timelines, task: Task, p1_ms: int, weights: Weights = Weights()) -> dict[str, np.ndarray]:
    """Scores of every heuristic, float64 [C] in the order of `task.candidates`; higher is better.

    "viewers": other people watching now. "popularity": training views. "own_counts": the user's own views so far.
    "own_counts_time": own views, each halved per half-life, + weight × views near the same time of day.
    "own_counts_knn": the last one + weight × Σ over the last views of cosine(candidate, viewed) / (1 + position).
    "own_counts_knn_unseen": the last one, with broadcasts that the user has already been in behind all others.
    Equal own counts are ordered by popularity; what is still equal is left tied.
    """
    popular_C = _popularity_of_candidates(views, task, p1_ms)
    tie_C = _tie_break(popular_C)
    count_C, decayed_C, same_time_C = own_counts(views, task, weights)
    timed_C = decayed_C + weights.same_time_weight * same_time_C
    knn_C = timed_C + weights.knn_weight * item_knn(views, task, p1_ms, weights) + tie_C
    return {
        "viewers": task.viewers.astype(np.float64),
        "popularity": popular_C.astype(np.float64),
        "own_counts": count_C + tie_C,
        "own_counts_time": timed_C + tie_C,
        "own_counts_knn": knn_C,
        "own_counts_knn_unseen": knn_C - (1.0 + knn_C.max(initial=0.0)) * already_seen(views, task),
    }


def tune(views: Timelines, validation: Task, p1_ms: int, half_life_hours: Sequence[float] = (168, 336, 672, 1344),
         same_time_weight: Sequence[float] = (0.0, 0.25, 0.5, 1.0),
         knn_weight: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0), start: Weights = Weights()) -> Weights:
    """The weights of the grid with the best NDCG@10 of "own_counts_knn" over all targets of a *validation* task.

    `start` gives what the grid does not vary, and wins where nothing of the grid is better than it.

    Raises:
      ValueError: the task has no targets.
    """
    if not len(validation.user):
        raise ValueError(f"the validation period has no targets to tune on (left out: {validation.dropped}); "
                         "make config.data.valid_hours longer")
    knn_C = item_knn(views, validation, p1_ms, start)
    tie_C = _tie_break(_popularity_of_candidates(views, validation, p1_ms))
    best, best_ndcg = start, -1.0
    grid = itertools.chain([(start.half_life_hours, (start.same_time_weight,), (start.knn_weight,))],
                           ((half_life, same_time_weight, knn_weight) for half_life in half_life_hours))
    for half_life, same_weights, knn_weights in grid:
        weights = dataclasses.replace(start, half_life_hours=float(half_life))
        _, decayed_C, same_time_C = own_counts(views, validation, weights)
        for same, knn in itertools.product(same_weights, knn_weights):
            score_C = decayed_C + same * same_time_C + knn * knn_C + tie_C
            places = ranking_metrics.ranks(score_C, validation.offsets, validation.position)
            ndcg = float(ranking_metrics.gains(places)["ndcg@10"].mean())
            if ndcg > best_ndcg:
                best_ndcg = ndcg
                best = dataclasses.replace(weights, same_time_weight=float(same), knn_weight=float(knn))
    return best


def popularity(views: Timelines, p1_ms: int, authors: int) -> np.ndarray:
    """int64 [authors], training views of each author; authors: at least 1 + the largest index asked for."""
    return np.bincount(views.author[views.stop_ms <= p1_ms], minlength=authors)


def own_counts(views: Timelines, task: Task, weights: Weights = Weights()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The user's own views of each candidate that began before the request, three float64 [C]:

    their number; their number with each view halved per half-life of its age; and the number of those that began
    within ± same_time_minutes of the request's time of day.
    """
    def weigh(age_P):
        away = np.abs((age_P + DAY_MS // 2) % DAY_MS - DAY_MS // 2)
        return np.stack([np.ones(len(age_P)), np.exp2(-age_P / (weights.half_life_hours * HOUR_MS)),
                         away <= weights.same_time_minutes * 60_000])

    return tuple(own.own_counts(views, task.user, task.time_ms, task.offsets, task.candidates, weigh))


def already_seen(views: Timelines, task: Task) -> np.ndarray:
    """bool [C]: the user has a view in this very room that began before the request."""
    begin_R, end_R = _history(views, task)
    width = 1 + int(max(views.room.max(initial=0), task.rooms.max(initial=0)))
    key_C = np.repeat(np.arange(len(task.user)), np.diff(task.offsets)) * width + task.rooms
    at, request = expand(begin_R, end_R - begin_R)
    return np.isin(key_C, request * width + views.room[at])


def item_knn(views: Timelines, task: Task, p1_ms: int, weights: Weights = Weights()) -> np.ndarray:
    """float64 [C]: Σ over the user's last views of cosine(candidate, viewed) / (1 + position), the last view at 0.

    cosine(a, b) = common users / (sqrt(users of a · users of b) + shrink), over the users of training views. The one
    who asks is left out of all three counts, since their own rows would make whatever they saw look alike.
    """
    user_T, author_T = _training_pairs(views, p1_ms)
    # An author nobody has watched in training has cosine 0 with everything: only the others have a row.
    known, row_T = np.unique(author_T, return_inverse=True)
    users_K = np.bincount(row_T, minlength=len(known))
    viewers_KxU = sparse.csr_array((np.ones(len(row_T), np.int64), (row_T, user_T)),
                                   (len(known), 1 + int(user_T.max(initial=0))))
    seen_key, stride = user_T * len(known) + row_T, len(known)  # ascending: pairs come sorted by user, author
    begin_R, end_R = _history(views, task)
    begin_R = np.maximum(begin_R, end_R - weights.knn_views)
    sizes_R = np.diff(task.offsets)
    score_C = np.zeros(len(task.candidates))
    for requests in own.chunks(sizes_R * (end_R - begin_R)):
        candidate = np.arange(task.offsets[requests.start], task.offsets[requests.stop])
        request = np.repeat(np.arange(requests.start, requests.stop), sizes_R[requests])
        at, owner = expand(begin_R[request], (end_R - begin_R)[request])
        row_a, a_known = own.look_up(known, task.candidates[candidate])
        row_b, b_known = own.look_up(known, views.author[at])
        pair = np.flatnonzero(a_known[owner] & b_known)
        owner, at, a, b = owner[pair], at[pair], row_a[owner[pair]], row_b[pair]
        user = task.user[request[owner]]
        own_a = own.look_up(seen_key, user * stride + a)[1]
        own_b = own.look_up(seen_key, user * stride + b)[1]
        common = _common_users(viewers_KxU, a, b) - (own_a & own_b)
        norm = np.sqrt((users_K[a] - own_a) * (users_K[b] - own_b).astype(np.float64))
        position = end_R[request[owner]] - 1 - at
        # With no shrink, authors that nobody else has watched have nothing in common: 0, not 0 / 0.
        cosine = np.divide(common, norm + weights.knn_shrink, out=np.zeros(len(a)), where=common > 0)
        score_C[candidate] += np.bincount(owner, cosine / (1 + position), minlength=len(candidate))
    return score_C


def _popularity_of_candidates(views: Timelines, task: Task, p1_ms: int) -> np.ndarray:
    """int64 [C]. With true lifetimes an author may be on air whom nobody has watched."""
    authors = 1 + int(max(views.author.max(initial=0), task.candidates.max(initial=0)))
    return popularity(views, p1_ms, authors)[task.candidates]


def _tie_break(popular_C: np.ndarray) -> np.ndarray:
    """float64 [C] in [0, TIE): orders equal scores by popularity without overturning any other order."""
    return TIE * popular_C / (1 + popular_C.max(initial=0))


def _history(views: Timelines, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """int64 [R] twice: the user's views that began strictly before the request are begin : end."""
    return views.user_ptr[task.user], views.seen_before(task.user, task.time_ms)


def _training_pairs(views: Timelines, p1_ms: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (user, author) of training views, int64 twice, ascending."""
    training = views.stop_ms <= p1_ms
    width = 1 + int(views.author.max(initial=0))
    key = np.unique(views.users()[training].astype(np.int64) * width + views.author[training])
    return key // width, key % width


def _common_users(viewers_KxU: sparse.csr_array, a_P: np.ndarray, b_P: np.ndarray) -> np.ndarray:
    """int64 [P], users who have watched both authors of a pair: entries of V Vᵀ, some of its rows at a time."""
    rows = viewers_KxU.shape[0]
    key, which_P = np.unique(np.minimum(a_P, b_P) * rows + np.maximum(a_P, b_P), return_inverse=True)
    row_Q, start_Q = np.unique(key // rows, return_index=True)
    end_Q, common = np.append(start_Q[1:], len(key)), np.zeros(len(key), np.int64)
    terms_K = viewers_KxU @ viewers_KxU.sum(axis=0)  # of each row of the product
    for part in own.chunks(terms_K[row_Q]):
        pairs = slice(start_Q[part.start], end_Q[part.stop - 1])
        product = viewers_KxU[row_Q[part]] @ viewers_KxU.T
        common[pairs] = product[np.searchsorted(row_Q[part], key[pairs] // rows), key[pairs] % rows]
    return common[which_P]
