"""From a workdir to a running server, and its orderly end."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn

from data_pipelines.tables import moment
from experiments.common.log import Log, prepare
from experiments.configs.saved import get_config
from experiments.server import store
from experiments.server.app import Limits, make_app
from experiments.server.live import Live
from experiments.server.models import Models
from experiments.server.service import Service, from_log
from experiments.stages.policy import load_phase
from experiments.stages.tokenizer import load_tokenizer
from onelive_jax.config import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The flags of `experiments.serve`."""

    host: str = "127.0.0.1"
    port: int = 8000
    phase: str = "supervised"
    token: str = ""
    rate: float = 0.0
    state: Path | None = None
    clock: str = "auto"
    bus: str = ""
    speed: float = 1.0


def serve(config: Config, workdir: Path, options: Options) -> None:
    """Serves until SIGTERM or Ctrl-C; then answers what waits, writes a snapshot and returns."""
    live, limits = open_live(config, workdir, options), limits_of(options)
    if options.host not in ("127.0.0.1", "::1", "localhost") and not limits.token:
        logger.warning("anybody who reaches %s may ask and send events: set --token", options.host)
    run(live, limits, options.host, options.port)


def open_live(config: Config, workdir: Path, options: Options) -> Live:
    """The service of a workdir, as the server before left it; nothing is compiled yet."""
    service = load(config, workdir, prepare(config, workdir), options.phase)
    if options.bus:
        from experiments.server.redis_bus import RedisBus  # the client is needed for it alone

        bus = RedisBus(options.bus)
        position = bus.recover(service.state)
        service.recovered()
        logger.info("one of the replicas behind %s, which goes on from %s", options.bus, position)
        live = Live(service, make_clock(options.clock, service, config, options.speed), bus=bus, applied=position)
    else:
        events = store.EventLog(options.state or workdir / "serving")
        begun, replayed = store.recover(service.state, events)
        service.recovered()
        if begun or replayed:
            logger.info("going on from event %d, and %d replayed behind it", begun, replayed)
        live = Live(service, make_clock(options.clock, service, config, options.speed), events)

    def remake() -> Service:
        saved = replace(get_config(str(workdir)), serving=config.serving)
        return load(saved, workdir, prepare(saved, workdir), options.phase)

    live.models = Models(live, workdir, options.phase, remake=remake)
    return live


def limits_of(options: Options) -> Limits:
    """What the flags (and ONELIVE_TOKEN) allow to clients."""
    return Limits(token=options.token or os.environ.get("ONELIVE_TOKEN", ""), rate=options.rate)


def load(config: Config, workdir: Path, log: Log, phase: str) -> Service:
    """The service as of the log's end, with the parameters of a phase."""
    tokenizer = load_tokenizer(config, workdir, log)
    model, params, name = load_phase(config, workdir, log, phase)
    return from_log(config, log, tokenizer, model, params, name)


class LogClock:
    """Milliseconds of a log's clock: those of its last event until `start`, then on from there, `speed` times as fast.

    It stands still while programs are compiled, in which nothing happens on a platform that is simulated or replayed.
    """

    def __init__(self, last_ms: int, speed: float = 1.0):
        self.last_ms, self.speed, self._began = last_ms, speed, None

    def __call__(self) -> int:
        gone = 0.0 if self._began is None else time.monotonic() - self._began
        return self.last_ms + round(1000 * self.speed * gone)

    def start(self) -> None:
        self._began = time.monotonic()


def make_clock(kind: str, service: Service, config: Config, speed: float = 1.0) -> Callable[[], int]:
    """Milliseconds now: of the machine, or going on from the last event, `speed` times as fast. Never goes back."""
    last = service.state.now_ms
    stale = time.time() * 1000 - last > 3.6e6 * config.serving.room_hours
    if kind == "log" or (kind == "auto" and stale):
        logger.info("the clock goes on from the last event of the log, %s (--clock=wall for the machine's)",
                    moment(last))
        return LogClock(last, speed)
    wall, began = time.time() * 1000, time.monotonic()
    return lambda: max(last, round(wall + 1000 * (time.monotonic() - began)))


def warm_up(live: Live) -> None:
    """Compiles everything; then the server is ready, and a log's clock goes on."""
    live.warm_up()
    if isinstance(live.clock, LogClock):
        live.clock.start()


def run(live: Live, limits: Limits, host: str, port: int, started: Callable[[int], None] | None = None) -> None:
    """Listens until it is told to stop; `started` is told the port. Programs are compiled meanwhile (/readyz)."""
    server = uvicorn.Server(uvicorn.Config(make_app(live, limits), host=host, port=port, log_level="warning",
                                           timeout_graceful_shutdown=5, server_header=False))
    warming = threading.Thread(target=warm_up, args=(live,), daemon=True)

    def announce() -> None:
        while not server.started:
            if server.should_exit:
                return
            time.sleep(0.01)
        bound = server.servers[0].sockets[0].getsockname()[1]
        logger.info("listening on http://%s:%d (page: /, interface: /docs)", host, bound)
        if started:
            started(bound)

    threading.Thread(target=announce, daemon=True).start()
    warming.start()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        server.install_signal_handlers = lambda: None
    live.stop = lambda: setattr(server, "should_exit", True)
    try:
        server.run()
    finally:
        warming.join()
        live.close()
        logger.info("stopped: a snapshot is kept, the next start goes on from here")
