"""Refreshes after training: what is served when, what is counted, and the command's verdict."""

import copy
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.log.content import author_content
from experiments.stages.tokenizer import load_tokenizer, segment_codes
from experiments.studies import refresh
from onelive_jax.tokenizer import semantic_ids
from onelive_jax.tokenizer.residual_kmeans import Codebooks

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory):
    """(config, workdir, report) of two refreshes eight hours apart: the tiny log ends a day after training."""
    workdir = tmp_path_factory.mktemp("refresh") / "w"
    shutil.copytree(finished.workdir, workdir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refresh, "DAY_HOURS", 8.0)
        report = refresh.run_study(finished.config, workdir, days=5)
        # A study that was killed in its second day goes on from the first, to the same figures.
        (workdir / "refresh" / "2" / "result.json").unlink()
        patch.setattr(refresh, "refresh_at", functools.partial(only_day_two, refresh.refresh_at))
        assert refresh.run_study(finished.config, workdir, days=5) == report
    return report


def only_day_two(refresh_at, tokenizer, served, config, log, content, before_ms, time_ms, seed):
    assert seed == config.seed + 2
    return refresh_at(tokenizer, served, config, log, content, before_ms, time_ms, seed)


def test_every_refresh_is_judged(study, capsys):
    assert [row["day"] for row in study["days"]] == [1, 2]  # the log has no data for more
    for row in study["days"]:
        assert 0 < row["authors_unchanged"] <= 20
        assert list(row["churn"]) == ["q0", "q0q1"]
        assert 0.5 < row["distortion"] < 1.5  # four codes: a fit from scratch may end in a worse place
        assert row["targets"] > 0
        rates = row["hr@10"]["whole model"]
        assert rates["fall"] == pytest.approx(1 - rates["refreshed"] / rates["old codebooks"])
        assert set(row["hr@10"]) == {"whole model", "codes alone"}
        assert row["late"] == 0
        assert f"the refreshed tokenizer: {row['folder']}" in refresh.format_day(row)
        assert f"refresh {row['day']}: churn of the {row['authors_unchanged']}" in refresh.format_day(row)
    assert [row["name"] for row in study["targets"]] == [
        "daily churn of q0", "daily churn of ids", "distortion against a fit from scratch",
        "relative fall of HR@10, whole model", "relative fall of HR@10, codes alone"]
    for row in study["targets"]:
        assert row["met"] == (row["measured"] <= row["target"])
    json.dumps(study)


def test_codes_served_before_a_refresh_stay_and_nothing_later_is_read(finished):
    config, log, made = finished.config, finished.trained.log, finished.trained.tokenizer
    content = author_content(log.tables, log.split.p1_ms)
    time = log.split.p1_ms + 8 * HOUR_MS
    served = refresh.until(made.ids, time)
    done = refresh.refresh_at(made, served, config, log, content, log.split.p1_ms, time, seed=1)
    everyone, hours = np.arange(log.num_authors)[:, None], HOUR_MS * np.arange(1, 30)
    np.testing.assert_array_equal(done.served.codes_at(everyone, time - hours),
                                  made.ids.codes_at(everyone, time - hours))
    assert done.served.from_ms.max() <= time
    # Content after the refresh has no part in it.
    other = copy.copy(content)
    other.vectors = np.where(content.from_ms[:, None] > time, 9.0, content.vectors).astype(np.float32)
    other.pools = np.where(content.from_ms[:, None] > time, 9.0, content.pools).astype(np.float32)
    again = refresh.refresh_at(made, served, config, log, other, log.split.p1_ms, time, seed=1)
    np.testing.assert_array_equal(again.tokenizer.encoder.books.centroids,
                                  done.tokenizer.encoder.books.centroids)
    assert again.figures == done.figures
    # After it, new segments are encoded with the new codebooks.
    later, late = refresh.with_content_of(done.served, done.tokenizer, config, content, time, time + 4 * HOUR_MS)
    assert late == done.figures["late"] == 0
    row = np.flatnonzero((content.from_ms > time) & (content.from_ms <= time + 4 * HOUR_MS))[-1:]
    before = done.served.codes_at(content.author[row], time)
    np.testing.assert_array_equal(later.codes_at(content.author[row], content.from_ms[row]),
                                  segment_codes(done.tokenizer.encoder, content, row, before))


def test_content_that_comes_again_after_a_refresh_keeps_its_name(finished):
    """An author that shows tomorrow what it showed today is called as the refresh called it: here with a margin that
    keeps every code, and codebooks whose nearest codes are others."""
    config, log, made = copy.deepcopy(finished.config), finished.trained.log, finished.trained.tokenizer
    config.tokenizer.refresh_margin = 1e9
    content, time = author_content(log.tables, log.split.p1_ms), log.split.p1_ms + 8 * HOUR_MS
    done = refresh.refresh_at(made, refresh.until(made.ids, time), config, log, content, log.split.p1_ms, time, seed=1)
    everyone = np.arange(log.num_authors)
    row = content.row_at(everyone, np.full(log.num_authors, time))
    assert (row >= 0).any()
    again = copy.copy(content)  # one segment an author, an hour later, with the content of the refresh
    again.author, again.from_ms = everyone[row >= 0], np.full((row >= 0).sum(), time + HOUR_MS)
    again.vector, again.pool = content.vector[row[row >= 0]], content.pool[row[row >= 0]]
    encoder = done.tokenizer.encoder
    encoder = dataclasses.replace(encoder, books=Codebooks(encoder.books.centroids[:, ::-1]))
    turned = dataclasses.replace(done.tokenizer, encoder=encoder)
    later, _ = refresh.with_content_of(done.served, turned, config, again, time, time + 2 * HOUR_MS)
    np.testing.assert_array_equal(later.codes_at(everyone, time + HOUR_MS), done.served.codes_at(everyone, time))
    nearest = segment_codes(encoder, again, np.arange(again.author.size))
    assert (nearest != done.served.codes_at(again.author, time)).any()


def test_a_refreshed_tokenizer_can_be_served(study, finished):
    config, log, made = finished.config, finished.trained.log, finished.trained.tokenizer
    everyone, books = np.arange(log.num_authors), made.encoder.books.centroids
    for row in study["days"]:
        assert Path(row["folder"]).parts[-2:] == ("refresh", str(row["day"]))
        now = load_tokenizer(config, Path(row["folder"]), log)
        assert now.figures["refresh"]["time_ms"] == row["time_ms"]
        assert now.figures["refresh"]["settings"] == study["settings"]
        assert now.figures["utilization"] == semantic_ids.utilization(now.ids.codes_at(everyone, row["time_ms"]), 4)
        assert now.figures["residual_norms"] != made.figures["residual_norms"]
        assert now.ids.from_ms.max() <= row["time_ms"]  # nothing later than the refresh
        assert np.abs(now.encoder.books.centroids - books).max() > 1e-6  # moved since the refresh before
        before, after = (now.ids.codes_at(everyone, row["time_ms"] - early) for early in (1, 0))
        assert semantic_ids.churn(before, after) == pytest.approx(row["churn_of_all"])
        np.testing.assert_array_equal(now.ids.codes_at(everyone, log.split.p1_ms),
                                      made.ids.codes_at(everyone, log.split.p1_ms))
        books = now.encoder.books.centroids


def test_codes_that_come_too_late_are_counted_and_warned_of(caplog):
    ids = semantic_ids.IdTable.dynamic([[0, 0], [1, 1]], [0], [500], [[0, 1]])
    more, late = refresh.extended(ids, np.array([0, 0, 1]), np.array([400, 600, 100]),
                                  np.array([[2, 2], [3, 3], [1, 0]]))
    assert late == 1
    np.testing.assert_array_equal(more.codes_at([0, 0, 1], [450, 600, 100]), [[0, 0], [3, 3], [1, 0]])
    assert "1 of 3 new codes are left out" in caplog.text
    row = {"day": 1, "authors_unchanged": 1, "churn": None, "churn_of_all": None, "distortion": 1.0, "points": 3,
           "hr@10": {}, "late": 4, "folder": "W/refresh/1"}
    assert "4 new codes left out" in refresh.format_day(row)


def test_the_settings_of_a_refresh_are_heeded(finished):
    config, log, made = copy.deepcopy(finished.config), finished.trained.log, finished.trained.tokenizer
    content = author_content(log.tables, log.split.p1_ms)
    time = log.split.p1_ms + 8 * HOUR_MS
    served = refresh.until(made.ids, time)
    config.tokenizer.refresh_iterations = 0
    still = refresh.refresh_at(made, served, config, log, content, log.split.p1_ms, time, seed=1)
    np.testing.assert_array_equal(still.tokenizer.encoder.books.centroids, made.encoder.books.centroids)
    jax.tree.map(np.testing.assert_array_equal, still.tokenizer.encoder.towers.params, made.encoder.towers.params)
    assert max(still.figures["churn_of_all"].values()) == 0  # neither codebooks nor content changed
    config.tokenizer.refresh_tower_steps = 3
    moved = refresh.refresh_at(made, served, config, log, content, log.split.p1_ms, time, seed=1)
    assert moved.tokenizer.encoder.towers.author_views.sum() > made.encoder.towers.author_views.sum()
    old, new = (each.encoder.towers.params["author_tower"]["author_id"] for each in (made, moved.tokenizer))
    assert np.abs(new - old).max() > 0
    # What is handed on goes with the towers as they are now.
    assert np.abs(moved.tokenizer.embedding_AxD - made.embedding_AxD).max() > 0


def test_a_log_that_ends_with_training_is_told(finished, tmp_path):
    shutil.copytree(finished.workdir, tmp_path / "w")
    with pytest.raises(ValueError, match="goes on for 24.0 hours: a refresh needs a day of new data"):
        refresh.run_study(finished.config, tmp_path / "w", days=1)
    rows = [{"churn": None, "churn_of_all": {"q0": 0.5}, "distortion": 1.0, "hr@10": {}}]
    assert [(row["measured"], row["met"]) for row in refresh.judged(rows)] == [(0.5, False), (0.5, False), (1.0, True)]
    assert semantic_ids.churn([[1], [2]], [[1], [3]]) == {"q0": 0.5}
