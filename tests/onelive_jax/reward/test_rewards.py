"""Shaped feedback by hand, and rewards of candidates. Axes: B batch, G candidates, R rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.batch import Feedback, LiveRooms
from onelive_jax.reward.rewards import logged_reward, make_reward, shape_feedback


def test_feedback_is_compared_within_viewer_and_duration():
    # Viewer 1, rooms of 60 … 64 minutes (one bucket, 5): watched 1, 2, 3, 4, quantiles 1/8, 3/8, 5/8, 7/8: the last is
    # in the best quarter. Viewer 1, rooms of 7 minutes (bucket 3): watched 1 … 4 minutes. The same 4 minutes are a top
    # view there, too; a disliked one is -1 however long it was watched, and moves no quantile.
    user = [1] * 9
    duration = [60, 60, 62, 61, 7, 7, 7, 7, 60]
    watch = [1, 2, 3, 4, 4, 3, 2, 1, 60]
    reward, counts = shape_feedback(user, duration, watch, [False] * 8 + [True])
    np.testing.assert_array_equal(reward, [0, 0, 0, 1, 1, 0, 0, 0, -1])
    assert counts == {"positive": 2, "neutral": 6, "negative": 1, "compared_with_everyone": 0}
    assert reward.dtype == np.float32


def test_viewers_with_few_views_are_compared_with_everyone():
    user, watch = [1, 1, 1, 1, 2, 3], [10, 20, 30, 40, 100, 1]
    reward, counts = shape_feedback(user, [50] * 6, watch, [False] * 6)
    # Viewer 2: 5.5 of 6 views of the bucket at most as long; viewer 3: 0.5 of 6.
    np.testing.assert_array_equal(reward, [0, 0, 0, 1, 1, 0])
    assert counts["compared_with_everyone"] == 2


def test_a_wider_top_rewards_more_and_ties_share_a_quantile():
    reward, _ = shape_feedback([1] * 4, [5] * 4, [1, 1, 2, 2], [False] * 4, top=0.25)
    np.testing.assert_array_equal(reward, [0, 0, 1, 1])  # both at (2 + 1) / 4
    reward, _ = shape_feedback([1] * 4, [5] * 4, [1, 2, 3, 4], [False] * 4, top=0.5)
    np.testing.assert_array_equal(reward, [0, 0, 1, 1])
    assert len(shape_feedback([], [], [], [])[0]) == 0


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="row 1: watch=-2.0 must be finite and 0 or more"):
        shape_feedback([1, 1], [5, 5], [1, -2], [False, False])
    with pytest.raises(ValueError, match="top=0 must be in"):
        shape_feedback([1], [5], [1], [False], top=0)


def rooms_of(author, mask) -> LiveRooms:
    author = jnp.asarray(author)
    return LiveRooms(author=author, codes=jnp.zeros((*author.shape, 1), jnp.int32),
                     features=jnp.zeros((*author.shape, 2)), mask=jnp.asarray(mask))


def feedback_of(author, mask, reward, rewarded) -> Feedback:
    blank = jnp.zeros((*np.shape(author), 1))
    return Feedback(request=None, rooms=rooms_of(author, mask), outcomes=blank, known=blank > 0,
                    reward=jnp.asarray(reward), rewarded=jnp.asarray(rewarded), propensity=blank[..., 0],
                    weight=jnp.ones(len(author)))


def test_logged_rewards_are_found_by_author():
    feedback = feedback_of([[4, 0, 6, 4]], [[True, False, True, True]], [[1.0, 9.0, -1.0, 0.5]],
                           [[True, True, False, True]])
    # 6 was shown but has no reward; 0 fills an empty slot; 4 was shown twice: the first counts.
    reward, known = logged_reward(rooms_of([[6, 4, 0, 5, 4]], [[True, True, True, True, False]]), feedback)
    np.testing.assert_array_equal(known, [[False, True, False, False, False]])
    np.testing.assert_array_equal(reward, [[0, 1, 0, 0, 0]])


class Scorer:
    """Stands for a reward model whose score is logit(author / 10)."""

    def apply(self, variables, request, rooms):
        p = rooms.author / 10
        return None, jnp.log(p / (1 - p))


def test_the_three_rewards():
    feedback = feedback_of([[4]], [[True]], [[-1.0]], [[True]])
    rooms = rooms_of([[4, 9]], [[True, True]])
    reward, known = make_reward("model", Scorer())({}, None, rooms, None)
    np.testing.assert_allclose(reward, [[0.4, 0.9]], rtol=1e-5)
    assert known.all()
    reward, known = make_reward("feedback")(None, None, rooms, feedback)
    np.testing.assert_array_equal(known, [[True, False]])
    reward, known = make_reward("mix", Scorer(), mix=0.25)({}, None, rooms, feedback)
    np.testing.assert_allclose(reward, [[0.75 * -0.2 + 0.25 * -1, 0.8]], rtol=1e-5)
    assert known.all()


def test_rewards_say_what_they_need():
    with pytest.raises(ValueError, match="is not one of 'model', 'feedback', 'mix'"):
        make_reward("clicks")
    with pytest.raises(ValueError, match="needs a reward model: train one"):
        make_reward("mix")
    with pytest.raises(ValueError, match="read logged feedback"):
        logged_reward(rooms_of([[1]], [[True]]), None)
