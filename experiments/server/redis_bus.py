"""Several replicas behind one stream: Redis keeps the order of events, and a snapshot for replicas that start.

    PREFIX:events    stream; every replica reads all of it, in order, from where its snapshot ends
    PREFIX:known:ID  set for a day when an event enters the stream, so that it enters once
    PREFIX:snapshot  the newest snapshot of any replica (histories, rooms, codes), and the stream's position it is of

A replica takes in what the stream holds and nothing else, so replicas that have read as far give equal answers.
"""

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import redis

from data_pipelines.live import events, snapshots
from data_pipelines.live.state import LiveState

logger = logging.getLogger(__name__)
AT_ONCE, BLOCK_MS = 1000, 1000
# One script, so that an event is both known and in the stream or neither. Ids are forgotten after so many seconds.
ADD = """
local new = {}
for i = 2, #ARGV, 2 do
  if redis.call('SET', KEYS[2] .. ':' .. ARGV[i], 1, 'NX', 'EX', ARGV[1]) then
    table.insert(new, redis.call('XADD', KEYS[1], '*', 'event', ARGV[i + 1]))
  end
end
return new
"""


class RedisBus:
    """The stream of one platform on a Redis 7."""

    def __init__(self, url: str, prefix: str = "onelive", known_seconds: int = 86_400, longest: int = 10_000_000):
        """url: redis://…. known_seconds: how long an id is remembered. longest: events that the stream keeps, about.

        Raises: OSError where no Redis answers there.
        """
        self.client = redis.Redis.from_url(url, health_check_interval=30)
        self.stream, self.known, self.snapshot = (f"{prefix}:{part}" for part in ("events", "known", "snapshot"))
        self._known_seconds, self._longest = known_seconds, longest
        try:
            self._add = self.client.register_script(ADD)
            self.client.ping()
        except redis.RedisError as error:
            raise OSError(f"no Redis answers at {url} ({error}): start redis-server, or leave --bus out") from error
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def append(self, coming: Sequence[events.Event], received_ms: int) -> tuple[int, str]:
        """Puts events into the stream. Returns (how many were new, position of the last of them, or "").

        Raises: OSError where Redis does not take them.
        """
        arguments: list = [self._known_seconds]
        for event in coming:
            arguments += [event.id, json.dumps([received_ms, events.to_json(event)])]
        try:
            new = self._add(keys=[self.stream, self.known], args=arguments)
            self.client.xtrim(self.stream, maxlen=self._longest, approximate=True)
            return len(new), new[-1].decode() if new else ""
        except redis.RedisError as error:
            raise OSError(f"Redis did not take the events ({error})") from error

    def recover(self, state: LiveState) -> str:
        """Puts the newest snapshot into a new state; returns the position of the stream that it is of."""
        kept = self.client.hgetall(self.snapshot)
        if not kept:
            return "0-0"
        with np.load(io.BytesIO(kept[b"arrays"]), allow_pickle=False) as file:
            snapshots.restore(state, {name: file[name] for name in file.files})
        return kept[b"position"].decode()

    def save(self, arrays: dict[str, np.ndarray], position: str) -> None:
        """Keeps a snapshot for replicas that start, unless a later one is there."""
        kept = self.client.hget(self.snapshot, "position")
        if kept is None or self.order(kept.decode()) < self.order(position):
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            self.client.hset(self.snapshot, mapping={"arrays": buffer.getvalue(), "position": position})

    def read(self, position: str, block_ms: int = BLOCK_MS) -> list[tuple[str, int, events.Event]]:
        """(position, received_ms, event) of what follows a position, waiting a while where there is nothing yet."""
        found = self.client.xread({self.stream: position}, count=AT_ONCE, block=block_ms)
        entries = found[0][1] if found else []
        result = []
        for entry, fields in entries:
            received_ms, value = json.loads(fields[b"event"])
            result.append((entry.decode(), received_ms, events.from_json(value)))
        return result

    def follow(self, position: str, take: Callable[[list[tuple[str, int, events.Event]]], None]) -> None:
        """Calls `take` with what comes, in a thread of its own, until `close`. Redis may go away and come back."""
        def work() -> None:
            at = position
            while not self._stop.is_set():
                try:
                    coming = self.read(at)
                except redis.RedisError as error:
                    logger.warning("Redis does not answer (%s); trying again", error)
                    time.sleep(1.0)
                    continue
                if coming:
                    take(coming)
                    at = coming[-1][0]

        self._thread = threading.Thread(target=work, name="bus", daemon=True)
        self._thread.start()

    @staticmethod
    def order(position: str) -> tuple[int, int]:
        """By which positions of a stream compare."""
        milliseconds, number = position.split("-")
        return int(milliseconds), int(number)

    def close(self) -> None:
        """Follows no longer. (Snapshots may still be saved.)"""
        self._stop.set()
        if self._thread:
            self._thread.join()
