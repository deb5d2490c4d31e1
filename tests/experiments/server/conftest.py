"""One served run for every test that asks over HTTP; the log and the model are those of `finished`."""

import dataclasses
import threading
import time
from types import SimpleNamespace

import pytest

from experiments.server.service import from_log
from onelive_jax.config import ServingConfig


@pytest.fixture(scope="session")
def make_service(finished):
    """() → a service as of the end of the test run's log, with a small batch."""
    serving = ServingConfig(max_batch=4, max_k=8, spare_authors=2, deadline_ms=600_000.0)
    config, trained = dataclasses.replace(finished.config, serving=serving), finished.trained

    def make(time_ms=None):
        return from_log(config, trained.log, trained.tokenizer, trained.model, trained.params, "first", time_ms)

    return make


@pytest.fixture(scope="session")
def serving(make_service, tmp_path_factory):
    """A server that listens: client, live, url. Events are kept in a folder of its own."""
    httpx = pytest.importorskip("httpx", reason="needs requirements/serve.txt")
    pytest.importorskip("fastapi", reason="needs requirements/serve.txt")
    pytest.importorskip("uvicorn", reason="needs requirements/serve.txt")
    from experiments.server import start, store
    from experiments.server.app import Limits
    from experiments.server.live import Live

    service = make_service()
    began, last = time.monotonic(), service.state.now_ms
    live = Live(service, lambda: last + round(1000 * (time.monotonic() - began)),
                store.EventLog(tmp_path_factory.mktemp("served")))
    bound, listening = [], threading.Event()
    thread = threading.Thread(target=start.run, args=(live, Limits(body=200_000), "127.0.0.1", 0),
                              kwargs={"started": lambda port: (bound.append(port), listening.set())})
    thread.start()
    assert listening.wait(60)
    with httpx.Client(base_url=f"http://127.0.0.1:{bound[0]}", timeout=60) as client:
        assert live.ready.wait(240)
        yield SimpleNamespace(client=client, live=live, url=str(client.base_url))
    live.stop()
    thread.join(60)
    assert not thread.is_alive()
