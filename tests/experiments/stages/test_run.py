"""All stages in turn, from a log to a report: the simulated platform, a Twitch log, and small odd logs."""

import json
import math

import numpy as np
import polars as pl
import pytest

from experiments.common import scoring
from experiments.reports.run_page import write_html
from experiments.stages.run import print_report, run
from onelive_jax.config import from_json
from onelive_jax.evaluation.ranking_metrics import FIGURES, GROUPS, INTERVAL

ROUND_MS = 600_000
SHORT = dict(data__source="twitch", tokenizer__steps=6, training__steps=4, training__eval_every=2,
             training__checkpoint_every=2)
HEURISTICS = ("viewers", "popularity", "own_counts", "own_counts_time", "own_counts_knn")


def check_report(report: dict, levels: int) -> None:
    """The shape that experiments/reports/run_page.py documents, with values that make sense."""
    assert set(report["protocols"]) == {"strict", "liverec"}
    assert set(report["heuristics"]) >= set(HEURISTICS)
    for groups in (*report["protocols"].values(), *report["heuristics"].values()):
        assert tuple(groups)[:len(GROUPS)] == GROUPS  # groups of objectives follow
        assert groups["all"]["n"] == groups["repeat"]["n"] + groups["new"]["n"] > 0
        for figures in groups.values():
            assert set(figures) == {"n", INTERVAL, *FIGURES}
            if not figures["n"]:
                assert all(figures[name] is None for name in (INTERVAL, *FIGURES))
                continue
            assert all(0 <= figures[name] <= 1 for name in FIGURES)
            assert figures["hr@1"] <= figures["hr@10"] <= figures["hr@64"] <= figures["hr@128"]
            low, high = figures[INTERVAL]
            assert 0 <= low <= figures["ndcg@10"] <= high <= 1
    sizes = {name: row["all"]["n"] for name, row in report["heuristics"].items()}
    assert set(sizes.values()) == {report["protocols"]["strict"]["all"]["n"]}
    training = report["training"]
    assert training["seconds"] > 0
    assert training["examples_per_second"] is None or training["examples_per_second"] > 0
    assert isinstance(training["parameters"], int)
    tokenizer = report["tokenizer"]
    assert set(tokenizer["utilization"]) == {*(f"L{level}" for level in range(levels)), "L0xL1"}
    assert all(0 < share <= 1 for share in tokenizer["utilization"].values())
    assert 0 <= tokenizer["collision_rate_sid"] <= 1
    assert 0 <= tokenizer["collision_rate_author"] <= 1
    assert math.isfinite(tokenizer["info_nce_loss"])
    data = report["data"]
    assert data["rows_read"] == data["rows_kept"] + sum(data["dropped"].values())


def test_a_run_leaves_report_page_and_settings(finished, capsys, tmp_path):
    report = json.loads((finished.workdir / "report.json").read_text())
    assert report == json.loads(json.dumps(finished.trained.report))
    check_report(report, levels=2)
    assert report["protocols"]["strict"]["all"]["n"] == finished.config.data.max_targets
    assert report["data"]["rows_read"] == len(finished.trained.log.tables.interactions)
    assert from_json((finished.workdir / "config.json").read_text()) == finished.config
    write_html(tmp_path / "page.html", report)  # the page takes a report as it comes from the file
    page = (finished.workdir / "report.html").read_text()
    assert "OneLive on tiny" in page
    assert f"{report['protocols']['strict']['all']['ndcg@10']:.3f}" in page
    print_report(finished.trained, finished.workdir)
    printed = capsys.readouterr().out
    assert f"{report['training']['parameters']:,} parameters" in printed
    assert all(name in printed for name in ("OneLive", *HEURISTICS, "report.html"))


@pytest.fixture(scope="module")
def rounds(finished) -> pl.DataFrame:
    """The simulated log as Twitch would tell it: ten-minute rounds, no row twice."""
    log = finished.trained.log.tables.interactions
    first = log["start_ms"].min() // ROUND_MS
    return log.select(
        "user_id", (pl.col("room_id") + 34_000_000_000).alias("stream_id"),
        ("streamer_" + pl.col("author_id").cast(pl.String)).alias("streamer_name"),
        (pl.col("start_ms") // ROUND_MS - first).alias("start_time"),
        ((pl.col("start_ms") + pl.col("watch_ms") - 1) // ROUND_MS + 1 - first).alias("stop_time")).unique(
            maintain_order=True)


@pytest.fixture(scope="module")
def twitch(rounds, make_config, tmp_path_factory):
    """(config, workdir, Trained) of a run on the same log with unclean rows."""
    folder = tmp_path_factory.mktemp("twitch")
    unclean = pl.concat([rounds, rounds[3:8], rounds[10:12].with_columns(pl.col("start_time").alias("stop_time")),
                         rounds[20:21].with_columns(pl.lit(0, pl.Int64).alias("stop_time"))])
    path = folder / "log.csv"
    path.write_text(unclean.with_columns(pl.lit("en").alias("language")).write_csv() + "\n\n")
    config = make_config(data__path=str(path), **SHORT)
    return config, folder / "run", run(config, folder / "run")


def test_twitch_goes_through(twitch, rounds):
    """With a header; that the form without gives the same tables: data_pipelines/readers/test_twitch.py."""
    config, workdir, trained = twitch
    report = json.loads((workdir / "report.json").read_text())
    check_report(report, levels=2)
    data = report["data"]
    assert data["rows_read"] == len(rounds) + 8
    assert data["rows_kept"] == len(rounds)
    assert data["dropped"] == {"repeated row": 5, "stop_time <= start": 3}
    assert any("overlaps" in note for note in data["notes"])
    assert "columns not used: language" in trained.log.tables.report.lines()
    assert from_json((workdir / "config.json").read_text()) == config
    assert "repeated row" in (workdir / "report.html").read_text()


def test_what_was_dropped_is_printed(twitch, capsys):
    _, workdir, trained = twitch
    print_report(trained, workdir)
    printed = capsys.readouterr().out
    assert "dropped 5: repeated row" in printed
    assert "dropped 3: stop_time <= start" in printed
    assert "strict protocol" in printed


def csv_of(path, rows) -> str:
    path.write_text("".join(f"{user},{500 + author},a{author},{start},{stop}\n" for user, author, start, stop in rows))
    return str(path)


def test_a_log_of_one_person_has_nothing_to_choose_by_and_says_so(make_config, tmp_path):
    """Nobody else shows any room on air, so that there is no question to answer."""
    path = csv_of(tmp_path / "one.csv", [(7, t % 5, 3 * t, 3 * t + 2) for t in range(150)])
    with pytest.raises(ValueError, match=r"the validation period has no target .*nobody else shows the author on air"):
        run(make_config(data__path=path, **SHORT), tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()


def test_people_and_authors_first_seen_after_training_are_scored(rounds, make_config, tmp_path):
    """Half of the people appear in the last rounds only, and an author instead of another one."""
    newest = pl.col("start_time") > rounds["stop_time"].max() - 70  # of which 72 are the test period
    name = pl.col("streamer_name")
    star, other = rounds.filter(newest).group_by(name).len().sort("len", name, descending=True)["streamer_name"][:2]
    frame = rounds.filter(newest | (pl.col("user_id") % 2 == 0), name != other).with_columns(
        pl.when(newest & (name == star)).then(pl.lit("newcomer")).otherwise(name).alias("streamer_name"))
    frame.write_csv(tmp_path / "log.csv")
    trained = run(make_config(data__path=str(tmp_path / "log.csv"), **SHORT), tmp_path / "run")
    check_report(trained.report, levels=2)
    log = trained.log
    newcomer = log.tables.authors["source_id"].to_list().index("newcomer")
    assert newcomer not in log.views.author[log.training_views]
    known = np.unique(log.views.users()[log.training_views])
    task = scoring.targets(log, from_json((tmp_path / "run" / "config.json").read_text()), "test", "strict")
    assert not np.isin(task.user, known).all()
    assert newcomer in task.candidates


@pytest.mark.parametrize("change,words", [
    (dict(data__valid_hours=900.0), "no view ends before the validation period"),
    (dict(data__valid_hours=0.0), "the validation period has no target .*config.data.valid_hours longer"),
    (dict(data__test_hours=0.0), "the test period has no target .*config.data.test_hours longer"),
])
def test_a_split_that_leaves_nothing_is_told_before_training(rounds, make_config, tmp_path, change, words):
    rounds.write_csv(tmp_path / "log.csv")
    with pytest.raises(ValueError, match=words):
        run(make_config(data__path=str(tmp_path / "log.csv"), **SHORT, **change), tmp_path / "run")
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_a_log_that_is_not_there_is_told(make_config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        run(make_config(data__path=str(tmp_path / "none.csv"), data__source="twitch"), tmp_path / "run")
