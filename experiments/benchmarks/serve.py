"""The live service under load: a real server in a process of its own, asked in an open loop.

    python -m experiments.benchmark --what=serve --report=serve.json

Requests arrive at random moments (Poisson) at a stated rate, whether or not the server keeps up, and latency counts
from the moment at which a request was to be sent: a server that falls behind cannot hide it. Server and load share the
machine.

Axes: A authors, L levels, K codes.
"""

import asyncio
import heapq
import json
import multiprocessing
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.live import events
from data_pipelines.live.codes import LiveCodes
from data_pipelines.live.names import AuthorRows
from data_pipelines.live.state import LiveState
from experiments.benchmarks.problem import ModelSizes, make_model, random_batch, random_parameters
from experiments.benchmarks.report import row
from experiments.server.live import Live
from experiments.server.service import Query, Service
from onelive_jax.config import Config
from onelive_jax.serving.engine import Engine

START_MS = 1_767_225_600_000
QPS_TARGET, P99_TARGET, VISIBLE_TARGET = 350.0, 60.0, 50.0


@dataclass(frozen=True)
class Load:
    """rate: requests a second. room_events, view_events: a second. people: who ask. connections: kept open."""

    rate: float = 350.0
    seconds: float = 30.0
    room_events: float = 100.0
    view_events: float = 200.0
    people: int = 20_000
    connections: int = 64
    k: int = 10
    beams: int = 10


@dataclass
class Seen:
    """Seconds of requests and of events until they are visible, and what went wrong."""

    latency: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    off_air: int = 0
    refused: int = 0
    fallback: int = 0


def make_live(sizes: ModelSizes, load: Load) -> Live:
    """Every author on air, people with whole histories, random parameters; no event is kept."""
    config = Config(model=sizes.model)
    config.data.history_items = sizes.history
    config.decoding.beams, config.decoding.capacity = load.beams, sizes.rooms + 256
    config.tokenizer.levels, config.tokenizer.codes = sizes.levels, sizes.codes
    config.serving.max_k, config.serving.deadline_ms = load.k, 10_000.0
    rng = np.random.default_rng(0)
    spare = config.serving.spare_authors
    codes = rng.integers(0, sizes.codes, (sizes.authors + spare, sizes.levels), dtype=np.int32)
    state = LiveState(config, AuthorRows([f"a{i}" for i in range(sizes.authors)], spare),
                      LiveCodes(codes, np.zeros(len(codes), np.int64), None, sizes.authors), true_lifetimes=True)
    state.begin([(f"r{i}", i, START_MS - 60_000, START_MS - 60_000, None) for i in range(sizes.rooms)], [], START_MS)
    watched = rng.integers(0, sizes.authors, (load.people, sizes.history))
    for person, authors in enumerate(watched.tolist()):
        user = state.users.add(f"u{person}")
        for i, author in enumerate(authors):
            at = START_MS - 3_600_000 * (sizes.history - i)
            state.buffers["live"].add(user, author, at, at + 600_000, codes[author])
    model = make_model(sizes, sizes.model)
    params = random_parameters(model, random_batch(rng, sizes))
    service = Service(config, state, Engine(model, config, params, "random"))
    began = time.monotonic()
    return Live(service, lambda: START_MS + round(1000 * (time.monotonic() - began)))


def measure_serving(sizes: ModelSizes, load: Load = Load(), repeats: int = 20) -> dict[str, Any]:
    """The engine alone, then the server under load."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(sizes, load, repeats, theirs), daemon=True)
    server.start()
    try:
        theirs.close()
        batch_seconds, port = ours.recv()
        seen = asyncio.run(_ask(port, sizes, load))
    finally:
        server.terminate()
        server.join()
    latency, visible = (np.array(x) * 1000 for x in (seen.latency, seen.visible))
    largest = Config().serving.max_batch
    qps = len(seen.latency) / load.seconds
    return {"rows": [row("answers/s", ">=", QPS_TARGET, qps),
                     row("latency from the scheduled arrival, p99, ms", "<=", P99_TARGET, np.quantile(latency, 0.99)),
                     row("event to visible in answers, p99, ms", "<=", VISIBLE_TARGET, np.quantile(visible, 0.99)),
                     row("rooms of answers that were off air", "<=", 0, seen.off_air),
                     row("requests refused or answered by the fallback", "<=", 0, seen.refused + seen.fallback)],
            "rate": load.rate, "latency_p50_ms": float(np.median(latency)), "latency_mean_ms": float(latency.mean()),
            "engine_batch_ms": batch_seconds * 1000, "engine_limit_per_second": largest / batch_seconds}


def serving_lines(report: dict) -> list[str]:
    """What the rows do not say."""
    return [f"{report['rate']:g} requests/s were to come; latency median {report['latency_p50_ms']:.1f} ms, mean "
            f"{report['latency_mean_ms']:.1f} ms",
            f"the engine alone, without HTTP, events or load: {report['engine_batch_ms']:.1f} ms for "
            f"{Config().serving.max_batch} requests, at most {report['engine_limit_per_second']:.0f} a second"]


def _serve(sizes: ModelSizes, load: Load, repeats: int, pipe) -> None:
    """In the server's process: sends (seconds of a full batch, port) once it is ready."""
    from experiments.server import start
    from experiments.server.app import Limits

    live = make_live(sizes, load)
    live.warm_up()
    queries = [Query(f"u{i}", load.k) for i in range(live.service.config.serving.max_batch)]

    def batch(service: Service) -> float:
        began = time.perf_counter()
        service.recommend(queries, live.clock())
        return time.perf_counter() - began

    seconds = statistics.median(live.ask_worker(batch).result() for _ in range(repeats))
    start.run(live, Limits(), "127.0.0.1", 0, started=lambda port: pipe.send((seconds, port)))


class _Connection:
    """One kept connection; as little as HTTP needs, so that the load costs little beside the server."""

    def __init__(self, port: int):
        self.port, self.reader, self.writer = port, None, None

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode()
        self.writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
                          f"{len(data)}\r\n\r\n".encode() + data)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in head if line.startswith("content-length:"))
        return int(head[0].split()[1]), json.loads(await self.reader.readexactly(length))


async def _ask(port: int, sizes: ModelSizes, load: Load) -> Seen:
    rng, seen, ended = np.random.default_rng(1), Seen(), {}
    free: asyncio.Queue = asyncio.Queue()
    for _ in range(load.connections):
        free.put_nowait(_Connection(port))
    began = time.perf_counter() + 0.5

    async def ask(at: float, user: int) -> None:
        connection = await free.get()
        sent = time.perf_counter()
        status, answer = await connection.post("/v1/recommend", {"user": f"u{user}", "k": load.k})
        free.put_nowait(connection)
        if status != 200:
            seen.refused += 1
            return
        seen.latency.append(time.perf_counter() - at)
        seen.fallback += answer["fallback"]
        seen.off_air += sum(ended.get(room["room"], np.inf) < sent for room in answer["rooms"])

    async def tell(at: float, made: list[events.Event], connection: _Connection) -> None:
        status, _ = await connection.post("/v1/events?wait=true", {"events": [events.to_json(event) for event in made]})
        if status != 200:
            raise OSError(f"the server answered {status} to events")
        done = time.perf_counter()
        seen.visible.extend([done - at] * len(made))
        for event in made:
            if isinstance(event, events.RoomEnded):
                ended[event.room] = done

    async def arrivals() -> None:
        at, tasks = began, []
        while at < began + load.seconds:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(at, int(rng.integers(load.people)))))
            at += rng.exponential(1 / load.rate)
        await asyncio.gather(*tasks)

    async def platform() -> None:
        """Each event is due at a moment of its own; those that are due go together, while the ones before return."""
        due = [(began + t, i, kind) for kind, rate in (("room", load.room_events / 2), ("view", load.view_events / 2))
               for i, t in enumerate(np.cumsum(rng.exponential(1 / rate, int(rate * load.seconds))).tolist())]
        heapq.heapify(due)
        connection, room_of = _Connection(port), {author: f"r{author}" for author in range(sizes.rooms)}
        while due:
            await asyncio.sleep(max(0.0, due[0][0] - time.perf_counter()))
            first, made = due[0][0], []
            while due and due[0][0] <= time.perf_counter():
                at, i, kind = heapq.heappop(due)
                ms = START_MS + round(1000 * (at - began))
                author = int(rng.integers(sizes.rooms))
                if kind == "room":  # ends, and begins as another
                    made += [events.RoomEnded(f"e{i}", ms, room_of[author]),
                             events.RoomStarted(f"s{i}", ms, f"n{i}", f"a{author}")]
                    room_of[author] = f"n{i}"
                else:
                    user = f"u{int(rng.integers(load.people))}"
                    made += [events.ViewStarted(f"v{i}", ms, user, room_of[author]),
                             events.ViewEnded(f"w{i}", ms + 1, user, room_of[author])]
            await tell(first, made, connection)

    await asyncio.gather(arrivals(), platform())
    return seen
