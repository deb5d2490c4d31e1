"""Kills the whole live service with SIGKILL under load, again and again: is anything lost, are the answers the same?

    python -m experiments.studies.serve_kills --workdir=W [--kills=20] [--state=FOLDER] [--seed=1]

A real server (experiments.serve, in a process of its own) takes events and questions from several threads, until it is
killed at a random moment. After each restart, every event that was ever acknowledged must be known (it is sent again),
and answers must equal those of a service that was never killed and has taken in the same events in the same order, with
no snapshot. With --state a study goes on where the one before ended. Exit code 1 where something is lost or differs.
"""

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    flags.define_config(from_workdir=True, writes=False)
    absl_flags.DEFINE_integer("kills", 20, "lives to end", lower_bound=1)
    absl_flags.DEFINE_float("stretch", 3.0, "a kill comes within this many seconds of load", lower_bound=0.2)
    absl_flags.DEFINE_string("state", None, "folder for events and snapshots; a temporary one without")
    flags.read()

import contextlib
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.live import events
from onelive_jax.config import Config

WRITERS, BATCH, PEOPLE, ASKED = 3, 20, 40, 16
SNAPSHOT_EVENTS = 2000  # so that kills hit them, too
TOLERANCE = 1e-4  # of scores: a full batch and a single request are two programs


@dataclass
class Outcome:
    """kills; lost: acknowledged events that a restart did not know; differing: answers, in words; restarts: seconds
    until ready; replayed: events behind the snapshot that each restart began with."""

    kills: int = 0
    acknowledged: list[events.Event] = field(default_factory=list)
    lost: int = 0
    asked: int = 0
    compared: int = 0
    differing: list[str] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)


class Load:
    """Threads that send events and ask until the server is gone. acknowledged: events whose call returned."""

    def __init__(self, url: str, authors: Sequence[str], at_ms: int, name: str):
        self.acknowledged, self.asked = [], 0
        self._url, self._at_ms, self._began, self._name = url, at_ms, time.monotonic(), name
        self._threads = [threading.Thread(target=self._write, args=(authors[i::WRITERS], i), daemon=True)
                         for i in range(WRITERS)] + [threading.Thread(target=self._ask, daemon=True)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _client(self):
        import httpx

        return httpx.Client(base_url=self._url, timeout=30)

    def _now(self) -> int:
        return self._at_ms + round(1000 * (time.monotonic() - self._began))

    def _write(self, authors: Sequence[str], number: int) -> None:
        rng, room_of, count = np.random.default_rng([number, self._at_ms % 2**32]), {}, itertools.count()
        with self._client() as client, contextlib.suppress(OSError, *_gone()):
            while True:
                made = [event for _ in range(BATCH) for event in self._happening(rng, authors, room_of, count, number)]
                reply = client.post("/v1/events", json={"events": [events.to_json(event) for event in made]})
                reply.raise_for_status()
                self.acknowledged += made

    def _happening(self, rng, authors, room_of, count, number) -> list[events.Event]:
        author, user = str(rng.choice(authors)), f"person-{rng.integers(PEOPLE)}"
        name, at = f"{self._name}-{number}-{next(count)}", self._now()
        if author not in room_of:
            room_of[author] = f"room-{name}"
            return [events.RoomStarted(name, at, room_of[author], author)]
        room = room_of[author]
        if rng.random() < 0.05:
            del room_of[author]
            return [events.RoomEnded(name, at, room)]
        return [events.ViewStarted(name, at, user, room), events.Reaction(f"{name}-like", at, "like", user, room),
                events.ViewEnded(f"{name}-end", at + int(rng.integers(1, 1000)), user, room)]

    def _ask(self) -> None:
        with self._client() as client, contextlib.suppress(OSError, *_gone()):
            while client.post("/v1/recommend", json={"user": f"person-{self.asked % PEOPLE}"}).is_success:
                self.asked += 1


def _gone() -> tuple[type[Exception], ...]:
    import httpx

    return (httpx.HTTPError,)


def run(config: Config, workdir: Path, kills: int, state: Path, seed: int = 0, most_s: float = 3.0,
        arguments: Sequence[str] = ()) -> Outcome:
    """Serves `workdir` and kills it so often; each life lasts up to `most_s` under load. arguments: flags of serve."""
    from experiments.common.log import prepare
    from experiments.server import process, start, store

    log = prepare(config, workdir)
    reference = start.load(config, workdir, log, "supervised")
    authors, rng, outcome = log.tables.authors["source_id"].to_list(), np.random.default_rng(seed), Outcome()
    port, taken = process.free_port(), 0
    flags_of = ["--clock=log", f"--config.serving.snapshot_events={SNAPSHOT_EVENTS}",
                f"--compile_cache_dir={state / 'programs'}", *arguments]
    for life in range(kills + 1):
        began = time.perf_counter()
        server = process.start(workdir, port, state, *flags_of)
        try:
            with process.ready(server, port) as client:
                outcome.restarts.append(time.perf_counter() - began)
                again = [events.to_json(event) for event in outcome.acknowledged]
                for low in range(0, len(again), 10_000):
                    part = again[low:low + 10_000]
                    known = client.post("/v1/events", json={"events": part}).raise_for_status().json()["known"]
                    outcome.lost += len(part) - known
                first = client.post("/v1/recommend", json={"user": "nobody", "k": 1}).raise_for_status().json()["at"]
                if life:
                    _compare(client, reference, first, outcome)
                if life == kills:
                    break
                load = Load(str(client.base_url), authors, first, f"{seed}-{life}-{first}")
                time.sleep(rng.uniform(0.2, most_s))
        finally:
            server.kill()
            server.wait()
        load.join()
        outcome.kills += 1
        outcome.acknowledged += load.acknowledged
        outcome.asked += load.asked
        kept = store.EventLog(state)
        for received_ms, event in kept.after(taken):
            reference.apply(event, received_ms)
        taken = kept.last()
        kept.close()
        print(f"kill {outcome.kills}: {len(load.acknowledged):,} events acknowledged and {load.asked:,} answers before "
              f"it, {taken:,} events kept by now", flush=True)
    return outcome


def _compare(client, reference, at_ms: int, outcome: Outcome) -> None:
    """Asks both for some people, as of one moment."""
    from experiments.server.service import Query

    reference.state.now_ms = max(reference.state.now_ms, at_ms)
    for user in [f"person-{i}" for i in range(ASKED)]:
        body = {"user": user, "k": 10, "at": at_ms, "deadline_ms": 60_000}
        live = client.post("/v1/recommend", json=body).raise_for_status().json()["rooms"]
        mine = reference.recommend([Query(user, 10)], at_ms, at_ms=at_ms)[0].rooms
        outcome.compared += 1
        theirs = {room["room"]: (room["author"], room["viewers"], room["codes"]) for room in live}
        if theirs != {room.room: (room.author, room.viewers, list(room.codes)) for room in mine}:
            outcome.differing.append(f"{user} after kill {outcome.kills}: rooms, viewers or codes")
        scores = {room.room: room.score for room in mine}
        if any(abs(scores.get(room["room"], np.inf) - room["score"]) > TOLERANCE for room in live):
            outcome.differing.append(f"{user} after kill {outcome.kills}: scores")


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    with tempfile.TemporaryDirectory() as temporary:
        state = Path(values.state).expanduser() if values.state else Path(temporary)
        outcome = run(config, workdir, values.kills, state, config.seed, values.stretch)
    print(f"{outcome.kills} kills: {len(outcome.acknowledged):,} events acknowledged, {outcome.lost} lost; "
          f"{outcome.asked:,} answers under load; {outcome.compared} answers after restarts compared, "
          f"{len(outcome.differing)} differ; a restart takes {np.median(outcome.restarts):.1f} s until it is ready")
    for what in outcome.differing[:20]:
        print(f"  {what}")
    if outcome.lost or outcome.differing:
        sys.exit(1)


if __name__ == "__main__":
    flags.run(main)
