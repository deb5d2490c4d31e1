"""The tokenizer's artefact: refused by name where it does not fit; authors never seen; recall; lives of rooms."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest

from data_pipelines.log.content import Pools, author_content
from experiments.common import fingerprint
from experiments.reports import run_page
from experiments.reports.figures import code_colours, lives_plot
from experiments.stages import tokenizer
from experiments.studies.refresh import until
from onelive_jax.tokenizer import semantic_ids
from onelive_jax.training import checkpoints


def test_towers_of_another_tokenizer_are_taken_as_they_are(finished, tmp_path):
    trained = finished.trained
    static = dataclasses.replace(finished.config, tokenizer=dataclasses.replace(finished.config.tokenizer,
                                                                                follow_content=False))
    made = tokenizer.train_tokenizer(static, tmp_path, trained.log, trained.tokenizer)
    np.testing.assert_array_equal(made.embedding_AxD, trained.tokenizer.embedding_AxD)
    np.testing.assert_array_equal(made.ids.codes, trained.tokenizer.ids.codes_at(np.arange(made.ids.num_authors), 0))
    for figure in ("recall", "training_views"):
        assert made.figures[figure] == trained.tokenizer.figures[figure]
    assert sum(made.figures["training_views"].values()) == trained.log.training_views.size


def test_an_artefact_of_another_version_width_or_log_is_refused_by_name(finished, tmp_path):
    config, log = finished.config, finished.trained.log
    shutil.copytree(finished.workdir / "tokenizer", tmp_path / "tokenizer")
    place = tmp_path / "tokenizer" / "artifact"
    other = dataclasses.replace(log, views=dataclasses.replace(log.views, start_ms=log.views.start_ms + 1))
    with pytest.raises(ValueError, match=r"tokenizer was made of another log \(hash of the views: \w+ then, \w+ now\).*"
                                         "--workdir"):
        tokenizer.train_tokenizer(config, tmp_path, other)
    arrays, meta = checkpoints.load_artifact(place, tokenizer.KIND, tokenizer.VERSION)
    assert meta["settings"] == json.loads(json.dumps(tokenizer.settings_of(config)))
    assert meta["log"] == fingerprint.fingerprint(log)
    assert set(meta["packages"]) == {"onelive_jax", "jax", "flax", "numpy"}
    segments = log.tables.segments
    vectors = segments["embedding"].to_numpy().copy()
    vectors[-1, 0] += 1
    wider = np.concatenate([vectors, vectors[:, :1]], axis=1)
    for changed, named in ((vectors, r"\(hash of the content: \w+ then, \w+ now\)"),
                           (wider, rf"\(width of the content: {vectors.shape[1]} then, {wider.shape[1]} now; hash")):
        told = segments.with_columns(embedding=pl.Series(changed, dtype=pl.Array(pl.Float32, changed.shape[1])))
        other = dataclasses.replace(log, tables=dataclasses.replace(log.tables, segments=told))
        with pytest.raises(ValueError, match=named):
            tokenizer.load_tokenizer(config, tmp_path, other)
    checkpoints.save_artifact(place, arrays, meta | {"log": meta["log"] | {"users": 59}})
    with pytest.raises(ValueError, match=r"\(people: 59 then, 60 now\)"):
        tokenizer.load_tokenizer(config, tmp_path, log)
    checkpoints.save_artifact(place, arrays | {"embedding": np.zeros((20, 9), np.float32)}, meta)
    with pytest.raises(ValueError, match=r"embeddings 9 wide and 2 x 4 codes; config.tokenizer says dim=8"):
        tokenizer.load_tokenizer(config, tmp_path)
    checkpoints.save_artifact(place, arrays, meta | {"version": 1})
    with pytest.raises(ValueError, match=r"'onelive-tokenizer' version 1, but 'onelive-tokenizer' version 3 is needed"):
        tokenizer.load_tokenizer(config, tmp_path)


def test_titles_are_content_where_there_are_no_segments(finished):
    log = finished.trained.log
    rooms = log.tables.rooms.with_columns(title_embedding=pl.lit(0, pl.Int32))

    def stated(value, rooms=rooms):
        titles = pl.DataFrame({"title_id": [0], "embedding": pl.Series([[value, 2.0]], dtype=pl.Array(pl.Float32, 2))})
        return fingerprint.fingerprint(dataclasses.replace(log, tables=dataclasses.replace(
            log.tables, segments=None, titles=titles, rooms=rooms)))

    one = stated(1.0)
    assert (one["segments"], one["content_width"]) == (0, 2)
    assert one == stated(1.0)
    assert fingerprint.other_log(one, stated(3.0)).startswith("hash of the content: ")
    assert fingerprint.other_log(one, stated(1.0, rooms.with_columns(title_embedding=pl.lit(-1, pl.Int32))))
    nothing = fingerprint.fingerprint(dataclasses.replace(log, tables=dataclasses.replace(
        log.tables, segments=None, titles=None)))
    assert nothing["content_width"] == 0


def test_segments_as_they_come_get_the_ids_that_the_whole_log_gives_them(finished):
    """Pools, towers, codes, table: hour by hour from a moment on, against all at once."""
    log, made = finished.trained.log, finished.trained.tokenizer
    content, start = author_content(log.tables, log.split.p1_ms), log.split.p1_ms
    pools, ids = Pools.of(content, start), until(made.ids, start + 1)
    hour, late, came = 3_600_000, 0, 0
    for low in range(start, start + 24 * hour, hour):
        rows = np.flatnonzero((content.from_ms > low) & (content.from_ms <= low + hour))
        came += rows.size
        taken, values = pools.add(content.author[rows], content.from_ms[rows], content.vectors[content.vector[rows]])
        rows = rows[taken]
        more = ids.extend(content.author[rows], content.from_ms[rows],
                          made.encoder.codes(content.author[rows], values))
        ids, late = more.table, late + more.late
    everyone, moments = np.arange(log.num_authors)[:, None], start + hour // 2 * np.arange(48)
    np.testing.assert_array_equal(ids.codes_at(everyone, moments), made.ids.codes_at(everyone, moments))
    assert late == 0 < came


def test_recall_of_the_towers_alone_is_what_a_loop_finds(finished):
    config, made, log = finished.config, finished.trained.tokenizer, finished.trained.log
    found, views, c = made.figures["recall"], log.views, config.tokenizer
    rows = [row for user in range(views.num_users) for row in range(views.user_ptr[user] + 1, views.user_ptr[user + 1])
            if log.split.p1_ms <= views.start_ms[row] < log.split.p2_ms]
    assert (found["views"], found["authors"]) == (len(rows), 20)
    assert list(found)[:3] == ["recall@10", "recall@64", "recall@128"]
    assert 0 < found["recall@10"] < found["recall@64"] == found["recall@128"] == 1
    assert "towers alone, recall@10 0." in tokenizer.recall_line(made.figures)
    content, hits = author_content(log.tables, log.split.p1_ms), 0
    for row in rows:
        before = np.arange(row - c.history_items, row)
        seen = before >= views.user_ptr[views.users()[row]]
        before = np.maximum(before, 0)
        at = content.row_at(views.author[before], views.start_ms[before])
        user = made.encoder.towers.users(views.author[before][None], seen[None], content.values(at)[None],
                                         (at >= 0)[None])
        scores = (user @ made.embedding_AxD.T)[0]
        hits += (scores >= scores[views.author[row]]).sum() <= 10
    assert found["recall@10"] == pytest.approx(hits / len(rows), abs=1.5 / len(rows))
    assert "no validation view" in tokenizer.recall_line({"recall": {"views": 0}})


def test_side_features_are_read_and_can_be_switched_off(finished, make_config, tmp_path):
    figures, log = finished.trained.tokenizer.figures, finished.trained.log
    assert figures["side_features"]["users"] is None  # the simulator tells nothing of people
    assert figures["side_features"]["authors"]["columns"] == 1
    assert finished.trained.tokenizer.encoder.towers.attributes_AxS.shape == (20, 1)
    assert "attributes" in finished.trained.tokenizer.encoder.towers.params["author_tower"]
    of_users, of_authors = tokenizer.side_features_of(dataclasses.replace(log, tables=dataclasses.replace(
        log.tables, users=log.tables.users.with_columns(age=pl.col("user_id") % 3))))
    assert of_users.names == ["age=0", "age=1", "age=2"]
    assert of_authors.names == ["fans"]
    config = make_config(tokenizer__side_features=False, tokenizer__steps=1)
    off = tokenizer.train_tokenizer(config, tmp_path, log)
    assert off.encoder.towers.attributes_AxS is None
    assert "attributes" not in off.encoder.towers.params["author_tower"]


def test_lives_of_rooms_say_how_ids_moved(finished, tmp_path):
    log, made = finished.trained.log, finished.trained.tokenizer
    assert len(made.lives) == tokenizer.LIVES
    assert len({life["author"] for life in made.lives}) == len(made.lives)
    views = np.bincount(log.views.room[log.training_views], minlength=len(log.tables.rooms))
    assert made.lives[0]["views"] == views.max()
    for life in made.lives:
        start = log.tables.rooms["start_ms"][life["room"]]
        for minute, *codes in life["moves"]:
            moment = start + round(60_000 * minute) + 4000  # minutes are rounded to a tenth
            np.testing.assert_array_equal(made.ids.codes_at(life["author"], moment), codes)
        assert 0 < life["moves"][0][0] <= life["moves"][-1][0] <= life["minutes"]
    busy = made.lives[0]
    ends = log.tables.segments.filter(pl.col("room_id") == busy["room"])["end_ms"].to_numpy()
    moving = semantic_ids.IdTable.dynamic(np.zeros((20, 2), int), [busy["author"]] * 2, ends[[2, 5]], [[3, 1], [3, 2]])
    moved = tokenizer.room_lives(log, moving)[0]
    assert [codes for _, *codes in moved["moves"]] == [[0, 0], [3, 1], [3, 2]]
    assert [minute for minute, *_ in moved["moves"][1:]] == pytest.approx(
        (ends[[2, 5]] - log.tables.rooms["start_ms"][busy["room"]]) / 60_000, abs=0.051)
    still = dataclasses.replace(log, tables=dataclasses.replace(log.tables, segments=None))
    assert tokenizer.room_lives(still, made.ids) == []
    page = (finished.workdir / "report.html").read_text()
    assert "Ids over the life of a room" in page
    assert "nothing to move" not in page
    figures = dict(finished.trained.report, tokenizer=made.figures)
    assert "nothing to move" in run_page.write_html(tmp_path / "page.html", figures).read_text()


def test_strips_are_as_long_as_a_code_stayed():
    life = {"room": 5, "author": 2, "views": 9, "minutes": 10.0, "moves": [[1.0, 3, 0], [4.0, 3, 1], [6.0, 2, 1]]}
    axes = lives_plot([life, dict(life, minutes=20.0)]).axes
    bars = [(bar.get_x(), bar.get_width(), round(bar.get_y() + bar.get_height() / 2)) for bar in axes[0].patches]
    assert bars == [(0, 6, 0), (6, 4, 0), (0, 4, 1), (4, 6, 1)]
    assert axes[0].get_xlim() == (0, 20)
    assert "2 changes" in axes[0].get_title(loc="left")
    colours = code_colours(range(40))
    assert len({tuple(np.round(colour, 3)) for colour in colours}) == 40
    np.testing.assert_array_equal(code_colours([7]), colours[7:8])
