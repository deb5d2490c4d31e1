"""Copying codes and authors, and the identity head, against hand-worked values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.batch import LiveRooms
from onelive_jax.model.identity import CopyScore, IdentityHead, copied_codes
from onelive_jax.model.layers import NEG_INF, Context
from tests.onelive_jax.random_batches import paths, random_params, small_config

D, E, A = 16, 8, 9


def history(author, codes, mask, seed=0):
    """Context of given items; what attention reads is of no interest here."""
    author, codes, mask = np.array(author), np.array(codes), np.array(mask)
    rng = np.random.default_rng(seed)
    none = np.zeros((1, *author.shape, 1, 1), np.float32)
    return Context(keys=none, values=none, items=rng.normal(size=(*author.shape, D)).astype(np.float32), author=author,
                   codes=codes, habits=rng.normal(size=(*author.shape, 10)).astype(np.float32), mask=mask)


CONTEXT = history(author=[[3, 5, 3, 0], [1, 2, 2, 0]],
                  codes=[[[0, 1], [0, 2], [0, 1], [0, 1]], [[2, 0], [1, 0], [1, 2], [2, 2]]],
                  mask=[[True, True, True, False], [True, True, True, True]])
# Items                0    1    2    3 (masked in row 0)
SCORE = np.log([[[[1.0, 2.0, 4.0, 99.0]]], [[[1.0, 2.0, 3.0, 5.0]]]]).astype(np.float32)


def copied_mass(level, prefix):
    """exp of the copied logits, float32 [B, K]."""
    prefix = np.broadcast_to(np.array(prefix)[:, None, None], (2, 1, 1, 2))
    return np.exp(jax.jit(copied_codes, static_argnums=(3, 4))(SCORE, CONTEXT, prefix, level, 3)[:, 0, 0])


def test_copied_codes_sum_the_items_that_carry_the_code():
    # Row 0: all valid items begin with 0 (1 + 2 + 4). Row 1: code 1 on items 1, 2; code 2 on items 0, 3.
    np.testing.assert_allclose(copied_mass(0, [[9, 9], [9, 9]]), [[7, 0, 0], [0, 5, 6]], rtol=1e-5)


def test_copied_codes_match_the_prefix_before_them():
    # Row 0 behind 0: code 1 on items 0 and 2 (not on the masked item 3), code 2 on item 1.
    # Row 1 behind 2: code 0 on item 0, code 2 on item 3. The column of the level itself is not read.
    np.testing.assert_allclose(copied_mass(1, [[0, 9], [2, 9]]), [[0, 5, 2], [1, 0, 5]], rtol=1e-5)
    np.testing.assert_allclose(copied_mass(1, [[0, 0], [1, 1]]), [[0, 5, 2], [2, 0, 3]], rtol=1e-5)


def test_nothing_to_copy_is_neg_inf_with_a_finite_gradient():
    prefix = np.full((2, 1, 1, 2), 2)
    prefix[1] = 0
    out, grad = jax.jit(jax.value_and_grad(
        lambda score: jnp.logaddexp(1.5, copied_codes(score, CONTEXT, prefix, 1, 3)).sum()))(SCORE)
    np.testing.assert_array_equal(copied_codes(SCORE, CONTEXT, prefix, 1, 3), np.float32(NEG_INF))
    np.testing.assert_allclose(out, 1.5 * 2 * 3, rtol=1e-5)
    np.testing.assert_array_equal(grad, 0.0)


def test_copied_codes_neither_overflow_nor_vanish():
    for shift in (-200.0, 200.0):
        out = copied_codes(SCORE + np.float32(shift), CONTEXT, np.zeros((2, 1, 1, 2), np.int32), 0, 3)
        np.testing.assert_allclose(out[0, 0, 0, 0], np.log(7) + shift, rtol=1e-5)


def test_beams_and_positions_match_prefixes_of_their_own():
    prefix = np.array([[[[0, 0]], [[1, 0]]], [[[2, 0]], [[1, 0]]]])  # [B, W = 2, S = 1, L]
    out = np.exp(copied_codes(np.repeat(SCORE, 2, 1), CONTEXT, prefix, 1, 3)[:, :, 0])
    np.testing.assert_allclose(out, [[[0, 5, 2], [0, 0, 0]], [[1, 0, 5], [2, 0, 3]]], rtol=1e-5)


@pytest.mark.parametrize("habits", [True, False])
def test_copy_score_reads_state_item_and_habit(habits):
    module = CopyScore(habits)
    hidden = np.random.default_rng(3).normal(size=(2, 3, 1, D)).astype(np.float32)
    params = random_params(module, hidden, CONTEXT)

    @jax.jit
    def score(hidden, items, habits):
        return module.apply({"params": params}, hidden, CONTEXT.replace(items=items, habits=habits))

    out = score(hidden, CONTEXT.items, CONTEXT.habits)
    chex.assert_shape(out, (2, 3, 1, 4))
    np.testing.assert_array_equal(out == NEG_INF, np.broadcast_to(~CONTEXT.mask[:, None, None], out.shape))
    grads = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.where(CONTEXT.mask[:, None, None], score(*a), 0.0)),
                             argnums=(0, 1, 2)))(hidden, CONTEXT.items, CONTEXT.habits)
    assert np.abs(grads[0]).min() > 0
    np.testing.assert_array_equal(np.abs(grads[1]).max(-1) > 0, CONTEXT.mask)
    np.testing.assert_array_equal(np.abs(grads[2]).max(-1) > 0, CONTEXT.mask & habits)
    # The direction of the hidden state counts, not its length.
    np.testing.assert_allclose(score(hidden * 7, CONTEXT.items, CONTEXT.habits), out, rtol=1e-3, atol=1e-3)


ROOMS = LiveRooms(author=np.array([[3, 5, 7, 0], [2, 1, 8, 4]]), codes=np.zeros((2, 4, 2), np.int32),
                  features=np.random.default_rng(5).random((2, 4, 2)).astype(np.float32),
                  mask=np.array([[True, True, True, False], [True, True, True, True]]))
HIDDEN = np.random.default_rng(4).normal(size=(2, D)).astype(np.float32)
TABLE = np.random.default_rng(6).normal(size=(A, E)).astype(np.float32)


class Head:
    """An identity head with random parameters and its parts as functions."""

    def __init__(self, **changes):
        self.module = IdentityHead(small_config(**changes), A)

        def all_parts(module, rooms):
            user = module.user(HIDDEN, E)
            return module.rooms(HIDDEN, user, CONTEXT, rooms, jnp.asarray(TABLE)), module.everyone(user, TABLE), user

        self.parts = all_parts
        self.params = random_params(self.module, ROOMS, method=all_parts)

    def __call__(self, rooms=ROOMS):
        return jax.jit(lambda rooms: self.module.apply({"params": self.params}, rooms, method=self.parts))(rooms)


@pytest.fixture(scope="module")
def head():
    return Head()


@pytest.fixture(scope="module")
def head_without_copy():
    return Head(copy=False)


def test_room_scores_by_hand_without_copying(head_without_copy):
    scores, everyone, user = head_without_copy()
    params = head_without_copy.params
    assert not [name for name in paths(params) if "copy" in name]
    want = np.einsum("be,bne->bn", user, TABLE[ROOMS.author]) + params["bias"][ROOMS.author]
    np.testing.assert_allclose(scores, np.where(ROOMS.mask, want, NEG_INF), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(everyone, np.asarray(user) @ TABLE.T + params["bias"], atol=1e-4)


def test_sampled_authors_stand_for_all():
    """By hand for one draw; over many, Σ exp(score) is that of all authors on average."""
    S = 6
    module = IdentityHead(small_config(copy=False, author_negatives=S), A)
    rng = np.random.default_rng(0)
    user, bias = (jnp.asarray(scale * rng.normal(size=size), jnp.float32) for scale, size in ((0.3, (2, E)), (0.5, A)))
    target = np.array([3, 8])

    def scores(key):
        return module.apply({"params": {"bias": bias}}, user, jnp.asarray(TABLE), target, key, method="sampled")

    got_KxBxS = np.asarray(jax.jit(jax.vmap(scores))(jax.random.split(jax.random.key(1), 4000)), np.float64)
    assert got_KxBxS.shape == (4000, 2, 1 + S)
    everyone = user @ TABLE.T + bias
    np.testing.assert_allclose(got_KxBxS[:, :, 0], np.broadcast_to(everyone[[0, 1], target], (4000, 2)), rtol=1e-5)
    others = everyone + np.log(A / S)
    distance = np.abs(got_KxBxS[:, :, 1:, None] - np.where(np.arange(A) == target[:, None], np.inf, others)[:, None])
    drawn = got_KxBxS[:, :, 1:] > NEG_INF / 2
    assert distance.min(-1)[drawn].max() < 1e-4
    assert np.abs(1 - drawn.mean() - 1 / A) < 0.01  # a draw that is the target counts as none
    np.testing.assert_allclose(np.exp(got_KxBxS).sum(-1).mean(0), np.exp(everyone).sum(-1), rtol=0.03)


def test_room_scores_by_hand_with_copying(head):
    """s(room) = log(exp(generated) + Σ exp(copy score of its author's items))."""
    scores, everyone, _ = head()
    params = head.params
    copy = CopyScore(True).apply({"params": params["copy_score"]}, HIDDEN[:, None, None], CONTEXT)[:, 0, 0]
    for b, n in np.ndindex(*ROOMS.author.shape):
        if not ROOMS.mask[b, n]:
            assert scores[b, n] == np.float32(NEG_INF)
            continue
        author = ROOMS.author[b, n]
        items = [t for t in range(4) if CONTEXT.mask[b, t] and CONTEXT.author[b, t] == author]
        want = np.log(np.exp(everyone[b, author]) + np.sum(np.exp(copy[b, items])))
        np.testing.assert_allclose(scores[b, n], want, rtol=1e-4, atol=1e-4)
    # The example has all cases: copied from two items, from one, from none.
    assert [np.sum(CONTEXT.author[0] == a) for a in (3, 5, 7)] == [2, 1, 0]


def test_a_shared_catalogue_scores_as_one_given_to_every_request(head):
    one = jax.tree.map(lambda x: x[:1], ROOMS)
    each = jax.tree.map(lambda x: np.repeat(x[:1], 2, 0), ROOMS)
    np.testing.assert_allclose(head(one)[0], head(each)[0], rtol=1e-5, atol=1e-5)


def test_what_lies_in_an_empty_slot_is_not_read(head):
    other = ROOMS.replace(author=np.where(ROOMS.mask, ROOMS.author, 5),
                          features=np.where(ROOMS.mask[..., None], ROOMS.features, 9.0).astype(np.float32))
    np.testing.assert_array_equal(head()[0], head(other)[0])
