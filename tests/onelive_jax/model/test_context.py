"""The context projector: keys and values by hand, sets and splits, what an item is made of, masks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onelive_jax.model.context import ContextProjector
from tests.onelive_jax.random_batches import (
    AUTHOR_DIM,
    AUTHORS,
    BATCH,
    CODES,
    ITEMS,
    LEVELS,
    paths,
    random_batch,
    random_params,
    small_config,
    with_history,
)

D, G, d = 16, 2, 4
REQUESTS = random_batch()
CODE_TABLE = np.random.default_rng(1).normal(size=(LEVELS, CODES, D)).astype(np.float32)
AUTHOR_TABLE = np.random.default_rng(2).normal(size=(AUTHORS, AUTHOR_DIM)).astype(np.float32)


def build(sequences=("live",), batch=REQUESTS, **changes):
    """(function of a request, parameters) of a projector."""
    module = ContextProjector(small_config(**changes), sequences)
    tables = jnp.asarray(CODE_TABLE), jnp.asarray(AUTHOR_TABLE) if small_config(**changes).author_items else None
    params = random_params(module, batch.request, *tables)

    def project(request, params=params):
        return module.apply({"params": params}, request, *tables)

    return jax.jit(project), params


def rms(x):
    return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("sets, split", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_sets_and_splits_by_hand(sets, split):
    """k_l = RMSNorm(C[l·S_kv]); v_l = RMSNorm(C[l·S_kv + 1]) or the keys themselves."""
    project, params = build(context_sets=sets, context_split=split, habits=False, author_items=False, item_time=False)
    context = project(REQUESTS.request)
    history = REQUESTS.request.histories["live"]
    items = sum(CODE_TABLE[level][history.codes[..., level]] for level in range(LEVELS)) + params["sequence"][0]
    items = rms(np.asarray(items))
    np.testing.assert_allclose(context.items, items, atol=1e-5)
    chex.assert_shape([context.keys, context.values], (sets, BATCH, ITEMS, G, d))
    chex.assert_shape(params["keys_values"], (D, sets * split, G, d))
    for l in range(sets):
        def slice_of(i):
            return rms(np.einsum("btd,dgk->btgk", items, params["keys_values"][:, i]))

        np.testing.assert_allclose(context.keys[l], slice_of(l * split) * params[f"key_norm_{l}"]["scale"], atol=1e-4)
        if split == 2:
            np.testing.assert_allclose(context.values[l], slice_of(2 * l + 1) * params[f"value_norm_{l}"]["scale"],
                                       atol=1e-4)
    if split == 1:
        np.testing.assert_array_equal(context.keys, context.values)
    else:
        assert np.abs(context.keys - context.values).max() > 0.1
    for field in ("author", "codes", "habits", "mask"):
        np.testing.assert_array_equal(getattr(context, field), getattr(history, field))


def keys_move(project, **fields) -> np.ndarray:
    """Largest change of each item's keys, [B, T], when fields of the history are replaced."""
    other = with_history(REQUESTS, **fields)
    return np.abs(project(REQUESTS.request).keys - project(other.request).keys).max(axis=(0, 3, 4))


CHANGES = {
    "item_time": [("hour", 24), ("day", 7), ("week", 16)],
    "author_items": [("author", AUTHORS)],
    "habits": [("habits", None)],
}


@pytest.mark.parametrize("switch", CHANGES)
def test_an_item_reads_what_its_switch_says_and_nothing_when_it_is_off(switch):
    on, params = build()
    off, fewer = build(**{switch: False})
    assert set(paths(fewer)) < set(paths(params))
    history = REQUESTS.request.histories["live"]
    for field, size in CHANGES[switch]:
        value = getattr(history, field)
        new = value + 1.0 if size is None else (value + 1) % size
        assert keys_move(on, **{field: new}).min() > 1e-4, field
        assert keys_move(off, **{field: new}).max() == 0.0, field


def test_an_item_is_projected_by_itself():
    """The keys of one item depend on no other item."""
    project, _ = build()
    codes = REQUESTS.request.histories["live"].codes.copy()
    codes[:, 2, 1] = (codes[:, 2, 1] + 1) % CODES
    moved = keys_move(project, codes=codes)
    assert moved[:, 2].min() > 1e-4
    assert np.delete(moved, 2, axis=1).max() == 0.0


def test_sequences_are_concatenated_in_their_order_and_told_apart():
    batch = random_batch(sequences=("live", "gift", "video"))
    lengths = [h.mask.shape[1] for h in batch.request.histories.values()]
    assert lengths == [ITEMS, ITEMS + 1, ITEMS + 2]
    project, params = build(("live", "gift", "video"), batch)
    chex.assert_shape(params["sequence"], (3, D))
    context = project(batch.request)
    for field in ("author", "codes", "habits", "mask"):
        want = np.concatenate([getattr(batch.request.histories[n], field) for n in ("live", "gift", "video")], 1)
        np.testing.assert_array_equal(getattr(context, field), want)
    # The order is the model's, not the mapping's.
    shuffled = batch.request.replace(histories=dict(reversed(batch.request.histories.items())))
    chex.assert_trees_all_equal(project(shuffled), context)
    # The same items in another sequence are other items.
    live = batch.request.histories["live"]
    twice = batch.request.replace(histories={"live": live, "gift": live, "video": live})
    first, second, third = np.split(project(twice).keys, [ITEMS, 2 * ITEMS], axis=2)
    assert min(np.abs(first - second).max(), np.abs(second - third).max(), np.abs(first - third).max()) > 1e-3


def test_activations_have_the_dtype_asked_for_and_parameters_stay_float32():
    project, params = build(activation_dtype="bfloat16")
    context = project(REQUESTS.request)
    assert {context.keys.dtype, context.values.dtype, context.items.dtype} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact, _ = build()
    np.testing.assert_allclose(context.keys.astype(jnp.float32), exact(REQUESTS.request).keys, atol=0.1)
