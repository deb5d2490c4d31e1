"""Load on a live service, over HTTP: people who ask in an open or a closed loop, while rooms and views come and go.

In the open loop requests arrive at random moments (Poisson) at a stated rate, whether or not the server keeps up, and
latency counts from the moment at which a request was to be sent: a server that falls behind cannot hide it.
"""

import asyncio
import heapq
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.live import events


@dataclass(frozen=True)
class Load:
    """rate: requests a second, 0 for a closed loop: as fast as they are answered. room_events, view_events: a second.
    people: who ask. connections: kept open. swaps: other models put in place meanwhile."""

    rate: float = 350.0
    seconds: float = 30.0
    room_events: float = 100.0
    view_events: float = 200.0
    people: int = 20_000
    connections: int = 64
    k: int = 10
    beams: int = 10
    swaps: int = 4


@dataclass
class Seen:
    """Seconds of requests and of events until they are visible, and what went wrong."""

    latency: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    off_air: int = 0
    refused: int = 0
    fallback: int = 0


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


async def put_on(port: int, load: Load, rooms: int, start_ms: int, between: Callable[[float], None]) -> Seen:
    """Asks a server that listens on a port of this machine.

    Args:
      rooms: authors a0 … who are on air at the start, in rooms r0 …; people are u0 …. start_ms: of the server's clock.
      between: called, in a thread, with the seconds that have passed: for figures, for swaps.
    """
    rng, seen, ended = np.random.default_rng(1), Seen(), {}
    free: asyncio.Queue = asyncio.Queue()
    for _ in range(load.connections):
        free.put_nowait(_Connection(port))
    began = time.perf_counter() + 0.5

    async def ask(at: float | None, user: int) -> None:
        connection = await free.get()
        sent = time.perf_counter()
        try:
            status, answer = await connection.post("/v1/recommend", {"user": f"u{user}", "k": load.k})
        except (OSError, EOFError):
            status, connection = 0, _Connection(port)
        free.put_nowait(connection)
        if status != 200:
            seen.refused += 1
            return
        seen.latency.append(time.perf_counter() - (sent if at is None else at))
        seen.models.add(answer["model"])
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

    async def open_loop() -> None:
        at, tasks = began, set()
        while at < began + load.seconds:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            task = asyncio.create_task(ask(at, int(rng.integers(load.people))))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            at += rng.exponential(1 / load.rate)
        await asyncio.gather(*tasks)

    async def closed_loop() -> None:
        async def one() -> None:
            while time.perf_counter() < began + load.seconds:
                await ask(None, int(rng.integers(load.people)))

        await asyncio.gather(*(one() for _ in range(load.connections)))

    async def platform() -> None:
        """Each event is due at a moment of its own; those that are due go together, while the ones before return."""
        due = []
        for kind, rate in (("room", load.room_events / 2), ("view", load.view_events / 2)):
            gaps = rng.exponential(1 / max(rate, 1e-9), int(rate * load.seconds))
            due += [(began + t, i, kind) for i, t in enumerate(np.cumsum(gaps).tolist())]
        heapq.heapify(due)
        connection, room_of = _Connection(port), {author: f"r{author}" for author in range(rooms)}
        while due:
            await asyncio.sleep(max(0.0, due[0][0] - time.perf_counter()))
            first, made = due[0][0], []
            while due and due[0][0] <= time.perf_counter():
                at, i, kind = heapq.heappop(due)
                ms = start_ms + round(1000 * (at - began))
                author = int(rng.integers(rooms))
                if kind == "room":  # ends, and begins as another
                    made += [events.RoomEnded(f"e{i}", ms, room_of[author]),
                             events.RoomStarted(f"s{i}", ms, f"n{i}", f"a{author}")]
                    room_of[author] = f"n{i}"
                else:
                    user = f"u{int(rng.integers(load.people))}"
                    made += [events.ViewStarted(f"v{i}", ms, user, room_of[author]),
                             events.ViewEnded(f"w{i}", ms + 1, user, room_of[author])]
            if made:
                await tell(first, made, connection)

    async def watch() -> None:
        while (passed := time.perf_counter() - began) < load.seconds:
            await asyncio.to_thread(between, passed)
            await asyncio.sleep(min(1.0, load.seconds / 10))

    await asyncio.gather(open_loop() if load.rate else closed_loop(), platform(), watch())
    return seen
