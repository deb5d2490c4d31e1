"""The running service: one worker thread around `Service`, events kept before they are acknowledged, snapshots.

HTTP (http.py) and the bus of several replicas (redis_bus.py) call it from threads of their own.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from data_pipelines.live import events, snapshots
from data_pipelines.tables import moment
from experiments.server import store
from experiments.server.metrics import Metrics
from experiments.server.service import Answer, Query, Service, Unanswerable
from onelive_jax.serving.batching import Batcher
from onelive_jax.serving.engine import Version

logger = logging.getLogger(__name__)
RECENT_QUERIES = 64


class Live:
    """Attributes: service; metrics; ready: whether every program is compiled; log: where events are kept, or None."""

    def __init__(self, service: Service, clock: Callable[[], int], log: store.EventLog | None = None,
                 bus: Any = None, applied: str = "0-0"):
        """clock: milliseconds now, never going back. bus: a RedisBus, instead of a log; the service knows its stream as
        far as `applied`."""
        self.service, self.clock, self.log, self.bus, self.metrics = service, clock, log, bus, Metrics()
        self.ready, self._since_snapshot = threading.Event(), 0
        self._order = threading.Lock()  # events are taken in in the order in which they are in the log
        self._writer: threading.Thread | None = None
        self.recent: list[Query] = []
        self.models: Any = None  # `Models`, where there is a workdir to load others from
        self.figures: list[dict] = []  # of a simulated platform, for the page
        self.other: Service | None = None  # with ids of another tokenizer: to be put in place, or to go back to
        self.applied = applied if bus else log.last() if log else 0  # position of the last event that the state knows
        self._expected: list[tuple[tuple[int, int], Future]] = []  # position in the stream → who waits for it
        self.started = time.time()
        c = service.config.serving
        self._watch(service)
        self.batcher = Batcher(self._answer, self._late, largest=c.max_batch, queue_size=c.queue, many=c.narrow_at,
                               observe=self.metrics.observe)
        if bus:
            bus.follow(applied, self._take_from_bus)

    def warm_up(self) -> None:
        """Compiles everything, then is ready."""
        began = time.perf_counter()
        count = self.batcher.run(self.service.warm_up).result()
        self.ready.set()
        logger.info("ready: %d programs compiled in %.1f s, %d rooms on air, %d people", count,
                    time.perf_counter() - began, len(self.service.catalogue), len(self.service.state.users))

    def recommend(self, query: Query, seconds: float | None = None) -> "Future[Answer]":
        """Raises `batching.Full` where too many wait, Unanswerable for what nobody can answer."""
        limit = self.service.config.serving.max_k
        if not 1 <= query.k <= limit:
            raise Unanswerable(f"k={query.k} must be 1 … {limit} (config.serving.max_k)")
        if query.at_ms is not None and query.at_ms > self.clock() + 60_000:
            raise Unanswerable(f"at={query.at_ms} ({moment(query.at_ms)}) lies in the future: leave it out for now")
        began = time.monotonic()
        future = self.batcher.ask(query, seconds or self.service.config.serving.deadline_ms / 1000)
        future.add_done_callback(lambda done: self.metrics.answered(time.monotonic() - began))
        return future

    def take(self, coming: Sequence[events.Event]) -> tuple[int, "Future[None]"]:
        """Keeps events and has them taken in. Returns (how many were new, a future, done when answers know of them).

        Raises: OSError where they cannot be kept; none was then.
        """
        began = time.monotonic()
        if self.bus:
            count, done = self._take_by_bus(coming)
            done.add_done_callback(lambda _: self.metrics.seen(time.monotonic() - began))
            return count, done
        with self._order:
            received = self.clock()
            new, offset = (coming, 0) if self.log is None else self.log.append(coming, received)
            done = self.batcher.run(lambda: self._apply(new, received, offset))
        done.add_done_callback(lambda _: self.metrics.seen(time.monotonic() - began))
        return len(new), done

    def _take_by_bus(self, coming: Sequence[events.Event]) -> tuple[int, "Future[None]"]:
        done: Future = Future()
        with self._order:  # nothing of it can be applied before somebody waits for it
            count, last = self.bus.append(coming, self.clock())
            if last:
                self._expected.append((self.bus.order(last), done))
        if not last:
            done.set_result(None)
        return count, done

    def _take_from_bus(self, coming: list[tuple[str, int, events.Event]]) -> None:
        def apply() -> None:
            for _, received_ms, event in coming:
                self.service.apply(event, received_ms)
            self._applied(len(coming), coming[-1][0])

        self.batcher.run(apply).result()
        reached = self.bus.order(coming[-1][0])
        with self._order:
            there = [done for position, done in self._expected if position <= reached]
            self._expected = [entry for entry in self._expected if entry[0] > reached]
        for done in there:
            done.set_result(None)

    def ask_worker(self, question: Callable[[Service], Any]) -> Future:
        """What only the worker may look at: people, rooms, models."""
        return self.batcher.run(lambda: question(self.service))

    def swap(self, version: Version) -> None:
        """Another model answers from the next batch on."""
        self.batcher.run(lambda: self.service.engine.swap(version)).result()

    def catch_up(self, service: Service) -> None:
        """A service of another tokenizer, as of its log's end, comes to know every event that is kept; from then on it
        is told of all that this one is.

        Raises: ValueError where events are not kept here.
        """
        if self.log is None:
            raise ValueError("a new tokenizer is put in place where events are kept (--state): behind a bus, start new "
                             "replicas beside the old ones")
        offset, since_ms = self.log.last(), service.state.now_ms
        # In a thread of its own as far as the log reaches now; the worker does the rest, between two batches.
        store.replay(service.state, self.log, 0, since_ms, offset)
        service.warm_up()
        self._watch(service)

        def join() -> None:
            store.replay(service.state, self.log, offset, since_ms, self.applied)
            service.sync()
            self.other = service

        self.batcher.run(join).result()

    def change_service(self) -> None:
        """The other service answers from the next batch on: ids, histories, catalogue and parameters at once."""
        def change() -> None:
            self.service, self.other = self.other, self.service

        self.batcher.run(change).result()

    def rollback(self) -> None:
        """The model before answers again, with its ids. Raises ValueError where there is none."""
        def back() -> None:
            if self.service.engine.previous is None and self.other is not None:
                self.service, self.other = self.other, self.service
            else:
                self.service.engine.rollback()

        self.batcher.run(back).result()

    def _watch(self, service: Service) -> None:
        service.observe = self.metrics.stage

    def save_snapshot(self) -> None:
        """Keeps a snapshot now, where events are kept."""
        self.batcher.run(self._snapshot).result()

    def close(self) -> None:
        """Answers what waits, keeps a last snapshot, ends."""
        self.ready.clear()
        if self.models:
            self.models.close()
        if self.bus:
            self.bus.close()
        self.save_snapshot()
        self.batcher.close()
        if self._writer:
            self._writer.join()
        if self.log:
            self.log.close()

    def gauges(self) -> bytes:
        """/metrics. (Reads what the worker writes; a number may be a moment old.)"""
        service, m = self.service, self.metrics
        state = service.state
        for name, value in (("rooms_on_air", len(service.catalogue)), ("rooms_without_slot", service.without_slot),
                            ("people", len(state.users)), ("waiting", len(self.batcher)),
                            ("catalogue_version", service.catalogue.version),
                            ("events_total", sum(state.counts.get(kind, 0) for kind in events.KINDS))):
            m.gauges[name].set(value)
        for what, count in dict(state.counts).items():
            m.events.labels(what).set(count)
        m.model.clear()
        m.model.labels(service.engine.running.name).set(1)
        return m.text()

    def _answer(self, queries: list[Query], many: bool) -> list[Answer]:
        now = self.clock()
        groups: dict[int | None, list[int]] = {}
        for place, query in enumerate(queries):
            groups.setdefault(query.at_ms, []).append(place)
        answers: list[Answer] = [None] * len(queries)
        for at_ms, places in groups.items():
            made = self.service.recommend([queries[place] for place in places], now, many, at_ms=at_ms)
            for place, answer in zip(places, made, strict=True):
                answers[place] = answer
        self.metrics.answers.labels("model").inc(len(queries))
        self.recent = (self.recent + queries)[-RECENT_QUERIES:]
        return answers

    def _late(self, query: Query) -> Answer:
        return self.service.fallback(query, self.clock())

    def _apply(self, coming: Sequence[events.Event], received_ms: int, offset: int) -> None:
        for service in self._services():
            for event in coming:
                service.apply(event, received_ms)
        self._applied(len(coming), offset)

    def _services(self) -> list[Service]:
        return [self.service] if self.other is None else [self.service, self.other]

    def _applied(self, count: int, position: int | str) -> None:
        for service in self._services():
            service.sync()
        self.applied, self._since_snapshot = position, self._since_snapshot + count
        if self._since_snapshot >= self.service.config.serving.snapshot_events:
            self._snapshot(in_background=True)

    def _snapshot(self, in_background: bool = False) -> None:
        """In the worker: the arrays are copied here, and written by a thread that nobody waits for."""
        if self.log is None and self.bus is None:
            return
        self._since_snapshot = 0
        position, arrays = self.applied, snapshots.to_arrays(self.service.state)

        def write() -> None:
            if self.bus:
                self.bus.save(arrays, position)
            else:
                store.save(arrays, self.log.path.parent, position)

        if not in_background:
            write()
        elif self._writer is None or not self._writer.is_alive():
            self._writer = threading.Thread(target=write)
            self._writer.start()


def answer_json(answer: Answer, request_id: str) -> dict[str, Any]:
    """An answer as the interface gives it."""
    return {"request_id": request_id, "at": answer.at_ms, "model": answer.model, "catalogue": answer.catalogue,
            "fallback": answer.model == "fallback",
            "rooms": [{"room": r.room, "author": r.author, "score": r.score, "codes": list(r.codes),
                       "viewers": r.viewers} for r in answer.rooms]}


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
