import numpy as np
import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.readers.kuailive import read_kuailive
from data_pipelines.readers.rows import Options
from data_pipelines.simulator.formats import write_kuailive
from tests.data_pipelines.logs_in_form import CLICKS, ROOMS, simulated, write

EVENT = "user_id,live_id,streamer_id,timestamp"


def rows(tables, *columns):
    return tables.interactions.select(*columns).rows()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kuailive")
    write_kuailive(simulated(), path)
    return path


def test_a_simulated_log_comes_back(folder):
    before, after = simulated(), read_kuailive(folder)
    held = before.interactions.with_columns(pl.lit(0, pl.Int32).alias("follow"), pl.lit(0, pl.Int32).alias("share"),
                                            pl.lit(False).alias("negative"))
    assert after.interactions.equals(held.select(after.interactions.columns))
    assert (~held["click"]).sum() > held["click"].sum()  # most of what is shown is not clicked
    assert (held["comment"].sum(), held["like"].sum()) > (0, 0)
    assert held["gift_value"].sum() > 0
    columns = ["room_id", "author_id", "start_ms", "end_ms", "category", "title_embedding"]
    assert after.rooms.select(columns).equals(before.rooms.select(columns))
    assert after.rooms["end_ms"].null_count() > 0
    assert after.titles.equals(before.titles)
    for name, key in (("users", "user_id"), ("authors", "author_id")):
        assert getattr(after, name).select(key, "source_id").equals(getattr(before, name).select(key, "source_id"))
    assert after.authors["fans_user_num"].cast(pl.Float32).equals(before.authors["fans"], check_names=False)
    assert after.rooms_are_true_lifetimes
    report = after.report
    assert report.rows_read == report.rows_kept + sum(report.merged.values()) + sum(report.dropped.values())
    assert report.notes["room.csv: row of a room that another row names, merged"] > 0


def test_the_same_log_gives_the_same_bytes_and_tables_survive_saving(folder, tmp_path):
    write_kuailive(simulated(), tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["click.csv", "comment.csv", "gift.csv", "like.csv", "negative.csv", "room.csv", "streamer.csv",
                     "title_embeddings.npy", "user.csv"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    tables = read_kuailive(folder)
    tables_lib.save(tables, tmp_path / "tables")
    back = tables_lib.load(tmp_path / "tables")
    assert back.interactions.equals(tables.interactions)
    assert back.report == tables.report


def test_limited_to_the_first_people(folder):
    everybody, some = read_kuailive(folder), read_kuailive(folder, Options(limit_users=4))
    assert some.interactions.equals(everybody.interactions.filter(pl.col("user_id") < 4))
    assert some.users.equals(everybody.users.head(4))
    assert some.rooms.equals(everybody.rooms)  # the world stays as large as it is
    reason = "row of a person beyond the first 4 (limit_users)"
    assert some.report.dropped[reason] > 0
    assert some.report.rows_read == everybody.report.rows_read
    assert read_kuailive(folder, Options(limit_users=10_000)).interactions.equals(everybody.interactions)
    with pytest.raises(ValueError, match="limit_users=0"):
        Options(limit_users=0)


def test_two_files_are_enough_and_ids_are_numbered_in_order(tmp_path):
    tables = read_kuailive(write(tmp_path))
    assert tables.users["source_id"].to_list() == ["9", "10"]
    assert tables.authors["source_id"].to_list() == ["5", "6"]
    assert rows(tables, "user_id", "room_id", "author_id", "start_ms", "watch_ms", "click", "negative") == [
        (0, 1, 1, 2500, 0, True, False), (1, 0, 0, 1500, 400, True, False), (1, 0, 0, 3000, 100, True, False)]
    assert tables.rooms.select("source_id", "end_ms", "category", "title_embedding").rows() == [
        ("70", 9000, 0, -1), ("71", None, 1, -1)]
    assert tables.titles is None
    assert tables.report.notes == {"view of zero watch time": 1}


def test_author_id_text_ids_and_other_file_names(tmp_path):
    rooms = [ROOMS[0].replace("streamer_id", "author_id"), "20250504,70,b,1,1000,9000,shop,0",
             "20250504,71,a,1,2000,,song,1"]
    clicks = [CLICKS[0].replace("streamer_id", "author_id"), "u,70,b,1500,400", "t,71,a,2500,0"]
    files = {"mapped_room.csv": rooms, "click.csv": clicks, "author.csv": ["author_id,gender", "b,M", "c,F"]}
    tables = read_kuailive(write(tmp_path, files))
    assert tables.authors.select("source_id", "gender").rows() == [("a", -1), ("b", 1), ("c", 0)]
    assert tables.users["source_id"].to_list() == ["t", "u"]
    assert rows(tables, "author_id") == [(0,), (1,)]


def test_events_join_the_last_click_before_them(tmp_path):
    tables = read_kuailive(write(
        tmp_path,
        comment=[EVENT, "10,70,5,1500", "10,70,5,2999", "10,70,5,8000", "10,70,5,1499", "9,70,5,5000"],
        like=[EVENT, "9,71,6,2500", "9,71,6,2500"],
        gift=[EVENT + ",gift_price", "10,70,5,1600,2", "10,70,5,1700,0.5", "9,70,5,1700,7"],
        # Within the first view; after it; and somebody who never entered the room.
        negative=[EVENT, "10,70,5,1900", "10,70,5,1901", "9,70,5,1000", "9,70,5,1000"]))
    assert rows(tables, "user_id", "start_ms", "click", "comment", "like", "gift_value", "negative") == [
        (0, 1000, False, 0, 0, 0.0, False), (0, 2500, True, 0, 2, 0.0, False), (1, 1500, True, 2, 0, 2.5, False),
        (1, 1901, False, 0, 0, 0.0, False), (1, 3000, True, 1, 0, 0.0, False)]
    assert tables.report.dropped == {
        "comment.csv: the person has no view of the room before": 2,
        "gift.csv: the person has no view of the room before": 1, "negative.csv: repeated row": 1}
    assert tables.report.merged == {f"{name}.csv: row that belongs to a view": n for name, n in
                                    (("comment", 3), ("like", 2), ("gift", 2))} | {
        "negative.csv: row inside a view of the room, which was clicked": 1}
    assert (tables.report.rows_read, tables.report.rows_kept) == (17, 5)


def test_rooms_with_several_rows_or_no_length_and_clicks_that_do_not_fit(tmp_path):
    rooms = [ROOMS[0], "20250505,70,5,1,1200,8000,other,3", "20250504,70,5,1,1000,,shop,2",
             "20250504,71,6,1,2000,2000,,", "20250505,72,6,,3000,,1,9", "20250506,72,6,,3000,,1,9"]
    clicks = [*CLICKS, "10,70,5,1500,300", "9,99,6,2500,1", "9,70,6,9500,1"]
    tables = read_kuailive(write(tmp_path, room=rooms, click=clicks))
    assert tables.rooms.select("start_ms", "end_ms", "category", "live_type").rows() == [
        (1000, 8000, 2, 1), (2000, 2001, -1, 1), (3000, None, 0, -1)]
    assert (1, 1500, 400) in rows(tables, "user_id", "start_ms", "watch_ms")
    assert tables.report.dropped == {
        "click.csv: live_id is a room that room.csv does not have": 1,
        "click.csv: repeats person, room and time of another row (the longest watch is kept)": 1}
    assert tables.report.notes == {
        "room.csv: row of a room that another row names, merged": 2,
        "room.csv: room that ends when it starts, given one millisecond": 1,
        "click.csv: streamer_id differs from room.csv, which is believed": 1,
        "view that begins before its room does, or after its end": 2, "view of zero watch time": 1}


def test_side_features(tmp_path):
    user = ["user_id,age,gender,fans_num,accu_watch_live_cnt,reg_timestamp,is_live_author,onehot_feat0,device_price",
            "10,24-30,M,100-500,3,1970-01-02,1,0,5000+",
            "11,UNKNOWN,F,,1,1970-01-01 00:00:01,0,0,0-99", "9,18-23,,5000+,2.5,1000,0,1,",
            "9,18-23,F,0-10,1,1000,0,1,",
            "8,0-17,F,,,,,,0-99"]
    users = read_kuailive(write(tmp_path, user=user)).users
    assert users["source_id"].to_list() == ["8", "9", "10", "11"]
    assert users.drop("user_id", "source_id").rows(named=True) == [
        {"age": 0, "gender": 0, "fans_num": -1, "accu_watch_live_cnt": None, "reg_timestamp": None,
         "is_live_streamer": -1, "onehot_feat0": -1, "device_price": 0},
        {"age": 1, "gender": -1, "fans_num": 1, "accu_watch_live_cnt": 2.5, "reg_timestamp": 1000.0,
         "is_live_streamer": 0, "onehot_feat0": 1, "device_price": -1},
        {"age": 2, "gender": 1, "fans_num": 0, "accu_watch_live_cnt": 3.0, "reg_timestamp": 86_400_000.0,
         "is_live_streamer": 1, "onehot_feat0": 0, "device_price": 1},
        {"age": -1, "gender": 0, "fans_num": -1, "accu_watch_live_cnt": 1.0, "reg_timestamp": 1000.0,
         "is_live_streamer": 0, "onehot_feat0": 0, "device_price": 0}]
    counts = [name for name, dtype in users.schema.items() if dtype == pl.Float64]
    assert sorted(counts) == ["accu_watch_live_cnt", "reg_timestamp"]


@pytest.mark.parametrize("name", ["title_embeddings.npy", "title_embeddings.npz", "title_embeddings.pca128.npz"])
def test_titles_of_either_format(tmp_path, name):
    values = np.random.default_rng(0).normal(size=(2, 128)).astype(np.float16)
    write(tmp_path, room=[*ROOMS, "20250504,72,6,1,2000,,,"])
    (np.save if name.endswith("npy") else np.savez)(tmp_path / name, values)
    tables = read_kuailive(tmp_path)
    assert tables.rooms["title_embedding"].to_list() == [0, 1, -1]
    assert np.array_equal(tables.titles["embedding"].to_numpy(), values.astype(np.float32))


ROOM, CLICK, GIFT = ROOMS[0], CLICKS[0], EVENT + ",gift_price"


@pytest.mark.parametrize("files, said", [
    ({"gift": [GIFT, "10,70,5,1600,1", "10,99,5,1600,1"]}, ["gift.csv, line 3, column live_id: 99", "room.csv does not",
                                                            "--bad_rows=drop"]),
    ({"like": [EVENT, "10,99,5,1600"]}, ["like.csv, line 2, column live_id: 99"]),
    ({"gift": [GIFT, "10,70,5,1600,-1"]}, ["gift.csv, line 2, column gift_price: '-1'", "0 or more"]),
    ({"gift": [GIFT, "10,70,5,1600,two"]}, ["gift.csv, line 2, column gift_price: 'two' is not a number"]),
    ({"click": [CLICK, "10,70,5,1500,400", "", '10,70,5,soon,400']}, ["click.csv, line 4, column timestamp: 'soon'"]),
    ({"click": [CLICK, "10,70,5,-1,400"]}, ["click.csv, line 2, column timestamp: '-1' is in another unit"]),
    ({"click": [CLICK, "10,70,5,1500,-400"]}, ["line 2, column watch_live_time: '-400' is not a length"]),
    ({"click": [*CLICKS, "10,70,5,9999999999999999,400"]}, ["line 5, column timestamp", "in another unit"]),
    ({"click": [CLICK, "10,70,5,1500"]}, ["click.csv, line 2: 4 cells", "first line has 5"]),
    ({"click": [*CLICKS, "10,70,5,1500"]}, ["click.csv, line 5: 4 cells", "first line has 5"]),
    ({"click": [*CLICKS, "10,70,5,1500,"]}, ["line 5, column watch_live_time is missing"]),
    ({"click": [CLICK, "10,70,5,1500,1,1"]}, ["line 2: 6 cells", "first line has 5"]),
    ({"click": [CLICK, "10,70,5,1500,1", "7.5,70,5,1500,1"]}, ["line 3, column user_id: '7.5' is not an id"]),
    ({"click": [CLICK, "10,70,5,1500,1", "3.38429E+10,70,5,1500,1"]}, ["line 3, column user_id", "is not an id"]),
    ({"room": [ROOM, "20250504,70,5,1,1000,10.5,,"]}, ["line 2, column end_timestamp: '10.5' is not a time"]),
    ({"room": [ROOM, "20250504,70,5,1,,2000,,"]}, ["line 2, column start_timestamp is missing"]),
])
def test_where_bad_rows_stop_the_reader_the_first_is_named_and_otherwise_all_are_counted(tmp_path, files, said):
    folder = write(tmp_path, **files)
    with pytest.raises(ValueError) as error:
        read_kuailive(folder, Options(stop=True))
    for part in said:
        assert part in str(error.value)
    if "room" not in files:
        report = read_kuailive(folder).report
        assert sum(report.dropped.values()) == 1
        assert sum(map(len, report.examples.values())) == 1


@pytest.mark.parametrize("files, said", [
    ({"gift": [EVENT, "10,70,5,1600"]}, ["gift.csv, line 1", "lacks the column 'gift_price'"]),
    ({"click": [CLICK + ",User_ID", "10,70,5,1500,400,5"]}, ["line 1", "'user_id' twice"]),
    ({"room": [ROOM]}, ["room.csv", "no row below"]),
    ({"room": ["live_id,author_id,start_timestamp"]}, ["room.csv, line 1", "lacks the column 'end_timestamp'"]),
])
def test_files_without_a_needed_column_are_refused(tmp_path, files, said):
    with pytest.raises(ValueError) as error:
        read_kuailive(write(tmp_path, **files))
    for part in said:
        assert part in str(error.value)


def test_what_is_not_known_of_rooms_and_people_is_counted(tmp_path):
    tables = read_kuailive(write(
        tmp_path,
        room=[ROOM, *ROOMS[1:], "20250504,72,5,1,1000,999,,", "20250504,73,5,1,1000,0,,", "20250504,74,5,1,1000,-1,,",
              "20250504,75,5,1,1000,253402300799000,,", "20250505,70,6,1,1000,9500,,"],
        user=["user_id,fans_num,reg_timestamp", "10,many,spring", "9,7,0000-00-00", "8,,2014/07/03"]))
    assert tables.rooms["end_ms"].to_list() == [9000, None, None, None, None, None]
    assert tables.rooms["author_id"].to_list()[0] == 0
    assert tables.users.select("source_id", "fans_num", "reg_timestamp").rows() == [
        ("8", None, 1404345600000.0), ("9", 7.0, None), ("10", None, None)]
    assert tables.report.examples == {
        "user.csv: fans_num is not a number, nor a range like 100-500 or 5000+, read as unknown": ["user.csv, line 2: "
                                                                                                   "many"],
        "user.csv: reg_timestamp is not a day (2024-12-31) or a time, read as unknown": ["user.csv, line 2: spring"],
        "room.csv: end_timestamp is no date, read as unknown": ["room.csv, line 6: -1",
                                                                "room.csv, line 7: 253402300799000"],
        "room.csv: end_timestamp is before the start of the room, read as unknown": ["room.csv, line 4: 999",
                                                                                     "room.csv, line 5: 0"],
        "room.csv: streamer_id is another streamer of a room that has one": ["room.csv, line 8: 6"]}


def test_files_with_a_header_only(tmp_path):
    tables = read_kuailive(write(tmp_path, click=CLICKS[:1], gift=[GIFT], comment=[EVENT], negative=[EVENT]))
    assert (len(tables.interactions), len(tables.users), len(tables.rooms)) == (0, 0, 2)
    (tmp_path / "like.csv").write_text("")
    with pytest.raises(ValueError, match="like.csv: the file is empty"):
        read_kuailive(tmp_path)
    (tmp_path / "like.csv").write_bytes(b"user_id,live_id,streamer_id,timestamp\n\xff\xfe,1,1,1\n")
    with pytest.raises(ValueError, match=r"like.csv: not a CSV file in UTF-8 .*save it as UTF-8"):
        read_kuailive(tmp_path)


def test_events_of_unknown_rooms_are_counted_with_examples(tmp_path):
    tables = read_kuailive(write(tmp_path, gift=[GIFT, "10,70,5,1600,1", "10,99,5,1600,1"]))
    assert tables.interactions["gift_value"].sum() == 1
    reason = "gift.csv: live_id is a room that room.csv does not have"
    assert tables.report.dropped == {reason: 1}
    assert tables.report.examples == {reason: ["gift.csv, line 3: 99"]}


def test_bad_titles_and_missing_files(tmp_path):
    titles = tmp_path / "a" / "title_embeddings.npy"
    folder = write(tmp_path / "a")
    np.save(titles, np.zeros((1, 4), np.float32))
    assert read_kuailive(folder).rooms["title_embedding"].to_list() == [0, -1]
    reason = "room.csv: live_name_id has no row in title_embeddings.npy, read as unknown"
    assert read_kuailive(folder).report.notes[reason] == 1
    np.save(titles, np.array([{"pickled": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read as a NumPy array"):
        read_kuailive(folder)
    np.save(titles, np.zeros((2, 4), np.float32))
    whole = titles.read_bytes()
    endless = whole.replace(b"(2, 4)", b"(99999999999, 4)")
    for damaged in (b"", whole[:20], whole[:-3], whole.replace(b"{", b"("), endless):
        titles.write_bytes(damaged)
        with pytest.raises(ValueError, match="title_embeddings.npy cannot be read as a NumPy array"):
            read_kuailive(folder)
    np.save(titles, np.zeros((2, 4), complex))
    with pytest.raises(ValueError, match="holds complex128"):
        read_kuailive(folder)
    np.save(titles, np.zeros(5))
    with pytest.raises(ValueError, match="two axes"):
        read_kuailive(folder)
    np.savez(folder / "title_embeddings.npz", np.zeros((2, 4)))
    with pytest.raises(ValueError, match="several files of title embeddings"):
        read_kuailive(folder)
    with pytest.raises(FileNotFoundError, match=r"It is in .*a: give that folder"):
        read_kuailive(tmp_path)
    (folder / "click.csv").unlink()
    with pytest.raises(FileNotFoundError, match="click.csv is missing"):
        read_kuailive(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_kuailive(tmp_path / "nowhere")
