"""How well objectives are predicted: AUC, AUC within viewers, calibration. NumPy only.

Axes: R rows (one room shown to one viewer), O objectives.

Labels are 0 or 1, or a share in between (minutes watched on the reward model's scale): such a row counts as a positive
with weight y and as a negative with weight 1 − y. For 0/1 labels every figure is the usual one; for shares the best
possible AUC is below 1, so that it compares models of one log and nothing else.
"""

import numpy as np


def auc(score_R: np.ndarray, label_R: np.ndarray) -> float | None:
    """Probability that a positive outscores a negative, ties count half; None where either is missing."""
    value_U, pairs_U = _auc_of_groups(np.zeros(len(score_R), np.int64), score_R, label_R)
    return float(value_U[0]) if len(value_U) and pairs_U[0] > 0 else None


def user_auc(user_R: np.ndarray, score_R: np.ndarray, label_R: np.ndarray) -> tuple[float | None, int]:
    """(mean of the AUC within each viewer, weighted by their rows; viewers counted).

    Only viewers with both kinds of label count: for the others nothing can be ranked wrongly. None without any.
    """
    user_R = np.asarray(user_R)
    value_U, pairs_U = _auc_of_groups(user_R, score_R, label_R)
    rows_U = np.unique(user_R, return_counts=True)[1]
    counted = pairs_U > 0
    if not counted.any():
        return None, 0
    return float(np.average(value_U[counted], weights=rows_U[counted])), int(counted.sum())


def calibration(probability_R: np.ndarray, label_R: np.ndarray, bins: int = 10) -> dict[str, float | None]:
    """How far predicted probabilities are from what happened.

    Returns: "ece": expected calibration error, Σ (rows of bin / R) · |mean prediction − mean label| over `bins` bins of
    equally many rows in the order of the prediction (bins of equal width would hold almost every row of a rare
    objective in one); rows of equal predictions share their mean label, so that their order does not count. "ratio":
    mean prediction / mean label, None where nothing happened.
    Both None for R = 0.
    """
    probability_R, label_R = _checked(probability_R, label_R)
    if not len(label_R):
        return {"ece": None, "ratio": None}
    _, tie_R, rows_T = np.unique(probability_R, return_inverse=True, return_counts=True)
    shared_R = (np.bincount(tie_R, label_R) / rows_T)[tie_R]
    order = np.argsort(probability_R, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [len(part) * abs(probability_R[part].mean() - shared_R[part].mean()) for part in parts]
    observed = label_R.mean()
    return {"ece": float(sum(gaps) / len(order)),
            "ratio": float(probability_R.mean() / observed) if observed > 0 else None}


def objective_report(objectives: tuple[str, ...], user_R: np.ndarray, probability_RxO: np.ndarray, score_R: np.ndarray,
                     label_RxO: np.ndarray, known_RxO: np.ndarray) -> dict[str, dict]:
    """Every figure of every objective, ready for JSON.

    Args: user_R int; probability_RxO the heads' probabilities; score_R the ensemble's score; label_RxO in 0 … 1;
    known_RxO bool, rows that count.

    Returns: {objective: {"rows", "mean", "auc", "user_auc", "users", "ece", "ratio", "score_auc", "score_user_auc"}};
    the last two are of the ensemble's one score for this objective: its lag behind "auc" is what IPPO levels out.
    """
    report = {}
    for i, name in enumerate(objectives):
        rows = np.asarray(known_RxO)[:, i].astype(bool)
        label, probability = np.asarray(label_RxO)[rows, i], np.asarray(probability_RxO)[rows, i]
        user, score = np.asarray(user_R)[rows], np.asarray(score_R)[rows]
        within, users = user_auc(user, probability, label)
        report[name] = {"rows": int(rows.sum()), "mean": float(label.mean()) if len(label) else None,
                        "auc": auc(probability, label), "user_auc": within, "users": users,
                        **calibration(probability, label), "score_auc": auc(score, label),
                        "score_user_auc": user_auc(user, score, label)[0]}
    return report


def _checked(score_R, label_R) -> tuple[np.ndarray, np.ndarray]:
    score_R, label_R = np.asarray(score_R, np.float64), np.asarray(label_R, np.float64)
    if score_R.shape != label_R.shape or score_R.ndim != 1:
        raise ValueError(f"scores and labels must be [R] each, got {score_R.shape} and {label_R.shape}")
    bad = ~np.isfinite(score_R) | ~((label_R >= 0) & (label_R <= 1))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"row {row}: score {score_R[row]} must be finite and label {label_R[row]} in 0 … 1")
    return score_R, label_R


def _auc_of_groups(group_R, score_R, label_R) -> tuple[np.ndarray, np.ndarray]:
    """(AUC, mass of pairs) of each group in the order of `np.unique`; AUC 0 where there is no pair."""
    score, label = _checked(score_R, label_R)
    group = np.unique(np.asarray(group_R), return_inverse=True)[1].reshape(-1)
    if not len(group):
        return np.zeros(0), np.zeros(0)
    order = np.lexsort((score, group))
    group, score, label = group[order], score[order], label[order]
    # Rows that tie are one step of the curve: a positive beats all negatives below and half of those at its height.
    step_at = np.flatnonzero(np.r_[True, (group[1:] != group[:-1]) | (score[1:] != score[:-1])])
    positive, negative = np.add.reduceat(label, step_at), np.add.reduceat(1 - label, step_at)
    step_group = group[step_at]
    groups = int(group[-1]) + 1
    negatives, positives = (np.bincount(step_group, x, groups) for x in (negative, positive))
    before_group = np.r_[0.0, np.cumsum(negatives)[:-1]]
    below = np.cumsum(negative) - negative - before_group[step_group]
    won = np.bincount(step_group, positive * (below + 0.5 * negative), groups)
    pairs = positives * negatives
    pairs = np.where(pairs > 1e-9, pairs, 0.0)
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), 0.0), pairs
