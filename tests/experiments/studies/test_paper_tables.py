"""The paper's tables: trials and seeds are spent alike, what wins stands first, orderings are checked as they are."""

import json

import numpy as np
import pytest

from data_pipelines.log import tasks
from data_pipelines.log.presence import Presence
from data_pipelines.log.split import Split
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import ReadReport, Tables
from experiments.common.log import Log
from experiments.studies import reproduce, table2, table3, table4, table5
from experiments.studies.public_check import format_check
from onelive_jax.config import Config


@pytest.fixture
def problem(tmp_path):
    """Three people; everybody shows both authors on air to the others."""
    author = np.array([0, 1] * 3, np.int32)
    start = np.array([0, 50] * 3) + np.repeat([0, 1, 2], 2)
    views = Timelines(np.array([0, 2, 4, 6]), author, author, start, start + 100)
    presence = Presence.of(views, None, 2)
    tables = Tables(None, None, None, None, ReadReport("", 0, 0))
    log = Log(tables, views, presence, Split(20, 51, 60), None, None,
              outcomes={"long_view": np.array([0, 1, 0, 0, 0, 1], np.float32)})
    task = tasks.strict_targets(views, presence, 40)
    config = Config()
    config.data.source = "simulated"
    return table2.Problem(config, log, tmp_path, task, task, 10)


def method(calls, title="Fake"):
    """Scores are right for the setting `good`, wrong for others."""
    def run(change, seed, folder):
        calls.append((change["good"], seed))
        right = {"target": 1.0, "other": 0.0} if change["good"] else {"target": 0.0, "other": 1.0}

        def score(task):
            made = np.full(task.candidates.size, right["other"])
            made[task.offsets[:-1] + task.position] = right["target"]
            return made

        return score

    return table2.Method(title, [{"good": 0}, {"good": 1}, {"good": 0}], run)


def test_the_best_trial_by_validation_runs_with_all_seeds_and_is_kept(problem):
    calls = []
    made = method(calls)
    tried = table2.trials(problem, "fake", made)
    assert [row["number"] for row in tried] == [1, 0, 2]
    assert calls == [(0, 0), (1, 0), (0, 0)]
    ranks = [table2.on_test(problem, "fake", made, tried[0], seed) for seed in (0, 1)]
    assert all((rank == 1).all() for rank in ranks)
    assert calls[3:] == [(1, 0), (1, 1)]
    table2.trials(problem, "fake", made)
    table2.on_test(problem, "fake", made, tried[0], 1)
    assert len(calls) == 5  # what is kept is not run again


def test_kept_results_of_other_settings_are_refused(problem):
    import dataclasses

    table2.trials(problem, "fake", method([]))
    with pytest.raises(ValueError, match="steps: 10 then, 20 now"):
        table2.trials(dataclasses.replace(problem, steps=20), "fake", method([]))


def test_a_candidate_that_is_not_returned_is_kept_as_a_miss(problem):
    nothing = table2.Method("Fake", [{}], lambda *_: lambda task: np.full(task.candidates.size, -np.inf))
    best = {"settings": {}, "number": 0}
    for _ in range(2):  # made, then read
        assert np.isinf(table2.on_test(problem, "fake", nothing, best, 0)).all()


def row(title, place, n):
    return table2.Row(title, [np.full((n, 2), place)], [])


def test_what_beats_the_model_stands_first(problem):
    n = problem.test.user.size
    rows = {"own_counts": row("own_counts", 1, n), "sasrec": row("SASRec", 2, n), table2.ONELIVE: row("OneLive", 2, n)}
    text = table2.format_table2(rows, problem)
    assert text.startswith("OneLive (NDCG@10 0.6309) is beaten here by own_counts 1.0000.")
    assert "smaller cutoffs stand beside it" in text.replace("\n", " ")
    assert f"click (n={n})" in text
    assert "long view (n=1)" in text
    assert "-0.3691" in text  # OneLive above own_counts, request by request
    won = rows | {table2.ONELIVE: row("OneLive", 1, n), "own_counts": row("own_counts", 2, n)}
    assert table2.findings(won).startswith("OneLive ranks best: NDCG@10 1.0000; next own_counts, 0.6309")


def test_the_rungs_of_table_3_are_one_change_each():
    """From the lazy decoder on, a rung is the one before with one thing more."""
    lazy = [changes for _, _, kind, changes in table3.RUNGS.values() if kind == "lazy"]
    changed = [{name for name in before.keys() | after.keys() if before.get(name, True) != after.get(name, True)}
               for before, after in zip(lazy, lazy[1:], strict=False)]
    assert changed == [{"model.mtp"}, {"model.gate"}, {"model.item_time", "model.request_time"}]
    config = Config()
    config.data.source = "simulated"
    names = list(table3.RUNGS)
    small, large = (table3.rung_config(config, table3.RUNGS[name][3]) for name in names[:2])
    assert (small.tokenizer.codes, large.tokenizer.codes) == (16, 64)
    assert small.tokenizer.embedding == large.tokenizer.embedding == "mllm"
    for name in names:
        table3.rung_config(config, table3.RUNGS[name][3])  # every one is a config that may be run


def test_orderings_are_read_from_what_the_tables_wrote(tmp_path):
    seeds = lambda value: [{"mrr@128": value}, {"mrr@128": value + 0.02}]  # noqa: E731
    found = {"sasrec": {"title": "SASRec", "seeds": seeds(0.5)}, "gnn": {"title": "GNN", "seeds": seeds(0.4)},
             "onelive": {"title": "OneLive", "seeds": seeds(0.6)}, "viewers": {"title": "viewers", "seeds": seeds(0.9)}}
    (tmp_path / "table2.json").write_text(json.dumps(found))
    assert dict(reproduce.table2_verdicts(tmp_path)) == {
        "OneLive above GNN": True, "OneLive above SASRec": True, "GNN above SASRec": False}
    names = list(table3.RUNGS)
    (tmp_path / "table3.json").write_text(json.dumps({names[0]: [{"HR@128": 0.5}], names[1]: [{"HR@128": 0.6}],
                                                      names[2]: [{"HR@128": 0.7}]}))
    assert [holds for _, holds in reproduce.table3_verdicts(tmp_path)] == [True, False]
    rows = [{"layers": layers, "mtp": mtp, "qps": qps, "mean_ms": 1.0, "p99_ms": 2.0}
            for layers, mtp, qps in ((6, False, 10), (6, True, 30), (3, False, 10), (3, True, 20))]
    (tmp_path / "table4.json").write_text(json.dumps({"table": rows}))
    assert [holds for _, holds in reproduce.table4_verdicts(tmp_path)] == [True, True, True]
    assert "+200.0%" in table4.format_table4(rows)
    worlds = [{"SFT": {"utility": 0.0}, "grpo 1": {"utility": 0.02}, "dpo 1": {"utility": 0.03}}]
    (tmp_path / "table5.json").write_text(json.dumps(worlds))
    assert reproduce.table5_verdicts(tmp_path) == [("GRPO above DPO at a share of 1", False)]
    (tmp_path / "public_check.json").write_text(json.dumps({"sasrec": {"figures": [0.04, 0.06, 0.03]},
                                                            "popularity": {"figures": [0, 0, 0]}}))
    assert reproduce.public_verdicts(tmp_path) == [("sasrec reaches R@10 0.0605", False)]


def test_the_page_says_what_has_not_been_run_and_what_failed(tmp_path):
    item = reproduce.Item("Table 9", "experiments.nothing_of_this_name", ("--x=1",), why="it is a test")
    with pytest.raises(ValueError, match="ended with code 1.*the same command goes on"):
        reproduce.run_item("nine", item, tmp_path)
    assert "Not run yet." in reproduce.page({"nine": item}, tmp_path)
    listing = reproduce.Item("Table 9", "this", (), lambda folder: [("a above b", False), ("b above c", True)],
                             why="it is a test")  # python -m this prints something and reads no flag
    reproduce.run_item("nine", listing, tmp_path)
    text = reproduce.page({"nine": listing}, tmp_path)
    assert ("1 of 2 orderings of the paper hold here, those that do not: a above b (we think because it is a test)."
            in text)
    assert "Beautiful is better than ugly." in text
    began = reproduce.read_record(tmp_path / "nine")
    assert reproduce.run_item("nine", listing, tmp_path) == began  # what is done is not repeated


def test_the_public_check_prints_the_published_figures_below_ours():
    rows = {"sasrec": {"n": 5, "figures": [0.04, 0.07, 0.035], "intervals": [[0.03, 0.05]] * 3,
                       "validation": {"ndcg@10": 0.05}, "curve": [[10, 0.01], [20, 0.05]]}}
    text = format_check(rows, {"sasrec": "SASRec"}, True)
    assert "0.0700 ± 0.0100" in text
    assert "Cornac, tuned" in text
    assert "TIGER" not in text
    assert "10 0.0100, 20 0.0500" in text
    assert "Cornac" not in format_check(rows, {"sasrec": "SASRec"}, False)


def test_table_5_lists_every_loss_at_every_share():
    assert table5.arms(["dpo", "grpo"], [0.1, 1.0]) == [("dpo", 0.1), ("dpo", 1.0), ("grpo", 0.1), ("grpo", 1.0)]
    world = {"SFT": {"ndcg@10": 0.5, "hr@10": 0.6, "hr@128": 1.0, "utility": 0.0},
             "grpo 1": {"ndcg@10": 0.4, "hr@10": 0.5, "hr@128": 1.0, "utility": 0.03}}
    assert "+3.00%" in table5.format_table5([world])
