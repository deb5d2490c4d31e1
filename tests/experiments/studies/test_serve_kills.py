"""The whole server, killed under load twice: nothing that was acknowledged is lost, and it answers as before."""

import dataclasses

import pytest

pytest.importorskip("httpx", reason="needs requirements/serve.txt")
pytest.importorskip("uvicorn", reason="needs requirements/serve.txt")
from experiments.studies import serve_kills
from onelive_jax.config import ServingConfig


def test_two_kills_lose_nothing_and_answers_stay(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_kills, "SNAPSHOT_EVENTS", 100)
    monkeypatch.setattr(serve_kills, "ASKED", 4)
    config = dataclasses.replace(finished.config, serving=ServingConfig(max_batch=1))
    outcome = serve_kills.run(config, finished.workdir, 2, tmp_path, most_s=0.6,
                              arguments=["--config.serving.max_batch=1"])
    assert (outcome.kills, outcome.lost, outcome.differing) == (2, 0, [])
    assert len(outcome.acknowledged) > 100
    assert outcome.compared == 8
