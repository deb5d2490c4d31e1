"""The content of rooms as the towers read it: x_30s and x_pool of an author at a moment (paper, section a).

Axes: S moments, M vectors, A authors, C content width, n rows asked for.
"""

import logging
from dataclasses import dataclass

import numpy as np

from data_pipelines.log.intervals import check_range, first_not_below
from data_pipelines.tables import Tables

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 1_000_000


@dataclass
class Content:
    """What was known of each author's content, and from when on; rows sorted by (author, from_ms).

    Vectors are shared (many rooms have one title) and put together only for the rows that are asked for.

    Attributes:
      author: int32 [S]. from_ms: int64 [S], the end of a segment, or the start of a room with a title.
      vectors: float32 [M, C]; vector: int32 [S], the row of `vectors` that holds from then on (x_30s).
      pools: float32 [P, C]; pool: int32 [S], the row of `pools` that goes with it (x_pool).
      author_ptr: int64 [A + 1], rows of author a are author_ptr[a] … author_ptr[a + 1] − 1.
      of_titles: whether the vectors are those of rooms' titles; else of segments, each with a pool of its own.
    """

    author: np.ndarray
    from_ms: np.ndarray
    vectors: np.ndarray
    vector: np.ndarray
    pools: np.ndarray
    pool: np.ndarray
    author_ptr: np.ndarray
    of_titles: bool = False

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    def values(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, 2C]: concat(x_30s, x_pool) of rows int [n]; row −1 gives zeros."""
        known = rows >= 0
        rows = np.where(known, rows, 0)
        both = np.concatenate([self.vectors[self.vector[rows]], self.pools[self.pool[rows]]], 1)
        both[~known] = 0
        return both

    def row_at(self, author: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """int64 [n]: the last row of each author that was known by the time; −1 where there is none."""
        author = check_range("author", author, self.author_ptr.size - 1)
        first, times_ms = self.author_ptr[author], np.asarray(times_ms, np.int64)
        after = first_not_below(first, self.author_ptr[author + 1], self.from_ms, times_ms + 1)
        return np.where(after > first, after - 1, -1)


@dataclass
class Pools:
    """What is kept of each author's content between segments that come one by one: enough for the next x_pool.

    Attributes:
      total: float64 [A, C], sum over an author's segments so far: x_pool is then to the bit that of the whole log.
      count: int64 [A]. last_ms: int64 [A], end of the last.
    """

    total: np.ndarray
    count: np.ndarray
    last_ms: np.ndarray

    @classmethod
    def empty(cls, authors: int, width: int) -> "Pools":
        return cls(np.zeros((authors, width)), np.zeros(authors, np.int64),
                   np.full(authors, np.iinfo(np.int64).min))

    @classmethod
    def of(cls, content: Content, until_ms: int) -> "Pools":
        """As of a moment of a log's content. Raises ValueError for content of titles, whose pools do not move."""
        if content.of_titles:
            raise ValueError("content of titles has pools of the training period, which new segments do not move")
        made = cls.empty(content.author_ptr.size - 1, content.width)
        row = content.row_at(np.arange(made.count.size), np.full(made.count.size, until_ms))
        for author in np.flatnonzero(row >= 0).tolist():
            first, last = content.author_ptr[author], row[author] + 1
            vectors = content.vectors[content.vector[first:last]]
            made.total[author] = np.cumsum(vectors, 0, dtype=np.float64)[-1]
            made.count[author], made.last_ms[author] = last - first, content.from_ms[last - 1]
        return made

    def add(self, author: np.ndarray, from_ms: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Takes in new segments (in place) and says what the towers read of them.

        Args:
          author: int [n], 0 … A − 1, in any order. from_ms: int64 [n], the end of each segment.
          vectors: float [n, C], their embeddings.

        Returns:
          (int64 [m], which segments were taken, by author and time; float32 [m, 2C], concat(x_30s, x_pool) of each).
          The n − m others are no newer than the last of their author: delivered twice (the first counts), or late, and
          what was served cannot be changed.

        Raises:
          ValueError: an author out of range, shapes that do not fit, NaN or infinity; nothing is taken then.
        """
        author, from_ms = np.asarray(author, np.int64), np.asarray(from_ms, np.int64)
        vectors, shape = np.asarray(vectors, np.float32), (author.size, self.total.shape[1])
        if vectors.shape != shape or from_ms.shape != author.shape:
            raise ValueError(f"{author.size} new segments need from_ms {author.shape} and vectors {shape}; got "
                             f"{from_ms.shape} and {vectors.shape}")
        wrong = (author < 0) | (author >= self.count.size)
        if wrong.any():
            raise ValueError(f"new segment {int(np.argmax(wrong))} is of author {author[np.argmax(wrong)]}, allowed are"
                             f" 0 … {self.count.size - 1}")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise ValueError(f"new segment {int(np.argmin(finite))} holds NaN or infinity")
        taken = np.lexsort((from_ms, author))
        taken = taken[_first_of_moment(author[taken], from_ms[taken]) & (from_ms > self.last_ms[author])[taken]]
        author, from_ms, vectors = author[taken], from_ms[taken], vectors[taken]
        pools = np.empty_like(vectors)
        for i, who in enumerate(author.tolist()):
            self.total[who] += vectors[i]
            self.count[who] += 1
            self.last_ms[who] = from_ms[i]
            pools[i] = self.total[who] / self.count[who]
        return taken, np.concatenate([vectors, pools], 1)


def author_content(tables: Tables, until_ms: int) -> Content | None:
    """The content of a log by author: of its segments, or of its rooms' titles where it has no segments; else None.

    x_pool is the mean over an author's segments up to the moment. Of titles it is the mean over the rooms that the
    author opened before `until_ms` (the end of training), so that a catalogue of millions of rooms needs one pool an
    author.
    """
    num_authors = len(tables.authors)
    if tables.segments is not None and len(tables.segments):
        return _of_segments(tables, num_authors)
    if tables.titles is not None and len(tables.titles) and (tables.rooms["title_embedding"] >= 0).any():
        return _of_titles(tables, num_authors, until_ms)
    return None


def _first_of_moment(author: np.ndarray, from_ms: np.ndarray) -> np.ndarray:
    """bool [n], of rows sorted by (author, from_ms): not the same author and moment as the row before."""
    return np.append(True, (author[1:] != author[:-1]) | (from_ms[1:] != from_ms[:-1]))[:author.size]


def _of_segments(tables: Tables, num_authors: int) -> Content:
    segments = tables.segments
    author = tables.rooms["author_id"].to_numpy()[segments["room_id"].to_numpy()]
    end = segments["end_ms"].to_numpy()
    order = np.lexsort((end, author))
    once = _first_of_moment(author[order], end[order])
    if not once.all():
        logger.warning("%d of %d segments repeat a moment of their author and are left out", (~once).sum(), once.size)
    order = order[once]
    author, end = author[order], end[order]
    vectors = segments["embedding"].to_numpy().astype(np.float32, copy=False)[order]
    ptr = np.searchsorted(author, np.arange(num_authors + 1))
    pools = np.empty_like(vectors)
    for low, high in zip(ptr[:-1], ptr[1:], strict=True):
        if low < high:
            total = np.cumsum(vectors[low:high], 0, dtype=np.float64)
            pools[low:high] = total / np.arange(1, high - low + 1)[:, None]
    row = np.arange(author.size, dtype=np.int32)
    return Content(author, end, vectors, row, pools, row, ptr)


def _of_titles(tables: Tables, num_authors: int, until_ms: int) -> Content:
    vectors = tables.titles["embedding"].to_numpy().astype(np.float32, copy=False)
    author, start, title = (tables.rooms[name].to_numpy() for name in ("author_id", "start_ms", "title_embedding"))
    row = np.flatnonzero(title >= 0)
    row = row[np.lexsort((start[row], author[row]))]
    author, start, title = author[row], start[row], title[row]
    pools, count = np.zeros((num_authors, vectors.shape[1]), np.float32), np.zeros(num_authors)
    early = np.flatnonzero(start < until_ms)
    for low in range(0, early.size, ROWS_AT_ONCE):
        part = early[low:low + ROWS_AT_ONCE]
        who, first = np.unique(author[part], return_index=True)  # rows of an author lie together
        pools[who] += np.add.reduceat(vectors[title[part]], first)
        count[who] += np.diff(np.append(first, part.size))
    pools /= np.maximum(count, 1)[:, None]
    ptr = np.searchsorted(author, np.arange(num_authors + 1))
    return Content(author, start, vectors, title, pools, author, ptr, of_titles=True)
