"""Benchmarks of presets: figures that agree with each other, the search for the largest batch, the command line."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.core import meta

from experiments.benchmarks import report as report_of
from experiments.benchmarks import train
from experiments.benchmarks.problem import make_model, random_batch
from experiments.benchmarks.train import Setting
from onelive_jax import presets
from onelive_jax.config import DecodingConfig, ModelConfig
from onelive_jax.decoding import live_index
from onelive_jax.training import flops

ROOT = Path(__file__).resolve().parents[3]
TINY = Setting(preset="tiny", batch=4, history=5, authors=40, contrasted=6, rooms=24, beams=4, repeats=3, steps=2)
FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Less to compile than the preset has."""
    monkeypatch.setitem(presets.PRESETS, "tiny", ModelConfig(dim=16, num_layers=1, num_heads=2, num_groups=1,
                                                             mlp_dim=24, mtp=False))


def make_report(what: str, setting: Setting) -> dict:
    return report_of.make_report(what, lambda: train.measure_preset(what, setting))


def as_text(report: dict) -> str:
    return report_of.as_text(report, train.preset_lines(report))


def tiny():
    """(model, shapes of its parameters, an example with six rooms on air)."""
    config = train.config_of(TINY)
    sizes = train.sizes_of(TINY, config)
    model, example = make_model(sizes, config.model), random_batch(np.random.default_rng(0), sizes)
    return model, jax.eval_shape(lambda: meta.unbox(model.init(jax.random.key(0), example)["params"])), example


def check_figures(report: dict, per_example: float) -> None:
    assert json.loads(json.dumps(report)).keys() == report.keys()
    for figures in report["figures"]:
        assert figures["step_seconds"] == statistics.median(figures["seconds"])
        assert figures["examples_per_second"] == pytest.approx(figures["batch"] / figures["step_seconds"])
        assert figures["flops_per_example"] == per_example
        assert figures["flops_per_second"] == pytest.approx(per_example * figures["examples_per_second"])
        assert figures["mfu"] is None  # a CPU's peak is not known
        assert figures["peak_bytes"] is None
    text = as_text(report)
    assert "the bfloat16 peak of 'cpu' is not known" in text
    assert "this backend does not report it" in text
    assert f"{report['figures'][0]['examples_per_second']:,.1f}" in text


def test_a_train_step_of_a_preset():
    report = make_report("train", TINY)
    figures, = report["figures"]
    model, params, example = tiny()
    check_figures(report, flops.training_flops(model, params, example, 4))
    assert len(figures["seconds"]) == TINY.repeats
    assert figures["program_bytes"] > 12 * report["all_parameters"]  # parameters and two moments, float32
    assert 0 < figures["loss"] < 1000
    assert report["all_parameters"] - report["parameters"] == 40 * (64 + 1)
    assert (report["largest_batch"], report["out_of_memory_at"]) == (4, None)
    assert "largest batch" not in as_text(report)


def test_rankings_of_a_preset():
    report = make_report("decode", replace(TINY, dtype="bfloat16"))
    model, params, example = tiny()
    index = live_index.from_rooms(jax.tree.map(lambda x: np.repeat(x[0], 4, axis=0), example.live), 64)
    check_figures(report, flops.decoding_flops(model, DecodingConfig(beams=4), params, example.request, index, 4))
    assert report["model"]["activation_dtype"] == "bfloat16"
    assert report["devices"] == 1


def test_flags_change_the_preset_and_none_does_not():
    assert train.config_of(Setting("0.04b")).model.activation_dtype == "bfloat16"
    assert train.config_of(Setting("0.04b")).model.remat == "dots"
    changed = train.config_of(Setting("0.04b", dtype="float32", remat="full")).model
    assert (changed.activation_dtype, changed.remat) == ("float32", "full")


def test_the_search_doubles_until_a_batch_does_not_fit():
    tried = []

    def attempt(batch):
        tried.append(batch)
        if batch > 40:
            raise FULL
        return {"batch": batch}

    assert train.search(attempt, 8, None) == ([{"batch": 8}, {"batch": 16}, {"batch": 32}], 64)
    assert tried == [8, 16, 32, 64]
    assert train.search(attempt, 8, 31) == ([{"batch": 8}, {"batch": 16}], None)
    assert train.search(attempt, 64, None) == ([], 64)


def test_other_errors_are_not_taken_for_a_full_memory():
    def attempt(batch):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is lost")

    with pytest.raises(jax.errors.JaxRuntimeError, match="the device is lost"):
        train.search(attempt, 8, None)


def test_the_largest_batch_of_a_step_that_fails_beyond_it(monkeypatch):
    """The real measurement around a step that takes what the device has from 16 examples on."""
    def make_failing_step(model, tx, config):
        def step(state, batch):
            if batch.weight.shape[0] > 16:
                raise FULL
            return state.replace(step=state.step + 1), {"loss": batch.weight.sum()}
        return step

    monkeypatch.setattr(train, "make_train_step", make_failing_step)
    report = make_report("train", replace(TINY, batch=0, max_batch=1000, repeats=1, steps=1))
    assert [figures["batch"] for figures in report["figures"]] == [8, 16]
    assert (report["largest_batch"], report["out_of_memory_at"]) == (16, 32)
    assert "32 examples are out of memory\nlargest batch that ran: 16\n" in as_text(report)
    bounded = make_report("train", replace(TINY, batch=0, max_batch=8, repeats=1, steps=1))
    assert bounded["largest_batch"] == 8
    assert "largest batch that ran: 8 (--max_batch=8; memory was left)" in as_text(bounded)
    # A batch that is named and does not fit is a result too.
    refused = make_report("train", replace(TINY, batch=64))
    assert (refused["figures"], refused["largest_batch"]) == ([], None)
    assert "64 examples are out of memory" in as_text(refused)


@pytest.mark.parametrize("what", ["train", "decode"])
def test_a_model_that_does_not_fit_at_all_is_a_result_too(what, monkeypatch):
    def init_state(*arguments):
        raise FULL

    monkeypatch.setattr(train.train_state, "init_state", init_state)
    report = make_report(what, replace(TINY, batch=0, max_batch=64))
    assert (report["figures"], report["largest_batch"], report["out_of_memory_at"]) == ([], None, 8)
    assert "are out of memory\nno batch ran\n" in as_text(report)


def test_memory_and_utilisation_where_a_device_tells():
    class Device:
        device_kind, process_index = "NVIDIA H100 80GB HBM3", 0

        def memory_stats(self):
            return {"peak_bytes_in_use": 3 * 2**30, "bytes_limit": 60 * 2**30}

    figures = train.figures_of(100, [0.5, 0.25, 1.0], 989 * 10**9, [Device(), Device()])
    assert figures["examples_per_second"] == 200
    assert figures["mfu"] == pytest.approx(200 * 989e9 / (2 * 989e12))
    assert (figures["peak_bytes"], figures["limit_bytes"]) == (3 * 2**30, 60 * 2**30)


def test_what_is_asked_for_must_be_possible(monkeypatch):
    with pytest.raises(ValueError, match="--batch=0 needs --max_batch on a CPU"):
        train.check("train", replace(TINY, batch=0))
    with pytest.raises(ValueError, match="--max_batch=7 is below 8"):
        train.check("train", replace(TINY, batch=0, max_batch=7))
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(ValueError, match="--batch=4 must be a multiple of the 8 devices"):
        train.check("train", TINY)
    train.check("decode", TINY)


def test_the_command(tmp_path):
    def run(*flags):
        return subprocess.run([sys.executable, "-m", "experiments.benchmark", *flags], cwd=ROOT, env=os.environ,
                              capture_output=True, text=True, check=False)

    report = tmp_path / "decode.json"
    done = run("--what=decode", "--preset=tiny", "--batch=2", "--history=5", "--authors=40", "--rooms=24", "--beams=4",
               "--repeats=1", f"--report={report}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(report.read_text())["largest_batch"] == 2
    assert "decode, preset tiny, float32, history 5, 40 authors, 24 rooms on air, beam 4" in done.stdout
    alone = run("--what=train", "--batch=4")
    assert alone.returncode == 2
    assert "--batch is for --what=train or decode with --preset" in alone.stderr
    other = run("--what=compile", "--preset=tiny")
    assert other.returncode == 2
    assert "--preset is for --what=train or decode" in other.stderr
