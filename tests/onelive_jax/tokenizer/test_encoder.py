"""New content → embeddings and codes: what is read, known and new authors, codes that stay, clear errors."""

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.config import TokenizerConfig
from onelive_jax.tokenizer import residual_kmeans
from onelive_jax.tokenizer.encoder import Encoder, Towers
from onelive_jax.tokenizer.refresh import encode_sticky
from onelive_jax.tokenizer.tower_training import boxed_params
from onelive_jax.tokenizer.towers import TwoTowers

CONFIG = TokenizerConfig(levels=2, codes=4, dim=8, hidden=16, history_items=4)
CONTENT = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


def make_towers(content_width=0, attributes=None, feature_width=0):
    widths = content_width, 0 if attributes is None else 3, feature_width
    return Towers(nn.unbox(boxed_params(TwoTowers(5, CONFIG), 0, *widths)), CONFIG, np.ones(5), attributes)


def test_content_is_given_when_trained_with_it_and_only_then():
    with pytest.raises(ValueError, match="trained with content"):
        make_towers(6).authors()
    with pytest.raises(ValueError, match="trained without content"):
        make_towers().authors(content=np.zeros((5, 6)))
    with pytest.raises(ValueError, match=r"content has shape \(5, 4\), the towers were trained on width 6"):
        make_towers(6).authors(content=np.zeros((5, 4)))
    with pytest.raises(ValueError, match="1 rows of content hold NaN or infinity, the first is row 1"):
        make_towers(6).authors([0, 4], np.array([[1.0] * 6, [np.inf] * 6]))
    chex.assert_tree_all_finite(make_towers(6).authors([0, 4], np.full((2, 6), np.nan), np.zeros(2, bool)))


def test_attributes_and_features_are_checked_where_they_are_read():
    attributes, features = np.ones((5, 3), np.float32), np.ones((2, 2), np.float32)
    history, mask = np.array([[0, 1], [2, 3]]), np.ones((2, 2), bool)

    def users(attributes, features):
        return make_towers(0, attributes, 2).users(history, mask, features_BxF=features)

    chex.assert_tree_all_finite(users(attributes, features))
    for value in (np.nan, np.inf):
        holed = np.where(np.arange(5)[:, None] == 3, value, attributes)
        with pytest.raises(ValueError, match=r"1 rows of attributes hold NaN or infinity, the first is row 3"):
            make_towers(0, holed).authors()
        with pytest.raises(ValueError, match=r"the first is row 3: give 0"):
            users(holed, features)
        # Nobody asks for author 3.
        chex.assert_tree_all_finite(make_towers(0, holed).authors([0, 4]))
        with pytest.raises(ValueError, match=r"1 rows of user features hold NaN or infinity, the first is row 1"):
            users(attributes, np.where(np.arange(2)[:, None] == 1, value, features))
    with pytest.raises(ValueError, match=r"user features has shape \(2, 3\).*trained on width 2 and need \(2, 2\)"):
        users(attributes, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"user features has shape \(1, 2\).*need \(2, 2\)"):
        users(attributes, features[:1])


@pytest.mark.parametrize("wrong", [-1, 5, 2**32])
def test_an_unknown_author_is_named(wrong):
    made = make_towers()
    with pytest.raises(ValueError, match=rf"author {wrong} at \[2\] is none of the 5 that .* \(0 … 4\)"):
        made.authors([0, 4, wrong, 7])
    history = np.array([[0, 1], [4, wrong]])
    for mask in (np.ones((2, 2), bool), history < 5):  # a masked view counts too
        with pytest.raises(ValueError, match=rf"author {wrong} at \[1, 1\] is none of the 5 that"):
            made.users(history, mask)
    chex.assert_shape(made.users(history[:1], mask[:1]), (1, 8))


def test_rows_and_chunks_of_embeddings():
    made = make_towers(6)
    rows, parts = made.authors([4, 4, 0], CONTENT), made.authors([4, 4, 0], CONTENT, chunk=2)
    chex.assert_trees_all_close(rows, parts, atol=1e-6)
    chex.assert_shape(rows, (3, 8))
    assert np.abs(rows[0] - rows[1]).max() > 0.01  # one author, two moments
    chex.assert_shape(made.authors([], np.zeros((0, 6))), (0, 8))


def test_a_new_author_is_placed_by_its_content_alone():
    made = make_towers(6)
    new = made.authors([5, 99, 2], CONTENT[[0, 0, 0]])
    np.testing.assert_allclose(new[0], new[1], atol=1e-6)
    assert np.abs(new[0] - new[2]).max() > 1e-3
    table = made.params["author_tower"] | {"author_id": 100 + made.params["author_tower"]["author_id"]}
    other = Towers(made.params | {"author_tower": table}, CONFIG, made.author_views)
    np.testing.assert_allclose(other.authors([5], CONTENT[:1]), new[:1], atol=1e-6)
    assert np.abs(other.authors([2], CONTENT[:1]) - new[2]).max() > 1e-3
    with pytest.raises(ValueError, match=r"author 5 at \[1\] is none of the 5 .* no content says who it is"):
        made.authors([0, 5], CONTENT[:2], np.array([True, False]))


def test_codes_of_new_content_and_codes_that_stay():
    towers = make_towers(6)
    author, rng = np.array([0, 5, 7]), np.random.default_rng(1)
    books = residual_kmeans.Codebooks(jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32))
    encoder = Encoder(towers, books)
    codes = encoder.codes(author, CONTENT)
    np.testing.assert_array_equal(codes, residual_kmeans.encode(books, towers.authors(author, CONTENT)))
    # A margin so wide that every code stays.
    loose = Encoder(Towers(towers.params, TokenizerConfig(**vars(CONFIG) | {"refresh_margin": 1e6}), np.ones(5)), books)
    before = (codes + 1) % 4
    np.testing.assert_array_equal(loose.codes(author, CONTENT, previous_MxL=before), before)
    np.testing.assert_array_equal(encoder.codes(author, CONTENT, previous_MxL=before),
                                  encode_sticky(books, towers.authors(author, CONTENT), before, CONFIG.refresh_margin))


def test_content_itself_is_quantized_where_the_settings_say_so():
    config = TokenizerConfig(**vars(CONFIG) | {"embedding": "mllm"})
    towers = Towers(make_towers(6).params, config, np.ones(5))
    np.testing.assert_array_equal(towers.quantized(np.array([0, 1, 9]), CONTENT), CONTENT)


def test_somebody_new_without_content_is_placed_by_attributes_and_with_content_by_that_alone():
    made, nothing = make_towers(6, np.eye(5, 3, dtype=np.float32)), np.zeros(2, bool)
    told = np.array([[1, 0, 0], [0, 0, 2]], np.float32)
    alone = made.authors([5, 9], np.zeros((2, 6)), nothing, attributes=told)
    chex.assert_tree_all_finite(alone)
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    chex.assert_trees_all_close(made.authors([7, 8], np.zeros((2, 6)), nothing, attributes=told), alone)
    chex.assert_trees_all_close(made.authors([5, 9], CONTENT[:2], attributes=told), made.authors([5, 9], CONTENT[:2]))
    # A known author's own attributes are read, whatever is given.
    chex.assert_trees_all_close(made.authors([1], CONTENT[:1], attributes=told[:1]), made.authors([1], CONTENT[:1]))
    with pytest.raises(ValueError, match="author 5 .* no content says who it is"):
        made.authors([5], CONTENT[:1], nothing[:1])
    with pytest.raises(ValueError, match="trained without attributes"):
        make_towers(6).authors([5], CONTENT[:1], attributes=told[:1])
    with pytest.raises(ValueError, match="1 rows of attributes hold NaN or infinity, the first is row 1"):
        made.authors([5, 9], np.zeros((2, 6)), nothing, attributes=told * np.array([[1], [np.nan]], np.float32))
