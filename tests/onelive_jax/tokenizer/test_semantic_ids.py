"""Semantic ids: as-of lookups against a plain loop, the figures by hand."""

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onelive_jax.tokenizer import semantic_ids
from onelive_jax.tokenizer.semantic_ids import ALWAYS, IdTable

BASE = np.array([[0, 0], [1, 1], [2, 2]])


def moving():
    return IdTable.dynamic(BASE, author_M=[2, 0, 2, 0], from_ms_M=[500, 100, 300, 200],
                           codes_MxL=[[2, 5], [7, 0], [2, 3], [8, 0]])


def test_static_codes_hold_at_any_time():
    table = IdTable.static(BASE)
    got = table.codes_at([2, 0, 1], [0, -(2**62), 2**62])
    np.testing.assert_array_equal(got, [[2, 2], [0, 0], [1, 1]])
    assert got.dtype == np.int32


@pytest.mark.parametrize("author, time, codes", [
    (0, 99, [0, 0]), (0, 100, [7, 0]), (0, 199, [7, 0]), (0, 200, [8, 0]), (0, 10**15, [8, 0]),
    (1, 0, [1, 1]), (1, 10**15, [1, 1]),
    (2, -1, [2, 2]), (2, 299, [2, 2]), (2, 300, [2, 3]), (2, 499, [2, 3]), (2, 500, [2, 5]),
])
def test_codes_are_those_of_the_latest_moment_not_after(author, time, codes):
    np.testing.assert_array_equal(moving().codes_at(author, time), codes)


def test_lookup_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    base, author = rng.integers(0, 9, (20, 3)), rng.integers(0, 20, 300)
    from_ms, codes = rng.integers(0, 10**13, 300), rng.integers(0, 9, (300, 3))
    table = IdTable.dynamic(base, author, from_ms, codes)
    ask, when = rng.integers(0, 20, (50, 4)), rng.integers(-10, 10**13, (50, 4))
    expected = np.empty((50, 4, 3), int)
    for place in np.ndindex(50, 4):
        rows = np.flatnonzero((author == ask[place]) & (from_ms <= when[place]))
        expected[place] = codes[rows[from_ms[rows].argmax()]] if len(rows) else base[ask[place]]
    np.testing.assert_array_equal(table.codes_at(ask, when), expected)


def test_times_broadcast_and_empty_questions_are_fine():
    chex.assert_shape(moving().codes_at(np.zeros((4, 5), int), 150), (4, 5, 2))
    chex.assert_shape(moving().codes_at(np.zeros((0, 5), int), 150), (0, 5, 2))


def test_rows_that_change_nothing_are_left_out_and_the_last_of_a_moment_counts():
    table = IdTable.dynamic(BASE, [1, 1, 1, 1], [10, 20, 30, 30], [[1, 1], [4, 4], [5, 5], [6, 6]])
    np.testing.assert_array_equal(table.from_ms[table.author == 1], [ALWAYS, 20, 30])
    np.testing.assert_array_equal(table.codes_at([1, 1], [15, 30]), [[1, 1], [6, 6]])


def test_arrays_and_back():
    table, arrays = moving(), moving().to_arrays()
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "author": "int32", "from_ms": "int64", "codes": "int32"}
    again = IdTable.from_arrays(arrays)
    chex.assert_trees_all_equal(again.to_arrays(), table.to_arrays())
    np.testing.assert_array_equal(again.codes_at([0, 2], [150, 400]), [[7, 0], [2, 3]])
    assert (again.num_authors, again.levels) == (3, 2)


@pytest.mark.parametrize("change, message", [
    ({"author": [0, 2], "from_ms": [ALWAYS] * 2, "codes": BASE[:2]}, "author 1 has no codes"),
    ({"author": [0, 1], "from_ms": [ALWAYS, 5], "codes": BASE[:2]}, "author 1 has no codes before"),
    ({"author": [1, 0], "from_ms": [ALWAYS] * 2, "codes": BASE[:2]}, "row 1 of the id table is not after"),
    ({"author": [0, 0, 0], "from_ms": [ALWAYS, 7, 7], "codes": BASE}, "row 2 of the id table is not after"),
    ({"author": [0], "from_ms": [ALWAYS], "codes": [[3, -1]]}, "row 0 of the id table has a negative code"),
    ({"author": [0, 1], "from_ms": [ALWAYS], "codes": BASE[:2]}, "needs author"),
    ({"author": [], "from_ms": [], "codes": np.zeros((0, 2))}, "at least one author"),
    ({"author": [0], "codes": [[0]]}, "lacks the array 'from_ms'"),
])
def test_broken_tables_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        IdTable.from_arrays(change)


@pytest.mark.parametrize("author", [-1, 3])
def test_an_unknown_author_is_named(author):
    with pytest.raises(ValueError, match=f"author {author} is not in the id table"):
        moving().codes_at([0, author], 0)


def test_utilization_by_hand():
    codes = [[0, 0, 0], [0, 1, 0], [0, 1, 0], [3, 2, 0]]
    assert semantic_ids.utilization(codes, 4) == {"L0": 0.5, "L1": 0.75, "L2": 0.25, "L0xL1": 3 / 16}
    assert semantic_ids.utilization([[0], [1]], 4) == {"L0": 0.5}
    with pytest.raises(ValueError, match=r"code 3 is outside 0 … 2"):
        semantic_ids.utilization(codes, 3)


def test_collision_rates_by_hand():
    # Ids: A held by three authors, B by two, C and D by one each: 2 of 4 ids, 5 of 7 authors.
    codes = [[0, 0, 0]] * 3 + [[0, 0, 1]] * 2 + [[1, 0, 0], [0, 1, 0]]
    assert semantic_ids.collision_rates(codes) == (2 / 4, 5 / 7)
    assert semantic_ids.collision_rates([[0, 1], [1, 0]]) == (0.0, 0.0)
    shuffled = np.random.default_rng(0).permutation(codes)
    assert semantic_ids.collision_rates(shuffled) == semantic_ids.collision_rates(codes)


def test_churn_by_hand():
    old = [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    new = [[1, 1, 1], [1, 1, 2], [1, 2, 1], [2, 1, 1]]
    assert semantic_ids.churn(old, new) == {"q0": 0.25, "q0q1": 0.5, "q0q1q2": 0.75}
    with pytest.raises(ValueError, match="same authors"):
        semantic_ids.churn(old, new[:3])


def test_figures_refuse_what_is_no_set_of_ids():
    for figure in (semantic_ids.collision_rates, lambda ids: semantic_ids.utilization(ids, 4)):
        with pytest.raises(ValueError, match="non-empty"):
            figure(np.zeros((0, 3), int))
        with pytest.raises(ValueError, match="codes >= 0"):
            figure([[0, -1]])


def test_new_segments_extend_the_table_and_late_ones_are_counted():
    table = moving()  # author 0: ALWAYS, 100, 200; author 1: ALWAYS; author 2: ALWAYS, 300, 500
    more, late, changed = table.extend([0, 2, 1, 0, 2, 4, 3], [150, 500, 50, 400, 600, 9, 7],
                                       [[9, 9], [4, 4], [1, 1], [5, 0], [4, 4], [8, 8], [6, 6]])
    assert late == 1  # author 0 at 150: older than its 200
    np.testing.assert_array_equal(changed, [0, 2, 3, 4])  # author 1 repeats its codes
    np.testing.assert_array_equal(more.codes_at([0, 0, 1, 2, 2, 3, 4], [399, 400, 60, 499, 500, 0, 9]),
                                  [[8, 0], [5, 0], [1, 1], [2, 3], [4, 4], [6, 6], [8, 8]])
    assert len(more.author) == len(table.author) + 3  # author 0's row, and one for each new author
    np.testing.assert_array_equal(table.codes_at(0, 400), [8, 0])  # the old table stays as it was
    same, late, changed = more.extend([], [], np.zeros((0, 2)))
    chex.assert_trees_all_equal(same.to_arrays(), more.to_arrays())
    assert (late, len(changed)) == (0, 0)


def test_segments_as_they_come_give_the_table_of_all_at_once():
    rng = np.random.default_rng(0)
    base, author = rng.integers(0, 3, (9, 2)), rng.integers(0, 9, 200)
    from_ms, codes = np.sort(rng.integers(0, 50, 200)), rng.integers(0, 3, (200, 2))
    table = IdTable.static(base)
    for first in range(0, 200, 7):
        part = slice(first, first + 7)
        table, late, _ = table.extend(author[part], from_ms[part], codes[part])
        assert late == 0
    ask, when = rng.integers(0, 9, 500), rng.integers(-2, 52, 500)
    whole = IdTable.dynamic(base, author, from_ms, codes)
    np.testing.assert_array_equal(table.codes_at(ask, when), whole.codes_at(ask, when))


def plainly_extended(table, author, from_ms, codes):
    """`IdTable.extend` segment by segment, in order of time: {author: {from_ms: codes}} and how many came too late."""
    rows = {a: {int(table.from_ms[i]): tuple(table.codes[i]) for i in range(table.ptr[a], table.ptr[a + 1])}
            for a in range(table.num_authors)}
    newest = {a: max(moments) for a, moments in rows.items()}
    news, late = {}, 0
    for a, moment, code in zip(author.tolist(), from_ms.tolist(), map(tuple, codes), strict=True):
        if a in newest and moment < newest[a]:
            late += 1
        else:
            news.setdefault(a, {})[moment] = code  # the later of one moment counts
    for a in sorted(news):
        moments = sorted(news[a])
        if a not in rows:
            # The first to name an author's first moment, not the last, holds before it.
            first = min(i for i in range(len(author)) if author[i] == a and from_ms[i] == moments[0])
            rows[a] = {ALWAYS: tuple(codes[first])}
            newest[a] = ALWAYS
        before = None
        if moments[0] != newest[a]:
            before = rows[a][newest[a]]
        for moment in moments:
            if news[a][moment] != before:
                rows[a][moment] = news[a][moment]
            before = news[a][moment]
    return rows, late


@settings(max_examples=150, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), authors=st.integers(1, 6), old=st.integers(0, 12), new=st.integers(0, 25),
       fresh=st.integers(0, 3))
def test_an_extended_table_is_that_of_a_plain_loop(seed, authors, old, new, fresh):
    rng = np.random.default_rng(seed)
    table = IdTable.dynamic(rng.integers(0, 2, (authors, 2)), rng.integers(0, authors, old), rng.integers(0, 9, old),
                            rng.integers(0, 2, (old, 2)))
    author = np.concatenate([rng.integers(0, authors + fresh, new), np.arange(authors, authors + fresh)])
    rng.shuffle(author)
    from_ms, codes = rng.integers(4, 14, len(author)), rng.integers(0, 2, (len(author), 2))
    kept = {name: array.copy() for name, array in table.to_arrays().items()}
    more, late, changed = table.extend(author, from_ms, codes)
    rows, expected_late = plainly_extended(table, author, from_ms, codes)
    assert late == expected_late
    expected = [(a, moment, *code) for a in sorted(rows) for moment, code in sorted(rows[a].items())]
    assert list(zip(more.author, more.from_ms, *more.codes.T, strict=True)) == expected
    assert {name: array.dtype for name, array in more.to_arrays().items()} == {
        name: array.dtype for name, array in kept.items()}
    latest = more.codes_at(np.arange(more.num_authors), 10**6)
    moved = [a for a in range(more.num_authors)
             if a >= authors or (latest[a] != table.codes_at(a, 10**6)).any()]
    np.testing.assert_array_equal(changed, moved)
    chex.assert_trees_all_equal(table.to_arrays(), kept)  # the old table stays as it was


def test_what_is_no_integer_is_refused():
    for codes in ([[0.7, 1]], [[1.0, 1.0]], [["0", "1"]]):
        kind = np.asarray(codes).dtype
        with pytest.raises(ValueError, match=f"codes must be integers, not {kind}"):
            moving().extend([0], [900], codes)
    with pytest.raises(ValueError, match="codes must be integers, not float64"):
        IdTable.static([[0.5, 1]])
    with pytest.raises(ValueError, match=r"codes lie in 0 … 4294967296, which does not fit int32"):
        moving().extend([0], [900], [[0, 2**32]])
    with pytest.raises(ValueError, match="author must be integers, not float64"):
        moving().extend([0.5], [900], [[0, 0]])
    with pytest.raises(ValueError, match="from_ms must be integers, not float64"):
        moving().extend([0], [900.5], [[0, 0]])


def test_bad_segments_are_named():
    with pytest.raises(ValueError, match="name author 4; the table holds 0 … 2"):
        moving().extend([4], [1], [[0, 0]])
    with pytest.raises(ValueError, match=r"codes \[M, 2\]"):
        moving().extend([0], [900], [[0, 0, 0]])


def test_churn_counts_only_the_unchanged():
    assert semantic_ids.churn([[0], [1]], [[1], [1]], unchanged=[False, True]) == {"q0": 0.0}
    with pytest.raises(ValueError, match="at least one author"):
        semantic_ids.churn([[0]], [[0]], unchanged=[False])


def test_pairs_of_many_codes_are_counted_without_a_table_of_pairs():
    codes = np.random.default_rng(0).integers(0, 65536, (1000, 3))
    assert semantic_ids.utilization(codes, 65536)["L0xL1"] == len({(a, b) for a, b, _ in codes}) / 65536**2
