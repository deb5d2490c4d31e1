import gzip

import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.prepare import read_source
from data_pipelines.readers.rows import Options
from data_pipelines.readers.twitch import ROUND_MS, read_twitch

STOP = Options(stop=True)
HEADER = "user_id,stream_id,streamer_name,start_time,stop_time,community"
ROWS = ["10,900,bob,4,6,1", "9,900,bob,3,5,1", "10,34000000001,Ann,6,7,2", "9,34000000001,Ann,5,9,2",
        "10,901,bob,0,1,1"]


@pytest.fixture
def write(tmp_path):
    def write_lines(*lines, name="log.csv", end="\n"):
        path = tmp_path / name
        path.write_bytes((end.join(lines) + end).encode())
        return path
    return write_lines


def without_community(rows=ROWS):
    return [row.rsplit(",", 1)[0] for row in rows]


def test_times_ids_and_rooms(write):
    tables = read_twitch(write(HEADER, *ROWS))
    assert tables.users["source_id"].to_list() == ["9", "10"]  # numeric order
    assert tables.authors["source_id"].to_list() == ["Ann", "bob"]  # lexicographic: not all are numbers
    log = tables.interactions
    assert log.select("user_id", "author_id", "start_ms", "watch_ms").rows() == [
        (0, 1, 3 * ROUND_MS, 2 * ROUND_MS), (0, 0, 5 * ROUND_MS, 4 * ROUND_MS),
        (1, 1, 0, ROUND_MS), (1, 1, 4 * ROUND_MS, 2 * ROUND_MS), (1, 0, 6 * ROUND_MS, ROUND_MS)]
    assert log["click"].all()
    assert not log["negative"].any()
    assert tables.rooms.select("source_id", "author_id", "start_ms", "end_ms").rows() == [
        ("900", 1, 3 * ROUND_MS, 6 * ROUND_MS), ("901", 1, 0, ROUND_MS),
        ("34000000001", 0, 5 * ROUND_MS, 9 * ROUND_MS)]
    assert tables.rooms_are_true_lifetimes is False
    assert tables.segments is None
    assert (tables.report.rows_read, tables.report.rows_kept, tables.report.dropped) == (5, 5, {})


def test_both_forms_give_the_same_tables(write):
    with_header = read_twitch(write(HEADER, *ROWS))
    plain = read_twitch(write(*without_community()))
    for name in tables_lib.REQUIRED:
        assert getattr(plain, name).equals(getattr(with_header, name)), name
    assert "columns not used: community" in with_header.report.about
    assert "community" not in str(plain.report.about)


def test_order_of_rows_and_columns_does_not_matter(write):
    first = read_twitch(write(HEADER, *ROWS))
    names = HEADER.split(",")
    turned = [",".join(dict(zip(names, row.split(","), strict=True))[name] for name in names[::-1])
              for row in ROWS[::-1]]
    second = read_twitch(write(",".join(names[::-1]), *turned))
    for name in tables_lib.REQUIRED:
        assert getattr(second, name).equals(getattr(first, name)), name


def test_line_ends_byte_order_mark_spaces_quotes_and_gzip(write):
    expected = read_twitch(write(*without_community())).interactions
    spaced = ["\ufeff" + without_community()[0].replace(",", ", ")] + without_community()[1:]
    spaced[2] = '10,34000000001,"Ann",6,7'
    path = write(*spaced, end="\r\n")
    assert read_twitch(path).interactions.equals(expected)
    packed = path.with_name("log.csv.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_twitch(packed).interactions.equals(expected)


def test_repeats_and_empty_sessions_are_dropped_and_counted(write):
    tables = read_twitch(write("1,1,5,0,2", "1,1,5,0,2", "1,1,5,0,2", "2,1,5,3,3", "2,1,5,4,3", "1,1,5,0,3"))
    assert tables.report.dropped == {"#5 <= start": 2, "repeated row": 2}
    assert tables.report.examples == {"#5 <= start": ["log.csv, line 4: 3", "log.csv, line 5: 3"]}
    assert (tables.report.rows_read, tables.report.rows_kept) == (6, 2)
    assert tables.rooms.select("start_ms", "end_ms").rows() == [(0, 3 * ROUND_MS)]
    assert tables.users["source_id"].to_list() == ["1"]  # user 2 has nothing left


def test_a_single_user_with_a_single_view(write):
    tables = read_twitch(write("alice,7,bob,0,1"))
    assert len(tables.interactions) == len(tables.users) == len(tables.authors) == len(tables.rooms) == 1


def test_a_stream_claimed_by_two_streamers_becomes_two_rooms(write):
    tables = read_twitch(write("1,7,bob,0,1", "2,7,ann,5,6", "3,8,ann,0,1"))
    assert tables.rooms.select("source_id", "author_id", "start_ms").rows() == [
        ("7", 0, 5 * ROUND_MS), ("7", 1, 0), ("8", 0, 0)]
    assert tables.report.notes == {"room of several streamers (one room each)": 1}


def test_overlapping_sessions_are_kept_and_counted(write):
    # Within the first session there are two others; the last begins just when it ends.
    tables = read_twitch(write("1,7,bob,0,9", "1,8,ann,1,2", "1,8,ann,5,6", "1,8,ann,9,10", "2,8,ann,0,4"))
    assert tables.report.rows_kept == 5
    assert tables.report.notes == {"session overlaps an earlier one of the same user": 2}


def test_blank_lines_are_no_rows_and_line_numbers_stay_right(write):
    assert read_twitch(write("1,7,bob,0,1", "", "2,7,bob,0,1", "")).report.rows_read == 2
    with pytest.raises(ValueError, match="line 4, column #5: 'x'"):
        read_twitch(write("1,7,bob,0,1", "", "", "2,7,bob,0,x"), STOP)


@pytest.mark.parametrize("lines, said", [
    ([HEADER, ROWS[0], "1,2,bob,soon,5,1"], ["line 3", "start_time", "'soon'", "is not a time"]),
    (["1,2,bob,1,5", "1,2,bob,1,nan"], ["line 2", "#5", "is missing"]),
    (["1,2,bob,1,5", "1,2,bob,-3,5"], ["line 2", "#4", "'-3'"]),
    (["1,2,bob,1,5", "1,2,bob,1,999999999"], ["line 2", "#5", "'999999999'", "years from"]),
    ([HEADER, ROWS[0], "1,,bob,1,5,1"], ["line 3", "stream_id", "is missing"]),
    (["1,2,bob,1,5", ",2,bob,1,5"], ["line 2", "#1", "is missing"]),
    (["1,2,bob,1,5", "1,2,NULL,1,5"], ["line 2", "#3", "is missing"]),
    (["1,2,bob,1,5", "1,3.38429E+10,bob,1,5"], ["line 2", "#2", "is not an id"]),
    (["1,2,bob,1,5", "1,2,bob,1,5,6"], ["line 2", "6 cells", "first line has 5"]),
    (["1,2,bob,1,5", "1,2,bob,1"], ["line 2", "4 cells", "first line has 5"]),
    ([HEADER, ROWS[0], "1,2,bob,1,5"], ["line 3", "5 cells", "first line has 6"]),
])
def test_where_bad_rows_stop_the_reader_the_first_is_named_and_otherwise_all_are_counted(write, lines, said):
    path = write(*lines)
    with pytest.raises(ValueError) as error:
        read_twitch(path, STOP)
    for part in [str(path), *said]:
        assert part in str(error.value)
    report = read_twitch(path).report
    assert (report.rows_kept, sum(report.dropped.values())) == (1, 1)
    assert [example.split(":")[0] for found in report.examples.values() for example in found] == [f"log.csv, {said[0]}"]


@pytest.mark.parametrize("lines, said", [
    (["1,2,3,4"], ["line 1", "4 columns", "exactly 5"]),
    (["1,2,3,4,5,6"], ["line 1", "6 columns", "exactly 5"]),
    (["user_id,stream_id,start_time", "1,2,3"], ["line 1", "lacks the column 'author'", "user_id, stream_id"]),
    (["user_id," + HEADER, "1," + ROWS[0]], ["line 1", "'user_id' twice"]),
    ([HEADER], ["no row"]),
    ([HEADER, "", ""], ["no row"]),
    ([""], ["empty"]),
    (["1,2,bob,5,5", "1,2,bob,5,5"], ["2 rows read, 0 kept", "<= start"]),
    (["1,2,bob,10,3", "1,2,bob,11,2", "1,2,bob,1,2"], ["only 1 of 3 rows", "#5 <= start"]),
    ([f"{i},2,bob,{9240 + i},{9240 + i + 600 * (i % 3 + 1)}" for i in range(9)], ["minutes or sec", "--source=log"]),
    (["1,2,bob,1746403200,1746403800"], ["0 kept", "another unit"]),
])
def test_what_is_no_twitch_log_is_refused_with_the_remedy(write, lines, said):
    path = write(*lines)
    with pytest.raises(ValueError) as error:
        read_source("twitch", path)
    for part in [str(path), *said]:
        assert part in str(error.value)


@pytest.mark.parametrize("lines", [
    ["user,stream,streamer,start,stop", "9,900,bob,3,5"],
    ["uid,session,streamer_name,time_start,time_end", "9,900,bob,3,5"],
    ["USER_ID,STREAM_ID,STREAMER_NAME,START_TIME,STOP_TIME,COMMUNITY", "9,900,bob,3,5,0"],
    ["user_id;stream_id;streamer_name;start_time;stop_time", "9;900;bob;3;5"],
    ["user_id\tstream_id\tstreamer_name\tstart_time\tstop_time", "9\t900\tbob\t3\t5"],
    ["user_id,stream_id,streamer_name,start_time,stop_time", "9.0,900.0,bob,3.0,5.0"],
    ["", "user_id,stream_id,streamer_name,start_time,stop_time", " 9 ,900, bob,3,5"],
    [",user_id,stream_id,streamer_name,start_time,stop_time", "0,9,900,bob,3,5"],
])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_forms_that_people_have(write, lines, end):
    tables = read_twitch(write(*lines, end=end))
    assert tables.interactions.select("start_ms", "watch_ms").rows() == [(3 * ROUND_MS, 2 * ROUND_MS)]
    assert tables.users["source_id"].to_list() == ["9"]
    assert tables.rooms["source_id"].to_list() == ["900"]


def test_the_first_of_many_bad_rows_are_named_with_their_number(write):
    good = [f"{i},7,bob,0,1" for i in range(50)]
    report = read_twitch(write(*good, *["1,7,bob,?,1"] * 4)).report
    assert report.dropped == {"#4 is not a time": 4}
    assert report.examples == {"#4 is not a time": [f"log.csv, line {i}: ?" for i in (51, 52, 53)]}


def test_empty_missing_and_foreign_files(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        read_twitch(empty)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_twitch(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="holds no .csv"):
        read_twitch(tmp_path / "..")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"1,2,bob,3,4\n\xff\xfe\x00,2,bob,3,4\n" * 10)
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        read_twitch(binary)


def test_tables_of_a_log_survive_saving(write, tmp_path):
    tables = read_twitch(write(HEADER, *ROWS))
    tables_lib.save(tables, tmp_path / "tables")
    back = tables_lib.load(tmp_path / "tables")
    assert back.interactions.equals(tables.interactions)
    assert back.rooms.equals(tables.rooms)
    assert back.rooms.schema["source_id"] == pl.String
    assert back.report == tables.report


def test_lines_are_those_of_an_editor_where_a_cell_holds_line_breaks(write):
    titled = HEADER + ",title"
    rows = ['1,7,bob,0,1,1,"two\nlines"', "2,7,bob,0,1,1,one"]
    assert len(read_twitch(write(titled, *rows)).interactions) == 2
    for bad, said in (("3,7,bob,x,1,1,", "line 5, column start_time: 'x'"),
                      ("3,7,,0,1,1,", "line 5, column streamer_name is missing"),
                      ("3,7,bob,0,1,1", "line 5: 6 cells")):
        with pytest.raises(ValueError, match=said):
            read_twitch(write(titled, *rows, bad), STOP)
