"""From a workdir to a running server, and its orderly end."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from data_pipelines.tables import moment
from experiments.common.log import Log, prepare
from experiments.server import store
from experiments.server.app import Limits, make_app
from experiments.server.live import Live
from experiments.server.models import Models
from experiments.server.service import Service, from_log
from experiments.stages.policy import load_params
from experiments.stages.supervised import load_supervised
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
    log = prepare(config, workdir)
    service = load(config, workdir, log, options.phase)
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
    live.models = Models(live, workdir, options.phase)
    token = options.token or os.environ.get("ONELIVE_TOKEN", "")
    if options.host not in ("127.0.0.1", "::1", "localhost") and not token:
        logger.warning("anybody who reaches %s may ask and send events: set --token", options.host)
    run(live, Limits(token=token, rate=options.rate), options.host, options.port)


def load(config: Config, workdir: Path, log: Log, phase: str) -> Service:
    """The service as of the log's end, with the parameters of a phase."""
    tokenizer = load_tokenizer(config, workdir, log)
    model, params, figures = load_supervised(config, workdir, log)
    name = f"supervised/{figures['chosen_step']}"
    if phase == "policy":
        params, name = load_params(workdir / "policy"), "policy"
    return from_log(config, log, tokenizer, model, params, name)


def make_clock(kind: str, service: Service, config: Config, speed: float = 1.0) -> Callable[[], int]:
    """Milliseconds now: of the machine, or going on from the last event, `speed` times as fast. Never goes back."""
    last, began = service.state.now_ms, time.monotonic()
    stale = time.time() * 1000 - last > 3.6e6 * config.serving.room_hours
    if kind == "log" or (kind == "auto" and stale):
        logger.info("the clock goes on from the last event of the log, %s (--clock=wall for the machine's)",
                    moment(last))
        return lambda: last + round(speed * 1000 * (time.monotonic() - began))
    wall = time.time() * 1000
    return lambda: max(last, round(wall + 1000 * (time.monotonic() - began)))


def run(live: Live, limits: Limits, host: str, port: int, started: Callable[[int], None] | None = None) -> None:
    """Listens until it is told to stop; `started` is told the port. Programs are compiled meanwhile (/readyz)."""
    server = uvicorn.Server(uvicorn.Config(make_app(live, limits), host=host, port=port, log_level="warning",
                                           timeout_graceful_shutdown=5, server_header=False))
    warming = threading.Thread(target=live.warm_up, daemon=True)

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
