"""Content of rooms by author and moment, by hand."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from data_pipelines.content import author_content
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
    monkeypatch.setattr("data_pipelines.content.ROWS_AT_ONCE", at_once)
    np.testing.assert_array_equal(author_content(log(titles=TITLES), 1000).pools, whole.pools)


def test_a_log_without_segments_or_titled_rooms_has_no_content():
    assert author_content(log(), 1000) is None
    untitled = log(titles=TITLES)
    untitled = dataclasses.replace(untitled, rooms=untitled.rooms.with_columns(title_embedding=pl.lit(-1, pl.Int32)))
    assert author_content(untitled, 1000) is None
