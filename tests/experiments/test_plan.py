"""Plans: what the compiled program says, and what is made of it for a chip. (Meshes are of one device here; eight are
tried in tests/onelive_jax/training/sharded_steps.py, the traffic of more in test_hlo.py.)"""

import dataclasses

import jax
import pytest

from experiments import plan
from onelive_jax import presets
from onelive_jax.config import MeshConfig
from onelive_jax.training import flops, partitioning


@pytest.fixture(scope="module")
def mesh():
    return partitioning.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def test_a_mesh_is_read_from_the_command_line():
    assert plan.parse_mesh("data:64,fsdp:4,tensor:1") == MeshConfig(64, 4, 1)
    assert plan.parse_mesh("fsdp:4") == MeshConfig(1, 4, 1)
    for wrong in ("data=4", "rows:4", "data:0", "data:x", ""):
        with pytest.raises(ValueError, match="is not AXIS:SIZE with an axis of data, fsdp, tensor"):
            plan.parse_mesh(wrong)


def test_the_plan_of_training_counts_state_and_flops(mesh):
    config = presets.preset("tiny")
    config.model = dataclasses.replace(config.model, num_layers=1, mtp=False, copy=False, identity=False)
    problem = plan.Problem(batch=4, history=5, contrasted=6, authors=40, author_dim=8)
    figures = plan.plan_training(config, problem, mesh)
    assert figures["all_parameters"] - figures["parameters"] == 40 * 8
    assert figures["parameter_bytes"] == 4 * figures["all_parameters"]
    # Two moments of each parameter, and counters.
    assert 0 <= figures["optimizer_bytes"] - 2 * figures["parameter_bytes"] < 64
    assert figures["argument_bytes"] > figures["parameter_bytes"] + figures["optimizer_bytes"]
    assert figures["activation_bytes"] > figures["parameter_bytes"]  # the gradients are among them
    assert figures["sent_bytes"] == {}
    assert figures["flops_per_device"] == 4 * flops.training_flops(config.model, history=5, levels=3, codes=64,
                                                                   authors=40, author_dim=8)
    text = plan.as_text(figures, 0.4, 0.7)
    assert f"{figures['parameters']:,}" in text
    assert all(name in text for name in plan.CHIPS)


def test_the_plan_of_kmeans(mesh):
    config = presets.preset("tiny")
    figures = plan.plan_kmeans(config, plan.Problem(batch=1, authors=1000), mesh)
    assert figures["flops_per_device"] == 2 * 1000 * 64 * 65
    assert figures["argument_bytes"] >= 4 * 1000 * 64


def test_seconds_on_a_chip_by_hand():
    figures = {"what": "train", "flops_per_device": 8e12, "sent_bytes": {"all-gather": 14e9, "all-reduce": 7e9},
               "devices": 8, "argument_bytes": 10e9, "activation_bytes": 5e9, "output_bytes": 0, "examples": 100}
    chip = plan.Chip(100e12, 10e12, 16e9, 1e12, 30e9, 8, 3e9)
    near = plan.on_chip(figures, chip, 0.4, 0.7)
    assert near["compute_seconds"] == pytest.approx(0.2)
    assert near["collective_seconds"] == pytest.approx(1.0)
    assert near["seconds"] == pytest.approx(1.2)
    assert near["seconds_if_overlapped"] == pytest.approx(1.0)
    assert near["fits"]
    assert near["mfu"] == pytest.approx(8 / 120)
    # Beyond the neighbourhood the slower link decides, and float32 products their own peak.
    far = plan.on_chip(figures | {"devices": 16, "what": "kmeans", "activation_bytes": 7e9}, chip, 0.4, 0.7)
    assert far["collective_seconds"] == pytest.approx(10.0)
    assert far["compute_seconds"] == pytest.approx(2.0)
    assert not far["fits"]
