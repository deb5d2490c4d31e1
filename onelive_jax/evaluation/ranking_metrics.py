"""HR, NDCG and MRR at the level of the author on air, with intervals.

Axes: R requests, C candidates of all requests (flat).

Ties do not know the answer. A ranker that gives the target and m others the same score has said nothing about their
order, so the target is equally likely at each of m + 1 places, and every figure here is its exact expectation over
those places. Neither the order of the slots nor a seed changes a figure, and a ranker that scores everything alike
gets what chance gets.
"""

from typing import Mapping

import numpy as np

from onelive_jax.evaluation.bootstrap import mean_interval

HR_CUTOFFS = (1, 10, 64, 128)
NDCG_CUTOFF = 10
FIGURES = tuple(f"hr@{k}" for k in HR_CUTOFFS) + (f"ndcg@{NDCG_CUTOFF}", "mrr")
INTERVAL = f"ndcg@{NDCG_CUTOFF}_interval"
GROUPS = ("all", "repeat", "new")


def ranks(scores_C: np.ndarray, offsets: np.ndarray, target_position_R: np.ndarray) -> np.ndarray:
    """Places that the target may take among the candidates of its request, best score first.

    Args:
      scores_C: float [C], higher is better; the candidates of request r at offsets[r] : offsets[r + 1]. -inf says that
        the ranker did not return this candidate.
      offsets: int [R + 1], from 0 to C.
      target_position_R: int [R], position of the target within its request's candidates, from 0.

    Returns:
      float64 [R, 2], the first and the last place (1 is the best) that the target can take when candidates of equal
      score are put in any order; both inf where the target itself was not returned (a miss at every cutoff).

    Raises:
      ValueError: offsets that do not fit, a candidate's score is NaN, or a target is no candidate of its request; names
        the request.
    """
    scores_C, offsets, target_position_R = map(np.asarray, (scores_C, offsets, target_position_R))
    if offsets.ndim != 1 or not offsets.size or offsets[0] != 0 or offsets[-1] != scores_C.size:
        raise ValueError(f"offsets must go from 0 to {scores_C.size}, the number of scores")
    sizes_R = np.diff(offsets)
    if (sizes_R < 0).any() or target_position_R.shape != sizes_R.shape:
        raise ValueError(f"offsets must not fall, and {sizes_R.size} requests need as many target positions "
                         f"(got {target_position_R.shape})")
    outside = (target_position_R < 0) | (target_position_R >= sizes_R)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(f"request {row}: target_position={int(target_position_R[row])} is outside its "
                         f"{int(sizes_R[row])} candidates; leave out requests whose target is not on air, and count "
                         "them")
    request_C = np.repeat(np.arange(sizes_R.size), sizes_R)
    if np.isnan(scores_C).any():
        at = int(np.flatnonzero(np.isnan(scores_C))[0])
        row = int(request_C[at])
        raise ValueError(f"request {row}, candidate {at - int(offsets[row])}: the score is NaN")
    target_R = scores_C[offsets[:-1] + target_position_R]
    target_C = target_R[request_C]
    above_R = np.bincount(request_C[scores_C > target_C], minlength=sizes_R.size)
    equal_R = np.bincount(request_C[scores_C == target_C], minlength=sizes_R.size)  # the target itself among them
    places_Rx2 = np.stack([above_R + 1, above_R + equal_R], 1).astype(np.float64)
    places_Rx2[np.isneginf(target_R)] = np.inf
    return places_Rx2


def gains(ranks_R: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure of every request, in expectation over the places its target may take.

    Args:
      ranks_R: [R, 2] from `ranks`, or [R] places where there are no ties; from 1, inf for a miss.

    Returns:
      "hr@K": share of places up to K. "ndcg@10": 1 / log2(1 + place) up to place 10, else 0 (one relevant author,
      so the ideal gain is 1). "mrr": 1 / place, not cut off. Each float64 [R] in [0, 1].
    """
    ranks_R = np.asarray(ranks_R, np.float64)
    places_Rx2 = np.stack([ranks_R, ranks_R], 1) if ranks_R.ndim == 1 else ranks_R
    if places_Rx2.ndim != 2 or places_Rx2.shape[1] != 2:
        raise ValueError(f"ranks must be [R] or [R, 2], got {ranks_R.shape}")
    found_R = np.isfinite(places_Rx2).all(1)
    first_R, last_R = np.where(found_R[:, None], places_Rx2, 1).T
    whole = (first_R == np.floor(first_R)) & (last_R == np.floor(last_R))
    bad = np.isnan(places_Rx2).any(1) | (first_R < 1) | (last_R < first_R) | ~whole
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"request {row}: ranks {places_Rx2[row].tolist()} are not whole places from 1, the first not "
                         "after the last")
    first_R, last_R = first_R.astype(np.int64), last_R.astype(np.int64)
    place = np.arange(1, (int(last_R.max()) if last_R.size else 0) + 1)
    gain_of_place = {f"hr@{k}": (place <= k).astype(np.float64) for k in HR_CUTOFFS}
    gain_of_place[f"ndcg@{NDCG_CUTOFF}"] = np.where(place <= NDCG_CUTOFF, 1 / np.log2(1 + place), 0.0)
    gain_of_place["mrr"] = 1 / place
    result = {}
    for name, gain in gain_of_place.items():
        total = np.concatenate([[0.0], np.cumsum(gain)])
        spread_R = (total[last_R] - total[first_R - 1]) / (last_R - first_R + 1)
        # A difference of running sums would cost the last digits where there is nothing to average.
        exact_R = gain[first_R - 1] if gain.size else spread_R
        result[name] = np.where(found_R, np.where(first_R == last_R, exact_R, spread_R), 0.0)
    return result


def at_cutoff(ranks_R: np.ndarray, cutoff: int) -> tuple[np.ndarray, np.ndarray]:
    """(HR@cutoff, MRR@cutoff) of every request, float64 [R] each, in expectation over the places its target may take;
    MRR@k is 1 / place up to place k, else 0 (the paper's Table 2).

    Args: ranks_R: as in `gains`.
    """
    if cutoff < 1:
        raise ValueError(f"cutoff={cutoff} must be at least 1")
    places_Rx2 = np.asarray(ranks_R, np.float64)
    places_Rx2 = np.stack([places_Rx2, places_Rx2], 1) if places_Rx2.ndim == 1 else places_Rx2
    found_R = np.isfinite(places_Rx2).all(1)
    first_R, last_R = np.where(found_R[:, None], places_Rx2, 1).astype(np.int64).T
    total = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, cutoff + 1))])
    inside_R, before_R = np.minimum(last_R, cutoff), np.minimum(first_R - 1, cutoff)
    ways_R = last_R - first_R + 1
    return (np.where(found_R, (inside_R - before_R) / ways_R, 0.0),
            np.where(found_R, (total[inside_R] - total[before_R]) / ways_R, 0.0))


def metrics(ranks_R: np.ndarray, repeat_R: np.ndarray, resamples: int = 1000, seed: int = 0,
            groups: Mapping[str, np.ndarray] | None = None) -> dict[str, dict]:
    """Mean figures over all, repeat and new targets, and over any further groups.

    Args:
      ranks_R: [R, 2] from `ranks`, or [R] places without ties.
      repeat_R: bool [R], True where the target's author is among the user's last views.
      resamples, seed: of the bootstrap.
      groups: name → bool [R], e.g. the targets that were liked.

    Returns:
      {"all" | "repeat" | "new": {"n", "hr@1", "hr@10", "hr@64", "hr@128", "ndcg@10", "mrr",
      "ndcg@10_interval": [low, high]}}, plain numbers, ready for JSON. A group without requests has n = 0 and None
      for every figure.
    """
    by_request = gains(ranks_R)
    repeat_R = np.asarray(repeat_R)
    if repeat_R.dtype != bool or repeat_R.shape != by_request["mrr"].shape:
        raise ValueError(f"repeat must be bool of shape {by_request['mrr'].shape}, got {repeat_R.dtype} of shape "
                         f"{repeat_R.shape}")
    result = {}
    chosen_of = dict(zip(GROUPS, (np.ones_like(repeat_R), repeat_R, ~repeat_R), strict=True)) | dict(groups or {})
    for group, chosen in chosen_of.items():
        n = int(chosen.sum())
        figures: dict = {"n": n, **{name: float(by_request[name][chosen].mean()) if n else None for name in FIGURES}}
        figures[INTERVAL] = mean_interval(by_request["ndcg@10"][chosen], resamples, seed) if n else None
        result[group] = figures
    return result


def difference(ranks_R: np.ndarray, baseline_ranks_R: np.ndarray, figure: str = "ndcg@10", resamples: int = 1000,
               seed: int = 0) -> dict[str, object]:
    """How much one ranker beats another on the same requests, request by request.

    The pairing takes out what makes a request hard for both, so that this interval is much narrower than the two
    rankers' own: an interval above 0 is the claim "beats it on this log".

    Args:
      ranks_R, baseline_ranks_R: as in `metrics`, of the same R ≥ 1 requests in the same order.
      figure: one of `FIGURES`.

    Returns:
      {"n", "difference": mean of (figure − baseline's figure), "interval": [low, high]}.
    """
    ours_R, theirs_R = gains(ranks_R)[figure], gains(baseline_ranks_R)[figure]
    if ours_R.shape != theirs_R.shape or not ours_R.size:
        raise ValueError(f"the two rankers must have ranked the same requests, at least one: {ours_R.shape} and "
                         f"{theirs_R.shape}")
    return {"n": int(ours_R.size), "difference": float((ours_R - theirs_R).mean()),
            "interval": mean_interval(ours_R - theirs_R, resamples, seed)}
