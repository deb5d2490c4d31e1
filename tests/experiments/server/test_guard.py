"""The token, the rate, and the queue that is full; without a model."""

from types import SimpleNamespace

import pytest

fastapi = pytest.importorskip("fastapi", reason="needs requirements/serve.txt")
pytest.importorskip("httpx", reason="needs requirements/serve.txt")
from fastapi.testclient import TestClient  # noqa: E402

from experiments.server.app import Limits, make_app  # noqa: E402
from experiments.server.metrics import Metrics  # noqa: E402
from onelive_jax.config import Config  # noqa: E402
from onelive_jax.serving.batching import Full  # noqa: E402


def client(limits, **live):
    ready = SimpleNamespace(is_set=lambda: True)
    service = SimpleNamespace(config=Config())
    stub = SimpleNamespace(metrics=Metrics(), ready=ready, gauges=lambda: b"", service=service, **live)
    return TestClient(make_app(stub, limits))


def test_without_the_token_only_probes_are_answered():
    asked = client(Limits(token="secret"))
    for path in ("/metrics", "/", "/docs", "/v1/rooms"):
        assert asked.get(path).status_code == 401, path
    for path in ("/healthz", "/readyz", "/v2/health/live"):
        assert asked.get(path).status_code == 200, path
    assert asked.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert asked.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200
    # The page keeps the token, so that its events may come.
    assert asked.get("/", params={"token": "wrong"}, follow_redirects=False).status_code == 401
    assert asked.get("/", params={"token": "secret"}).status_code == 200
    assert asked.get("/metrics").status_code == 200


def test_a_client_that_asks_too_often_is_told_when_to_come_again():
    asked = client(Limits(rate=3.0))
    answers = [asked.get("/metrics") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].headers["Retry-After"] == "1"
    assert asked.get("/healthz").status_code == 200


def test_a_full_queue_is_429_with_retry_after():
    def recommend(asked, seconds):
        raise Full(256, 2.3)

    answer = client(Limits(), recommend=recommend).post("/v1/recommend", json={"user": "u"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "3")
    assert "256 requests are waiting" in answer.json()["detail"]
