"""The towers and their loss: fusion and gate, user tower, InfoNCE by hand."""

import dataclasses
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.config import TokenizerConfig
from onelive_jax.model.layers import MLP
from onelive_jax.tokenizer import towers
from onelive_jax.tokenizer.encoder import Towers
from onelive_jax.tokenizer.tower_training import boxed_params
from onelive_jax.tokenizer.towers import AuthorTower, TwoTowers, UserTower, gate_value, info_nce

CONFIG = TokenizerConfig(dim=8, hidden=16, history_items=4)
ONES = jnp.ones(2)


def init_params(authors, content_width=0, config=CONFIG):
    return nn.unbox(boxed_params(TwoTowers(authors, config), 0, content_width))


def author_tower(content, has_content, views, author=(0, 1), seed=0):
    """(tower output, x_AId, x_MLLM) with the same parameters for any content."""
    tower = AuthorTower(num_authors=5, dim=8, hidden=16)
    author, views = jnp.array(author), jnp.array(views, jnp.float32)
    content, has_content = jnp.asarray(content, jnp.float32), jnp.array(has_content)
    params = nn.unbox(tower.init(jax.random.key(seed), author, views, content, has_content))["params"]
    x_mllm = None
    if content.shape[-1]:
        x_mllm = MLP(16, 8, out_bias=True).apply({"params": params["content"]}, content)
    return tower.apply({"params": params}, author, views, content, has_content), params["author_id"][author], x_mllm


CONTENT = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)


def test_without_content_an_author_is_its_own_embedding():
    out, x_id, _ = author_tower(np.zeros((2, 0)), [False, False], [3, 0])
    chex.assert_trees_all_equal(out, x_id)


def test_where_no_content_is_known_the_vector_is_not_read():
    out, x_id, _ = author_tower(CONTENT, [False, False], [3, 0])
    chex.assert_trees_all_equal(out, x_id)
    unread, _, _ = author_tower(np.full((2, 6), np.nan), [False, False], [3, 0])
    chex.assert_trees_all_equal(unread, out)


def test_an_author_never_seen_is_content_alone():
    out, _, x_mllm = author_tower(CONTENT, [True, True], [0, 0])
    chex.assert_trees_all_close(out, x_mllm, atol=1e-6)


def test_a_known_author_is_the_gated_mix():
    out, x_id, x_mllm = author_tower(CONTENT, [True, True], [1, 200])
    mix = 1 / (1 + np.exp(-(np.log1p(np.array([[1.0], [200.0]])) - 2.0)))  # slope 1, bias -2 at the start
    chex.assert_trees_all_close(out, mix * x_id + (1 - mix) * x_mllm, atol=1e-5)


def test_gate_rises_with_evidence_within_0_and_1():
    gate = gate_value(jnp.array([1.0, -2.0]), jnp.array([0.0, 1, 10, 1000]), jnp.ones(4, bool))
    assert gate[0] == 0
    assert np.all(np.diff(gate) > 0)
    assert 0 < gate[1] < gate[3] < 1
    chex.assert_trees_all_equal(gate_value(jnp.array([1.0, -2.0]), jnp.zeros(2), jnp.zeros(2, bool)), jnp.ones(2))


def test_a_limit_keeps_the_content_of_busy_authors():
    views = jnp.array([0.0, 1, 10, 1e6])
    free, bound = (gate_value(jnp.array([1.0, -2.0]), views, jnp.ones(4, bool), limit) for limit in (1.0, 0.4))
    chex.assert_trees_all_close(bound, 0.4 * free)
    chex.assert_trees_all_equal(gate_value(jnp.array([1.0, -2.0]), views, jnp.zeros(4, bool), 0.4), jnp.ones(4))
    # With a limit of 0 an author is its content alone, in training and in what the ids are made of.
    config = TokenizerConfig(dim=8, hidden=16, history_items=2, gate_limit=0.0)
    params = init_params(2, 6, config=config)
    own = Towers(params, config, np.array([500, 0])).authors(np.array([0, 1]), CONTENT[[0, 0]])
    np.testing.assert_allclose(own[0], own[1], rtol=1e-6)
    free = dataclasses.replace(config, gate_limit=1.0)
    own = Towers(params, free, np.array([500, 0])).authors(np.array([0, 1]), CONTENT[[0, 0]])
    assert np.abs(own[0] - own[1]).max() > 0.05


def test_gate_is_learned():
    slope = jax.grad(lambda g: gate_value(g, jnp.array([5.0]), jnp.ones(1, bool)).sum())(jnp.array([1.0, -2.0]))
    assert np.all(np.asarray(slope) > 0)


def user_vectors(items, mask, recency=None):
    tower = UserTower(history=4, dim=8, hidden=16)
    params = nn.unbox(tower.init(jax.random.key(0), items, mask))["params"]
    if recency is not None:
        params = params | {"recency": jnp.array(recency)}
    return tower.apply({"params": params}, items, mask)


def test_masked_views_are_not_read_and_padding_adds_nothing():
    items = jax.random.normal(jax.random.key(1), (2, 4, 8))
    mask = jnp.array([[False, True, True, True], [False, False, True, True]])
    out = user_vectors(items, mask)
    chex.assert_trees_all_close(out, user_vectors(jnp.where(mask[..., None], items, 7.0), mask), atol=1e-6)
    chex.assert_trees_all_close(out[1], user_vectors(items[1:, 2:], mask[1:, 2:])[0], atol=1e-6)


def test_order_counts_only_through_recency():
    items, mask = jax.random.normal(jax.random.key(1), (1, 4, 8)), jnp.ones((1, 4), bool)
    chex.assert_trees_all_close(user_vectors(items, mask), user_vectors(items[:, ::-1], mask), atol=1e-6)
    late = [0.0, 0.0, 0.0, 3.0]
    gap = user_vectors(items, mask, late) - user_vectors(items[:, ::-1], mask, late)
    assert float(jnp.abs(gap).max()) > 0.01


def test_a_user_without_views_and_too_long_a_history():
    items = jax.random.normal(jax.random.key(1), (1, 4, 8))
    chex.assert_trees_all_close(user_vectors(items, jnp.zeros((1, 4), bool)), jnp.zeros((1, 8)))
    with pytest.raises(ValueError, match="5 views is longer than config.tokenizer.history_items=4"):
        UserTower(4, 8, 16).init(jax.random.key(0), jnp.zeros((1, 5, 8)), jnp.ones((1, 5), bool))


def test_embeddings_have_unit_length_and_zero_has_a_gradient():
    made = Towers(init_params(5), CONFIG, np.zeros(5))
    chex.assert_trees_all_close(jnp.linalg.norm(made.authors(), axis=1), jnp.ones(5), rtol=1e-5)
    chex.assert_tree_all_finite(jax.grad(lambda x: towers.normalise(x).sum())(jnp.zeros(3)))


def one_pair(content_width):
    pair = dict(author=jnp.zeros((1,), int), views=ONES[:1], content=jnp.zeros((1, content_width)),
                has_content=jnp.full((1,), content_width > 0))
    return pair, jax.tree.map(lambda x: x[None], pair) | {"mask": jnp.ones((1, 1), bool)}


def test_every_parameter_names_its_axes():
    pair, history = one_pair(content_width=6)
    boxed = TwoTowers(5, CONFIG).init(jax.random.key(0), pair, history)["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert len(leaves) == 13
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
    assert boxed["author_tower"]["author_id"].names == ("authors", "embed")


def test_temperature_starts_at_its_setting_and_keeps_its_floor():
    model, params = TwoTowers(5, CONFIG), init_params(5)
    pair, history = one_pair(content_width=0)
    assert float(model.apply({"params": params}, pair, history)[2]) == pytest.approx(CONFIG.temperature)
    low = params | {"log_excess_temperature": jnp.array(-50.0)}
    assert float(model.apply({"params": low}, pair, history)[2]) == pytest.approx(
        towers.TEMPERATURE_FLOOR * CONFIG.temperature)


USER = jnp.array([[1.0, 0.0], [0.0, 1.0]])
AUTHOR = jnp.array([[0.6, 0.8], [0.0, 1.0]])


def test_info_nce_by_hand():
    # u0: scores .6 and 0; u1: .8 and 1; temperature 1/2 doubles them.
    loss = info_nce(USER, AUTHOR, 0.5, jnp.array([7, 8]), jnp.zeros(2), ONES)
    first = math.log(math.exp(1.2) + math.exp(0.0)) - 1.2
    second = math.log(math.exp(1.6) + math.exp(2.0)) - 2.0
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-5)


def test_info_nce_corrects_for_popularity():
    # Author 7 is drawn 3 times in 4: as a negative it counts a third of what author 8 counts, relative to exp(score).
    loss = info_nce(USER, AUTHOR, 0.5, jnp.array([7, 8]), jnp.log(jnp.array([0.75, 0.25])), ONES)
    first = math.log(math.exp(1.2) / 0.75 + 1.0 / 0.25) - math.log(math.exp(1.2) / 0.75)
    second = math.log(math.exp(1.6) / 0.75 + math.exp(2.0) / 0.25) - math.log(math.exp(2.0) / 0.25)
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-5)


def test_a_duplicate_of_the_positive_is_no_negative():
    user, author = jnp.stack([*USER, USER[0]]), jnp.stack([*AUTHOR, AUTHOR[0]])
    ids = jnp.array([7, 8, 7])
    only_first = info_nce(user, author, 0.5, ids, jnp.zeros(3), jnp.array([1.0, 0, 0]))
    pair = info_nce(USER, AUTHOR, 0.5, ids[:2], jnp.zeros(2), jnp.array([1.0, 0]))
    assert float(only_first) == pytest.approx(float(pair), rel=1e-6)
    as_strangers = info_nce(user, author, 0.5, jnp.array([7, 8, 9]), jnp.zeros(3), jnp.array([1.0, 0, 0]))
    assert float(as_strangers) > float(only_first) + 0.1
    assert float(info_nce(user, author, 0.5, jnp.array([7, 7, 7]), jnp.zeros(3), jnp.ones(3))) == 0.0


def test_info_nce_ignores_the_order_of_the_batch_and_pairs_without_weight():
    rng = np.random.default_rng(0)
    user, author = (towers.normalise(x) for x in jnp.asarray(rng.normal(size=(2, 6, 4))))
    ids, log_q, weight = jnp.array([0, 1, 2, 1, 3, 0]), jnp.log(rng.random(6)), jnp.array([1.0, 1, 0, 1, 1, 1])
    order = rng.permutation(6)
    plain = info_nce(user, author, 0.1, ids, log_q, weight)
    chex.assert_trees_all_close(
        plain, info_nce(user[order], author[order], 0.1, ids[order], log_q[order], weight[order]), rtol=1e-5)
    turned = user.at[2].set(-user[2])
    chex.assert_trees_all_close(plain, info_nce(turned, author, 0.1, ids, log_q, weight), rtol=1e-6)
    assert float(info_nce(user, author, 0.1, ids, log_q, jnp.zeros(6))) == 0.0


def test_info_nce_gradient_is_finite_with_duplicates():
    grads = jax.grad(lambda u, a: info_nce(u, a, 0.1, jnp.array([3, 3]), jnp.zeros(2), ONES), argnums=(0, 1))
    chex.assert_tree_all_finite(grads(USER, AUTHOR))
