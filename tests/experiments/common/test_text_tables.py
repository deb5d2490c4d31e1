"""Text tables: aligned, and "-" where a figure is not defined."""

import numpy as np

from experiments.common.tables import interval, number, table
from experiments.stages.evaluate import format_ranking
from experiments.stages.reward import format_report
from onelive_jax.evaluation import objective_metrics, ranking_metrics


def test_names_stand_left_and_numbers_right():
    assert table(["name", "value"], [["a", "1.50"], ["longer", None], [7, "10.25"]]).splitlines() == [
        "name      value", "------  -------", "a          1.50", "longer", "7         10.25"]
    assert (number(None), number(12345), number(0.12345), number(0.5, "+.1%")) == ("-", "12,345", "0.123", "+50.0%")
    assert (interval(None), interval((0.1, 0.25))) == ("-", "0.100 … 0.250")


def test_what_strangers_write_never_steers_a_terminal():
    assert table(["room"], [["\x1b]0;x\x07\n"]]).splitlines()[-1] == r"\x1b]0;x\x07\n"


def test_rankers_in_a_table_with_empty_groups():
    rows = {"a": ranking_metrics.metrics(np.array([1, 2]), np.array([True, True])),
            "a longer name": ranking_metrics.metrics(np.array([1, 300]), np.array([True, False]))}
    lines = format_ranking(rows).splitlines()
    assert lines[0].split()[:2] == ["ranker", "NDCG@10"]
    assert "0.815" in lines[2]  # (1 + 0.631) / 2
    assert lines[2].split()[-2:] == ["-", "2/2/0"]
    assert lines[3].split()[-3:] == ["1.000", "0.000", "2/1/1"]
    groups = {"like": np.array([True, True, False, False]), "gift": np.zeros(4, bool)}
    result = ranking_metrics.metrics(np.array([1, 20, 2, 30]), np.array([True, False, True, False]), groups=groups)
    *_, head, _, ours, theirs = format_ranking({"ours": result, "theirs": result}).splitlines()
    assert "like (n=2)" in head
    assert ours.split()[1:] == theirs.split()[1:] == ["0.500", "/", "0.500", "-", "/", "-"]


def test_objectives_in_a_table():
    known = np.array([[True, False]] * 4)
    report = objective_metrics.objective_report(("click", "gift"), [1, 1, 2, 2], np.full((4, 2), 0.5), np.arange(4.0),
                                                np.eye(4, 2), known)
    lines = format_report({"objectives": report, "weights": {"click": 1.5, "gift": 0.5}}).splitlines()
    assert [line.split()[0] for line in lines[:4:1] if "-" * 9 not in line] == ["objective", "click", "gift"]
    assert lines[3].split()[2] == "-"
    assert lines[-1].endswith("click 1.50, gift 0.50")
