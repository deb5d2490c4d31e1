"""What was known of a person when they asked, and training sequences packed into rows.

Axes: R requests, V views, N packed rows, T places of a row, C candidates of all requests (flat).
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.log.tasks import Task
from data_pipelines.log.timelines import Timelines

REQUESTS = 512  # scored at a time: one shape, one compilation


class Rows(NamedTuple):
    """Sequences packed side by side into rows of T places, so that hardly a place is empty.

    Attributes:
      item: int32 [N, T], the author watched. target: int32 [N, T], the one watched next.
      segment: int32 [N, T], which sequence of the row a place belongs to, from 1; 0 for an empty place.
      place: int32 [N, T], from 0 within the sequence.
      weight: float32 [N, T], 1 where there is a target.
    """

    item: np.ndarray
    target: np.ndarray
    segment: np.ndarray
    place: np.ndarray
    weight: np.ndarray


def pack(views: Timelines, length: int, rng: np.random.Generator) -> Rows:
    """All consecutive pairs (author, next author) of everybody's views, once each, in a random order of people.

    A sequence longer than `length` is cut. Only the views given are read: those of the training period.
    """
    begin, count = views.user_ptr[:-1], np.diff(views.user_ptr) - 1
    pieces = [(int(begin[user]) + low, min(length, int(count[user]) - low))
              for user in rng.permutation(count.size) for low in range(0, max(int(count[user]), 0), length)]
    rows, row, used, number = [], 0, 0, 0
    for first, size in pieces:
        if used + size > length:
            row, used, number = row + 1, 0, 0
        number += 1
        rows.append((row, used, first, size, number))
        used += size
    made = Rows(*(np.zeros((row + 1, length), dtype) for dtype in (*[np.int32] * 4, np.float32)))
    for row, used, first, size, number in rows:
        to = slice(used, used + size)
        made.item[row, to] = views.author[first:first + size]
        made.target[row, to] = views.author[first + 1:first + size + 1]
        made.segment[row, to], made.place[row, to], made.weight[row, to] = number, np.arange(size), 1.0
    return made


def last_views(views: Timelines, users: np.ndarray, times_ms: np.ndarray, length: int,
               right: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [R, length] indices into the views, bool [R, length] whether there is one) of the last views that began
    strictly before each moment, oldest first; from the first place on, or (right) up to the last."""
    end = views.seen_before(users, times_ms)
    begin = np.maximum(views.user_ptr[users], end - length)
    at = (end[:, None] - length if right else begin[:, None]) + np.arange(length)
    there = (at >= begin[:, None]) & (at < end[:, None])
    return np.where(there, at, 0), there


def parts(task: Task):
    """(request numbers int64 [REQUESTS], how many are new, candidates slice) of a task; the last part is filled up."""
    for low in range(0, task.user.size, REQUESTS):
        new = min(REQUESTS, task.user.size - low)
        yield (np.minimum(np.arange(low, low + REQUESTS), task.user.size - 1), new,
               slice(int(task.offsets[low]), int(task.offsets[low + new])))


def of_candidates(scores_RxA: np.ndarray, task: Task, first: int, candidates: slice) -> np.ndarray:
    """Scores of the flat candidates of requests first, first + 1, … of a task, of scores of all authors."""
    new = scores_RxA.shape[0]
    if task.candidates[candidates].size == scores_RxA.size:  # every author is a candidate of everybody
        return scores_RxA.reshape(-1)
    request = np.repeat(np.arange(new), np.diff(task.offsets[first:first + new + 1]))
    return scores_RxA[request, task.candidates[candidates]]


class Epochs:
    """Batches of rows: each epoch is made anew and passed through once; what is left of it is left out.

    Args: make: a generator → arrays of N rows each (a NamedTuple). rows: of a batch. seed: of everything.
    """

    def __init__(self, make, rows: int, seed: int):
        self._make, self._rows, self._seed, self._epoch, self._starts = make, rows, seed, -1, None
        self.per_epoch = max(1, self._of(0)[0].shape[0] // rows)

    def _of(self, epoch: int):
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, epoch))
            self._made, self._epoch = self._make(rng), epoch
            self._order = rng.permutation(self._made[0].shape[0])
        return self._made

    def batch(self, step: int):
        """The batch of a step, from 0: a function of the step and the seed alone."""
        made = self._of(step // self.per_epoch)
        low = step % self.per_epoch * self._rows
        row = np.resize(self._order, self.per_epoch * self._rows)[low:low + self._rows]
        return type(made)(*(values[row] for values in made))
