"""Stages are done once and with one set of settings; nothing that is learned knows of a time after p1."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import polars as pl
import pytest

from data_pipelines import tables
from data_pipelines.batches.loader import training_batches
from data_pipelines.log.content import author_content
from data_pipelines.log.presence import HOUR_MS
from data_pipelines.simulator import simulation
from experiments.common import calibration, workdir
from experiments.common.log import data_settings, prepare
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import to_json
from onelive_jax.tokenizer import residual_kmeans, tower_training


class Stop(Exception):
    """Ends a stage where the test has seen enough."""


@pytest.fixture(scope="module")
def source(make_config) -> tables.Tables:
    return simulation.simulate(make_config().simulator)


@pytest.fixture(scope="module")
def prepared(make_config, source, tmp_path_factory):
    """(tables, true lifetimes?) → (config, workdir, log) of that log in canonical form."""
    def prepared(log: tables.Tables):
        folder = tmp_path_factory.mktemp("log")
        tables.save(log, folder / "canonical")
        config = make_config(data__source="canonical", data__path=str(folder / "canonical"), tokenizer__steps=8)
        return config, folder / "work", prepare(config, folder / "work")
    return prepared


@pytest.fixture(scope="module")
def with_content(prepared, source):
    return prepared(source)


@pytest.fixture(scope="module")
def views_only(prepared, source):
    """The same log as Twitch would tell it: no lifetimes, no content."""
    return prepared(dataclasses.replace(source, rooms_are_true_lifetimes=False, segments=None, videos=None,
                                        titles=None))


def changed_after(log: tables.Tables, p1: int, how: str) -> tables.Tables:
    """The tables with every view that begins at p1 or later changed, the one that begins last excepted, every view
    that goes on at p1 ended at another time after it, and every content segment after p1 changed."""
    stop = pl.col("start_ms") + pl.col("watch_ms")
    views = log.interactions.with_row_index("row")
    last = views.filter(pl.col("start_ms") == pl.col("start_ms").max())["row"][0]
    later = (pl.col("start_ms") >= p1) & (pl.col("row") != last)
    before, after = views.filter(~later), views.filter(later)
    going_on = (pl.col("start_ms") < p1) & (stop > p1)
    before = before.with_columns(pl.when(going_on).then(p1 + 1 - pl.col("start_ms")).otherwise(pl.col("watch_ms"))
                                 .alias("watch_ms"))
    if how == "removed":
        after = after.clear()
    if how == "other rooms":
        room = np.random.default_rng(0).integers(len(log.rooms), size=len(after))
        after = after.with_columns(pl.Series("room_id", room, pl.Int32),
                                   log.rooms["author_id"].gather(room).alias("author_id"))
    if how == "other times":
        watch = pl.when(pl.col("click")).then(pl.col("watch_ms") // 3 + 1).otherwise(0)
        after = after.with_columns(pl.lit(p1).alias("start_ms"), watch.alias("watch_ms"))
    interactions = tables.sort_interactions(pl.concat([before, after]).drop("row"))
    assert not interactions.equals(log.interactions)
    segments = log.segments
    if segments is not None:
        values = segments["embedding"].to_numpy().copy()
        values[(segments["end_ms"] > p1).to_numpy()] *= -3
        segments = segments.with_columns(pl.Series("embedding", values, segments.schema["embedding"]))
    return dataclasses.replace(log, interactions=interactions, segments=segments)


def first_batches(monkeypatch, config, workdir, log, tokenizer, count: int = 3):
    """The first training batches that the supervised stage asks for, and the views that it may read."""
    made = SimpleNamespace(iterator=None, groups=None)

    def stop_with_batches(maker, groups, *args, **kwargs):
        made.groups = groups
        made.iterator = training_batches(maker, groups, *args, **kwargs)
        raise Stop

    monkeypatch.setattr("experiments.stages.supervised.training_batches", stop_with_batches)
    with pytest.raises(Stop):
        train_supervised(config, workdir, log, tokenizer)
    monkeypatch.undo()
    return [next(made.iterator) for _ in range(count)], made.groups


@pytest.mark.parametrize("kind", ["with_content", "views_only"])
def test_training_views_end_by_p1(kind, request):
    _, _, log = request.getfixturevalue(kind)
    split, views = log.split, log.views
    assert 0 < split.end_ms - log.tables.interactions["start_ms"].max() <= HOUR_MS
    assert (split.end_ms - split.p2_ms, split.p2_ms - split.p1_ms) == (12 * HOUR_MS, 12 * HOUR_MS)
    training = log.training_views
    assert views.stop_ms[training].max() <= split.p1_ms
    assert np.delete(views.stop_ms, training).min() > split.p1_ms  # and no view that might be learned from is left out
    assert 0 < training.size < views.stop_ms.size
    assert ((views.start_ms < split.p1_ms) & (views.stop_ms > split.p1_ms)).any()  # the hard cases are there


def test_a_view_that_ends_at_p1_itself_is_a_training_view(with_content):
    _, _, log = with_content
    stops = np.array([log.split.p1_ms - 1, log.split.p1_ms, log.split.p1_ms + 1])
    views = dataclasses.replace(log.views, user_ptr=np.array([0, 3]), start_ms=stops - 5, stop_ms=stops)
    assert dataclasses.replace(log, views=views).training_views.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["with_content", "views_only"])
def test_the_tokenizer_reads_nothing_after_p1(kind, request, monkeypatch):
    config, workdir, log = request.getfixturevalue(kind)
    seen = {}

    def train_towers(views, *args):
        seen.update(user_ptr=views.user_ptr, author=views.author, content=views.content, row=views.content_row)
        return original(views, *args)

    def fit(values, *args, **kwargs):
        seen["fit"] = len(values)
        raise Stop

    original = tower_training.train_towers
    monkeypatch.setattr(tower_training, "train_towers", train_towers)
    monkeypatch.setattr(residual_kmeans, "fit", fit)
    with pytest.raises(Stop):
        train_tokenizer(config, workdir / "elsewhere", log)
    training = log.views.stop_ms <= log.split.p1_ms
    np.testing.assert_array_equal(seen["author"], log.views.author[training])
    np.testing.assert_array_equal(np.diff(seen["user_ptr"]),
                                  np.bincount(log.views.users()[training], minlength=log.views.num_users))
    content = author_content(log.tables, log.split.p1_ms)
    if kind == "views_only":
        assert content is None
        assert seen["content"] is None
        assert seen["fit"] == log.num_authors
        return
    starts = log.views.start_ms[training]
    row = content.row_at(seen["author"], starts)
    known = row >= 0
    assert known.mean() > 0.5
    assert (content.from_ms[row[known]] <= starts[known]).all()  # content that had been shown when the view began
    assert (content.author[row[known]] == seen["author"][known]).all()
    np.testing.assert_array_equal(seen["row"] >= 0, known)
    np.testing.assert_array_equal(seen["content"][seen["row"][known]], content.values(row[known]))
    assert seen["fit"] == log.num_authors + (content.from_ms <= log.split.p1_ms).sum() < (
        log.num_authors + content.from_ms.size)


@pytest.mark.parametrize("kind", ["with_content", "views_only"])
def test_what_happens_after_p1_changes_neither_codes_nor_batches(kind, request, monkeypatch, prepared):
    config, workdir, log = request.getfixturevalue(kind)
    p1 = log.split.p1_ms
    tokenizer = train_tokenizer(config, workdir, log)
    batches, groups = first_batches(monkeypatch, config, workdir, log, tokenizer)
    read = np.concatenate(groups)
    part = log.training_part()
    late = calibration.held_out(part.views.start_ms, config.training.held_out_share)
    assert 0 < late.sum() < 0.1 * late.size
    np.testing.assert_array_equal(np.sort(read), np.flatnonzero(~late))
    np.testing.assert_array_equal(part.views.author, log.views.author[log.training_views])
    assert part.views.stop_ms.max() <= p1
    if kind == "views_only":
        assert part.presence.stop_ms.max() <= p1
    for how in ("removed", "other rooms", "other times"):
        other_config, other_workdir, other = prepared(changed_after(log.tables, p1, how))
        assert other.split == log.split
        assert not np.array_equal(other.views.author, log.views.author) or not np.array_equal(
            other.views.start_ms, log.views.start_ms)
        changed = train_tokenizer(other_config, other_workdir, other)
        np.testing.assert_array_equal(changed.embedding_AxD, tokenizer.embedding_AxD)
        author, times = np.meshgrid(np.arange(log.num_authors), p1 - np.arange(0, 48 * HOUR_MS, HOUR_MS // 4))
        np.testing.assert_array_equal(changed.ids.codes_at(author, times), tokenizer.ids.codes_at(author, times))
        other_batches, _ = first_batches(monkeypatch, other_config, other_workdir, other, changed)
        for ours, theirs in zip(batches, other_batches, strict=True):
            for (name, a), (_, b) in zip(jax.tree_util.tree_leaves_with_path(ours),
                                         jax.tree_util.tree_leaves_with_path(theirs), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{how}: {jax.tree_util.keystr(name)}")


def test_a_prepared_log_is_not_read_again(make_config, source, tmp_path, monkeypatch):
    config = make_config()
    reads = []
    monkeypatch.setattr("experiments.common.log.read", lambda config: reads.append(1) or source)
    first, second = prepare(config, tmp_path), prepare(config, tmp_path)
    assert len(reads) == 1
    assert first.split == second.split
    for name in ("user_ptr", "author", "room", "start_ms", "stop_ms"):
        np.testing.assert_array_equal(getattr(first.views, name), getattr(second.views, name))
    assert second.tables.report == first.tables.report
    # A reader that died before the stage was marked is asked again.
    (tmp_path / "data" / workdir.DONE).unlink()
    prepare(config, tmp_path)
    assert len(reads) == 2


def test_views_are_the_watched_rows_of_the_log(with_content, source):
    _, _, log = with_content
    rows = source.interactions.filter(pl.col("watch_ms") > 0)
    np.testing.assert_array_equal(log.views.users(), rows["user_id"].to_numpy())
    np.testing.assert_array_equal(log.views.author, rows["author_id"].to_numpy())
    np.testing.assert_array_equal(log.views.stop_ms - log.views.start_ms, rows["watch_ms"].to_numpy())


def test_a_room_without_an_end_lives_no_longer_than_is_plausible(prepared, source, caplog):
    first, last = (pl.int_range(pl.len()) == row for row in (0, len(source.rooms) - 1))
    rooms = source.rooms.with_columns(pl.when(first | last).then(None).otherwise(pl.col("end_ms")).alias("end_ms"))
    _, _, log = prepared(dataclasses.replace(source, rooms=rooms))
    assert log.lifetimes.end_ms[-1] == log.split.end_ms  # still on air
    known = source.rooms[1:-1]
    longest = 2 * int(np.quantile((known["end_ms"] - known["start_ms"]).to_numpy(), 0.999))
    assert log.lifetimes.end_ms[0] == source.rooms["start_ms"][0] + longest < log.split.end_ms
    assert f"1 of {len(source.rooms)} rooms have no end and began too long ago" in caplog.text


def test_a_stage_is_done_with_one_set_of_settings(tmp_path):
    assert not workdir.is_done(tmp_path / "stage", {"a.b": 1})
    workdir.mark_done(tmp_path / "stage", {"a.b": 1, "a.weights": (1.0, 2.0), "a.gone": True})
    assert workdir.is_done(tmp_path / "stage", {"a.b": 1, "a.weights": (1.0, 2.0), "a.gone": True})
    with pytest.raises(ValueError) as error:
        workdir.is_done(tmp_path / "stage", {"a.b": 2, "a.weights": (1.0, 2.0), "a.new": 3})
    message = str(error.value)
    assert "a.b: 1 then, 2 now" in message
    assert "a.gone: True then, None now" in message
    assert "a.new: None then, 3 now" in message
    assert "a.weights" not in message
    assert str(tmp_path / "stage") in message


def test_only_what_the_tables_depend_on_binds_them(make_config):
    settings = data_settings(make_config())
    assert settings == data_settings(make_config(data__history_items=3, data__test_hours=1.0, seed=4))
    assert settings != data_settings(make_config(simulator__users=61))
    twitch = make_config(data__path="log.csv", data__source="twitch")
    assert data_settings(twitch) == {"data.source": "twitch", "data.path": "log.csv", "data.columns": "",
                                     "data.utc_offset_hours": 0.0, "data.room_gap_min": 30.0,
                                     "data.default_watch_s": 0.0, "data.bad_rows": "drop"}


def test_the_saved_config_is_the_config(make_config, tmp_path):
    config = make_config(seed=7)
    workdir.save_config(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == to_json(config)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_log_that_changed_under_its_name_is_told(make_config, source, tmp_path, monkeypatch):
    config, file = make_config(), tmp_path / "log.csv"
    config.data.source, config.data.path = "twitch", str(file)
    monkeypatch.setattr("experiments.common.log.read", lambda config: source)
    file.write_text("as it was")
    prepare(config, tmp_path / "w")
    prepare(config, tmp_path / "w")
    file.write_text("as it is now, longer")
    with pytest.raises(ValueError, match=r"log\.csv has 20 bytes now and had 9 when"):
        prepare(config, tmp_path / "w")
    file.unlink()  # what was read is kept: the file itself is not needed again
    prepare(config, tmp_path / "w")
