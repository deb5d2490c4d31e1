"""Content of rooms by author and moment, by hand."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from data_pipelines.log.content import Pools, author_content
from data_pipelines.tables import AUTHORS, INTERACTIONS, ROOMS, USERS, ReadReport, Tables


def log(**content) -> Tables:
    """Authors 0 and 2 have rooms (0: two of them), author 1 none."""
    rooms = pl.DataFrame([(0, 2, 100, 900, -1, 1), (1, 0, 200, 400, -1, 0), (2, 0, 500, 800, -1, 1),
                          (3, 0, 900, None, -1, -1)], schema=ROOMS, orient="row")
    return Tables(pl.DataFrame(schema=INTERACTIONS), rooms,
                  pl.DataFrame([(0, "a"), (1, "b"), (2, "c")], schema=AUTHORS, orient="row"),
                  pl.DataFrame(schema=USERS), ReadReport("test", 0, 0), **content)


def vectors(key: str, columns: dict, embedding: list) -> pl.DataFrame:
    return pl.DataFrame(columns | {"embedding": embedding},
                        schema={key: pl.Int32} | {name: pl.Int64 for name in columns if name != key}
                        | {"embedding": pl.Array(pl.Float32, 1)})


SEGMENTS = vectors("room_id", {"room_id": [0, 1, 1, 2], "end_ms": [130, 230, 260, 530]}, [[1.0], [2.0], [4.0], [9.0]])
TITLES = vectors("title_id", {"title_id": [0, 1]}, [[3.0], [5.0]])


def test_segments_of_an_author_lie_together_and_pool_what_came_before():
    content = author_content(log(segments=SEGMENTS, titles=TITLES), 1000)
    assert content.author.tolist() == [0, 0, 0, 2]
    assert content.from_ms.tolist() == [230, 260, 530, 130]
    np.testing.assert_allclose(content.values(np.arange(4)), [[2, 2], [4, 3], [9, 5], [1, 1]])
    rows = content.row_at(np.array([0, 0, 0, 0, 1, 2]), np.array([229, 230, 259, 9999, 500, 130]))
    assert rows.tolist() == [-1, 0, 0, 2, -1, 3]
    np.testing.assert_array_equal(content.values(np.array([-1, 3])), [[0, 0], [1, 1]])


def test_titles_hold_from_the_start_of_a_room_and_pool_the_rooms_of_the_training_period():
    content = author_content(log(titles=TITLES), 500)
    assert content.author.tolist() == [0, 0, 2]
    assert content.from_ms.tolist() == [200, 500, 100]
    np.testing.assert_allclose(content.values(np.arange(3)), [[3, 3], [5, 3], [5, 5]])
    np.testing.assert_allclose(author_content(log(titles=TITLES), 501).pools[:, 0], [4, 0, 5])


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_pools_do_not_depend_on_how_much_is_summed_at_once(at_once, monkeypatch):
    whole = author_content(log(titles=TITLES), 1000)
    monkeypatch.setattr("data_pipelines.log.content.ROWS_AT_ONCE", at_once)
    np.testing.assert_array_equal(author_content(log(titles=TITLES), 1000).pools, whole.pools)


def test_a_log_without_segments_or_titled_rooms_has_no_content():
    assert author_content(log(), 1000) is None
    untitled = log(titles=TITLES)
    untitled = dataclasses.replace(untitled, rooms=untitled.rooms.with_columns(title_embedding=pl.lit(-1, pl.Int32)))
    assert author_content(untitled, 1000) is None


def test_segments_one_by_one_are_read_as_all_at_once():
    rng = np.random.default_rng(0)
    count, known = 400, 60
    columns = {"room_id": np.sort(rng.integers(0, 3, count)), "end_ms": rng.permutation(count) + 200}
    segments = vectors("room_id", columns, rng.normal(size=(count, 1)).tolist())
    tables = log(segments=segments)
    whole = author_content(tables, 1000)
    pools = Pools.of(whole, 200 + known - 1)
    assert pools.count.sum() == known
    order = np.argsort(whole.from_ms)
    for low, high in ((known, known + 1), (known + 1, 200), (200, 200), (200, count)):
        rows = rng.permutation(order[low:high])
        taken, values = pools.add(whole.author[rows], whole.from_ms[rows], whole.vectors[whole.vector[rows]])
        assert sorted(taken) == list(range(high - low))
        np.testing.assert_array_equal(values, whole.values(rows[taken]))
    np.testing.assert_array_equal(pools.total, Pools.of(whole, 1000).total)
    np.testing.assert_array_equal(pools.count, np.diff(whole.author_ptr))


def test_a_segment_that_is_delivered_twice_counts_once(caplog):
    columns = {"room_id": [1, 1, 1], "end_ms": [230, 260, 260]}
    content = author_content(log(segments=vectors("room_id", columns, [[0.0], [4.0], [4.0]])), 1000)
    np.testing.assert_allclose(content.values(np.arange(2)), [[0, 0], [4, 2]])  # with the third, x_pool was 2.667
    assert content.author_ptr.tolist() == [0, 2, 2, 2]
    assert "1 of 3 segments repeat a moment" in caplog.text
    pools = Pools.of(content, 230)
    assert pools.add([0, 0], [260, 260], [[4.0], [4.0]])[1].tolist() == [[4, 2]]
    assert pools.add([0], [260], [[4.0]])[0].size == 0
    assert pools.add([0], [290], [[8.0]])[1].tolist() == [[8, 4]]


def test_late_segments_are_left_out_and_wrong_ones_are_named():
    content = author_content(log(segments=SEGMENTS), 1000)
    pools = Pools.of(content, 1000)
    before = pools.total.copy()
    for changes, match in (([[0], [1], [[np.inf]]], "segment 0 holds NaN or infinity"),
                           ([[2, 3], [1, 1], [[1.0], [1.0]]], "segment 1 is of author 3, allowed are 0 … 2"),
                           ([[-1], [1], [[1.0]]], "is of author -1"),
                           ([[0], [1], [[1.0, 2.0]]], r"vectors \(1, 1\)")):
        with pytest.raises(ValueError, match=match):
            pools.add(*changes)
    np.testing.assert_array_equal(pools.total, before)
    taken, values = pools.add([0, 0, 2, 1], [530, 531, 131, 1], [[7.0], [7.0], [3.0], [8.0]])
    assert taken.tolist() == [1, 3, 2]  # author 0 was known at 530 already
    np.testing.assert_allclose(values, [[7, (15 + 7) / 4], [8, 8], [3, 2]])
    with pytest.raises(ValueError, match="content of titles"):
        Pools.of(author_content(log(titles=TITLES), 500), 500)
