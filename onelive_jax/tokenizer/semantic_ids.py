"""Semantic ids on the host: (author, moment) -> codes, and the figures that say how good a set of ids is.

Ids are dynamic: as a room's content moves, the same author gets new codes, each valid from its moment until the next.

Axes: A authors, M moments (rows of a table), L levels, N ids.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

ALWAYS = np.iinfo(np.int64).min  # `from_ms` of the codes that hold before an author's first known moment


@dataclasses.dataclass(frozen=True)
class IdTable:
    """Which codes an author has at which moment. Build it with `static`, `dynamic` or `from_arrays`.

    Attributes:
      author: int32 [M], dense author index, rows sorted by (author, from_ms).
      from_ms: int64 [M], the moment from which the row holds; every author's first row is `ALWAYS`.
      codes: int32 [M, L].
      ptr: int64 [A + 1], made from `author`: rows of author a are ptr[a] … ptr[a + 1] − 1.
    """

    author: np.ndarray
    from_ms: np.ndarray
    codes: np.ndarray
    ptr: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        """Checks every rule that `codes_at` relies on; raises ValueError naming the first row that breaks one."""
        if self.codes.ndim != 2 or self.author.shape != self.from_ms.shape or len(self.codes) != len(self.author):
            raise ValueError(f"an id table needs author [M], from_ms [M] and codes [M, L]; got {self.author.shape}, "
                             f"{self.from_ms.shape} and {self.codes.shape}")
        if not len(self.author):
            raise ValueError("an id table needs at least one author")
        step = np.diff(self.author)
        unsorted = (step < 0) | ((step == 0) & (self.from_ms[1:] <= self.from_ms[:-1]))
        if unsorted.any():
            raise ValueError(f"row {int(np.argmax(unsorted)) + 1} of the id table is not after the row before it in "
                             "(author, from_ms), or repeats it")
        first = np.concatenate([[True], step > 0])
        present = self.author[first]
        if not np.array_equal(present, np.arange(len(present))):
            raise ValueError(f"author {int(np.argmax(present != np.arange(len(present))))} has no codes: the id table "
                             "must hold authors 0 … A-1 without gaps")
        if (self.from_ms[first] != ALWAYS).any():
            raise ValueError(f"author {int(present[np.argmax(self.from_ms[first] != ALWAYS)])} has no codes before its "
                             "first moment: its first row needs from_ms = semantic_ids.ALWAYS")
        if self.codes.min() < 0:
            raise ValueError(f"row {int(np.argmax((self.codes < 0).any(axis=1)))} of the id table has a negative code")
        object.__setattr__(self, "ptr", np.append(np.flatnonzero(first), len(self.author)))

    @classmethod
    def static(cls, codes_AxL) -> "IdTable":
        """One id an author for all time, from int [A, L]."""
        codes_AxL = _integers("codes", codes_AxL, np.int32)
        return cls(np.arange(len(codes_AxL), dtype=np.int32), np.full(len(codes_AxL), ALWAYS, np.int64), codes_AxL)

    @classmethod
    def dynamic(cls, base_AxL, author_M, from_ms_M, codes_MxL) -> "IdTable":
        """Ids that move: `base_AxL` holds until an author's first moment, then each row of codes until the next.

        Args:
          base_AxL: int [A, L], the id outside any known content (from x_pool alone, or the author's own embedding).
          author_M, from_ms_M, codes_MxL: int [M], int [M], int [M, L] in any order. For two rows of the same author and
            moment the later row counts. A row that repeats the codes before it is left out: it changes no answer.
        """
        base_AxL, codes_MxL = _integers("codes", base_AxL, np.int32), _integers("codes", codes_MxL, np.int32)
        author = np.concatenate([np.arange(len(base_AxL), dtype=np.int32), _integers("author", author_M, np.int32)])
        from_ms = np.concatenate([np.full(len(base_AxL), ALWAYS), _integers("from_ms", from_ms_M, np.int64)])
        codes = np.concatenate([base_AxL, codes_MxL.reshape(-1, base_AxL.shape[1])])
        news = _news(author, from_ms, codes)
        return cls(author[news], from_ms[news], codes[news])

    def extend(self, author_M, from_ms_M, codes_MxL) -> "Extended":
        """The table with the codes of new segments, as they come. The table itself stays as it is.

        A segment older than the author's last row is dropped and counted: what was served cannot be changed. One of
        the same moment replaces the codes of that moment. A row that repeats the codes before it is left out. Authors
        A, A + 1, … are new; the codes of their first segment also hold before it.

        Args:
          author_M, from_ms_M, codes_MxL: int [M], int [M], int [M, L] in any order.

        Returns:
          Extended: the table, how many segments came too late, and whose codes changed.

        Raises:
          ValueError: arrays that do not fit each other or the table or are no integers, or a new author beyond a gap.
        """
        author, from_ms = _integers("author", author_M, np.int64), _integers("from_ms", from_ms_M, np.int64)
        codes = _integers("codes", codes_MxL, np.int32)
        codes = codes if len(author) else codes.reshape(-1, self.levels)
        if codes.shape != (len(author), self.levels) or from_ms.shape != author.shape:
            raise ValueError(f"new segments need author [M], from_ms [M] and codes [M, {self.levels}]; got "
                             f"{author.shape}, {from_ms.shape} and {codes.shape}")
        known = self.num_authors
        fresh = np.unique(author[author >= known])
        if (author < 0).any() or not np.array_equal(fresh, np.arange(known, known + len(fresh))):
            raise ValueError(f"new segments name author {author.min() if (author < 0).any() else fresh[-1]}; the table "
                             f"holds 0 … {known - 1}, and new authors follow without gaps")
        last = self.ptr[1:] - 1
        late = np.zeros(len(author), bool)
        old = author < known
        late[old] = from_ms[old] < self.from_ms[last[author[old]]]
        order = np.lexsort((np.arange(len(author)), from_ms, author))
        order = order[~late[order]]
        earliest = order[np.searchsorted(author[order], fresh)]
        # Only the last rows of authors with news matter from here on.
        touched = np.unique(author[order][author[order] < known]).astype(np.int64)
        author_all = np.concatenate([self.author[last[touched]], fresh, author[order]])
        from_all = np.concatenate([self.from_ms[last[touched]], np.full(len(fresh), ALWAYS), from_ms[order]])
        codes_all = np.concatenate([self.codes[last[touched]], codes[earliest], codes[order]])
        kept = _news(author_all, from_all, codes_all)
        starts = np.searchsorted(author_all[kept], np.append(touched, known))

        def spliced(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            # The rows of each touched author take the place of its last row, those of new authors stand at the end. The
            # rest is copied in whole stretches: sorting or masking millions of rows takes ten times as long.
            head, *stretches = np.split(old, last[touched])
            _, *groups, tail = np.split(new[kept].astype(old.dtype), starts)
            pairs = zip(groups, stretches, strict=True)
            return np.concatenate([head, *(part for group, rest in pairs for part in (group, rest[1:])), tail])

        table = IdTable(spliced(self.author, author_all), spliced(self.from_ms, from_all),
                        spliced(self.codes, codes_all))
        moved = (table.codes[table.ptr[touched + 1] - 1] != self.codes[last[touched]]).any(axis=1)
        return Extended(table, int(late.sum()), np.concatenate([touched[moved], fresh]).astype(np.int32))

    @property
    def num_authors(self) -> int:
        return int(self.author[-1]) + 1

    @property
    def levels(self) -> int:
        return self.codes.shape[1]

    def codes_at(self, authors, times_ms) -> np.ndarray:
        """Codes of authors at moments: the row with the latest `from_ms` <= the time.

        Args:
          authors: int [...], dense author indices.
          times_ms: int [...], broadcast against `authors`; int64 milliseconds.

        Returns:
          int32 [..., L].

        Raises:
          ValueError: an author outside 0 … A-1.
        """
        authors, times_ms = np.broadcast_arrays(np.asarray(authors, np.int64), np.asarray(times_ms, np.int64))
        if authors.size and (authors.min() < 0 or authors.max() >= self.num_authors):
            wrong = authors[(authors < 0) | (authors >= self.num_authors)].flat[0]
            raise ValueError(f"author {wrong} is not in the id table, which holds authors 0 … {self.num_authors - 1}")
        row, end = self.ptr[authors], self.ptr[authors + 1]
        # Bisection of every author's rows at once. The first row always holds, so row is one that does throughout.
        for _ in range(int((end - row).max(initial=1) - 1).bit_length()):
            middle = (row + end) // 2
            holds = self.from_ms[middle] <= times_ms
            row, end = np.where(holds, middle, row), np.where(holds, end, middle)
        return self.codes[row]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The table as plain arrays, for a checkpoint."""
        return {"author": self.author, "from_ms": self.from_ms, "codes": self.codes}

    @classmethod
    def from_arrays(cls, arrays) -> "IdTable":
        """The inverse of `to_arrays`. Raises ValueError for a missing array or rows that break the table's rules."""
        missing = {"author", "from_ms", "codes"} - set(arrays)
        if missing:
            raise ValueError(f"an id table lacks the array {sorted(missing)[0]!r}")
        return cls(_integers("author", arrays["author"], np.int32), _integers("from_ms", arrays["from_ms"], np.int64),
                   _integers("codes", arrays["codes"], np.int32))


class Extended(NamedTuple):
    """What `IdTable.extend` returns.

    Attributes:
      table: the new IdTable. late: segments older than the last of their author, dropped.
      changed: int32 [m], authors whose latest codes are other than before (new authors too), each once, ascending.
    """

    table: IdTable
    late: int
    changed: np.ndarray


def _integers(name: str, values, dtype: type) -> np.ndarray:
    """Values as `dtype`. Raises ValueError for what is no integer or does not fit: a cast would change it silently."""
    values, limits = np.asarray(values), np.iinfo(dtype)
    if not values.size or np.can_cast(values.dtype, dtype):
        return values.astype(dtype, copy=False)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} must be integers, not {values.dtype}")
    if values.min() < limits.min or values.max() > limits.max:
        raise ValueError(f"{name} lie in {values.min()} … {values.max()}, which does not fit {limits.dtype}")
    return values.astype(dtype)


def _news(author: np.ndarray, from_ms: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Rows that a table needs, sorted by (author, from_ms): the last of a moment, unless it repeats the row before."""
    order = np.lexsort((np.arange(len(author)), from_ms, author))
    a, t = author[order], from_ms[order]
    order = order[np.append((a[1:] != a[:-1]) | (t[1:] != t[:-1]), True)] if len(order) else order
    a, c = author[order], codes[order]
    return order[np.append(True, (a[1:] != a[:-1]) | (c[1:] != c[:-1]).any(axis=1))] if len(order) else order


def utilization(codes_NxL, codes: int) -> dict[str, float]:
    """Share of the K codes of each level that any id uses, and of the K^2 pairs of the first two levels (UR, Table 1).

    Args:
      codes_NxL: int [N, L].
      codes: K.

    Returns:
      {"L0": …, "L1": …, …, "L0xL1": …}, shares in 0 … 1; "L0xL1" only where there are two levels.
    """
    codes_NxL = _ids(codes_NxL)
    if codes_NxL.max() >= codes:
        raise ValueError(f"code {int(codes_NxL.max())} is outside 0 … {codes - 1}")
    shares = {f"L{level}": len(np.unique(column)) / codes for level, column in enumerate(codes_NxL.T)}
    if codes_NxL.shape[1] > 1:
        # Pairs as one integer: only those in use are held, never K x K.
        shares["L0xL1"] = len(np.unique(codes_NxL[:, 0].astype(np.int64) * codes + codes_NxL[:, 1])) / codes**2
    return shares


def collision_rates(codes_NxL) -> tuple[float, float]:
    """Collisions of ids, one row an author (CR, Table 1).

    Returns:
      (sid, author): the share of occupied ids held by more than one author, and the share of authors who share their
      id with another.
    """
    _, counts = np.unique(_ids(codes_NxL), axis=0, return_counts=True)
    return float((counts > 1).mean()), float(counts[counts > 1].sum() / counts.sum())


def churn(old_NxL, new_NxL, unchanged=None) -> dict[str, float]:
    """Share of authors whose first code, first two codes, … changed: {"q0": …, "q0q1": …, "q0q1q2": …}.

    What a refresh of the codebooks costs is the churn of authors whose content did not change: give `unchanged`.

    Args:
      old_NxL, new_NxL: int [N, L], row by row the same author.
      unchanged: bool [N], the authors to count; all if None.

    Raises:
      ValueError: different shapes, or no author to count.
    """
    old_NxL, new_NxL = _ids(old_NxL), _ids(new_NxL)
    if old_NxL.shape != new_NxL.shape:
        raise ValueError(f"churn compares the same authors and levels: {old_NxL.shape} against {new_NxL.shape}")
    if unchanged is not None:
        unchanged = np.asarray(unchanged, bool)
        if unchanged.shape != old_NxL.shape[:1] or not unchanged.any():
            raise ValueError(f"unchanged must be bool [{len(old_NxL)}] and name at least one author, got shape "
                             f"{unchanged.shape}")
        old_NxL, new_NxL = old_NxL[unchanged], new_NxL[unchanged]
    changed_NxL = np.maximum.accumulate(old_NxL != new_NxL, axis=1)
    names = ["".join(f"q{i}" for i in range(level + 1)) for level in range(old_NxL.shape[1])]
    return {name: float(share) for name, share in zip(names, changed_NxL.mean(axis=0), strict=True)}


def _ids(codes_NxL) -> np.ndarray:
    codes_NxL = np.asarray(codes_NxL)
    if codes_NxL.ndim != 2 or 0 in codes_NxL.shape or codes_NxL.min() < 0:
        raise ValueError(f"ids must be a non-empty [N, L] array of codes >= 0, not of shape {codes_NxL.shape}")
    return codes_NxL
