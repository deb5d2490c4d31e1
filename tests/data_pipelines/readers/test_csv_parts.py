"""A CSV file that is read in parts gives what the whole file gives."""

import gzip

import polars as pl
import pytest

from data_pipelines.readers.csv_files import RECORD, Column, form_of, parse_part, read_csv

COLUMNS = (Column("user_id", "id"), Column("at", "time"), Column("end", "end", empty=True),
           Column("note", "text", needed=False, empty=True))
LINES = ["at,user_id,end,note", "5,u1,,a", "", '6,u2,7.0,"b, c"', "8,u3,9,null", "", ""]


def write(folder, lines):
    path = folder / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path, form_of(path, COLUMNS, frozenset({"user_id"}))


@pytest.mark.parametrize("cut", range(1, len(LINES)))
def test_parts_are_the_whole(tmp_path, cut):
    path, form = write(tmp_path, LINES)
    whole = read_csv(path, COLUMNS, frozenset({"user_id"}))
    parts = ["".join(f"{line}\n" for line in lines).encode() for lines in (LINES[1:cut], LINES[cut:])]
    found = [parse_part(form, part, record) for part, record in zip(parts, (0, cut - 1), strict=True)]
    assert pl.concat(part.frame for part in found).equals(whole.frame.with_columns(pl.col(RECORD).cast(pl.Int64)))
    assert sum(part.total for part in found) == whole.total == 3
    assert found[0].frame.schema == found[1].frame.schema


@pytest.mark.parametrize("rows, said", [
    (["soon,u4,,a"], r"log.csv, line 9, column at: 'soon' is not a time in whole milliseconds"),
    (["7,,,a"], r"log.csv, line 9, column user_id: None is empty"),
    (["7,u4,6.5,a"], r"log.csv, line 9, column end: 6.5 is not a time in whole milliseconds"),
    (["7,u4,8,a,b"], r"log.csv, line 9: 5 cells, but the header has 4"),
    (["1,u4,,a", "", "7"], r"log.csv, line 11, column user_id: None is empty, or the row is too short"),
    (['7,u4,,"two', 'lines"'], r"log.csv, line 9: a quoted cell holds a line break.*data_pipelines.prepare"),
])
def test_errors_name_the_line_of_the_file(tmp_path, rows, said):
    path, form = write(tmp_path, [*LINES, "1,u4,,a", *rows])
    with pytest.raises(ValueError, match=said):
        parse_part(form, "".join(f"{row}\n" for row in ["1,u4,,a", *rows]).encode(), 6)
    if "quoted" not in said:
        with pytest.raises(ValueError, match=said):
            read_csv(path, COLUMNS, frozenset({"user_id"}))


def test_packed_files_are_read_whole(tmp_path):
    path, _ = write(tmp_path, LINES)
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_csv(packed, COLUMNS, frozenset({"user_id"})).frame.equals(
        read_csv(path, COLUMNS, frozenset({"user_id"})).frame)
