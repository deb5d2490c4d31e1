"""Settings: the defaults stand, what is wrong is named, a round trip through JSON loses nothing."""

import copy
import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onelive_jax import config as config_lib
from onelive_jax.config import Config, DataConfig, MeshConfig, SimulatorConfig


def valid() -> Config:
    return Config(data=DataConfig(source="simulated"))


def settings(node=None, path="config"):
    """(dotted name, holder's dotted name, field) of every setting."""
    node = Config() if node is None else node
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{path}.{field.name}")
        else:
            yield f"{path}.{field.name}", field


def changed(name: str, value) -> Config:
    """A valid config but for one field."""
    config = valid()
    node = config
    *parents, last = name.split(".")[1:]
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, last, value)
    return config


LOW = [(name, field) for name, field in settings() if field.metadata["low"] is not None]
HIGH = [(name, field) for name, field in settings() if field.metadata["high"] is not None]
CHOICES = [(name, field) for name, field in settings() if field.metadata["choices"]]


def test_every_default_is_in_range():
    config = valid()
    assert config.validate() is config


def test_every_setting_says_what_it_means():
    for name, field in settings():
        assert len(field.metadata["doc"]) >= 6, name
    assert len(list(settings())) > 50


@pytest.mark.parametrize("name, field", LOW, ids=[name for name, _ in LOW])
def test_below_the_range_is_named(name, field):
    config = changed(name, field.metadata["low"] - 1)
    with pytest.raises(ValueError, match=rf"^{name}="):
        config.validate()


@pytest.mark.parametrize("name, field", HIGH, ids=[name for name, _ in HIGH])
def test_above_the_range_is_named(name, field):
    config = changed(name, field.metadata["high"] + 1)
    with pytest.raises(ValueError, match=rf"^{name}=.* is outside "):
        config.validate()


@pytest.mark.parametrize("name, field", CHOICES, ids=[name for name, _ in CHOICES])
def test_not_a_choice_is_named_with_the_choices(name, field):
    config = changed(name, ("neither",) if isinstance(field.default, tuple) else "neither")
    with pytest.raises(ValueError, match=rf"^{name}='neither'") as error:
        config.validate()
    for choice in field.metadata["choices"]:
        assert repr(choice) in str(error.value)


def test_nan_is_named():
    with pytest.raises(ValueError, match="config.training.learning_rate"):
        changed("config.training.learning_rate", math.nan).validate()


@pytest.mark.parametrize("name, value, words", [
    ("config.model.num_groups", 3, ["config.model.num_groups=3", "config.model.num_heads"]),
    ("config.model.num_heads", 6, ["config.model.num_heads=6", "config.model.dim"]),
    ("config.model.loss_weights", (1.0, 1.0), ["config.model.loss_weights", "config.tokenizer.levels=3"]),
    ("config.reward.objective_values", (1.0,) * 7, ["config.reward.objective_values has 7", "8 objectives"]),
    ("config.reward.objective_values", (1.0,) * 10, ["config.reward.objective_values has 10", "satisfaction"]),
    ("config.tokenizer.levels", 4, ["config.model.loss_weights", "config.tokenizer.levels=4"]),
    ("config.training.warmup_steps", 4000, ["config.training.warmup_steps=4000", "config.training.steps=4000"]),
    ("config.data.source", "twitch", ["config.data.path", "twitch"]),
    ("config.model.attention", "cudnn", ["config.model.attention='cudnn'", "config.model.activation_dtype"]),
])
def test_settings_that_contradict_each_other_are_named(name, value, words):
    with pytest.raises(ValueError, match="config") as error:
        changed(name, value).validate()
    for word in words:
        assert word in str(error.value)


def test_json_round_trip_of_the_defaults():
    config = valid()
    again = config_lib.from_json(config_lib.to_json(config))
    assert again == config
    assert isinstance(again.model.loss_weights, tuple)
    assert again.validate() is again


@given(data=st.builds(DataConfig, valid_hours=st.floats(0, 1e6), path=st.text(), history_items=st.integers(1, 4096)),
       mesh=st.builds(MeshConfig, data=st.integers(-1, 64)), seed=st.integers(0, 2**40),
       weights=st.lists(st.floats(0, 10), min_size=3, max_size=3),
       simulator=st.builds(SimulatorConfig, users=st.integers(2, 10**7)))
def test_json_round_trip_of_any_settings(data, mesh, seed, weights, simulator):
    config = Config(seed=seed, data=data, mesh=mesh, simulator=simulator)
    config.model.loss_weights = tuple(weights)
    assert config_lib.from_json(config_lib.to_json(config)) == config


@pytest.mark.parametrize("path, name", [((), "config.dmi"), (("model",), "config.model.dmi")])
def test_an_unknown_name_in_json_is_named(path, name):
    values = json.loads(config_lib.to_json(valid()))
    node = values
    for part in path:
        node = node[part]
    node["dmi"] = 3
    with pytest.raises(ValueError, match=name):
        config_lib.from_json(json.dumps(values))


def test_missing_names_in_json_take_their_defaults():
    assert config_lib.from_json('{"model": {"dim": 32}}').model.dim == 32
    assert config_lib.from_json("{}") == Config()


def test_two_configs_share_no_state():
    one, two = Config(), Config()
    before = copy.deepcopy(two)
    one.model.dim = 2
    assert two == before


@pytest.mark.parametrize("section,name,value", [
    ("training", "steps", "many"), ("training", "learning_rate", float("inf")), ("model", "gate", 1),
    ("training", "steps", 2.5), ("model", "loss_weights", [1.0, 1.0, 1.0]), ("model", "loss_weights", (1.0, "x", 1.0)),
])
def test_a_value_of_another_type_is_refused_by_name(section, name, value):
    broken = valid()
    setattr(getattr(broken, section), name, value)
    with pytest.raises(ValueError, match=f"config.{section}.{name}="):
        broken.validate()


def test_a_run_that_could_learn_nothing_is_refused():
    idle = valid()
    idle.model.live_softmax = idle.model.full_softmax = 0.0
    assert idle.validate() is idle  # the identity loss is left
    idle.model.identity = False
    with pytest.raises(ValueError, match="nothing to learn"):
        idle.validate()
