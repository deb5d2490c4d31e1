import json

import numpy as np
import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.tables import AUTHORS, HOUR_MS, INTERACTIONS, ROOMS, USERS, VIDEOS, ReadReport, Tables

HOUR = HOUR_MS


def small(**changes) -> Tables:
    """Two users, two authors, three rooms; the third interaction was shown but not clicked."""
    def rows(schema, *data):
        return pl.DataFrame(list(data), schema=schema, orient="row")

    tables = Tables(
        interactions=rows(INTERACTIONS,
                          (0, 0, 0, 0, HOUR, True, 1, 0, 0, 0, 0.0, False),
                          (0, 1, 1, 2 * HOUR, HOUR, True, 0, 2, 1, 0, 3.5, False),
                          (0, 2, 0, 5 * HOUR, 0, False, 0, 0, 0, 0, 0.0, False),
                          (1, 2, 0, 6 * HOUR, 4 * HOUR, True, 0, 0, 0, 1, 0.0, True)),
        rooms=rows(ROOMS, (0, 0, 0, HOUR, -1, -1), (1, 1, HOUR, 4 * HOUR, 2, 1), (2, 0, 5 * HOUR, None, -1, -1)),
        authors=rows(AUTHORS, (0, "a"), (1, "b")),
        users=rows(USERS, (0, "u"), (1, "v")),
        report=ReadReport("test", 5, 4, {"repeated row": 1}, {"blank line": 2}),
        segments=pl.DataFrame({"room_id": [0, 1, 1], "end_ms": [30_000, HOUR + 1, HOUR + 2],
                               "embedding": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]},
                              schema={"room_id": pl.Int32, "end_ms": pl.Int64, "embedding": pl.Array(pl.Float32, 2)}),
        videos=rows(VIDEOS, (0, 1, 5, 1000), (1, 0, 3, 0)),
        titles=pl.DataFrame({"title_id": [0, 1], "embedding": [[1.0], [2.0]]},
                            schema={"title_id": pl.Int32, "embedding": pl.Array(pl.Float32, 1)}),
        rooms_are_true_lifetimes=True,
    )
    for name, frame in changes.items():
        setattr(tables, name, frame)
    return tables


def put(frame: pl.DataFrame, column: str, row: int, value) -> pl.DataFrame:
    cells = frame[column].to_list()
    cells[row] = value
    return frame.with_columns(pl.Series(column, cells, frame.schema[column]))


def test_valid_tables_pass_and_come_back():
    tables = small()
    assert tables_lib.validate(tables) is tables


@pytest.mark.parametrize("table, column, row, value, said", [
    ("interactions", "user_id", 3, 2, "0 … 1"),
    ("interactions", "room_id", 1, 3, "0 … 2"),
    ("interactions", "author_id", 1, 0, "author_id of the room"),
    ("interactions", "start_ms", 0, -1, "milliseconds"),
    ("interactions", "watch_ms", 1, -5, "milliseconds"),
    ("interactions", "watch_ms", 2, 5, "click=False"),
    ("interactions", "comment", 1, -1, "negative"),
    ("interactions", "gift_value", 1, float("nan"), "finite"),
    ("interactions", "gift_value", 1, -2.0, "0 or more"),
    ("interactions", "click", 3, None, "null"),
    ("rooms", "room_id", 1, 2, "0, 1, 2"),
    ("rooms", "author_id", 2, -1, "0 … 1"),
    ("rooms", "end_ms", 1, HOUR, "end after"),
    ("rooms", "category", 0, -2, "-1"),
    ("rooms", "title_embedding", 0, None, "null"),
    ("authors", "author_id", 1, 5, "0, 1, 2"),
    ("users", "source_id", 0, None, "null"),
    ("segments", "room_id", 2, 9, "0 … 2"),
    ("segments", "end_ms", 1, -1, "milliseconds"),
    ("segments", "embedding", 1, None, "null"),
    ("videos", "author_id", 1, 2, "0 … 1"),
    ("videos", "watch_ms", 0, -1, "milliseconds"),
])
def test_validate_names_table_column_and_row(table, column, row, value, said):
    tables = small()
    setattr(tables, table, put(getattr(tables, table), column, row, value))
    with pytest.raises(ValueError) as error:
        tables_lib.validate(tables)
    assert f"{table}.{column}, row {row}" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("order, row", [([1, 0, 2, 3], 1), ([0, 1, 3, 2], 3)])
def test_interactions_out_of_order_are_refused_and_sorting_mends_them(order, row):
    tables = small()
    shuffled = small(interactions=tables.interactions[order])
    with pytest.raises(ValueError, match=rf"interactions.user_id, row {row} .* sorted by"):
        tables_lib.validate(shuffled)
    assert tables_lib.sort_interactions(shuffled.interactions).equals(tables.interactions)


def test_views_that_start_together_are_ordered_by_their_end():
    log = put(small().interactions, "start_ms", 1, 0)  # now two views of user 0 start at 0 and end after one hour
    tables_lib.validate(small(interactions=log))
    with pytest.raises(ValueError, match="row 1 .* sorted by"):
        tables_lib.validate(small(interactions=put(log, "watch_ms", 1, HOUR - 1)))


def test_segments_must_be_sorted_without_repeats_and_finite():
    segments = small().segments
    with pytest.raises(ValueError, match="segments.room_id, row 2 .* without repeats"):
        tables_lib.validate(small(segments=put(segments, "end_ms", 2, HOUR + 1)))
    with pytest.raises(ValueError, match="segments.embedding, row 1 .* not finite"):
        tables_lib.validate(small(segments=put(segments, "embedding", 1, [3.0, float("inf")])))
    ragged = segments.with_columns(pl.Series("embedding", [[1.0, 2.0], [3.0], [5.0, 6.0]], pl.List(pl.Float32)))
    with pytest.raises(ValueError, match="segments.embedding, row 1 .* width of the first, 2"):
        tables_lib.validate(small(segments=ragged))
    with pytest.raises(ValueError, match="segments.embedding has type Array"):
        tables_lib.validate(small(segments=segments.cast({"embedding": pl.Array(pl.Float64, 2)})))
    with pytest.raises(ValueError, match="segments lacks the column 'embedding'"):
        tables_lib.validate(small(segments=segments.drop("embedding")))


def test_titles_must_be_there_for_the_rooms_that_point_to_them():
    with pytest.raises(ValueError, match=r"rooms.title_embedding, row 1 .* \(there are 1\)"):
        tables_lib.validate(small(titles=small().titles[:1]))
    with pytest.raises(ValueError, match="titles.title_id, row 0"):
        tables_lib.validate(small(titles=small().titles[1:]))
    with pytest.raises(ValueError, match="titles.embedding, row 1 .* not finite"):
        tables_lib.validate(small(titles=put(small().titles, "embedding", 1, [float("nan")])))


def test_positions_and_propensities_of_the_logging_policy_are_checked():
    log = small().interactions.with_columns(position=pl.Series([0, 1, 2, -1], dtype=pl.Int32),
                                            propensity=pl.Series([0.5, 1.0, 0.1, 0.2], dtype=pl.Float32))
    tables_lib.validate(small(interactions=log))
    with pytest.raises(ValueError, match="interactions.position, row 1"):
        tables_lib.validate(small(interactions=put(log, "position", 1, -2)))
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="interactions.propensity, row 2 .* at most 1"):
            tables_lib.validate(small(interactions=put(log, "propensity", 2, wrong)))
    with pytest.raises(ValueError, match="interactions.position has type Int64"):
        tables_lib.validate(small(interactions=log.cast({"position": pl.Int64})))


def test_missing_column_and_wrong_type_are_named():
    with pytest.raises(ValueError, match="rooms lacks the column 'end_ms'"):
        tables_lib.validate(small(rooms=small().rooms.drop("end_ms")))
    with pytest.raises(ValueError, match="users.user_id has type Int64, Int32 is needed"):
        tables_lib.validate(small(users=small().users.cast({"user_id": pl.Int64})))


def test_save_and_load_round_trip(tmp_path):
    tables = small()
    tables_lib.save(tables, tmp_path / "deep" / "folder")
    back = tables_lib.load(tmp_path / "deep" / "folder")
    for name in (*tables_lib.REQUIRED, *tables_lib.OPTIONAL):
        assert getattr(back, name).equals(getattr(tables, name)), name
        assert getattr(back, name).schema == getattr(tables, name).schema, name
    assert back.report == tables.report
    assert back.rooms_are_true_lifetimes is True


def test_saving_again_without_content_leaves_no_old_content(tmp_path):
    tables_lib.save(small(), tmp_path)
    tables_lib.save(small(segments=None, videos=None), tmp_path)
    back = tables_lib.load(tmp_path)
    assert back.segments is None
    assert back.videos is None
    assert not (tmp_path / "segments.parquet").exists()


def test_a_folder_whose_writing_was_interrupted_is_not_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="report.json is missing"):
        tables_lib.load(tmp_path)
    tables_lib.save(small(), tmp_path)
    (tmp_path / "segments.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="segments.parquet is missing"):
        tables_lib.load(tmp_path)


def test_damaged_files_are_named(tmp_path):
    tables_lib.save(small(), tmp_path)
    (tmp_path / "rooms.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="rooms.parquet cannot be read"):
        tables_lib.load(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"tables": []}))
    with pytest.raises(ValueError, match="report.json is damaged"):
        tables_lib.load(tmp_path)


def test_a_table_that_is_not_the_one_that_was_written_is_named(tmp_path):
    tables_lib.save(small(), tmp_path)
    small().users.with_columns(source_id=pl.lit("x")).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(ValueError, match="users.parquet is damaged: its checksum is not that of report.json"):
        tables_lib.load(tmp_path)


def test_a_table_may_lie_in_shards(tmp_path):
    tables_lib.save(small(), tmp_path)
    log = small().interactions
    (tmp_path / "interactions.parquet").unlink()
    for shard, rows in enumerate((log[:1], log[1:1], log[1:])):
        rows.write_parquet(tmp_path / f"interactions-0000{shard}-of-00003.parquet")
    assert tables_lib.load(tmp_path).interactions.equals(log)
    (tmp_path / "interactions-00001-of-00003.parquet").rename(tmp_path / "interactions-00001-of-00002.parquet")
    with pytest.raises(ValueError, match=r"holds both interactions-00000-of-00003.parquet and .*-00001-of-00002"):
        tables_lib.load(tmp_path)
    (tmp_path / "interactions-00001-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"interactions-00001-of-00003.parquet is missing"):
        tables_lib.load(tmp_path)
    log.write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(ValueError, match=r"holds both interactions.parquet and interactions-00000-of-00003"):
        tables_lib.load(tmp_path)
    tables_lib.save(small(), tmp_path)  # leaves nothing of what was there
    assert tables_lib.load(tmp_path).interactions.equals(log)


def test_shards_with_other_columns_and_odd_reports_are_named(tmp_path):
    tables_lib.save(small(), tmp_path)
    frame = pl.read_parquet(tmp_path / "users.parquet")
    (tmp_path / "users.parquet").unlink()
    frame[:1].write_parquet(tmp_path / tables_lib.shard_name("users", 0, 2))
    frame[1:].rename({"source_id": "name"}).write_parquet(tmp_path / tables_lib.shard_name("users", 1, 2))
    with pytest.raises(ValueError, match="users-00001-of-00002.parquet has other columns than the first shard"):
        tables_lib.load(tmp_path)
    meta = json.loads((tmp_path / "report.json").read_text())
    for odd in ([], {}, meta | {"tables": 5}, meta | {"report": meta["report"] | {"dropped": [1]}},
                meta | {"report": meta["report"] | {"rows_read": "many"}}):
        (tmp_path / "report.json").write_text(json.dumps(odd))
        with pytest.raises(ValueError, match="report.json is damaged"):
            tables_lib.load(tmp_path)


def test_names_with_brackets_are_names(tmp_path):
    tables_lib.save(small(), tmp_path / "w[1]*")
    tables_lib.save(small(users=small().users.with_columns(source_id=pl.lit("x"))), tmp_path / "w1")
    assert tables_lib.load(tmp_path / "w[1]*").users.equals(small().users)


@pytest.mark.parametrize("name, column, row", [("rooms", "end_ms", 1), ("rooms", "start_ms", 1),
                                               ("interactions", "watch_ms", 3)])
def test_a_date_in_the_year_9999_is_named_rather_than_kept_by_ten_minutes(name, column, row):
    tables = small()
    setattr(tables, name, put(getattr(tables, name), column, row, 253_402_300_799_000))
    with pytest.raises(ValueError, match=rf"{name}.{column}, row {row} .*century|rooms.end_ms, row 1"):
        tables_lib.validate(tables)


def test_load_validates(tmp_path):
    tables_lib.save(small(rooms=put(small().rooms, "author_id", 0, 9)), tmp_path)
    with pytest.raises(ValueError, match="rooms.author_id, row 0"):
        tables_lib.load(tmp_path)


def test_split_counts_back_from_the_last_start():
    split = tables_lib.split_times(small(), valid_hours=2.5, test_hours=1)
    assert split == (round(3.5 * HOUR), 6 * HOUR, 7 * HOUR)  # a tick after it: all starts are whole hours


def long_log(**odd):
    """600 views, one every half hour, of ten minutes; `odd` changes the last of them."""
    start = np.arange(600) * (HOUR // 2) + 1_746_403_200_000
    columns = {"start_ms": start, "watch_ms": np.full(600, 600_000)}
    for name, value in odd.items():
        columns[name] = np.append(columns[name][:-1], value)
    log = small().interactions[np.zeros(600, int)].with_columns(**{n: pl.Series(v) for n, v in columns.items()})
    return small(interactions=log)


def test_one_odd_row_does_not_move_the_split():
    usual = tables_lib.split_times(long_log(), 24, 24)
    assert usual.end_ms == 1_746_403_200_000 + 600 * HOUR // 2
    assert [line.split(": ")[1] for line in tables_lib.periods(long_log(), usual)] == [
        "504 views", "48 views", "48 views"]
    assert tables_lib.split_times(long_log(watch_ms=48 * HOUR), 24, 24) == usual
    for days in (40, 4000):  # after 12.5 days of log
        odd = long_log(start_ms=1_746_403_200_000 + days * 24 * HOUR)
        split = tables_lib.split_times(odd, 24, 24)
        assert usual.end_ms - split.end_ms == HOUR // 2  # as if the row were not there
        assert "1 row(s) begin far after all others, from " in tables_lib.periods(odd, split)[-1]
        # With it: whoever judges the test period has it too.
        assert [line.split(": ")[1] for line in tables_lib.periods(odd, split)[1:3]] == ["48 views", "49 views"]


def test_periods_in_words():
    split = tables_lib.split_times(long_log(), 24, 24)
    assert tables_lib.periods(long_log(), split, 8.0)[2] == (
        "test       Fri 16 May 2025 20:00 UTC+8 to Sat 17 May 2025 20:00 UTC+8: 48 views")
    assert tables_lib.periods(small(), tables_lib.split_times(small(), 2.5, 1))[1] == (
        "validation day 1, 03:30 to day 1, 06:00: 0 views")


def test_split_needs_something_to_train_on():
    assert tables_lib.split_times(small(), valid_hours=4, test_hours=2).p1_ms == HOUR  # the first view ends there
    with pytest.raises(ValueError, match=r"7\.0 hours long"):
        tables_lib.split_times(small(), valid_hours=4, test_hours=2.01)
    with pytest.raises(ValueError, match="negative"):
        tables_lib.split_times(small(), valid_hours=-1, test_hours=1)
    with pytest.raises(ValueError, match="no row"):
        tables_lib.split_times(small(interactions=small().interactions.clear()), 1, 1)


def test_report_lines_say_what_was_dropped():
    assert small().report.lines() == ["test: 5 rows read, 4 kept", "dropped 1: repeated row", "noted 2: blank line"]
