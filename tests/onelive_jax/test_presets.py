"""Presets have the size of their name."""

import jax
import pytest
from flax.core import meta

from onelive_jax import presets
from onelive_jax.model.onelive import OneLive
from tests.onelive_jax.random_batches import AUTHOR_DIM, AUTHORS, random_batch


def shapes(name):
    config = presets.preset(name)
    model = OneLive(config.model, presets.LEVELS, config.tokenizer.codes, AUTHORS, AUTHOR_DIM)
    return meta.unbox(jax.eval_shape(lambda key: model.init(key, random_batch())["params"], jax.random.key(0)))


@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name != "tiny"])
def test_a_preset_is_within_five_percent_of_its_name(name):
    params = shapes(name)
    assert presets.count(params) == pytest.approx(float(name.removesuffix("b")) * 1e9, rel=0.05)
    # Only what there is one of for each author is left out.
    assert presets.count(params, author_rows=True) - presets.count(params) == AUTHORS * (AUTHOR_DIM + 1)


def test_every_preset_is_a_valid_config_and_an_unknown_one_is_named():
    for name in presets.PRESETS:
        config = presets.preset(name)
        config.data.path = "somewhere"
        config.validate()
    assert presets.preset("0.8b").model is not presets.preset("0.8b").model
    with pytest.raises(ValueError, match=r"'1b' is not known; there are tiny, 0.04b"):
        presets.preset("1b")


def test_parameters_by_module_add_up():
    params = shapes("tiny")
    modules = presets.by_module(params)
    assert sum(modules.values()) == presets.count(params, author_rows=True)
    assert modules["author_table"] == AUTHORS * AUTHOR_DIM
    assert f"parameters: {', '.join(f'{name} {size:,}' for name, size in modules.items())}" in presets.summary(params)
