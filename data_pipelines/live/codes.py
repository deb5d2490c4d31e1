"""The semantic ids of authors as their content moves on: x_pool, codes now and a little while ago, newcomers.

Axes: A authors (with spare rows), L code levels, C content width, D embedding width, n rows.
"""

from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.log.content import Pools

Profile = Mapping[str, float | None]  # column of the authors table → value
# (author int64 [n], content float32 [n, 2C] or None where nothing is known of it, profile of a single author without
# content or None) → (codes int32 [n, L], embedding float32 [n, D]).
Encode = Callable[[np.ndarray, np.ndarray | None, Profile | None], tuple[np.ndarray, np.ndarray]]
NEVER = np.iinfo(np.int64).min  # from_ms of codes that no content made
REMEMBERED = 32  # earlier codes of an author that a late view may ask for


class LiveCodes:
    """Codes of every author now.

    Attributes:
      codes: int32 [A, L]. from_ms: int64 [A], since when.
      embeddings: spare row → float32 [D], by which the author table knows a newcomer.
      moved: authors whose codes changed since `take_news`.
    """

    def __init__(self, codes: np.ndarray, from_ms: np.ndarray, encode: Encode, trained: int, pools: Pools | None = None,
                 title_pools: np.ndarray | None = None):
        """pools: running ones, where content is of segments. title_pools: float32 [A, C], where it is of titles."""
        self.codes, self.from_ms, self.encode, self.trained = codes, from_ms, encode, trained
        self.pools, self.title_pools = pools, title_pools
        self.embeddings: dict[int, np.ndarray] = {}
        self.moved: set[int] = set()
        self._embedded: set[int] = set()
        self._before: dict[int, list[tuple[int, np.ndarray]]] = {}
        self._waiting: list[tuple[int, int, np.ndarray]] = []
        self._who_waits: set[int] = set()

    @property
    def width(self) -> int:
        """C; 0 where the model reads no content."""
        pools = self.title_pools if self.pools is None else self.pools.total
        return 0 if pools is None else pools.shape[1]

    def newcomer(self, author: int, profile: Profile | None = None) -> None:
        """A spare row goes to a new author, placed by its profile: nothing of who had it before stays."""
        for pools in (self.pools.total, self.pools.count) if self.pools else ():
            pools[author] = 0
        if self.pools:
            self.pools.last_ms[author] = NEVER
        self._before.pop(author, None)
        self.from_ms[author] = NEVER
        self.describe(author, profile)

    def describe(self, author: int, profile: Profile | None) -> None:
        """A newcomer's profile places it until content does."""
        if self.from_ms[author] != NEVER:
            return
        codes, embedding = self.encode(np.array([author]), None, profile)
        self.codes[author], self.embeddings[author] = codes[0], embedding[0]
        self._embedded.add(author)
        self.moved.add(author)

    def add_segment(self, author: int, at: int, vector: np.ndarray) -> None:
        """Encoded with the others that come before the next `flush`."""
        self._waiting.append((author, at, vector))
        self._who_waits.add(author)

    def add_title(self, author: int, at: int, vector: np.ndarray) -> None:
        """The title of a room that begins; nothing where the author's codes are of a later one."""
        if at < self.from_ms[author]:
            return
        values = np.concatenate([vector, self.title_pools[author]])[None].astype(np.float32)
        self._set(author, at, *(made[0] for made in self.encode(np.array([author]), values, None)))

    def flush(self) -> int:
        """Encodes the segments that wait, in one go; returns how many came too late to change anything."""
        if not self._waiting:
            return 0
        author, at, vectors = zip(*self._waiting, strict=True)
        self._waiting, self._who_waits = [], set()
        author, at = np.array(author), np.array(at)
        taken, values = self.pools.add(author, at, np.stack(vectors))
        if taken.size:
            codes, embedding = self.encode(author[taken], values, None)
            for i, row in enumerate(taken):
                self._set(int(author[row]), int(at[row]), codes[i], embedding[i])
        return author.size - taken.size

    def at(self, author: int, time_ms: int) -> np.ndarray:
        """int32 [L], the codes of an author at a moment; before all that is remembered, the earliest of it."""
        if author in self._who_waits:
            self.flush()
        if self.from_ms[author] <= time_ms:
            return self.codes[author]
        before = self._before.get(author, [])
        return next((codes for from_ms, codes in reversed(before) if from_ms <= time_ms),
                    before[0][1] if before else self.codes[author])

    def take_news(self) -> tuple[set[int], dict[int, np.ndarray]]:
        """(authors whose codes moved, embeddings of newcomers that are new) since the last call."""
        moved, embedded = self.moved, self._embedded
        self.moved, self._embedded = set(), set()
        return moved, {author: self.embeddings[author] for author in embedded}

    def _set(self, author: int, at: int, codes: np.ndarray, embedding: np.ndarray) -> None:
        if author >= self.trained:
            count = 1 if self.pools is None else int(self.pools.count[author])
            if count & (count - 1) == 0:  # often at first, when a segment still says much that is new
                self.embeddings[author] = embedding
                self._embedded.add(author)
        if (codes == self.codes[author]).all():
            return
        before = self._before.setdefault(author, [])
        before.append((int(self.from_ms[author]), self.codes[author].copy()))
        del before[:-REMEMBERED]
        self.codes[author], self.from_ms[author] = codes, at
        self.moved.add(author)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Copies, for a snapshot."""
        self.flush()
        rows = [(author, from_ms, *codes) for author, before in self._before.items() for from_ms, codes in before]
        arrays = {"codes": self.codes.copy(), "from_ms": self.from_ms.copy(),
                  "before": np.array(rows, np.int64).reshape(-1, 2 + self.codes.shape[1]),
                  "newcomers": np.array(list(self.embeddings), np.int64),
                  "embeddings": np.array(list(self.embeddings.values()), np.float32)}
        if self.pools:
            arrays |= {name: getattr(self.pools, name).copy() for name in ("total", "count", "last_ms")}
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `to_arrays`."""
        self.codes, self.from_ms = arrays["codes"], arrays["from_ms"]
        self.embeddings = dict(zip(arrays["newcomers"].tolist(), arrays["embeddings"], strict=True))
        self._embedded, self._before = set(self.embeddings), {}
        for author, from_ms, *codes in arrays["before"].tolist():
            self._before.setdefault(author, []).append((from_ms, np.array(codes, np.int32)))
        if self.pools:
            self.pools = Pools(arrays["total"], arrays["count"], arrays["last_ms"])
