"""The content of rooms as the towers read it: x_30s and x_pool of an author at a moment (paper, section a).

Axes: S moments, M vectors, A authors, C content width, n rows asked for.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines import intervals
from data_pipelines.tables import Tables

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
    """

    author: np.ndarray
    from_ms: np.ndarray
    vectors: np.ndarray
    vector: np.ndarray
    pools: np.ndarray
    pool: np.ndarray
    author_ptr: np.ndarray

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
        author = np.asarray(author, np.int64)
        after = intervals.first_not_below(self.author_ptr, self.from_ms, author, np.asarray(times_ms, np.int64) + 1)
        return np.where(after > self.author_ptr[author], after - 1, -1)


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


def _of_segments(tables: Tables, num_authors: int) -> Content:
    segments = tables.segments
    author = tables.rooms["author_id"].to_numpy()[segments["room_id"].to_numpy()]
    end = segments["end_ms"].to_numpy()
    order = np.lexsort((end, author))
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
    return Content(author, start, vectors, title, pools, author, np.searchsorted(author, np.arange(num_authors + 1)))
