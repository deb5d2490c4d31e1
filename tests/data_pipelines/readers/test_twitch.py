import gzip

import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.readers.twitch import ROUND_MS, read_twitch

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
    assert with_header.report.notes["value of the column 'community', which is not used"] == 5
    assert "community" not in str(plain.report.notes)


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
    assert tables.report.dropped == {"repeated row": 2, "stop <= start": 2}
    assert (tables.report.rows_read, tables.report.rows_kept) == (6, 2)
    assert tables.rooms.select("start_ms", "end_ms").rows() == [(0, 3 * ROUND_MS)]
    # User 2 has nothing left and is still a person with an empty history.
    assert tables.users["source_id"].to_list() == ["1", "2"]
    assert set(tables.interactions["user_id"]) == {0}


def test_a_single_user_with_a_single_view(write):
    tables = read_twitch(write("alice,7,bob,0,1"))
    assert len(tables.interactions) == len(tables.users) == len(tables.authors) == len(tables.rooms) == 1


def test_a_stream_claimed_by_two_streamers_becomes_two_rooms(write):
    tables = read_twitch(write("1,7,bob,0,1", "2,7,ann,5,6", "3,8,ann,0,1"))
    assert tables.rooms.select("source_id", "author_id", "start_ms").rows() == [
        ("7", 0, 5 * ROUND_MS), ("7", 1, 0), ("8", 0, 0)]
    assert tables.report.notes == {"stream id of several streamers (one room each)": 1}


def test_overlapping_sessions_are_kept_and_counted(write):
    # Within the first session there are two others; the last begins just when it ends.
    tables = read_twitch(write("1,7,bob,0,9", "1,8,ann,1,2", "1,8,ann,5,6", "1,8,ann,9,10", "2,8,ann,0,4"))
    assert tables.report.rows_kept == 5
    assert tables.report.notes == {"session overlaps an earlier one of the same user": 2}


def test_blank_lines_are_counted_and_line_numbers_stay_right(write):
    assert read_twitch(write("1,7,bob,0,1", "", "2,7,bob,0,1", "")).report.notes == {"blank line": 2}
    with pytest.raises(ValueError, match="line 4: stop_time = 'x'"):
        read_twitch(write("1,7,bob,0,1", "", "", "2,7,bob,0,x"))


@pytest.mark.parametrize("lines, said", [
    ([HEADER, ROWS[0], "1,2,bob,soon,5,1"], ["line 3", "start_time", "'soon'", "whole number"]),
    (["1,2,bob,1.5,5"], ["line 1", "start_time", "'1.5'", "rounds of 10 minutes"]),
    (["1,2,bob,1,5", "1,2,bob,1,nan"], ["line 2", "stop_time", "'nan'"]),
    (["1,2,bob,1,5", "1,2,bob,-3,5"], ["line 2", "start_time", "-3", "negative"]),
    (["1,2,bob,1746403200,1746403800"], ["line 1", "start_time", "seconds", "divide by 600"]),
    ([HEADER, ROWS[0], "1,,bob,1,5,1"], ["line 3", "stream_id is empty"]),
    (["1,2,bob,1,5", ",2,bob,1,5"], ["line 2", "user_id is empty"]),
    (["1,2,bob,1,5", "1,2,bob,1,"], ["line 2", "stop_time is empty"]),
    (["1,2,bob,1,5", "1,2,bob,1,5,6"], ["line 2", "6 cells", "line 1 has 5"]),
    (["1,2,bob,1,5", "1,2,bob,1"], ["line 2", "4 cells", "line 1 has 5"]),
    ([HEADER, ROWS[0], "1,2,bob,1,5"], ["line 3", "5 cells", "line 1 has 6"]),
    (["1,2,3,4"], ["line 1", "4 columns", "exactly 5"]),
    (["1,2,3,4,5,6"], ["line 1", "6 columns", "exactly 5"]),
    (["user_id,stream_id,start_time", "1,2,3"], ["line 1", "lacks", "streamer_name, stop_time", "Rename"]),
    (["user_id," + HEADER, "1," + ROWS[0]], ["line 1", "'user_id' more than once"]),
    (["uid,sid,name,begin,end", "1,2,bob,3,4"], ["line 1", "'begin'", "If this line is a header", "user_id"]),
    ([HEADER], ["no row below"]),
    ([HEADER, "", ""], ["no row below"]),
    ([""], ["empty"]),
    (["1,2,bob,5,5", "1,2,bob,5,5"], ["none of 2 rows", "stop <= start"]),
])
def test_bad_content_names_the_place_and_the_remedy(write, lines, said):
    path = write(*lines)
    with pytest.raises(ValueError) as error:
        read_twitch(path)
    for part in [str(path), *said]:
        assert part in str(error.value)


def test_the_first_of_many_bad_rows_is_named_with_their_number(write):
    good = [f"{i},7,bob,0,1" for i in range(50)]
    with pytest.raises(ValueError, match=r"line 51: start_time = '\?' .*\(3 such rows\)"):
        read_twitch(write(*good, "1,7,bob,?,1", "1,7,bob,?,1", "1,7,bob,?,1"))


def test_empty_missing_and_foreign_files(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        read_twitch(empty)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_twitch(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="is a folder"):
        read_twitch(tmp_path)
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
    for bad, said in (("3,7,bob,x,1,1,", "line 5: start_time = 'x'"), ("3,7,,0,1,1,", "line 5: streamer_name is empty"),
                      ("3,7,bob,0,1,1", "line 5: 6 cells")):
        with pytest.raises(ValueError, match=said):
            read_twitch(write(titled, *rows, bad))
