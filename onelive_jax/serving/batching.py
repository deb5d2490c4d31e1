"""Requests of many threads, answered together by the one thread that owns the device.

A request waits in a bounded queue. The worker takes what is there (it never waits for more: while it computes, the next
batch gathers) and between two batches it does what else is to be done: take in events, put a new model in place.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


class Full(Exception):
    """The queue is full. retry_after: seconds until a place should be free."""

    def __init__(self, waiting: int, retry_after: float):
        super().__init__(f"{waiting} requests are waiting, no more are taken: try again in {retry_after:.2f} s "
                         "(config.serving.queue)")
        self.retry_after = retry_after


@dataclass
class Waiting:
    """asked: what was asked. deadline: time.monotonic() by which it must be answered. answer: its future."""

    asked: Any
    deadline: float
    answer: Future = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """One worker thread, which alone calls the functions given here.

    Args:
      answer: (list of what was asked, whether many wait) → list of answers, of at most `largest`.
      late: (what was asked) → answer, cheap; for requests that would miss their deadline.
      largest, queue_size: of a batch, of the queue. many: waiting requests that count as many.
      observe: (name, seconds or count) for metrics: "batch", "batch_seconds", "waited", "late".
    """

    def __init__(self, answer: Callable[[list, bool], list], late: Callable[[Any], Any], *, largest: int,
                 queue_size: int, many: int, observe: Callable[[str, float], None] = lambda name, value: None):
        self._answer, self._late, self._observe = answer, late, observe
        self._largest, self._queue_size, self._many = largest, queue_size, many
        self._waiting: deque[Waiting] = deque()
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._closing = False
        self.batch_seconds = 0.0  # of a batch, lately
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def ask(self, asked: Any, seconds: float) -> Future:
        """The answer, to come within about so many seconds.

        Raises: Full where too many wait; RuntimeError when the batcher is closed.
        """
        waiting = Waiting(asked, time.monotonic() + seconds)
        with self._changed:
            if self._closing:
                raise RuntimeError("the server is shutting down")
            if len(self._waiting) >= self._queue_size:
                batches = len(self._waiting) / self._largest
                raise Full(len(self._waiting), max(0.01, batches * self.batch_seconds))
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.answer

    def run(self, task: Callable[[], Any]) -> Future:
        """Runs something in the worker between two batches, in the order of the calls."""
        done: Future = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("the server is shutting down")
            self._tasks.put((task, done))
            self._changed.notify()
        return done

    def close(self) -> None:
        """Takes nothing more, answers all that waits, and ends the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and self._tasks.empty() and not self._closing:
                    self._changed.wait()
                if self._closing and not self._waiting and self._tasks.empty():
                    return
            for _ in range(self._tasks.qsize()):  # those that come meanwhile are for the next time
                task, done = self._tasks.get()
                _fill([done], lambda task=task: [task()])
            with self._changed:
                many = len(self._waiting) >= self._many
                batch = [self._waiting.popleft() for _ in range(min(self._largest, len(self._waiting)))]
            if batch:
                self._answer_batch(batch, many)

    def _answer_batch(self, batch: list[Waiting], many: bool) -> None:
        now = time.monotonic()
        late = [w for w in batch if w.deadline < now + self.batch_seconds]
        batch = [w for w in batch if w.deadline >= now + self.batch_seconds]
        if not batch and self.batch_seconds:
            self.batch_seconds *= 0.9  # one slow batch must not make every later request late for ever
        for waiting in late:
            self._observe("late", 1)
            _fill([waiting.answer], lambda waiting=waiting: [self._late(waiting.asked)])
        if not batch:
            return
        for waiting in batch:
            self._observe("waited", now - waiting.since)
        began = time.perf_counter()
        _fill([waiting.answer for waiting in batch], lambda: self._answer([w.asked for w in batch], many))
        seconds = time.perf_counter() - began
        self.batch_seconds = seconds if not self.batch_seconds else 0.8 * self.batch_seconds + 0.2 * seconds
        self._observe("batch", len(batch))
        self._observe("batch_seconds", seconds)


def _fill(futures: list[Future], make: Callable[[], list]) -> None:
    """Gives each future its result, or all of them the error; a future that was cancelled is passed over."""
    try:
        results = make()
    except Exception as error:  # noqa: BLE001 - whoever asked is told, the worker goes on
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        return
    for future, result in zip(futures, results, strict=True):
        if future.set_running_or_notify_cancel():
            future.set_result(result)
