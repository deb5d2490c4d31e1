"""Features as plain functions: a live state gets what a log gets, and wrong indices are named, never read."""

import jax
import numpy as np
import pytest

from data_pipelines.batches import features
from data_pipelines.batches.training import BatchMaker
from data_pipelines.log.audiences import nothing
from data_pipelines.log.content import Content
from data_pipelines.log.presence import Lifetimes, OnAir, Presence
from data_pipelines.log.slicing import HistorySettings, Views
from data_pipelines.log.timelines import Timelines
from data_pipelines.tables import HOUR_MS
from onelive_jax.batch import HABIT_FEATURES, ROOM_FEATURES, SIMILARITIES
from onelive_jax.config import DataConfig
from onelive_jax.tokenizer.semantic_ids import IdTable

USERS, AUTHORS, VIEWS = 9, 150, 400


@pytest.fixture(scope="module")
def views() -> Timelines:
    rng = np.random.default_rng(0)
    user, start = np.sort(rng.integers(USERS, size=VIEWS)), rng.integers(0, 40, VIEWS) * HOUR_MS // 2
    stop, author = start + rng.integers(1, 3 * HOUR_MS, VIEWS), rng.integers(AUTHORS, size=VIEWS).astype(np.int32)
    order = np.lexsort((stop, start, user))
    return Timelines(np.searchsorted(user[order], np.arange(USERS + 1)), author[order], author[order], start[order],
                     stop[order])


@pytest.fixture(scope="module")
def maker(views) -> BatchMaker:
    ids = IdTable.static(np.random.default_rng(1).integers(8, size=(AUTHORS, 3)))
    return BatchMaker(views, Presence.of(views, None, AUTHORS), ids, DataConfig(history_items=8, history_window=20))


def test_a_block_of_a_persons_last_views_gives_the_history_that_the_log_gives(maker, views):
    """A live state: a buffer for each person, views appended, the newer half moved to its front when it is full."""
    size, now, settings = 80, 21 * HOUR_MS, features.history_settings(maker.config, "live")
    shape = (USERS, size)
    live = Views(np.full(shape, 149, np.int32), np.zeros(shape, np.int64), np.zeros(shape, np.int64),
                 np.full((*shape, 3), 7, np.int32))
    begin, end = np.zeros(USERS, np.int64), np.zeros(USERS, np.int64)
    author, stop_ms = views.by_start
    for view, user in enumerate(views.users()):
        if end[user] == size:
            for column in live:
                column[user, :40] = column[user, 40:]
            begin[user], end[user] = 0, 40
        for column, value in zip(live, (author[view], views.start_ms[view], stop_ms[view],
                                        maker.ids.codes_at(author[view], 0)), strict=True):
            column[user, end[user]] = value
        end[user] += 1
    flat = Views(*(column.reshape(USERS * size, *column.shape[2:]) for column in live))
    block = np.arange(USERS) * size
    made = features.histories(flat, block + begin, block + end, np.full(USERS, now), settings)
    offline = maker.request(np.arange(USERS), np.full(USERS, now)).histories["live"]
    jax.tree.map(np.testing.assert_array_equal, made, offline)
    assert offline.mask.sum() > 40


def test_one_request_now_is_a_row_of_a_batch(maker):
    times = np.arange(5, 20) * HOUR_MS + 1
    users = np.arange(times.size) % USERS
    on_air = maker.on_air(users, times)
    codes = maker.ids.codes_at(on_air.author, times[on_air.moment])
    whole = features.live_rooms(on_air, codes, times, 64, nothing())
    for r in range(times.size):
        part = slice(on_air.offsets[r], on_air.offsets[r + 1])
        one = OnAir(np.array([0, part.stop - part.start]), on_air.author[part], on_air.room[part], on_air.viewers[part],
                    on_air.since_ms[part])
        jax.tree.map(lambda a, b, r=r: np.testing.assert_array_equal(a[0], b[r]),
                     features.live_rooms(one, codes[part], times[r:r + 1], 64, nothing()), whole)
    assert whole.mask.sum() > 100


def test_room_features_by_hand():
    made = features.room_features(np.array([0, 1, 7]), np.array([0, 5, 9]) * HOUR_MS, np.arange(3),
                                  np.array([3, 5, 8]) * HOUR_MS, nothing())
    assert not made[:, 2:].any()
    np.testing.assert_allclose(made[:, :2], [[0, np.log(4)], [0, 0], [np.log(7), 0]], rtol=1e-6)
    with pytest.raises(ValueError, match="2 rooms of a request do not fit 1 slots"):
        features.padded(np.zeros(2), np.array([0, 2]), 1)


def test_a_feature_that_has_only_a_name_stops_everything():
    features.check_feature_counts()
    with pytest.raises(RuntimeError, match="names 8 ROOM_FEATURES, data_pipelines/batches/features.py makes 7"):
        features.check_feature_counts(room=len(ROOM_FEATURES) + 1)
    with pytest.raises(RuntimeError, match="names 11 HABIT_FEATURES, data_pipelines/log/slicing.py makes 10"):
        features.check_feature_counts(habit=len(HABIT_FEATURES) + 1)
    with pytest.raises(RuntimeError, match="names 6 SIMILARITIES, data_pipelines/log/audiences.py makes 5"):
        features.check_feature_counts(similarity=len(SIMILARITIES) + 1)


@pytest.mark.parametrize("user", [2_000_000_000, USERS, -2])
def test_a_user_out_of_range_is_named(maker, views, user):
    now, match = np.array([HOUR_MS, HOUR_MS]), rf"user {user} is out of range: allowed are (0|-1) … 8"
    users = np.array([0, user])
    for door in (lambda: maker.request(users, now), lambda: views.seen_before(users, now),
                 lambda: maker.on_air(users, now), lambda: maker.presence.at(now, users, own_rows=True),
                 lambda: maker.presence.count(now, users, np.array([1, 1])),
                 lambda: maker.presence.draw(now, users, 4, np.array([1, 1]), np.random.default_rng(0)),
                 lambda: maker.presence.shows(np.array([1, 1]), now, users)):
        with pytest.raises(ValueError, match=match):
            door()


@pytest.mark.parametrize("author", [1_000_000, 150, -1])
def test_an_author_out_of_range_is_named(maker, author):
    now, users, authors = np.array([HOUR_MS, HOUR_MS]), np.array([0, 1]), np.array([149, author])
    content = Content(*(np.zeros(1, int) for _ in range(6)), np.zeros(AUTHORS + 1, np.int64))
    for door in (lambda: maker.presence.count(now, users, authors),
                 lambda: maker.presence.draw(now, users, 4, authors, np.random.default_rng(0)),
                 lambda: maker.presence.shows(authors, now, users), lambda: content.row_at(authors, now)):
        with pytest.raises(ValueError, match=rf"author {author} is out of range: allowed are 0 … 149"):
            door()
    with pytest.raises(ValueError, match=f"author {author} is not in the id table, which holds authors 0 … 149"):
        maker.ids.codes_at(authors, now)


def test_true_lifetimes_check_as_views_do(views):
    rooms = Lifetimes(np.array([3]), np.array([0]), np.array([HOUR_MS]), np.array([0]))
    presence = Presence.of(views, rooms, AUTHORS)
    with pytest.raises(ValueError, match="user 2000000000"):
        presence.at(np.array([5]), np.array([2_000_000_000]))
    assert presence.at(np.array([5]), np.array([USERS - 1])).author.tolist() == [3]


def test_rows_and_views_out_of_range_are_named(maker, views):
    arrays, settings = maker.requests.history_views["live"], HistorySettings(4, 9, True, 0, 0)
    with pytest.raises(ValueError, match=f"end of views {VIEWS + 1} is out of range"):
        features.histories(arrays, np.array([0]), np.array([VIEWS + 1]), np.array([0]), settings)
    with pytest.raises(ValueError, match="view -1 is out of range: allowed are 0 … 399"):
        maker.batch(np.array([-1]), np.random.default_rng(0))
