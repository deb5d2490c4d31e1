import numpy as np
import polars as pl
import pytest

from data_pipelines.log.content import author_content
from data_pipelines.readers.kuailive_m3 import read_kuailive_m3
from data_pipelines.simulator.formats import write_kuailive_m3
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
    held = before.interactions.filter("click").with_columns(
        (pl.col("gift_value") > 0).cast(pl.Float32).alias("gift_value"), pl.lit(False).alias("negative"))
    assert after.interactions.equals(held.select(after.interactions.columns))
    assert held["share"].sum() + held["follow"].sum() > 0
    columns = ["room_id", "author_id", "start_ms", "end_ms"]
    assert after.rooms.select(columns).equals(before.rooms.select(columns))
    assert after.segments.equals(before.segments)
    assert after.videos.equals(before.videos)
    assert after.users.equals(before.users)
    assert after.authors["source_id"].equals(before.authors["source_id"])
    assert after.rooms_are_true_lifetimes
    assert after.report.rows_read == after.report.rows_kept == len(held)
    assert after.report.notes == {"value of the column 'is_auto_play' of live_interaction.csv, which is not used":
                                  len(held)}


def test_the_same_log_gives_the_same_bytes_in_the_publishers_layout_too(folder, tmp_path):
    write_kuailive_m3(simulated(), tmp_path)
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes(), path
    for inner, names in (("live", ("live_interaction.csv", "live_room_meta.parquet", "live_emb_128_ts")),
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
    everybody, some = read_kuailive_m3(folder), read_kuailive_m3(folder, limit_users=3)
    assert some.interactions.equals(everybody.interactions.filter(pl.col("user_id") < 3))
    assert some.videos.equals(everybody.videos.filter(pl.col("user_id") < 3))
    entered = some.interactions["room_id"].unique().implode()
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
        "room that live_room_meta does not have": 1,
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
    ({"views": [VIEWS[0], "3,5,99,1,2,1,0,0,1,0,0,0"]}, ["live_interaction.csv, line 2, column live_id: 99", "a gift",
                                                         "--drop_unknown_rooms"]),
    ({"views": [*VIEWS, "3,5,70,9,8,1,0,0,0,0,0,0"]}, ["line 5, column live_play_end_timestamp: 8 is before"]),
    ({"views": [VIEWS[0], "3,5,70,9,,,0,0,0,0,0,0"]}, ["line 2, column play_duration", "empty"]),
    ({"views": [VIEWS[0], "3,5,70,9,9,-4,0,0,0,0,0,0"]}, ["line 2, column play_duration: -4.0 is negative"]),
    ({"views": [VIEWS[0], "3,5,70,9,9,4,-1,0,0,0,0,0"]}, ["line 2, column like_cnt: -1 is negative"]),
    ({"views": [VIEWS[0], "3,5,70,soon,9,4,1,0,0,0,0,0"]}, ["line 2, column live_play_start_timestamp: 'soon'"]),
    ({"rooms": ROOMS | {"end_timestamp": [9000, 1999]}}, ["live_room_meta.parquet, row 2, column end_timestamp: 1999"]),
    ({"rooms": ROOMS | {"start_timestamp": [-1, 5]}}, ["row 1, column start_timestamp: -1 is negative"]),
    ({"rooms": ROOMS | {"author_id": ["a", "6"]}}, ["row 1, column author_id", "not a whole number"]),
    ({"rooms": {"live_id": [1]}}, ["live_room_meta.parquet lacks the column 'author_id'"]),
    ({"segments": SEGMENTS | {"timestamp": [5, None, 6]}}, ["part0.parquet, row 2, column timestamp", "is empty"]),
    ({"segments": SEGMENTS | {"feature_128": [[1.0], [1.0, 2.0], [1.0]]}}, ["row 2, column feature_128: 2 numbers"]),
    ({"segments": SEGMENTS | {"feature_128": [[1.0], [np.inf], [1.0]]}}, ["row 2, column feature_128", "not finite"]),
    ({"segments": SEGMENTS | {"feature_128": [1.0, 2.0, 3.0]}}, ["column feature_128: holds Float64"]),
])
def test_bad_content_names_file_row_column_and_the_remedy(tmp_path, parts, said):
    with pytest.raises(ValueError) as error:
        read_kuailive_m3(write(tmp_path, **parts))
    for part in said:
        assert part in str(error.value)


def test_missing_and_damaged_files(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "live_emb_128_ts" / "part0.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match=r"part0.parquet cannot be read"):
        read_kuailive_m3(folder)
    (folder / "live_emb_128_ts" / "part0.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="no .parquet and no .csv"):
        read_kuailive_m3(folder)
    (folder / "live_room_meta.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"live_room_meta.parquet is missing \(nor is it in live/\)"):
        read_kuailive_m3(folder)
    with pytest.raises(ValueError, match="limit_users=0"):
        read_kuailive_m3(folder, limit_users=0)
