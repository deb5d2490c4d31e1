"""Figures and pictures of a log, on small logs made by hand."""

import dataclasses
import html.parser

import numpy as np
import polars as pl
import pytest

from data_pipelines import report
from data_pipelines.pictures import log_figures
from data_pipelines.tables import AUTHORS, HOUR_MS, INTERACTIONS, ROOMS, USERS, ReadReport, Tables

WIDTH = 4


def log() -> Tables:
    """One person returns to author 0 every day and visits author 1 once; 50 segments of each room drift by degrees."""
    rooms = [(day, 0, day * 24 * HOUR_MS, day * 24 * HOUR_MS + 2 * HOUR_MS, -1, -1) for day in range(40)]
    rooms.append((40, 1, 12 * HOUR_MS, None, -1, -1))
    rows = [(0, day, 0, day * 24 * HOUR_MS, HOUR_MS, True, int(day < 4), 0, 0, 0, 0.0, False) for day in range(40)]
    rows.append((0, 40, 1, 12 * HOUR_MS, 60_000, True, 0, 0, 0, 0, 2.5, False))
    rows.append((0, 40, 1, 13 * HOUR_MS, 0, False, 0, 0, 0, 0, 0.0, True))
    interactions = pl.DataFrame(rows, schema=INTERACTIONS, orient="row").sort("start_ms")
    angle = np.arange(50) * 0.02
    values = np.tile(np.stack([np.cos(angle), np.sin(angle), 0 * angle, 0 * angle], -1), (41, 1)).astype(np.float32)
    values[-50:] = np.roll(values[-50:], 2, axis=1)  # author 1 is about something else
    segments = pl.DataFrame({"room_id": np.repeat(np.arange(41, dtype=np.int32), 50),
                             "end_ms": np.tile(np.arange(1, 51) * 30_000, 41),
                             "embedding": pl.Series(values, dtype=pl.Array(pl.Float32, WIDTH))})
    return Tables(interactions, pl.DataFrame(rooms, schema=ROOMS, orient="row"),
                  pl.DataFrame([(0, "a"), (1, "b")], schema=AUTHORS, orient="row"),
                  pl.DataFrame([(0, "u")], schema=USERS, orient="row"),
                  ReadReport("<b>log & co</b>", 45, 42, {"blank line": 3}), segments=segments)


def test_figures_by_hand():
    tables = log()
    views = tables.interactions.filter(pl.col("watch_ms") > 0)
    figures = log_figures.summary(tables)
    assert (figures["people"], figures["watched views"], figures["shown but not entered"]) == (1, 41, 1)
    assert figures["rooms still on air"] == 1
    assert figures["repeat share (last 16 views)"] == pytest.approx(39 / 41)
    assert figures["share of the busiest 1 % of authors"] == pytest.approx(40 / 41)
    rates = log_figures.objective_rates(tables)
    assert rates["like"] == pytest.approx(400 / 41)
    assert rates["gift"] == rates["negative"] == pytest.approx(100 / 41)
    assert rates["share"] == 0
    # The epoch was a Thursday; eight hours east of it, midnight is eight in the morning.
    share = log_figures.hour_of_week(views["start_ms"].to_numpy(), 8.0)
    assert share.sum() == pytest.approx(1)
    assert share[3 * 24 + 8] == pytest.approx(6 / 41)
    hours, count = log_figures.rooms_on_air(tables)
    assert hours[-1] == pytest.approx(39 * 24 + 1)
    assert count[0] == 1
    assert set(count.tolist()) == {0, 1}
    # The room whose end was lost: twice the life of all others, not to the end of the log.
    assert count[(hours > 13) & (hours < 16)].min() == 1
    assert count[(hours > 17) & (hours < 23)].max() == 0


def test_repeats_by_how_many_views_came_before():
    before, share = log_figures.repeat_by_experience(log().interactions.filter(pl.col("watch_ms") > 0))
    assert before.tolist() == []  # no bucket holds 20 views
    longer = pl.concat([log().interactions.filter(pl.col("watch_ms") > 0).with_columns(user_id=pl.lit(u, pl.Int32))
                        for u in range(20)])
    before, share = log_figures.repeat_by_experience(longer)
    assert before.tolist() == [1, 2, 4, 8, 16, 32]
    np.testing.assert_allclose(share, [0, 1, 1, 1, 1, 1])  # the second view is of the author that is new


def test_drift_is_the_cosine_between_segments_so_far_apart():
    drift = log_figures.content_drift(log())
    assert drift["minutes"].tolist() == [0.5, 1, 2, 5, 10, 20]
    np.testing.assert_allclose(drift["same_room"], np.cos(0.04 * drift["minutes"]), atol=1e-6)
    assert drift["same_author"] > 0.9  # author 0's rooms are all about the same
    assert drift["anybody"] < drift["same_author"]


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_its_pictures_and_fetches_nothing(tmp_path):
    written = report.write_report(log(), tmp_path / "page.html")
    page = Page(written[0].read_text())
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(written) - 1 == 6  # all but the repeat share, for which there are too few views
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    assert not {"script", "link", "iframe", "b"} & {tag for tag, _ in page.tags}
    assert "<b>log & co</b>" in page.text  # as text, not as markup
    assert "dropped: blank line" in page.text
    assert page.text.count("The log has no data for this picture.") == 1


def test_a_log_of_nothing_is_a_page_without_pictures(tmp_path):
    empty = dataclasses.replace(log(), interactions=pl.DataFrame(schema=INTERACTIONS), rooms=pl.DataFrame(schema=ROOMS),
                                segments=None)
    written = report.write_report(empty, tmp_path / "page.html")
    assert len(written) == 1
    assert written[0].read_text().count("no data for this picture") == 7
