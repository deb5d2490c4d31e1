import dataclasses

import numpy as np
import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.log.content import author_content
from data_pipelines.readers.kuailive_m3 import read_kuailive_m3
from data_pipelines.readers.rows import Options
from data_pipelines.simulator.formats import FAN_EDGES, write_kuailive_m3
from tests.data_pipelines.logs_in_form import simulated

VIEWS = ["user_id,author_id,live_id,live_play_start_timestamp,live_play_end_timestamp,play_duration,like_cnt,"
         "comment_cnt,send_gift_cnt,follow_author_cnt,share_cnt,is_auto_play",
         "3,5,70,1500,2000,400,1,2,3,1,4,0", "2,5,70,1500,,300,0,0,0,0,0,1", "2,6,71,2500,2600,,0,0,0,0,0,1"]
ROOMS = {"live_id": [70, 71], "author_id": [5, 6], "live_name": ["a", None], "start_timestamp": [1000, 2000],
         "end_timestamp": [9000, None], "live_duration": [8000, None]}
SEGMENTS = {"live_stream_id": [70, 70, 71], "segment_id": [1, 0, 0], "timestamp": [1600, 1500, 3000],
            "feature_128": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}


def write(folder, views=VIEWS, rooms=ROOMS, segments=SEGMENTS):
    (folder / "live_emb_128_ts").mkdir(parents=True)
    (folder / "live_interaction.csv").write_text("\n".join(views) + "\n")
    pl.DataFrame(rooms).write_parquet(folder / "live_room_meta.parquet")
    pl.DataFrame(segments).write_parquet(folder / "live_emb_128_ts" / "part0.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("m3")
    write_kuailive_m3(simulated(), path)
    return path


def test_a_simulated_log_comes_back(folder):
    before, after = simulated(), read_kuailive_m3(folder)
    held = before.interactions.with_columns(
        (pl.col("gift_value") > 0).cast(pl.Float32).alias("gift_value"), pl.lit(False).alias("negative"))
    assert (~held["click"]).sum() > held["click"].sum()
    assert after.interactions.equals(held.select(after.interactions.columns))
    assert held["share"].sum() + held["follow"].sum() > 0
    columns = ["room_id", "author_id", "start_ms", "end_ms"]
    assert after.rooms.select(columns).equals(before.rooms.select(columns))
    assert after.segments.equals(before.segments)
    assert after.videos.equals(before.videos)
    assert after.users.equals(before.users)
    assert after.authors["source_id"].equals(before.authors["source_id"])
    fans = np.digitize(before.authors["fans"].to_numpy(), FAN_EDGES, right=True)
    assert np.array_equal(after.authors["fans_user_num"].to_numpy(), np.unique(fans, return_inverse=True)[1])
    assert after.authors["gender"].to_list() == [0] * len(fans)  # U
    assert after.authors["age_segment"].to_list() == [-1] * len(fans)  # unknown
    assert after.rooms_are_true_lifetimes
    assert after.report.rows_read == after.report.rows_kept == len(held)
    assert after.report.notes == {}
    assert after.report.about == ["columns not used: is_auto_play"]


def test_the_same_log_gives_the_same_bytes_in_the_publishers_layout_too(folder, tmp_path):
    write_kuailive_m3(simulated(), tmp_path)
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes(), path
    for inner, names in (("live", ("live_interaction.csv", "live_room_meta.parquet", "live_emb_128_ts",
                                   "live_show.parquet")),
                         ("short_video", ("photo_play.parquet",))):
        (tmp_path / inner).mkdir()
        for name in names:
            (tmp_path / name).rename(tmp_path / inner / name)
    moved, flat = read_kuailive_m3(tmp_path), read_kuailive_m3(folder)
    assert moved.interactions.equals(flat.interactions)
    assert moved.segments.equals(flat.segments)
    assert moved.videos.equals(flat.videos)


def content_of_views(tables):
    """x_30s of every view: the last segment of its author that had ended when it began; zeros where there is none."""
    content, log = author_content(tables, 0), tables.interactions
    rows = content.row_at(log["author_id"].to_numpy(), log["start_ms"].to_numpy())
    return content.values(rows)[:, :content.width]


def test_segments_join_the_views_that_they_precede(folder):
    tables = read_kuailive_m3(folder)
    room, end = (tables.segments[name].to_numpy() for name in ("room_id", "end_ms"))
    author, values = tables.rooms["author_id"].to_numpy()[room], tables.segments["embedding"].to_numpy()
    expected = np.zeros((len(tables.interactions), values.shape[1]), np.float32)
    for view, (who, time) in enumerate(tables.interactions.select("author_id", "start_ms").rows()):
        known = np.flatnonzero((author == who) & (end <= time))
        if known.size:
            expected[view] = values[known[np.argmax(end[known])]]
    np.testing.assert_array_equal(content_of_views(tables), expected)
    assert expected.any(1).mean() > 0.5


def test_limited_to_the_first_people(folder):
    everybody, some = read_kuailive_m3(folder), read_kuailive_m3(folder, Options(limit_users=3))
    assert some.interactions.equals(everybody.interactions.filter(pl.col("user_id") < 3))
    assert some.videos.equals(everybody.videos.filter(pl.col("user_id") < 3))
    entered = some.interactions.filter("click")["room_id"].unique().implode()
    assert some.segments.equals(everybody.segments.filter(pl.col("room_id").is_in(entered)))
    assert 0 < len(some.segments) < len(everybody.segments)
    assert some.report.rows_read == some.report.rows_kept + sum(some.report.dropped.values())


def test_columns_by_hand(tmp_path):
    tables = read_kuailive_m3(write(tmp_path, [*VIEWS, "2,6,99,1,2,1,0,0,0,0,0,0", VIEWS[2]]))
    assert tables.interactions.drop("click", "negative").rows() == [
        (0, 0, 0, 1500, 300, 0, 0, 0, 0, 0.0), (0, 1, 1, 2500, 100, 0, 0, 0, 0, 0.0),
        (1, 0, 0, 1500, 400, 1, 2, 1, 4, 3.0)]
    assert tables.rooms["live_name"].to_list() == ["a", None]
    assert tables.segments.rows() == [(0, 1500, [3.0, 4.0]), (0, 1600, [1.0, 2.0]), (1, 3000, [5.0, 6.0])]
    assert tables.segments.schema["embedding"] == pl.Array(pl.Float32, 2)
    assert content_of_views(tables).tolist() == [[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]]
    assert tables.videos is None
    assert tables.report.dropped == {
        "live_id is a room that live_room_meta does not have": 1,
        "repeats person, room and time of another row (the longest watch is kept)": 1}


def test_times_with_a_clock_and_content_as_text(tmp_path):
    clock = ["user_id,streamer_id,live_id,live_play_start_timestamp,play_duration",
             "u,a,x,1970-01-01 00:00:01.500,400", "t,b,y,1970-01-01 00:00:02.500,100"]
    rooms = {"live_id": ["x", "y"], "author_id": ["a", "b"], "start_timestamp": [1000, 2000],
             "end_timestamp": [9000, None]}
    rooms |= {name: pl.Series(rooms[name], dtype=pl.Int64).cast(pl.Datetime("ms")) for name in
              ("start_timestamp", "end_timestamp")}
    segments = {"live_stream_id": ["x", "x"], "segment_id": [0, 0], "feature_128": ["[0.5, 1]", "2,3"],
                "timestamp": [1500.0, 1500.0]}
    folder = write(tmp_path, clock, rooms, segments)
    shards = folder / "live_emb_128_ts"
    pl.DataFrame(segments | {"timestamp": [3000, 4000]}).write_csv(shards / "part1.csv")
    tables = read_kuailive_m3(folder)
    assert tables.interactions.select("user_id", "author_id", "start_ms", "watch_ms").rows() == [
        (0, 1, 2500, 100), (1, 0, 1500, 400)]
    assert tables.rooms.select("start_ms", "end_ms").rows() == [(1000, 9000), (2000, None)]
    assert tables.segments.rows() == [(0, 1500, [0.5, 1.0]), (0, 3000, [0.5, 1.0]), (0, 4000, [2.0, 3.0])]
    assert tables.report.notes["segment that ends with another of its room, left out"] == 1


@pytest.mark.parametrize("parts, said", [
    ({"views": [VIEWS[0], "3,5,70,9,9,-4,0,0,0,0,0,0"]}, ["line 2, column play_duration: '-4' is not a length"]),
    ({"views": [VIEWS[0], "3,5,70,9,9,4,-1,0,0,0,0,0"]}, ["line 2, column like_cnt: '-1' is not a whole number"]),
    ({"views": [VIEWS[0], "3,5,70,9,9,4,1.9,0,0,0,0,0"]}, ["line 2, column like_cnt: '1.9' is not a whole number"]),
    ({"views": [VIEWS[0], "3,5,70,soon,9,4,1,0,0,0,0,0"]}, ["line 2, column live_play_start_timestamp: 'soon'"]),
    ({"views": [*VIEWS, "3,5,70.6,9,9,4,1,0,0,0,0,0"]}, ["line 5, column live_id: '70.6' is not an id"]),
    ({"views": [*VIEWS, "3,5,70,9,9,4,1,0,0,0,0"]}, ["line 5: 11 cells"]),
    ({"rooms": ROOMS | {"start_timestamp": [-1, 5]}}, ["row 1, column start_timestamp: -1 is in another unit"]),
    ({"segments": SEGMENTS | {"timestamp": [1600, None, 2600]}}, ["part0.parquet, row 2, column timestamp"]),
    ({"segments": SEGMENTS | {"feature_128": [[1.0], [1.0, 2.0], [1.0]]}}, ["row 2, column feature_128: 2 numbers"]),
    ({"segments": SEGMENTS | {"feature_128": [[1.0], [np.inf], [1.0]]}}, ["row 2, column feature_128", "not finite"]),
])
def test_where_bad_rows_stop_the_reader_the_first_is_named_and_otherwise_all_are_counted(tmp_path, parts, said):
    folder = write(tmp_path, **parts)
    with pytest.raises(ValueError) as error:
        read_kuailive_m3(folder, Options(stop=True))
    for part in said:
        assert part in str(error.value)
    report = read_kuailive_m3(folder).report
    assert sum(len(found) for found in report.examples.values()) >= 1


@pytest.mark.parametrize("parts, said", [
    ({"rooms": {"live_id": [1]}}, ["live_room_meta.parquet", "lacks the column 'author_id'"]),
    ({"segments": SEGMENTS | {"feature_128": [1.0, 2.0, 3.0]}}, ["column feature_128: holds Float64"]),
    ({"rooms": ROOMS | {"start_timestamp": [[1], [2]]}}, ["live_room_meta.parquet", "List"]),
])
def test_files_that_cannot_be_understood_are_refused(tmp_path, parts, said):
    with pytest.raises(ValueError) as error:
        read_kuailive_m3(write(tmp_path, **parts))
    for part in said:
        assert part in str(error.value)


def test_views_with_half_a_time_and_ends_that_are_none(tmp_path):
    views = [VIEWS[0], "3,5,70,1500,,400,0,0,0,0,0,0", "3,5,70,1900,1800,300,0,0,0,0,0,0",
             "3,5,70,2500,2600,,0,0,0,0,0,0", "3,5,70,3000,,,0,0,0,0,0,0", "2,6,70,3500,3600,100,0,0,0,0,0,0"]
    tables = read_kuailive_m3(write(tmp_path, views, ROOMS | {"end_timestamp": [9000, 1999]}))
    assert tables.interactions.select("user_id", "author_id", "start_ms", "watch_ms").rows() == [
        (0, 0, 3500, 100), (1, 0, 1500, 400), (1, 0, 1900, 300), (1, 0, 2500, 100)]
    assert tables.rooms["end_ms"].to_list() == [9000, None]
    assert tables.report.dropped == {"play_duration is missing, and so is live_play_end_timestamp": 1}
    assert tables.report.examples["live_play_end_timestamp is before the start of the view, read as unknown"] == [
        "live_interaction.csv, line 3: 1800"]
    assert tables.report.notes["author_id differs from live_room_meta, which is believed"] == 1


def test_impressions_events_and_answers(tmp_path):
    folder = write(tmp_path)
    pl.DataFrame({"user_id": [3, 2, 2, 9], "live_id": [71, 71, 70, 70], "show_timestamp": [2400, 2500, 1700, 1]}
                 ).write_parquet(folder / "live_show.parquet")
    for name, lines in (("live_comment", ["3,70,1501", "3,70,1502", "3,70,1503", "2,71,1"]),
                        ("live_like", ["3,70,1501", "2,71,2550"])):
        (folder / f"{name}.csv").write_text("\n".join(["user_id,live_id,timestamp", *lines]) + "\n")
    (folder / "live_questionnaire.csv").write_text("user_id,live_id,satisfaction\n2,71,4\n2,99,1\n3,71,1\n")
    tables = read_kuailive_m3(folder)
    # Of what was shown, 2 in 71 at 2500 is the view itself, 2 in 70 at 1700 is within one, and 9 is nobody.
    assert tables.interactions.select("user_id", "room_id", "start_ms", "click", "like", "comment", "satisfaction"
                                      ).rows() == [
        (0, 0, 1500, True, 0, 0, None), (0, 1, 2500, True, 1, 0, 4.0), (1, 0, 1500, True, 1, 3, None),
        (1, 1, 2400, False, 0, 0, None)]
    report = tables.report
    assert report.merged == {"live_comment: row that belongs to a view": 3, "live_like: row that belongs to a view": 2,
                             "live_questionnaire: row that belongs to a view": 1,
                             "live_show: row inside a view of the room, which was clicked": 2}
    assert report.rows_read == 16 == report.rows_kept + sum(report.merged.values()) + sum(report.dropped.values())
    tables_lib.save(tables, tmp_path / "tables")
    assert tables_lib.load(tmp_path / "tables").interactions.equals(tables.interactions)


def test_the_zone_of_clocks_is_checked_against_the_content(tmp_path):
    day = 1_746_288_000_000
    clock = lambda ms: pl.Series(ms, dtype=pl.Int64).cast(pl.Datetime("ms"))  # noqa: E731
    rooms = {"live_id": [70, 71], "author_id": [5, 6], "start_timestamp": clock([day, day + 7_200_000]),
             "end_timestamp": clock([day + 3_600_000, None])}
    views = [VIEWS[0], "3,5,70,2025-05-03 16:10:00,,400,1,2,3,1,4,0"]
    beijing = 8 * 3_600_000
    segments = {"live_stream_id": [70, 71], "segment_id": ["a", "b"], "feature_128": [[1.0], [2.0]],
                "timestamp": [day + 60_000 - beijing, day + 7_260_000 - beijing]}
    folder = write(tmp_path, views, rooms, segments)
    with pytest.raises(ValueError, match=r"0 of 2 rooms hold .*; 2 would .*give --utc_offset_hours=8$"):
        read_kuailive_m3(folder)
    tables = read_kuailive_m3(folder, Options(utc_offset_hours=8.0))
    assert tables.rooms["start_ms"].to_list() == [day - beijing, day + 7_200_000 - beijing]
    pl.DataFrame(segments | {"timestamp": [5 * day // 4, 6 * day // 5]}).write_parquet(
        folder / "live_emb_128_ts" / "part0.parquet")
    with pytest.raises(ValueError, match=r"0 of 2 rooms hold .*, whatever the zone"):
        read_kuailive_m3(folder)


def test_missing_and_damaged_files(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "live_emb_128_ts" / "part0.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match=r"part0.parquet cannot be read"):
        read_kuailive_m3(folder)
    (folder / "live_emb_128_ts" / "part0.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="no .parquet and no .csv"):
        read_kuailive_m3(folder)
    (folder / "live_room_meta.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"live_room_meta.csv \(or .parquet\) is missing, nor is it in live/"):
        read_kuailive_m3(folder)


def test_answers_come_back(tmp_path):
    before = simulated()
    log = before.interactions
    answers = pl.when("click").then(pl.Series([1.0, None, 4.5, None, 5.0], dtype=pl.Float32).gather(
        np.arange(len(log)) % 5)).alias("satisfaction")
    before = dataclasses.replace(before, interactions=log.with_columns(answers))
    write_kuailive_m3(before, tmp_path)
    after = read_kuailive_m3(tmp_path)
    assert after.interactions["satisfaction"].equals(before.interactions["satisfaction"])
    assert 0 < after.interactions["satisfaction"].null_count() < len(log)
