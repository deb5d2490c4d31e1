import sys

import numpy as np
import polars as pl
import pytest
import tensorflow_datasets as tfds

from data_pipelines.log import store
from data_pipelines.tables import AUTHORS, INTERACTIONS, ROOMS, USERS, ReadReport, Tables

INTS = ("author", "room", "like", "comment", "follow", "share")


def make_tables(*views, users=4) -> Tables:
    """Users 0 and 2 of four have views; user 3 is the last, so empty timelines lie in the middle and at the end."""
    views = views or (
        (0, 0, 0, 10, 5, True, 1, 0, 0, 0, 0.0, False),
        (0, 1, 1, 10, 7, True, 0, 2, 1, 0, 2.5, False),
        (0, 1, 1, 12, 0, False, 0, 0, 0, 0, 0.0, False),  # shown, not watched
        (2, 2, 0, 1_746_403_200_000, 3_600_000, True, 0, 0, 0, 3, 1e-3, True))
    rooms = [(0, 0, 0, 50, -1, -1), (1, 1, 0, None, -1, -1), (2, 0, 60, None, -1, -1)]
    return Tables(
        interactions=pl.DataFrame(list(views), schema=INTERACTIONS, orient="row"),
        rooms=pl.DataFrame(rooms, schema=ROOMS, orient="row"),
        authors=pl.DataFrame([(0, "a"), (1, "b")], schema=AUTHORS, orient="row"),
        users=pl.DataFrame([(i, str(i)) for i in range(users)], schema=USERS, orient="row"),
        report=ReadReport("test", len(views), len(views)))


def test_watched_views_come_back_as_they_were(tmp_path):
    store.build(make_tables(), tmp_path / "examples")
    got = store.load_timelines(tmp_path / "examples")
    expected = {"user_ptr": [0, 2, 2, 3, 3], "author": [0, 1, 0], "room": [0, 1, 2],
                "start_ms": [10, 10, 1_746_403_200_000], "stop_ms": [15, 17, 1_746_406_800_000], "like": [1, 0, 0],
                "comment": [0, 2, 0], "follow": [0, 1, 0], "share": [0, 0, 3], "gift_value": [0, 2.5, 1e-3]}
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        dtype = np.int32 if name in INTS else np.float32 if name == "gift_value" else np.int64
        assert got[name].dtype == dtype, name
        np.testing.assert_array_equal(got[name], np.array(values, dtype), err_msg=name)


def test_one_record_a_user_readable_as_a_plain_tfds_data_source(tmp_path):
    store.build(make_tables(), tmp_path)
    source = tfds.builder_from_directory(tmp_path / store.NAME / "1.0.0").as_data_source(split="train")
    assert len(source) == 4
    assert [int(record["user_id"]) for record in source] == [0, 1, 2, 3]
    assert [record["author"].size for record in source] == [2, 0, 1, 0]


def test_many_users_keep_their_order(tmp_path):
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, 500, 2000))
    starts = rng.integers(0, 10**6, 2000)
    order = np.lexsort((starts, users))
    views = [(int(u), 1, 1, int(s), 5, True, 0, 0, 0, 0, 0.0, False)
             for u, s in zip(users[order], starts[order], strict=True)]
    tables = make_tables(*views, users=500)
    store.build(tables, tmp_path)
    got, expected = store.load_timelines(tmp_path), store.timeline_arrays(tables)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    np.testing.assert_array_equal(np.diff(got["user_ptr"]), np.bincount(users, minlength=500))


def test_building_again_writes_nothing(tmp_path):
    store.build(make_tables(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    store.build(make_tables(), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_interrupted_build_is_cleared_away_and_done_again(tmp_path):
    rest = tmp_path / store.NAME / "incomplete.ABCDEF_1.0.0"
    rest.mkdir(parents=True)
    (rest / "part").write_bytes(b"half a file")
    with pytest.raises(FileNotFoundError, match="no complete examples"):
        store.load_timelines(tmp_path)
    store.build(make_tables(), tmp_path)
    assert store.load_timelines(tmp_path)["author"].size == 3
    assert [path.name for path in (tmp_path / store.NAME).iterdir()] == ["1.0.0"]


def test_examples_of_another_log_are_not_taken_for_these(tmp_path):
    store.build(make_tables(), tmp_path)
    with pytest.raises(ValueError, match="examples of another log"):
        store.build(make_tables(users=5), tmp_path)


def test_damaged_and_absent_files_are_reported(tmp_path):
    store.build(make_tables(), tmp_path)
    (path,) = tmp_path.rglob("*.array_record*")
    whole = path.read_bytes()
    used = np.nonzero(np.frombuffer(whole, np.uint8))[0]
    flipped = bytearray(whole)
    flipped[used[used.size // 2]] ^= 0xFF
    for broken in (b"", whole[:len(whole) // 2], bytes(flipped)):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is damaged"):
            store.load_timelines(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        store.load_timelines(tmp_path)


def test_records_that_were_changed_are_noticed(tmp_path):
    store.build(make_tables(), tmp_path / "one")
    other = make_tables((0, 0, 0, 11, 5, True, 1, 0, 0, 0, 0.0, False), users=4)
    store.build(other, tmp_path / "two")
    (one,), (two,) = ((tmp_path / name).rglob("*.array_record*") for name in ("one", "two"))
    one.write_bytes(two.read_bytes())
    with pytest.raises(ValueError, match="is damaged"):
        store.load_timelines(tmp_path / "one")


def test_a_log_that_nobody_watched_is_refused(tmp_path):
    tables = make_tables((0, 0, 0, 10, 0, False, 0, 0, 0, 0, 0.0, False))
    with pytest.raises(ValueError, match="watch_ms > 0"):
        store.build(tables, tmp_path)
    assert not list(tmp_path.iterdir())


def test_invalid_tables_are_refused_before_anything_is_written(tmp_path):
    tables = make_tables((0, 0, 1, 10, 5, True, 0, 0, 0, 0, 0.0, False))
    with pytest.raises(ValueError, match="interactions.author_id, row 0"):
        store.build(tables, tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_is_quiet_and_does_not_import_tensorflow(tmp_path, capfd):
    store.build(make_tables(), tmp_path)
    store.load_timelines(tmp_path)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""
    assert "tensorflow" not in sys.modules
