"""Rows of authors who are new: given, moved on, given to others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onelive_jax.training.author_rows import AuthorRows, with_rows_of, with_spare_authors
from onelive_jax.training.train_state import TrainState

TRAINED, SPARE = 3, 2


def make_state():
    params = with_spare_authors({"author_table": jnp.ones((TRAINED, 2)), "identity": {
        "bias": jnp.array([1.0, 2.0, 3.0]), "w": jnp.ones((4, 4))}, "decoder": {"bias": jnp.ones(7)}}, TRAINED, SPARE)
    tx = optax.adam(0.1)
    opt_state = jax.tree.map(lambda x: x + 1.0 if jnp.issubdtype(x.dtype, jnp.floating) else x, tx.init(params))
    return TrainState(jnp.int32(0), params, opt_state, jax.random.key(0))


def test_spare_rows_have_no_embedding_and_the_mean_bias():
    params = make_state().params
    np.testing.assert_array_equal(params["author_table"][TRAINED:], 0)
    np.testing.assert_array_equal(params["identity"]["bias"], [1, 2, 3, 2, 2])


def test_a_new_author_begins_with_what_content_says_and_a_blank_optimizer():
    rows, state = AuthorRows(TRAINED, SPARE, 2.0), make_state()
    state = rows.change(state, {TRAINED: np.array([0.5, 1.0], np.float32)}, {TRAINED})
    np.testing.assert_array_equal(state.params["author_table"], [[1, 1]] * 3 + [[1, 2], [0, 0]])
    mu = state.opt_state[0].mu
    np.testing.assert_array_equal(mu["author_table"], [[1, 1]] * 3 + [[0, 0], [1, 1]])
    np.testing.assert_array_equal(mu["identity"]["bias"], [1, 1, 1, 0, 1])
    np.testing.assert_array_equal(mu["decoder"]["bias"], 1)


def test_later_content_moves_a_row_by_the_difference_and_another_author_takes_it_whole():
    rows, state = AuthorRows(TRAINED, SPARE, 1.0), make_state()
    first, later = np.array([1.0, 0.0], np.float32), np.array([1.0, 0.5], np.float32)
    state = rows.change(state, {TRAINED: first}, {TRAINED})
    learned = state.params["author_table"].at[TRAINED].add(10.0)
    bias = state.params["identity"]["bias"].at[TRAINED].set(9.0)
    state = state.replace(params={**state.params, "author_table": learned,
                                  "identity": {**state.params["identity"], "bias": bias}})
    state = rows.change(state, {TRAINED: later}, set())
    np.testing.assert_array_equal(state.params["author_table"][TRAINED], [11.0, 10.5])
    assert state.params["identity"]["bias"][TRAINED] == 9.0
    state = rows.change(state, {TRAINED: first}, {TRAINED})
    np.testing.assert_array_equal(state.params["author_table"][TRAINED], [1.0, 0.0])
    assert state.params["identity"]["bias"][TRAINED] == 2.0
    with pytest.raises(ValueError, match="author rows .0. are not all spare: those are 3 … 4"):
        rows.change(state, {0: first}, set())


def test_rows_that_were_learned_are_taken_over_by_who_they_are_of():
    theirs = make_state().params
    theirs = {**theirs, "author_table": jnp.arange(10.0).reshape(5, 2)}
    made = with_rows_of(theirs, TRAINED, 4, {5: 3, 3: 4})
    np.testing.assert_array_equal(made["author_table"], [[0, 1], [2, 3], [4, 5], [8, 9], [0, 0], [6, 7], [0, 0]])
    np.testing.assert_array_equal(made["identity"]["bias"], [1, 2, 3, 2, 2, 2, 2])
    plain = with_rows_of({"author_table": jnp.ones((TRAINED, 2))}, TRAINED, SPARE, {})
    assert plain["author_table"].shape == (5, 2)


def test_what_was_said_is_kept():
    rows = AuthorRows(TRAINED, SPARE, 1.0)
    rows.change(make_state(), {TRAINED: np.ones(2, np.float32)}, {TRAINED})
    other = AuthorRows(TRAINED, SPARE, 1.0)
    other.restore(rows.to_arrays())
    assert list(other.said) == [TRAINED]
