"""The live service under load: a real server in a process of its own, asked by `load.put_on` over HTTP.

    python -m experiments.benchmark --what=serve [--rate=350] [--seconds=30] --report=serve.json
    python -m experiments.benchmark --what=serve_table4 [--seconds=10]

The first asks in an open loop; the second asks the variants of the paper's Table 4 in a closed one. Server and load
share the machine.

Axes: A authors, L levels, K codes.
"""

import asyncio
import dataclasses
import multiprocessing
import os
import resource
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.live import snapshots
from data_pipelines.live.codes import LiveCodes
from data_pipelines.live.names import AuthorRows
from data_pipelines.live.requests import make_requests
from data_pipelines.live.state import LiveState
from experiments.benchmarks.load import Load, put_on
from experiments.benchmarks.problem import ModelSizes, make_model, random_batch, random_parameters
from experiments.benchmarks.report import row
from experiments.common.tables import table
from experiments.server.live import Live
from experiments.server.service import STAGES, Query, Service
from onelive_jax.config import Config
from onelive_jax.serving.catalogue import LiveCatalogue
from onelive_jax.serving.engine import Engine

START_MS = 1_767_225_600_000
QPS_TARGET, P99_TARGET, VISIBLE_TARGET = 350.0, 60.0, 50.0
CATALOGUES = (1_000, 12_000, 100_000)
WARM = 0.2  # of the time of a run, after which memory should not grow


def make_live(sizes: ModelSizes, load: Load) -> Live:
    """Every author on air, people with whole histories, random parameters; no event is kept."""
    config = Config(model=sizes.model)
    config.data.history_items = sizes.history
    config.decoding.beams, config.decoding.capacity = load.beams, sizes.rooms + 256
    config.tokenizer.levels, config.tokenizer.codes = sizes.levels, sizes.codes
    config.serving.max_k, config.serving.deadline_ms = load.k, 10_000.0
    state, model = make_state(sizes, load, config), make_model(sizes, sizes.model)
    params = random_parameters(model, random_batch(np.random.default_rng(0), sizes))
    service = Service(config, state, Engine(model, config, params, "random"))
    began = time.monotonic()
    return Live(service, lambda: START_MS + round(1000 * (time.monotonic() - began)))


def make_state(sizes: ModelSizes, load: Load, config: Config) -> LiveState:
    """Authors a0 … on air in rooms r0 …, people u0 … who have watched."""
    rng, spare = np.random.default_rng(0), config.serving.spare_authors
    codes = rng.integers(0, sizes.codes, (sizes.authors + spare, sizes.levels), dtype=np.int32)

    def encode(author: np.ndarray, values: np.ndarray | None, profile: dict | None) -> tuple[np.ndarray, np.ndarray]:
        return codes[author], np.zeros((author.size, sizes.author_dim), np.float32)

    state = LiveState(config, AuthorRows([f"a{i}" for i in range(sizes.authors)], spare),
                      LiveCodes(codes, np.zeros(len(codes), np.int64), encode, sizes.authors), true_lifetimes=True)
    state.begin([(f"r{i}", i, START_MS - 60_000, START_MS - 60_000, None) for i in range(sizes.rooms)], [], START_MS)
    watched = rng.integers(0, sizes.authors, (load.people, sizes.history))
    for person, authors in enumerate(watched.tolist()):
        user = state.users.add(f"u{person}")
        for i, author in enumerate(authors):
            at = START_MS - 3_600_000 * (sizes.history - i)
            state.buffers["live"].add(user, author, at, at + 600_000, codes[author])
    return state


def measure_serving(sizes: ModelSizes, load: Load, repeats: int = 20) -> dict[str, Any]:
    """The engine alone, then the server under load; what a change of the catalogue and a snapshot take."""
    with _server(sizes, load, repeats) as (ask, port, batch_seconds, encoding):
        before, swapped, memory = ask("figures"), 0, []

        def between(passed: float) -> None:
            nonlocal swapped
            memory.append((passed, ask("memory")))
            if load.swaps and passed >= (swapped + 1) * load.seconds / (load.swaps + 1):
                ask("swap")
                swapped += 1

        seen = asyncio.run(put_on(port, load, sizes.rooms, START_MS, between))
        after = ask("figures")
    latency, visible = (np.array(x) * 1000 for x in (seen.latency, seen.visible))
    p99, visible_p99 = (float(np.quantile(x, 0.99)) for x in (latency, visible))
    largest, answers = Config().serving.max_batch, max(1, len(seen.latency))
    grown = memory[-1][1] - next(size for passed, size in memory if passed >= min(WARM * load.seconds, memory[-1][0]))
    return {"rows": [row("answers/s", ">=", QPS_TARGET, len(seen.latency) / load.seconds),
                     row("latency from the scheduled arrival, p99, ms", "<=", P99_TARGET, p99),
                     row("event to visible in answers, p99, ms", "<=", VISIBLE_TARGET, visible_p99),
                     row("rooms of answers that were off air", "<=", 0, seen.off_air),
                     row("requests failed, or answered by the fallback", "<=", 0, seen.refused + seen.fallback)],
            "rate": load.rate, "seconds": load.seconds, "swaps": swapped, "models": sorted(seen.models),
            "latency_p50_ms": float(np.median(latency)), "latency_mean_ms": float(latency.mean()),
            "encoding_ms": {size: 1000 * seconds for size, seconds in encoding.items()},
            "engine_batch_ms": batch_seconds * 1000, "engine_limit_per_second": largest / batch_seconds,
            "server_cpu_ms_per_answer": 1000 * (after["cpu"] - before["cpu"]) / answers,
            "memory_mb": memory[-1][1], "memory_grown_mb": grown, "memory": memory, "means": after["means"],
            "catalogue": [measure_catalogue(rooms) for rooms in CATALOGUES]}


def measure_table4(sizes: ModelSizes, load: Load, repeats: int = 5) -> dict[str, Any]:
    """3 and 6 layers, with and without multi-token prediction, asked as fast as they answer."""
    rows = []
    for layers, _ in sizes.gains:
        for mtp in (False, True):
            other = dataclasses.replace(sizes, model=dataclasses.replace(sizes.model, num_layers=layers, mtp=mtp))
            with _server(other, load, repeats) as (_, port, _, _):
                seen = asyncio.run(put_on(port, load, sizes.rooms, START_MS, lambda passed: None))
            latency = np.array(seen.latency) * 1000
            rows.append({"layers": layers, "mtp": mtp, "qps": len(latency) / load.seconds,
                         "mean_ms": float(latency.mean()), "p99_ms": float(np.quantile(latency, 0.99)),
                         "failed": seen.refused + seen.fallback})
    return {"table4": rows, "beams": load.beams, "connections": load.connections}


def measure_catalogue(rooms: int, repeats: int = 30) -> dict[str, Any]:
    """Milliseconds (median) until a changed catalogue can be searched, and of the state's snapshot to arrays."""
    sizes = ModelSizes(authors=rooms, rooms=rooms)
    rng, catalogue = np.random.default_rng(0), LiveCatalogue(rooms, sizes.levels, sizes.codes, rooms)
    for room, codes in enumerate(rng.integers(0, sizes.codes, (rooms, sizes.levels))):
        catalogue.put_on_air(room, room, codes)
    catalogue.snapshot()
    found: dict[str, Any] = {"rooms": rooms}
    for changes in (1, 100):
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            for room in rng.choice(rooms, changes, replace=False).tolist():
                catalogue.change_codes(room, rng.integers(0, sizes.codes, sizes.levels))
            catalogue.snapshot()
            seconds.append(time.perf_counter() - began)
        found[f"{changes} changed"] = 1000 * statistics.median(seconds)
    state, seconds = make_state(sizes, Load(people=100), Config()), []
    for _ in range(5):
        began = time.perf_counter()
        snapshots.to_arrays(state)
        seconds.append(time.perf_counter() - began)
    return found | {"state to arrays": 1000 * statistics.median(seconds)}


def measure_encoding(service: Service, repeats: int) -> dict[int, float]:
    """Seconds (median) in which the contexts of so many people are encoded: what keeping them would save."""
    engine, now = service.engine, service.state.now_ms
    encode = jax.jit(lambda params, request: engine.model.apply({"params": params}, request, method="encode"))
    found = {}
    for size in (1, engine.buckets[-1]):
        request, seconds = make_requests(service.state, list(range(size)), now), []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            jax.block_until_ready(encode(engine.running.params, request))
            seconds.append(time.perf_counter() - began)
        found[size] = statistics.median(seconds[1:])  # the first compiles
    return found


def serving_lines(report: dict) -> list[str]:
    """What the rows do not say."""
    means = report["means"]
    stages = ", ".join(f"{stage} {1000 * means[stage]:.1f} ms" for stage in STAGES)
    return [f"{report['rate']:g} requests/s were to come for {report['seconds']:g} s; latency median "
            f"{report['latency_p50_ms']:.1f} ms, mean {report['latency_mean_ms']:.1f} ms; {report['swaps']} swaps of "
            f"the model, answers by {' and '.join(report['models'])}",
            f"where it goes: {1000 * means['queue']:.1f} ms in the queue; a batch of {means['batch']:.1f} requests: "
            f"{stages}",
            f"the server's processor time: {report['server_cpu_ms_per_answer']:.2f} ms an answer; its memory "
            f"{report['memory_mb']:.0f} MB, {report['memory_grown_mb']:+.1f} MB in the last {1 - WARM:.0%} of the time",
            f"the engine alone, without HTTP, events or load: {report['engine_batch_ms']:.1f} ms for "
            f"{Config().serving.max_batch} requests, at most {report['engine_limit_per_second']:.0f} a second; "
            "encoding contexts takes " + " and ".join(f"{ms:.2f} ms of {size}" for size, ms in
                                                      report["encoding_ms"].items()),
            table(["rooms on air", "1 changed, ms", "100 changed, ms", "state to arrays, ms"], [
                [f"{c['rooms']:,}", *(f"{c[name]:.2f}" for name in ("1 changed", "100 changed", "state to arrays"))]
                for c in report["catalogue"]])]


def table4_lines(report: dict) -> list[str]:
    """The form of the paper's Table 4."""
    base = {r["layers"]: r["qps"] for r in report["table4"] if not r["mtp"]}
    return [f"beam {report['beams']}, {report['connections']} connections, each asking again when it has its answer",
            table(["layers", "variant", "QPS", "", "average, ms", "p99, ms", "failed"], [
                [str(r["layers"]), "+ MTP" if r["mtp"] else "lazy decoder", f"{r['qps']:.0f}",
                 f"{r['qps'] / base[r['layers']] - 1:+.0%}" if r["mtp"] else "–", f"{r['mean_ms']:.1f}",
                 f"{r['p99_ms']:.1f}", str(r["failed"])] for r in report["table4"]])]


@contextmanager
def _server(sizes: ModelSizes, load: Load, repeats: int) -> Iterator[tuple]:
    """A ready server: (ask: (question) → what `_serve` answers, port, seconds of a full batch of its engine,
    `measure_encoding`)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(sizes, load, repeats, theirs), daemon=True)
    server.start()

    def ask(question: str) -> Any:
        ours.send(question)
        return ours.recv()

    try:
        theirs.close()
        seconds, encoding, port = ours.recv()
        yield ask, port, seconds, encoding
    finally:
        server.terminate()
        server.join()


def _serve(sizes: ModelSizes, load: Load, repeats: int, pipe) -> None:
    """In the server's process: sends (seconds of a full batch, `measure_encoding`, port) once it is ready, then answers
    what is asked."""
    from experiments.server import start
    from experiments.server.app import Limits

    threading.Thread(target=_end_with_parent, daemon=True).start()
    live = make_live(sizes, load)
    live.warm_up()
    queries = [Query(f"u{i}", load.k) for i in range(live.service.config.serving.max_batch)]

    def batch(service: Service) -> float:
        began = time.perf_counter()
        service.recommend(queries, live.clock())
        return time.perf_counter() - began

    seconds = statistics.median(live.ask_worker(batch).result() for _ in range(repeats))
    encoding = measure_encoding(live.service, repeats)
    params = random_parameters(make_model(sizes, sizes.model), random_batch(np.random.default_rng(0), sizes))
    threading.Thread(target=_tell, args=(live, params, pipe), daemon=True).start()
    start.run(live, Limits(), "127.0.0.1", 0, started=lambda port: pipe.send((seconds, encoding, port)))


def _end_with_parent() -> None:
    """A benchmark that is killed leaves no server behind."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _tell(live: Live, params: Any, pipe) -> None:
    """Answers "figures", "memory" (MB) and "swap" (puts parameters on the device, under the other of two names)."""
    engine, metrics = live.service.engine, live.metrics
    while True:
        question = pipe.recv()
        if question == "memory":
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            pipe.send(pages * resource.getpagesize() / 2**20)
        elif question == "swap":
            name = "random" if engine.running.name == "other" else "other"
            live.swap(engine.prepare(params, name))
            pipe.send(name)
        else:
            used = resource.getrusage(resource.RUSAGE_SELF)
            means = {stage: metrics.mean("onelive_stage_seconds", stage=stage) for stage in STAGES} | {
                "queue": metrics.mean("onelive_queue_seconds"), "batch": metrics.mean("onelive_batch_requests")}
            pipe.send({"cpu": used.ru_utime + used.ru_stime, "means": means})
