"""Item sequences without times: read whole, counted, and split into leave-one-out."""

import json

import numpy as np
import pytest

from data_pipelines.log.split import split_times
from data_pipelines.prepare import options_of, read_source
from data_pipelines.readers.amazon import read_amazon, read_codes
from data_pipelines.tables import validate

TEXT = "7 3 5 9\n2 5 3 5 11\n\n10 9 3\n12 3 x 5\n"


@pytest.fixture
def file(tmp_path):
    (tmp_path / "Some.txt").write_text(TEXT)
    return tmp_path / "Some.txt"


def test_sequences_become_views_of_rooms_that_are_always_on_air(file):
    tables = validate(read_amazon(file))
    assert tables.users["source_id"].to_list() == ["2", "7"]
    assert tables.authors["source_id"].to_list() == ["3", "5", "9", "11"]
    assert tables.interactions["author_id"].to_list() == [1, 0, 1, 3, 0, 1, 2]
    assert tables.rooms_are_true_lifetimes
    assert tables.rooms["end_ms"].null_count() == 4
    report = tables.report
    assert (report.rows_read, report.rows_kept) == (12, 7)
    assert report.rows_read == report.rows_kept + sum(report.dropped.values())
    assert any("Some.txt, line 5: person 12" in line for line in report.lines())


def test_the_split_by_time_is_leave_one_out(file):
    tables = read_source("amazon", file)
    split = split_times(tables, 1 / 60, 1 / 60)
    views = tables.interactions.to_dict(as_series=False)
    start, user, author = (np.array(views[name]) for name in ("start_ms", "user_id", "author_id"))
    test, valid = start >= split.p2_ms, (start >= split.p1_ms) & (start < split.p2_ms)
    assert list(zip(user[test], author[test], strict=True)) == [(0, 3), (1, 2)]
    assert list(zip(user[valid], author[valid], strict=True)) == [(0, 1), (1, 1)]
    assert (start[~test & ~valid] + 1000 <= split.p1_ms).all()


def test_a_json_object_is_the_same_log(file, tmp_path):
    (tmp_path / "inter.json").write_text(json.dumps({"7": [3, 5, 9], "2": [5, 3, 5, 11]}))
    assert read_amazon(tmp_path / "inter.json").interactions.equals(read_amazon(file).interactions)


@pytest.mark.parametrize("name, text, said", [
    ("a.txt", "", "is empty"), ("a.txt", "1 2 3 4\n1 5 6 7\n", "line 2: person 1 has a line already, line 1"),
    ("a.json", "[1, 2]", "object person"), ("a.json", "{", "not JSON"), ("a.csv.gz2", "1 2 3 4", "come as text")])
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_amazon(tmp_path / name)


def test_bad_rows_stop_the_reader_where_asked(file):
    with pytest.raises(ValueError, match="line 4: item of a person with fewer than 3"):
        read_amazon(file, options_of(bad_rows="stop"))
    with pytest.raises(FileNotFoundError, match="name a file of sequences"):
        read_amazon(file.with_name("other.txt"))
    assert len(read_amazon(file, options_of(limit_users=1)).users) == 1


def test_codes_of_items_are_checked(tmp_path):
    file = tmp_path / "codes.json"
    file.write_text(json.dumps({"3": [1, 2], "5": [0, 4], "9": [1]}))
    assert read_codes(file, ["5", "3"]) == [[0, 4], [1, 2]]
    for items, said in ((["3", "4"], "no codes for 1 of 2 items of the log .item 4"),
                        (["3", "9"], "item 9 has the codes")):
        with pytest.raises(ValueError, match=said):
            read_codes(file, items)
