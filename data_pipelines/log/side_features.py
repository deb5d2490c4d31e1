"""Side features of people as numbers for the towers: one-hot categories, standardised counts, what is missing.

The readers put them beside the ids of `authors` and `users` (integers: categories, -1 unknown; floats: counts, amounts,
times). What a category or a count is worth is learned from the rows that have a training view; the others are put into
the same columns. A log's features are those of the day it was written: where that is long after the views, they know
of the future, and config.tokenizer.side_features=False leaves them out.

Axes: n rows of a table, F columns made.
"""

from collections.abc import Callable, Mapping
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
      columns: column of the table → (int or float, what makes float32 [n, its share of F] of its values: int64, −1
        missing, or float64, NaN missing), in order.
    """

    values: np.ndarray
    names: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    columns: dict[str, tuple[type, Callable[[np.ndarray], np.ndarray]]] = field(default_factory=dict)

    def row(self, features: Mapping[str, float | None]) -> np.ndarray:
        """float32 [F] of somebody whom the table does not have: column → value, None or left out where it is missing.
        A category that is no whole number is missing, and columns that are no feature are passed over."""
        parts = []
        for name, (kind, make) in self.columns.items():
            value = features.get(name)
            if kind is int:
                whole = value is not None and float(value).is_integer() and 0 <= value < 2**63
                parts.append(make(np.array([int(value) if whole else -1])))
            else:
                parts.append(make(np.array([np.nan if value is None else float(value)])))
        return np.concatenate(parts, axis=1)[0]


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
    parts, names, left_out, columns = [], [], {}, {}
    counts = dict.fromkeys(("categories", "numbers", "rare values", "missing cells", "cut numbers"), 0)
    for column in frame.columns:
        if column in IDS:
            continue
        values, kind = frame[column], frame.schema[column]
        if kind.is_integer() or kind == pl.Boolean:
            of, values = int, values.cast(pl.Int64).fill_null(-1).to_numpy()
            made = _category(column, values, training, counts)
            counts["categories"] += made is not None
        elif kind.is_float():
            of, values = float, values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
            made = _number(column, values, training, counts)
            counts["numbers"] += made is not None
        else:
            left_out[column] = f"holds {kind}, not numbers"
            continue
        if made is None:
            left_out[column] = "is the same in every training row"
            continue
        names += made[0]
        columns[column] = of, made[1]
        parts.append(made[1](values))
    if not parts:
        return None
    return SideFeatures(np.concatenate(parts, axis=1), names, left_out, counts, columns)


def _category(name: str, values: np.ndarray, training: np.ndarray, counts: dict[str, int]):
    """(names, what makes the columns of int64 [n]); None where training rows are all the same."""
    values = np.where(values < 0, -1, values)
    seen, often = np.unique(values[training], return_counts=True)
    if len(seen) < 2:
        return None
    order = np.lexsort((seen, -often))
    kept, buckets = np.sort(seen[order[:FREQUENT]]), len(seen) > FREQUENT
    names = [f"{name} missing" if value < 0 else f"{name}={value}" for value in kept.tolist()]
    names += [f"{name}#{bucket}" for bucket in range(BUCKETS if buckets else 0)]

    def make(values: np.ndarray) -> np.ndarray:
        values = np.where(values < 0, -1, values)
        column = np.minimum(np.searchsorted(kept, values), len(kept) - 1)
        told = kept[column] == values
        if buckets:
            # A fixed multiplier: the same bucket on every machine and in every version.
            bucket = (values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(61)
            column, told = np.where(told, column, len(kept) + bucket.astype(np.int64)), np.ones_like(told)
        made = np.zeros((len(values), len(names)), np.float32)
        made[np.flatnonzero(told), column[told]] = 1.0  # a value no training row has, and no bucket: all zeros
        return made

    counts["rare values"] += len(np.setdiff1d(values, kept))
    counts["missing cells"] += int((values < 0).sum())
    return names, make


def _number(name: str, values: np.ndarray, training: np.ndarray, counts: dict[str, int]):
    """(names, what makes the columns of float64 [n]); None where training rows are all the same."""
    learned, known = _scaled(values)[np.isfinite(values) & training], np.isfinite(values)
    mean, spread = (learned.mean(), learned.std()) if learned.size else (0.0, 0.0)
    flagged = known[training].any() and not known[training].all()
    if spread < 1e-9 and not flagged:
        return None

    def make(values: np.ndarray) -> np.ndarray:
        known, columns = np.isfinite(values), []
        if spread >= 1e-9:
            columns.append(np.where(known, np.clip((_scaled(values) - mean) / spread, -LONGEST, LONGEST), 0.0))
        if flagged:
            columns.append(~known)
        return np.stack(columns, axis=1).astype(np.float32)

    if spread >= 1e-9:
        counts["cut numbers"] += int((np.abs((_scaled(values) - mean) / spread) > LONGEST)[known].sum())
    counts["missing cells"] += int((~known).sum())
    names = ([name] if spread >= 1e-9 else []) + ([f"{name} missing"] if flagged else [])
    return names, make


def _scaled(values: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|), 0 where it is not finite."""
    values = np.where(np.isfinite(values), values, 0.0)
    return np.sign(values) * np.log1p(np.abs(values))
