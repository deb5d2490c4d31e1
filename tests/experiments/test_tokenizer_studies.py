"""The studies of the tokenizer, tiny: its benchmark, Table 1, dynamic against static ids."""

import functools
import json
import shutil

import numpy as np
import pytest

from data_pipelines.simulated_world import make_world
from experiments import benchmark_tokenizer, dynamic_ids, scoring, table1
from experiments.ablate import changed
from onelive_jax.config import TokenizerConfig
from onelive_jax.tokenizer import semantic_ids


def test_the_benchmark_judges_every_target(monkeypatch):
    tiny = benchmark_tokenizer.Sizes(points=600, dim=8, codes=8, iterations=2, warm_iterations=1, warm_passes=1,
                                     clusters=20, against_faiss=False)
    monkeypatch.setitem(benchmark_tokenizer.SIZES, "small", tiny)
    monkeypatch.setattr(benchmark_tokenizer, "measure_refresh", functools.partial(
        benchmark_tokenizer.measure_refresh, authors=500, dim=8, codes=8, days=1))
    said = []
    report = benchmark_tokenizer.measure("small", 1, said.append)
    assert [row["name"] for row in report["rows"]] == [
        "segments encoded a second", "segments a second, tower and encoding", "worst daily churn of q0",
        "worst daily churn of q0q1q2", "distortion after refreshes / fit from scratch"]
    for row in report["rows"]:
        assert row["met"] == (row["measured"] >= row["target"] if row["sense"] == ">=" else
                              row["measured"] <= row["target"])
    assert report["segments"]["per_second"] == pytest.approx(600 / min(report["segments"]["seconds"]))
    assert any("through the author tower" in line for line in said)
    assert json.loads(json.dumps(report)).keys() == report.keys()


def test_table1_says_of_every_ordering_whether_it_holds(make_config, tmp_path, monkeypatch, capsys):
    config = make_config(data__valid_hours=0.0, data__test_hours=0.0)
    config.simulator.users, config.simulator.authors, config.simulator.days = 60, 240, 3
    config.simulator.segment_seconds = 7200
    config.tokenizer = TokenizerConfig(levels=2, codes=4, dim=8, hidden=16, history_items=8, steps=5, batch_size=64,
                                       kmeans_iterations=2)
    monkeypatch.setattr(table1, "PAPER_AUTHORS", 4000)
    # The code counts that the paper's stand for here: 512 → a few, 8192 → a few more.
    monkeypatch.setattr(table1, "scaled", lambda codes, authors: 4 if codes == 512 else 8)
    table1.main(config, tmp_path)
    text = capsys.readouterr().out
    kept = json.loads((tmp_path / "table1.json").read_text())
    assert [tuple(row["key"]) for row in kept["rows"]] == list(table1.PAPER)
    for row in kept["rows"]:
        assert len(row["figures"]) == len(table1.COLUMNS)
        assert all(0 <= value <= 100 for value in row["figures"])
        assert row["codes"] == (4 if row["key"][2] == 512 else 8)
    verdicts = [line for line in text.splitlines() if line.startswith(("holds", "DOES NOT HOLD", "equal here"))]
    assert len(verdicts) == len(table1.ORDERINGS)
    # A run that was killed goes on with the rows it has.
    kept["rows"][0]["figures"] = [1.0] * 6
    (tmp_path / "table1.json").write_text(json.dumps(kept))
    table1.main(config, tmp_path)
    assert json.loads((tmp_path / "table1.json").read_text()) == kept


def test_code_counts_keep_the_authors_of_an_id():
    assert table1.scaled(512, table1.PAPER_AUTHORS) == 512
    assert table1.scaled(8192, table1.PAPER_AUTHORS // 8) == 4096


def test_dynamic_ids_judges_views_after_a_jump(finished, tmp_path):
    config = finished.config
    for name in ("log", "dynamic-whole_model"):
        shutil.copytree(finished.workdir, tmp_path / "0" / name)
    rows = dynamic_ids.run_variant(config, 0, "dynamic", "whole model", tmp_path)
    whole = finished.trained.report["protocols"]["strict"]["all"]
    for figure in ("n", "hr@10", "ndcg@10", "mrr"):
        assert rows["all"][figure] == pytest.approx(whole[figure])
    log, world = finished.trained.log, make_world(config.simulator)
    task = scoring.targets(log, config, "test", "strict")
    room, time = log.views.room[task.view], log.views.start_ms[task.view]
    expected = 0
    last = world.last_jump_ms(room, time)
    for i in np.flatnonzero((last >= 0) & (time - last <= 600_000)):
        before, now = (world.content(room[i:i + 1], np.array([at]))[0] for at in (last[i] - 1, time[i]))
        expected += before @ now < 0.7
    assert 0 < rows["after_jump"]["n"] == expected < (last >= 0).sum()
    for shares in rows["changed_codes"].values():
        assert 0 <= shares["q0"] <= shares["id"] <= 1
    still = semantic_ids.IdTable.static(np.zeros((log.num_authors, 2), np.int32))
    assert dynamic_ids.changed_codes(log, still, task.view, np.ones(task.view.size, bool)) == {
        "after_jump": {"q0": 0.0, "id": 0.0}, "calm": {}}
    assert dynamic_ids.run_variant(config, 0, "dynamic", "whole model", tmp_path) == rows  # from its file
    for settings in (*dynamic_ids.IDS.values(), *dynamic_ids.MODELS.values()):
        changed(config, settings, 1)  # every variant is a config that validates


def test_the_table_of_dynamic_ids_shows_differences_seed_by_seed():
    def row(value):
        return {group: {figure: value for _, figure in dynamic_ids.FIGURES} for group, _ in dynamic_ids.FIGURES} | {
            "changed_codes": {"after_jump": {"q0": 0.25, "id": 0.5}, "calm": {}}}

    text = dynamic_ids.format_study({"dynamic, whole model": [row(0.5), row(0.7)],
                                     "static, whole model": [row(0.4), row(0.6)]})
    lines = text.splitlines()
    difference = lines[lines.index("dynamic minus the other, seed by seed") + 1]
    assert difference.split()[:2] == ["static,", "whole"]
    assert difference.count("+0.100 (+0.100 … +0.100)") == len(dynamic_ids.FIGURES)
    assert lines[-1].endswith(" 0.25 (0.50), -; 0.25 (0.50), -")


def test_intervals_over_seeds():
    mean, low, high = dynamic_ids.interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert dynamic_ids.interval([0.5]) == (0.5, 0.5, 0.5)
