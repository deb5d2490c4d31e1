"""The load test itself: what it counts and reports, on a server of a tiny model."""

import json
import math

import pytest

pytest.importorskip("fastapi", reason="needs requirements/serve.txt")
pytest.importorskip("uvicorn", reason="needs requirements/serve.txt")
from experiments.benchmarks import report as report_of
from experiments.benchmarks import serve
from experiments.benchmarks.load import Load
from experiments.benchmarks.problem import ModelSizes
from onelive_jax.config import ModelConfig

TINY = ModelSizes(model=ModelConfig(dim=16, num_layers=1, num_heads=2, num_groups=1, mlp_dim=24,
                                    loss_weights=(1.0, 1.0)),
                  history=4, levels=2, codes=8, authors=30, author_dim=8, rooms=20)


def test_report_of_a_load(monkeypatch):
    monkeypatch.setattr(serve, "CATALOGUES", (200,))
    load = Load(rate=25.0, seconds=2.0, room_events=20.0, view_events=20.0, people=10, connections=4, k=3, beams=4,
                swaps=1)
    report = report_of.make_report("serve", lambda: serve.measure_serving(TINY, load, repeats=2))
    assert json.loads(json.dumps(report)).keys() == report.keys()
    rate, p99, visible, off_air, failed = (row["measured"] for row in report["rows"])
    assert 0 < rate < 60
    assert report["latency_p50_ms"] <= p99 < math.inf
    assert 0 < visible < math.inf
    assert (off_air, failed) == (0, 0)
    assert report["swaps"] == 1
    assert "random" in report["models"]
    assert sum(report["means"][stage] for stage in serve.STAGES) > 0
    text = report_of.as_text(report, serve.serving_lines(report))
    assert "where it goes" in text
    assert "100 changed, ms" in text


def test_lines_of_table_4():
    rows = [{"layers": 6, "mtp": mtp, "qps": 10.0 * (1 + mtp), "mean_ms": 5.0, "p99_ms": 9.0, "failed": 0}
            for mtp in (False, True)]
    text = "\n".join(serve.table4_lines({"table4": rows, "beams": 128, "connections": 16}))
    assert "+100%" in text
    assert "lazy decoder" in text
