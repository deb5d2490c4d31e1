"""Side features of people as numbers for the towers: one-hot categories, standardised counts, what is missing.

The readers put them beside the ids of `authors` and `users` (integers: categories, -1 unknown; floats: counts, amounts,
times). What a category or a count is worth is learned from the rows that have a training view; the others are put into
the same columns. A log's features are those of the day it was written: where that is long after the views, they know
of the future, and config.tokenizer.side_features=False leaves them out.

Axes: n rows of a table, F columns made.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

FREQUENT = 32  # values of a category with a column of their own
BUCKETS = 8  # columns that rarer values share, by their hash
LONGEST = 6.0  # standard deviations beyond which a number is cut
IDS = ("author_id", "user_id", "source_id")


@dataclass
class SideFeatures:
    """Side features of a table's rows.

    Attributes:
      values: float32 [n, F], finite.
      names: of the F columns: "gender=1", "country#3" (a bucket of rarer values), "fans", "fans missing".
      left_out: column of the table → why it became no feature.
      counts: "categories", "numbers": columns used; "rare values": distinct values that share buckets;
        "missing cells"; "cut numbers".
    """

    values: np.ndarray
    names: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def side_features(frame: pl.DataFrame, training: np.ndarray) -> SideFeatures | None:
    """The features of `authors` or `users`, or None where the table has no column that says anything.

    Integers and booleans are categories: the 32 values that most training rows have get a column each, all others
    share 8 by their hash; negative or null is missing, which is a category too. Floats become sign(x) log(1 + |x|),
    standardised on the training rows and cut at 6 standard deviations; null, NaN or infinite gives 0 and sets a flag
    beside it. A column that is the same in every training row says nothing and is left out, and so is text.

    Args:
      frame: n rows, canonical; id columns are passed over.
      training: bool [n], the rows that anything may be learned from.

    Raises:
      ValueError: `training` does not fit the table.
    """
    training = np.asarray(training, bool)
    if training.shape != (len(frame),):
        raise ValueError(f"training must be bool [{len(frame)}], one for each row of the table, not {training.shape}")
    parts, names, left_out = [], [], {}
    counts = dict.fromkeys(("categories", "numbers", "rare values", "missing cells", "cut numbers"), 0)
    for column in frame.columns:
        if column in IDS:
            continue
        values, kind = frame[column], frame.schema[column]
        if kind.is_integer() or kind == pl.Boolean:
            made = _category(column, values.cast(pl.Int64).fill_null(-1).to_numpy(), training, counts)
            counts["categories"] += made is not None
        elif kind.is_float():
            made = _number(column, values.cast(pl.Float64).fill_null(float("nan")).to_numpy(), training, counts)
            counts["numbers"] += made is not None
        else:
            left_out[column] = f"holds {kind}, not numbers"
            continue
        if made is None:
            left_out[column] = "is the same in every training row"
            continue
        names += made[0]
        parts.append(made[1])
    if not parts:
        return None
    return SideFeatures(np.concatenate(parts, axis=1), names, left_out, counts)


def _category(name: str, values: np.ndarray, training: np.ndarray, counts: dict[str, int]):
    values = np.where(values < 0, -1, values)
    seen, often = np.unique(values[training], return_counts=True)
    if len(seen) < 2:
        return None
    order = np.lexsort((seen, -often))
    kept = np.sort(seen[order[:FREQUENT]])
    at = np.minimum(np.searchsorted(kept, values), len(kept) - 1)
    frequent = kept[at] == values
    rare = np.unique(values[~frequent])
    names = [f"{name} missing" if value < 0 else f"{name}={value}" for value in kept.tolist()]
    column = at
    if len(seen) > FREQUENT:
        names += [f"{name}#{bucket}" for bucket in range(BUCKETS)]
        # A fixed multiplier: the same bucket on every machine and in every version.
        bucket = (values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(61)
        column, frequent = np.where(frequent, at, len(kept) + bucket.astype(np.int64)), np.ones_like(frequent)
    made = np.zeros((len(values), len(names)), np.float32)
    made[np.flatnonzero(frequent), column[frequent]] = 1.0  # a value no training row has, and no bucket: all zeros
    counts["rare values"] += len(rare)
    counts["missing cells"] += int((values < 0).sum())
    return names, made


def _number(name: str, values: np.ndarray, training: np.ndarray, counts: dict[str, int]):
    known = np.isfinite(values)
    scaled = np.where(known, np.sign(values) * np.log1p(np.abs(np.where(known, values, 0.0))), 0.0)
    learned = scaled[known & training]
    spread = learned.std() if learned.size else 0.0
    flagged = known[training].any() and not known[training].all()
    if spread < 1e-9 and not flagged:
        return None
    names, columns = [], []
    if spread >= 1e-9:
        standard = (scaled - learned.mean()) / spread
        counts["cut numbers"] += int((known & (np.abs(standard) > LONGEST)).sum())
        names.append(name)
        columns.append(np.where(known, np.clip(standard, -LONGEST, LONGEST), 0.0))
    if flagged:
        names.append(f"{name} missing")
        columns.append(~known)
    counts["missing cells"] += int((~known).sum())
    return names, np.stack(columns, axis=1).astype(np.float32)
