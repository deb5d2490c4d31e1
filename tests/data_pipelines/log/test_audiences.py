"""Counts of the past: they equal counting by hand, and read nothing that began after a snapshot."""

import chex
import numpy as np
import pytest

from data_pipelines.batches import features
from data_pipelines.log import audiences
from data_pipelines.log.audiences import DAY_MS
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import HOUR_MS
from onelive_jax.batch import SIMILARITIES
from onelive_jax.config import DataConfig

AUTHORS, PEOPLE, DAYS = 9, 12, 6


def random_views(seed: int = 0, days: int = DAYS) -> Timelines:
    rng = np.random.default_rng(seed)
    each = rng.integers(3, 20, PEOPLE)
    ptr = np.append(0, np.cumsum(each)).astype(np.int64)
    start = np.concatenate([np.sort(rng.integers(0, days * DAY_MS, n)) for n in each])
    author = rng.integers(0, AUTHORS, start.size).astype(np.int32)
    return Timelines(ptr, author, author * 10 + (start // DAY_MS).astype(np.int32), start,
                     start + rng.integers(1, HOUR_MS, start.size))


def by_hand(views: Timelines) -> np.ndarray:
    """[A, A] cosines of audiences."""
    watched = np.zeros((views.num_users, AUTHORS))
    watched[views.users(), views.author] = 1
    common, count = watched.T @ watched, watched.sum(0)
    return np.where(np.eye(AUTHORS) > 0, 0, common / (np.sqrt(np.outer(count, count)) + audiences.SHRINK))


def test_similarity_is_counted_over_the_people_of_both_authors():
    views = random_views()
    snap = audiences.snapshot(views, AUTHORS, DAYS * DAY_MS, 0)
    made = np.zeros((AUTHORS, AUTHORS))
    for a in range(AUTHORS):
        at = slice(snap.ptr[a], snap.ptr[a + 1])
        assert (np.diff(snap.neighbour[at]) > 0).all()
        made[a, snap.neighbour[at]] = snap.cosine[at]
    chex.assert_trees_all_close(made, by_hand(views), atol=1e-6)


def test_an_author_has_its_most_similar_neighbours_only(monkeypatch):
    monkeypatch.setattr(audiences, "NEIGHBOURS", 2)
    snap = audiences.snapshot(random_views(), AUTHORS, DAYS * DAY_MS, 0)
    expected = np.sort(by_hand(random_views()), 1)[:, ::-1][:, :2]
    for a in range(AUTHORS):
        cosine = np.sort(snap.cosine[snap.ptr[a]:snap.ptr[a + 1]])[::-1]
        chex.assert_trees_all_close(cosine, expected[a, :cosine.size].astype(np.float32), atol=1e-6)


def test_trends_are_counted():
    hour = HOUR_MS
    views = Timelines(np.array([0, 2, 3]), np.array([1, 1, 1], np.int32), np.array([4, 5, 4], np.int32),
                      np.array([0, 10 * hour, 1 * hour]), np.array([2 * hour, 11 * hour, 3 * hour]))
    made = audiences.Audiences(np.array([0]), (audiences.snapshot(views, 2, 11 * hour, 0),), 0)
    found = audiences.trends(made, np.array([0, 1, 7]), np.array([25 * hour]))
    recent, popular, usual, length, near = np.expm1(found).T
    halves = np.exp2(-np.array([11, 1, 10]) / (7 * 24))
    assert popular.tolist() == pytest.approx([0, 3, 0])
    assert recent[1] == pytest.approx(halves.sum(), rel=1e-5)
    assert usual[1] == pytest.approx(5 / 4)  # five hours watched in the four on air
    assert length[1] == pytest.approx(4 / 2)
    halves = halves ** 0.25  # at one o'clock the views from 0 (near) and 1 count
    assert near[1] == pytest.approx(0.5 * halves[0] + halves[2], rel=1e-5)
    assert recent[[0, 2]].tolist() == [0, 0]  # never watched; newer than the counts


def test_nothing_after_its_snapshot_reaches_a_request():
    """Neither the view that is the answer, nor what anybody watched afterwards, changes what is known before it."""
    views, end = random_views(days=40), 40 * DAY_MS
    late = views.start_ms > 20 * DAY_MS
    changed = Timelines(views.user_ptr, np.where(late, (views.author + 3) % AUTHORS, views.author).astype(np.int32),
                        views.room, views.start_ms, views.stop_ms)
    then = 20 * DAY_MS + np.arange(3) * HOUR_MS
    one, other = (audiences.take_snapshots(v, AUTHORS, end, 0.0) for v in (views, changed))
    chex.assert_trees_all_equal(audiences.trends(one, np.arange(3), then), audiences.trends(other, np.arange(3), then))
    history = histories_of(views, then)
    chex.assert_trees_all_equal(audiences.related(one, then, history, 8), audiences.related(other, then, history, 8))
    now = np.full(3, end)
    assert (audiences.trends(one, np.arange(3), now) != audiences.trends(other, np.arange(3), now)).any()


def histories_of(views: Timelines, times_ms: np.ndarray):
    """Live histories of the first people [R]."""
    codes = np.zeros((views.author.size, 1), np.int32)
    author, stop_ms = views.by_start
    return features.histories(features.Views(author, views.start_ms, stop_ms, codes),
                              *views.rows_of(np.arange(times_ms.size)), times_ms,
                              features.history_settings(DataConfig(history_items=6), "live"))


def test_related_authors_sum_over_the_history():
    views, times = random_views(), np.full(4, DAYS * DAY_MS)
    made, history = audiences.take_snapshots(views, AUTHORS, DAYS * DAY_MS, 0.0), histories_of(views, times)
    author, similarity = audiences.related(made, times, history, 12)
    cosine = by_hand(views.until(DAYS * DAY_MS))
    assert similarity.shape == (4, 12, len(SIMILARITIES))
    for r in range(4):
        items = history.author[r][history.mask[r]]
        newer = np.arange(items.size)[::-1]
        habit, hours = history.habits[r][history.mask[r]][:, 0], np.expm1(history.habits[r][history.mask[r]][:, 2])
        rows = cosine[items]
        expected = np.stack([(1 / (1 + newer)) @ rows, habit @ rows, rows.sum(0), np.exp(-hours / 24) @ rows,
                             rows.max(0)], -1)
        named = author[r][author[r] >= 0]
        assert named.tolist() == np.flatnonzero(rows.max(0) > 0).tolist()
        chex.assert_trees_all_close(similarity[r][author[r] >= 0], np.log1p(10 * expected[named]).astype(np.float32),
                                    rtol=1e-4)
        assert not similarity[r][author[r] < 0].any()
    fewer, _ = audiences.related(made, times, history, 3)
    assert ((fewer >= 0).sum(1) == 3).all()


def test_counts_are_kept_and_made_anew_where_damaged(tmp_path, monkeypatch):
    views = random_views()
    made = audiences.stored(tmp_path, views, AUTHORS, DAYS * DAY_MS, 1.0)
    other = audiences.stored(tmp_path, random_views(1), AUTHORS, DAYS * DAY_MS, 1.0)
    assert not np.array_equal(other.snapshots[-1].authors, made.snapshots[-1].authors)
    audiences.stored(tmp_path, views, AUTHORS, DAYS * DAY_MS, 1.0)
    with monkeypatch.context() as patch:
        patch.delattr(audiences, "take_snapshots")
        chex.assert_trees_all_equal(made, audiences.stored(tmp_path, views, AUTHORS, DAYS * DAY_MS, 1.0))
    (tmp_path / "audiences.npz").write_bytes((tmp_path / "audiences.npz").read_bytes()[:300])
    chex.assert_trees_all_equal(made, audiences.stored(tmp_path, views, AUTHORS, DAYS * DAY_MS, 1.0))


def test_of_a_log_of_which_nothing_is_counted():
    made, times = audiences.nothing(), np.full(2, DAY_MS)
    assert not audiences.trends(made, np.array([0, 5]), times).any()
    author, similarity = audiences.related(made, times, histories_of(random_views(), times), 4)
    assert (author == -1).all()
    assert not similarity.any()
