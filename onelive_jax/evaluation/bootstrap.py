"""The bootstrap: how far a figure would move had other requests, or other people, been drawn. NumPy only.

Axes: R rows that are drawn whole (requests, people), F figures, G figures made of their sums, B resamples.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Lifts(NamedTuple):
    """Two arms, float64 [G] each: their figures over all rows, treatment / control − 1 (NaN where control is not above
    0), and the 95 % interval of it."""

    control: np.ndarray
    treatment: np.ndarray
    lift: np.ndarray
    low: np.ndarray
    high: np.ndarray


def resampled_sums(values_RxF: np.ndarray, resamples: int = 1000, seed: int = 0,
                   count_R: np.ndarray | None = None) -> np.ndarray:
    """Sums over as many rows as there are, drawn with replacement, float64 [B, F].

    count_R: int, how often each row stands for itself (equal rows may be given once); 1 each if None. How often rows
    are drawn is multinomial, so that a resample costs one product whatever is drawn.
    """
    count_R = np.ones(len(values_RxF), np.int64) if count_R is None else count_R
    n, rng = int(count_R.sum()), np.random.default_rng(seed)
    return np.stack([rng.multinomial(n, count_R / n) @ values_RxF for _ in range(resamples)])


def mean_interval(values_R: np.ndarray, resamples: int = 1000, seed: int = 0) -> list[float]:
    """95 % percentile interval of the mean of `values_R` float [R], R ≥ 1: [low, high].

    Only how often each distinct value is drawn matters, so the cost does not grow with R.
    """
    values, counts = np.unique(np.asarray(values_R, np.float64), return_counts=True)
    means = resampled_sums(values[:, None], resamples, seed, counts)[:, 0] / counts.sum()
    return np.percentile(means, [2.5, 97.5]).tolist()


def lifts(control_RxF: np.ndarray, treatment_RxF: np.ndarray, figures: Callable = lambda sums_BxF: sums_BxF,
          resamples: int = 1000, seed: int = 0) -> Lifts:
    """Relative lifts of one arm over another on the same rows: both arms of a resample hold the same rows, which takes
    out what the arms share.

    figures: sums over rows [B, F] → what is compared [B, G], e.g. ratios of sums.
    """
    # Differences are summed, not the treatment: those of an arm and itself are exactly zero, in whatever order a
    # processor sums.
    both = np.concatenate([control_RxF, treatment_RxF - control_RxF], axis=1)
    total = np.concatenate([both.sum(0, keepdims=True), resampled_sums(both, resamples, seed)])  # row 0: everyone once
    with np.errstate(divide="ignore", invalid="ignore"):
        control, difference = np.split(total, 2, axis=1)
        control, treatment = figures(control), figures(control + difference)
        lift = np.where(control > 0, treatment / control - 1, np.nan)
    return Lifts(control[0], treatment[0], lift[0], *np.percentile(lift[1:], [2.5, 97.5], axis=0))
