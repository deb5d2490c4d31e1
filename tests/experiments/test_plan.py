"""Plans: what the compiled program says, and what is made of it for a chip."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.core import meta

from experiments.benchmarks import planning as plan
from experiments.benchmarks.problem import random_batch
from onelive_jax import presets
from onelive_jax.config import MeshConfig
from onelive_jax.sharding import partitioning
from onelive_jax.tokenizer import kmeans
from onelive_jax.training import flops

ROOT = Path(__file__).resolve().parents[2]


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
    state = figures["parameter_bytes"] + figures["optimizer_bytes"]  # read and written, as the gradients are
    assert figures["touched_bytes"] >= 2 * (state + figures["parameter_bytes"])
    example = random_batch(np.random.default_rng(0), plan.sizes_of(config, problem))
    model = plan.make_model(config, problem, mesh)
    params = jax.eval_shape(lambda: meta.unbox(model.init(jax.random.key(0), example)["params"]))
    assert figures["flops_per_device"] == 4 * flops.training_flops(model, params, example, 4)
    text = plan.as_text(figures, 0.4, 0.7)
    assert f"{figures['parameters']:,}" in text
    assert all(name in text for name in plan.CHIPS)


def test_the_plan_of_kmeans_is_that_of_the_chips_that_run_it(mesh):
    config, problem = presets.preset("tiny"), plan.Problem(batch=1, authors=1000)
    gpu, tpu = (plan.plan_kmeans(config, problem, mesh, tpu) for tpu in (False, True))
    assert list(plan.chips_of(gpu)) == ["H100", "H200"]
    assert list(plan.chips_of(tpu)) == ["v5e", "v6e"]
    assert gpu["flops_per_device"] == 2 * 1000 * 64 * 65
    assert tpu["flops_per_device"] == 2 * 1000 * 64 * (65 + 64)
    assert gpu["argument_bytes"] == tpu["argument_bytes"] >= 4 * 1000 * 64
    for figures, used, unused in ((gpu, "H100", "v5e"), (tpu, "v5e", "H100")):
        text = plan.as_text(figures, 0.4, 0.7)
        assert used in text
        assert unused not in text


def test_what_is_planned_for_a_tpu_is_what_kmeans_does_on_one(mesh, monkeypatch):
    blocks = kmeans.make_blocks(np.zeros((24, 4), np.float32), 8)
    seen = []
    monkeypatch.setattr(kmeans, "_lloyd", lambda *arguments: seen.append(arguments[-1]))
    for backend in ("tpu", "gpu", "cpu"):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda backend=backend: backend)
            kmeans.lloyd(blocks, np.zeros((8, 4), np.float32), 1)
    assert seen == [True, False, False]


def test_seconds_on_a_chip_by_hand():
    figures = {"what": "train", "flops_per_device": 8e12, "sent_bytes": {"all-gather": 14e9, "all-reduce": 7e9},
               "devices": 8, "argument_bytes": 10e9, "activation_bytes": 5e9, "output_bytes": 0, "examples": 100,
               "touched_bytes": 1e11}
    chip = plan.Chip(100e12, 10e12, 16e9, 1e12, 30e9, 8, 3e9)
    near = plan.on_chip(figures, chip, 0.4, 0.7)
    assert near["compute_seconds"] == pytest.approx(0.2)
    assert near["memory_seconds"] == pytest.approx(0.1)
    assert near["collective_seconds"] == pytest.approx(1.0)
    assert near["seconds"] == pytest.approx(1.2)
    assert near["seconds_if_overlapped"] == pytest.approx(1.0)
    assert near["fits"]
    assert near["mfu"] == pytest.approx(8 / 120)
    # What waits for its memory takes that long, and not the time of its products on top.
    slow = plan.on_chip(figures | {"touched_bytes": 3e12}, chip, 0.4, 0.7)
    assert slow["seconds"] == pytest.approx(4.0)
    assert slow["seconds_if_overlapped"] == pytest.approx(3.0)
    # Beyond the neighbourhood the slower link decides, and float32 products their own peak.
    far = plan.on_chip(figures | {"devices": 16, "what": "kmeans", "activation_bytes": 7e9}, chip, 0.4, 0.7)
    assert far["collective_seconds"] == pytest.approx(10.0)
    assert far["compute_seconds"] == pytest.approx(2.0)
    assert not far["fits"]


def test_the_command_plans_training_and_decoding_on_eight_devices(tmp_path):
    report = tmp_path / "plan.json"
    command = [sys.executable, "-m", "experiments.plan", "--preset=tiny", "--mesh=data:2,fsdp:2,tensor:2", "--batch=16",
               "--accumulate=2", "--what=train,kmeans,decode", "--history=5", "--authors=88", "--rooms=24", "--beams=4",
               "--requests=8", f"--report={report}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NPROC": "32"}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    planned = json.loads(report.read_text())["plans"]
    plans = {figures["what"]: figures for figures in planned}
    assert [figures["what"] for figures in planned] == ["train", "kmeans", "kmeans", "decode"]
    assert [list(figures["chips"]) for figures in planned] == [list(plan.CHIPS), ["v5e", "v6e"], ["H100", "H200"],
                                                              list(plan.CHIPS)]
    for figures in planned:
        what = figures["what"]
        assert figures["devices"] == 8
        assert figures["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
        assert f"{what}: 8 devices (data 2 x fsdp 2 x tensor 2)" in done.stdout
        assert figures["sent_bytes"]
        assert all(chip["seconds"] >= max(chip["compute_seconds"], chip["memory_seconds"]) > 0
                   for chip in figures["chips"].values())
    train, decode = plans["train"], plans["decode"]
    # A device holds a quarter of what is split over fsdp and tensor, and a half of what is split over one of them.
    assert train["all_parameters"] < train["parameter_bytes"] < 4 * train["all_parameters"] / 2
    assert train["optimizer_bytes"] == pytest.approx(2 * train["parameter_bytes"], abs=64)
    assert decode["parameter_bytes"] == train["parameter_bytes"]
    assert decode["examples"] == 8
    assert decode["flops_per_device"] == decode["flops_per_example"]  # eight requests, eight devices

    wrong = subprocess.run([*command, "--batch=12"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "--batch=12 and --requests=8 must be multiples of data x fsdp = 4" in wrong.stdout + wrong.stderr
