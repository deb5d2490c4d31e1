"""What cells, rows and files say, whatever form they come in: one table of kinds, for text and for parquet."""

import datetime
import gzip
import zipfile

import polars as pl
import pytest

from data_pipelines.readers import cells, text_files
from data_pipelines.readers.forms import Column, find, form_of
from data_pipelines.readers.rows import Counts, parse_block, read
from data_pipelines.readers.text_files import LINE

COLUMNS = (Column("user_id", "id"), Column("at", "time"), Column("end", "end", empty=True),
           Column("note", "text", needed=False, empty=True))
LINES = ["at,user_id,end,note", "1005,u1,,a", "", '1006,u2,1007.0,"b, c"', "1008,u3,1009,null", "", ""]
T = 1_746_374_400_022
CLOCK = datetime.datetime(2025, 5, 4, 16, 0, 0, 22_000)
ZONED = datetime.datetime(2025, 5, 5, 0, 0, 0, 22_000, datetime.timezone(datetime.timedelta(hours=8)))
BAD = "bad"


@pytest.mark.parametrize("cell, id", [
    ("7", "7"), ("7.0", "7"), (" 7 ", "7"), ("007", "007"), ("-7", "-7"), ("ann", "ann"), ("7.5", BAD),
    ("3.38429E+10", BAD), ("3e+10", BAD), ("1e10", "1e10"), ("v1.2.3", "v1.2.3"), ("unknown", "unknown"),
    ("12345678901234567890", "12345678901234567890"),
    *[(word, None) for word in ("", "NULL", "null", "\\N", "nan", "NaN", "NA", "None", " NULL ")],
])
def test_ids(cell, id):
    values, bad = cells.ids(pl.Series([cell, "x.y+"]))  # the second: dots and signs elsewhere in the column
    assert (BAD if bad[0] else values[0]) == id
    if id not in (BAD, None):
        whole, unread = cells.ids(pl.Series([cell]), whole=True)
        assert unread[0] == (id not in ("7", "-7"))
        assert unread[0] or whole[0] == int(id)


def test_ids_of_parquet():
    assert cells.ids(pl.Series([7, None]))[0].to_list() == ["7", None]
    assert cells.ids(pl.Series([7.0, float("nan")]))[0].to_list() == ["7", None]
    assert cells.ids(pl.Series(["7"], dtype=pl.Categorical))[0].to_list() == ["7"]
    assert cells.ids(pl.Series([70.6, 2.0**60]))[1].to_list() == [True, True]
    with pytest.raises(TypeError, match="List"):
        cells.ids(pl.Series([[1]]))


@pytest.mark.parametrize("column, unit, ms", [
    ([str(T)], "ms", T), (["1746374400022.0"], "ms", T), (["1746374400.022"], "s", T), (["1746374400"], "s", T - 22),
    (["1746374400022999"], "us", T), (["1746374400022000000"], "ns", T), ([str(T), "soon"], "ms", T),
    (["2025-05-04 16:00:00.022"], None, T), (["2025-05-04T16:00:00.022Z"], None, T),
    (["2025-05-05T00:00:00.022+08:00"], None, T), (["2025-05-04 11:30:00.022-0430"], None, T),
    (["2025/05/04 16:00:00"], None, T - 22), (["2025-05-04 16:00"], None, T - 22),
    (["2025-05-04"], None, T - 57_600_022), ([""], None, None), (["0000-00-00 00:00:00"], None, None), ([T], "ms", T),
    ([float(T)], "ms", T), ([CLOCK], None, T),
    ([ZONED], None, T), ([datetime.date(2025, 5, 4)], None, T - 57_600_022), ([1746374400.022], "s", T),
])
def test_times(column, unit, ms):
    cells_ = pl.Series(column)
    median = cells.median(cells_)
    assert (median is None) == (unit is None)
    assert unit is None or next(u for u, (low, high) in cells.EPOCHS.items() if low <= median < high) == unit
    values, bad = cells.times(cells_, unit or "ms", 0)
    assert values[0] == ms
    assert bad.to_list() == [cell == "soon" for cell in column]
    zoned = any(str(column[0]).endswith(zone) for zone in ("Z", "+08:00", "-0430"))
    shifted = cells.times(cells_, unit or "ms", 8 * 3_600_000)[0][0]
    assert shifted == (ms if unit or zoned or ms is None else ms - 8 * 3_600_000)  # a clock without a zone is local


@pytest.mark.parametrize("cell, unit, ms", [
    ("5", "s", 5000), ("5.5", "s", 5500), ("01:30:00", "s", 5_400_000), ("5", "ms", 5), ("5.5", "ms", BAD),
    ("-5", "s", BAD), ("long", "s", BAD), ("", "s", None), ("3", "rounds", 1_800_000), ("1e300", "s", BAD),
    ("inf", "s", BAD),
])
def test_lengths(cell, unit, ms):
    values, bad = cells.lengths(pl.Series([cell]), unit)
    assert (BAD if bad[0] else values[0]) == ms


@pytest.mark.parametrize("cell, count", [
    ("3", 3), ("3.0", 3), ("true", 1), ("no", 0), ("", None), ("NA", None), ("1.9", BAD), ("-1", BAD), ("5000+", BAD),
    ("1e300", BAD), ("inf", BAD), ("99999999999", BAD),
])
def test_counts(cell, count):
    values, bad = cells.counts(pl.Series([cell]))
    assert (BAD if bad[0] else values[0]) == count


def write(folder, lines, end="\n", name="log.csv"):
    path = folder / name
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def parsed(form):
    counts = Counts()
    return read(form, counts), counts


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 30, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blocks_of_any_size_are_the_whole(tmp_path, size, end):
    lines = [*LINES, '1009,u4,,"two', 'lines, ""one"" row"', "1010,u5,,b"]
    form = form_of(write(tmp_path, lines, end), COLUMNS)
    expected, _ = parsed(form)
    counts = Counts()
    parts = [parse_block(form, block, line, counts) for block, line in text_files.blocks(form.layout, size)]
    found = pl.concat(parts)
    assert found.equals(expected)
    assert found.select(LINE, "user_id", "at", "end", "note").rows() == [
        (2, "u1", 1005, None, "a"), (4, "u2", 1006, 1007, "b, c"), (5, "u3", 1008, 1009, None),
        (8, "u4", 1009, None, 'two\nlines, "one" row'), (10, "u5", 1010, None, "b")]
    assert counts.rows_read == 5


def test_packed_and_encoded_files(tmp_path):
    path = write(tmp_path, LINES)
    expected, _ = parsed(form_of(path, COLUMNS))
    text = path.read_bytes()
    others = {"a.csv.gz": gzip.compress(text), "bom.csv": b"\xef\xbb\xbf" + text,
              "wide.csv": text.decode().encode("utf-16"),
              "semicolons.csv": text.replace(b",", b";").replace(b"b;", b"b,"),
              "tabs.tsv": text.replace(b",", b"\t").replace(b"b\t", b"b,")}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("inner.csv", text)
    for name in (*others, "b.zip"):
        assert parsed(form_of(tmp_path / name, COLUMNS))[0].equals(expected), name
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(text)[:-12])
    with pytest.raises(ValueError, match="cut.csv.gz: the packed file is damaged or cut short"):
        form_of(tmp_path / "cut.csv.gz", COLUMNS)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", text)
        archive.writestr("b.csv", text)
    with pytest.raises(ValueError, match="holds 2 files"):
        form_of(tmp_path / "two.zip", COLUMNS)
    (tmp_path / "latin.csv").write_bytes(text.replace(b"c", b"\xe9"))
    with pytest.raises(ValueError, match="latin.csv: not a CSV file in UTF-8 .*save it as UTF-8"):
        form_of(tmp_path / "latin.csv", COLUMNS)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "FREE_BYTES", 1000)
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(("\n".join(LINES[:2]) + "\n" + "1005,u1,,a\n" * 100_000).encode()))
    with pytest.raises(ValueError, match="bomb.csv.gz: unpacks to more than 100 times its size"):
        form_of(path, COLUMNS)


@pytest.mark.parametrize("rows, reason, line", [
    (["soon,u4,,a"], "at is not a time", 9),
    (["1007,,,a"], "user_id is missing", 9),
    (["1007,u4,1006.5,a"], "end is not a time", 9),
    (["1007,u4,8,a,b"], "cells, where the first line has 4 (a delimiter inside a value must be quoted)", 9),
    (["1001,u4,,a", "", "7"], "cells, where the first line has 4 (a delimiter inside a value must be quoted)", 11),
    ([f"{T},u4,,a"], "at is in another unit than the column, or years from its other times", 9),
    ([f"-{T},u4,,a"], "at is in another unit than the column, or years from its other times", 9),
    (['1007,,,"two', 'lines"'], "user_id is missing", 9),
])
def test_bad_rows_are_left_out_and_counted_or_stop_the_reader(tmp_path, rows, reason, line):
    path = write(tmp_path, [*LINES, "1001,u4,,a", *rows])
    form = form_of(path, COLUMNS)
    frame, counts = parsed(form)
    assert counts.dropped == {reason: 1}
    assert [found[0][:2] for found in counts.examples.values()] == [("log.csv", line)]
    assert counts.rows_read == len(frame) + 1
    with pytest.raises(ValueError, match=rf"log.csv, line {line}[,:].*\(1 such row\(s\)\). --bad_rows=drop"):
        read(form, Counts(stop=True))


def test_the_unit_is_that_of_most_rows_and_an_empty_column_has_its_neighbours(tmp_path):
    lines = ["at,user_id,end", "1746374400,u1,", *[f"{T + i},u{i}," for i in range(60)], f"{T},u,{T + 5}"]
    form = form_of(write(tmp_path, lines), COLUMNS)
    assert form.units == {"at": "ms", "end": "ms"}
    frame, counts = parsed(form)
    assert frame["end"].to_list() == [None] * 60 + [T + 5]
    assert list(counts.dropped.values()) == [1]
    with pytest.raises(ValueError, match="holds numbers like 17463744.*, which are milliseconds since 1970, not sec"):
        form_of(tmp_path / "log.csv", (COLUMNS[0], Column("at", "time", unit="s")))


def test_names_of_columns():
    columns = (Column("user", "id", also=("user_id", "uid")), Column("watch", "length"))
    assert find(["UID", " Watch Secs", "userId"], columns, "f") == {"user": 2, "watch": 1}
    assert find(["a", "b"], columns, "f", {"user": "#2", "watch": "A"}) == {"user": 1, "watch": 0}
    with pytest.raises(ValueError, match="f has no column 'c'.*it has a, b"):
        find(["a", "b"], columns, "f", {"user": "c"})
    with pytest.raises(ValueError, match="lacks the column 'watch'; found user"):
        find(["user"], columns, "f")
    with pytest.raises(ValueError, match="'user' twice"):
        find(["user", "USER", "watch"], columns, "f")


def test_parquet_is_read_as_text_is(tmp_path):
    pl.DataFrame({"user_id": [7.0, 8.5, None], "at": [T, T, T], "end": [CLOCK, None, None]}).write_parquet(
        tmp_path / "log[1].parquet")
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "log1.parquet")  # what [1] is as a pattern
    frame, counts = parsed(form_of(tmp_path / "log[1].parquet", COLUMNS))
    assert frame.select("user_id", "at", "end", LINE).rows() == [("7", T, T, 1)]
    assert counts.dropped == {"user_id is not an id (a number that was rounded or cut?)": 1, "user_id is missing": 1}
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match="cut.parquet cannot be read"):
        form_of(tmp_path / "cut.parquet", COLUMNS)
