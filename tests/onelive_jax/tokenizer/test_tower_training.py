"""Training of the towers: what a history is, what is learned, continuation, clear errors."""

import dataclasses
from types import SimpleNamespace

import chex
import numpy as np
import pytest

from onelive_jax.config import TokenizerConfig
from onelive_jax.tokenizer import tower_training
from onelive_jax.tokenizer.tower_training import ViewLog, slice_history, train_towers

CONFIG = TokenizerConfig(dim=16, hidden=16, history_items=6, steps=200, batch_size=64, learning_rate=1e-2)
AUTHORS = 24  # three worlds of 8; the last author of each world is never watched in training


def world_log(seed=0):
    """60 users, each of whom watches 20 views in one world of authors."""
    rng = np.random.default_rng(seed)
    author = np.concatenate([8 * (user % 3) + rng.integers(0, 7, 20) for user in range(60)]).astype(np.int32)
    return np.arange(61) * 20, author


def view_log(authors=AUTHORS, seed=0, **more):
    return ViewLog(*world_log(seed), authors, **more)


def world_content(seed=0):
    """One content vector an author: its world, and noise."""
    rng = np.random.default_rng(seed)
    return (np.repeat(np.eye(3, 5), 8, axis=0) + 0.1 * rng.normal(size=(AUTHORS, 5))).astype(np.float32)


@pytest.fixture(scope="module")
def plain():
    seen = []
    result = train_towers(view_log(), CONFIG, progress=lambda *call: seen.append(call))
    return result, seen


def test_history_is_what_the_same_user_watched_before():
    rows, mask = slice_history(np.array([0, 3, 3, 5]), np.array([0, 2, 3, 4]), 3)
    np.testing.assert_array_equal(mask, [[0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(rows, [[0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 3]])


def test_views_without_another_author_before_them_are_counted_not_used():
    # User 0 watches 5, 5, 6, 5 and user 1 only 7: the 6 follows a 5 and the last 5 follows the 6.
    user_ptr, author = np.array([0, 4, 5]), np.array([5, 5, 6, 5, 7])
    np.testing.assert_array_equal(tower_training._positives(user_ptr, author, 2), [2, 3])
    np.testing.assert_array_equal(tower_training._positives(user_ptr, author, 2, chunk=2), [2, 3])
    result = train_towers(ViewLog(user_ptr, author, 8), TokenizerConfig(dim=4, hidden=4, history_items=2, steps=1))
    assert (result.pairs, result.without_history) == (2, 3)
    np.testing.assert_array_equal(result.towers.author_views, [0, 0, 0, 0, 0, 3, 1, 1])


def test_authors_of_one_audience_come_together(plain):
    result, seen = plain
    assert result.losses[-20:].mean() < result.losses[:5].mean() - 0.5
    chex.assert_shape(result.losses, (200,))
    assert [steps for steps, _ in seen] == [100, 200]
    assert seen[1][1] == pytest.approx(float(result.losses[100:].mean()), rel=1e-5)
    known = np.arange(AUTHORS) % 8 < 7
    embedding = result.towers.authors()[known]
    world = (np.arange(AUTHORS) // 8)[known]
    cosine, same = embedding @ embedding.T, world[:, None] == world
    assert cosine[same].mean() > cosine[~same].mean() + 0.5


def test_negatives_of_the_same_time(plain):
    runs = tower_training._runs(np.arange(40, 90), 16, np.random.default_rng(0))
    batches = np.stack([next(runs) for _ in range(20)])
    assert (np.diff(batches, axis=1) == 1).all()
    assert len(np.unique(batches[:, 0])) > 5
    only = next(tower_training._runs(np.arange(16), 16, np.random.default_rng(0)))
    np.testing.assert_array_equal(only, np.arange(16))
    # Each world has an hour of its own: against its own hour an author cannot be told by its world.
    config, (_, author) = dataclasses.replace(CONFIG, negatives="same time"), world_log()
    with pytest.raises(ValueError, match="negatives='same time' needs time_ms, one moment for each of the 1200 views"):
        train_towers(view_log(), config)
    time_ms = 3_600_000 * (author // 8) + np.random.default_rng(0).permutation(author.size)
    result = train_towers(view_log(time_ms=time_ms), config)
    assert result.losses[-20:].mean() > plain[0].losses[-20:].mean() + 0.5


def test_users_find_the_authors_of_their_world(plain):
    made, log = plain[0].towers, view_log()
    recall = tower_training.recall_on_log(made, log, log.user_ptr[1:] - 1, made.authors(), ks=(8,))
    assert recall[8] > 0.9  # by chance 1/3


def test_recall_counts_ties_against_the_target():
    users = np.array([[0.9, 0.3, 0.1, 0.0], [0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.9]], np.float32)
    towers = SimpleNamespace(config=CONFIG, users=lambda history, *more: users[history[:, -1]])
    log = ViewLog(np.arange(4) * 2, [0, 0, 1, 1, 2, 0], 4)  # before a view, somebody watched the author of its user
    # Ranks from 0: the best; tied with author 0, hence second; last.
    assert tower_training.recall_on_log(towers, log, np.array([1, 3, 5]), np.eye(4, dtype=np.float32), (1, 2, 4),
                                        chunk=2) == pytest.approx({1: 1 / 3, 2: 2 / 3, 4: 1.0})


def test_an_author_never_watched_is_placed_by_its_content():
    content = world_content()
    made = train_towers(view_log(content=content, content_row=world_log()[1]), CONFIG).towers
    embedding = made.authors(content=content)
    unseen = np.arange(7, AUTHORS, 8)
    cosine = embedding[unseen] @ np.delete(embedding, unseen, axis=0).T
    np.testing.assert_array_equal(cosine.argmax(axis=1) // 7, [0, 1, 2])
    moved = made.authors(unseen[:1], content[unseen[1:2]])
    assert (moved @ np.delete(embedding, unseen, axis=0).T).argmax() // 7 == 1  # content of another world: it moves


def test_the_seed_decides():
    log, config = view_log(), TokenizerConfig(dim=4, hidden=4, history_items=3, steps=5, batch_size=16)
    first = train_towers(log, config, seed=1)
    chex.assert_trees_all_equal(first.towers.params, train_towers(log, config, seed=1).towers.params)
    other = train_towers(log, config, seed=2)
    assert not np.allclose(first.losses, other.losses)


def test_going_on_from_old_parameters_keeps_the_space(plain):
    made = plain[0].towers
    config = TokenizerConfig(**{**vars(CONFIG), "steps": 20, "learning_rate": 1e-3})
    before = np.array(made.params["user_tower"]["recency"])
    more = train_towers(view_log(AUTHORS + 2, 1), config, initial=made.params).towers
    old, new = made.authors(), more.authors()
    chex.assert_shape(new, (AUTHORS + 2, 16))
    assert (old * new[:AUTHORS]).sum(axis=1).min() > 0.9
    np.testing.assert_array_equal(before, made.params["user_tower"]["recency"])  # the old ones are not donated
    with pytest.raises(ValueError, match="authors can be added, not taken away"):
        train_towers(ViewLog([0, 3], [0, 1, 0], 2), CONFIG, initial=made.params)


def test_an_infinite_rate_stops_at_the_step():
    config = TokenizerConfig(dim=4, hidden=4, history_items=3, steps=5, batch_size=16)
    config.learning_rate = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan at step 2: lower config.tokenizer.learning_rate"):
        train_towers(view_log(), config)


@pytest.mark.parametrize("change, message", [
    ({"user_ptr": [0, 2, 3]}, "user_ptr must run from 0 to the number of views, 4"),
    ({"user_ptr": [0, 4, 2, 4]}, "user_ptr falls after user 1"),
    ({"author": [0, 1, 2, 9]}, r"0 … 9, allowed are 0 … 2"),
    ({"author": [1, 1, 2, 2]}, "0 of 4 training views have a view of another author"),
    ({"content": np.zeros((2, 3))}, "content needs content_row"),
    ({"content": np.zeros((2, 3)), "content_row": [0, 1, 2, -1]}, r"content_row lies in -1 … 2, allowed are -1 … 1"),
    ({"content": np.array([[0.0], [np.nan]]), "content_row": [0, 1, 0, 1]}, "content hold NaN .* first is row 1"),
    ({"content": np.zeros((2, 0)), "content_row": [0, 1, 0, 1]}, r"content must be a non-empty \[rows, width\] array"),
])
def test_bad_logs_are_named(change, message):
    log = dict(user_ptr=[0, 2, 4], author=[0, 1, 1, 2], num_authors=3) | change
    with pytest.raises(ValueError, match=message):
        train_towers(ViewLog(**log), CONFIG)


def test_side_features_place_authors_and_users_never_seen():
    world = np.eye(3, dtype=np.float32)
    attributes, features = np.repeat(world, 8, axis=0), world[np.arange(60) % 3]
    log = view_log(attributes_AxS=attributes, features_UxF=features)
    made = train_towers(log, CONFIG).towers
    embedding = made.authors()
    unseen = np.arange(7, AUTHORS, 8)
    others = np.delete(embedding, unseen, axis=0)
    np.testing.assert_array_equal((embedding[unseen] @ others.T).argmax(axis=1) // 7, [0, 1, 2])
    nobody = made.users(np.zeros((3, 2), int), np.zeros((3, 2), bool), features_BxF=world)
    np.testing.assert_array_equal((nobody @ embedding.T).argmax(axis=1) // 8, [0, 1, 2])
    recall = tower_training.recall_on_log(made, log, log.user_ptr[1:] - 1, embedding, (8, AUTHORS), chunk=17)
    assert recall[8] > 0.9
    assert recall[AUTHORS] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="trained with attributes"):
        dataclasses.replace(made, attributes_AxS=None).authors()
    with pytest.raises(ValueError, match="trained with user features"):
        made.users(np.zeros((1, 2), int), np.ones((1, 2), bool))
    with pytest.raises(ValueError, match="1 rows of attributes hold NaN or infinity, the first is row 1"):
        view_log(attributes_AxS=np.where(np.arange(AUTHORS)[:, None] == 1, np.nan, attributes))
