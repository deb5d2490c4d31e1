"""Stages that are done, refused, killed and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.common import workdir
from experiments.common.log import prepare
from experiments.stages.run import run
from experiments.stages.supervised import load_supervised, train_supervised
from experiments.stages.tokenizer import load_tokenizer
from onelive_jax.config import to_json
from onelive_jax.training import metrics, pace
from onelive_jax.training.checkpoints import restore_params

ROOT = Path(__file__).resolve().parents[3]

# A training process that is killed while it prepares step 9, when the checkpoint of step 6 is on disk.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from experiments.common.log import prepare
from experiments.stages import supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import from_json

workdir, calls = Path(sys.argv[1]), []
config = from_json(Path(sys.argv[2]).read_text())
original = supervised.partitioning.put_batch

def put_batch(batch, mesh):
    calls.append(1)
    while len(calls) == 9 and not (workdir / "supervised" / "6").is_dir():
        time.sleep(0.02)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(batch, mesh)

supervised.partitioning.put_batch = put_batch
log = prepare(config, workdir)
supervised.train_supervised(config, workdir, log, train_tokenizer(config, workdir, log))
"""


def files_of(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    shutil.copytree(finished.workdir, tmp_path / "copy")
    return tmp_path / "copy"


def never(*args, **kwargs):
    raise AssertionError("a finished stage was run again")


def test_a_second_run_repeats_no_stage(finished, copy, monkeypatch):
    monkeypatch.setattr("experiments.common.log.read", never)
    monkeypatch.setattr("onelive_jax.tokenizer.tower_training.train_towers", never)
    monkeypatch.setattr("experiments.stages.supervised.training_batches", never)
    monkeypatch.setattr("onelive_jax.training.supervised.make_train_step", never)
    before = {part: files_of(copy / part) for part in ("data", "examples", "tokenizer", "supervised")}
    again = run(finished.config, copy)
    assert {part: files_of(copy / part) for part in before} == before
    assert again.report == finished.trained.report
    jax.tree.map(np.testing.assert_array_equal, again.params, finished.trained.params)


@pytest.mark.parametrize("change,value,named", [
    ("simulator__users", 61, "simulator.users: 60 then, 61 now"),
    ("tokenizer__kmeans_iterations", 3, "tokenizer.kmeans_iterations: 25 then, 3 now"),
    ("data__valid_hours", 13.0, "data.valid_hours: 12.0 then, 13.0 now"),
    ("seed", 1, "seed: 0 then, 1 now"),
    ("data__history_items", 9, "data.history_items: 8 then, 9 now"),
    ("model__gate", False, "model.gate: True then, False now"),
    ("training__steps", 13, "training.steps: 12 then, 13 now"),
])
def test_other_settings_in_the_same_workdir_are_refused_by_name(finished, copy, make_config, change, value, named):
    before = files_of(copy)
    with pytest.raises(ValueError, match="made with other settings") as error:
        run(make_config(**{change: value}), copy)
    assert f"({named})" in str(error.value)
    assert "choose another --workdir" in str(error.value)
    assert files_of(copy) == before  # above all config.json, from which later commands take the settings


def test_decoding_may_change_after_training(finished, copy, make_config):
    config = make_config(decoding__capacity=64)
    log = prepare(config, copy)
    _, params, _ = train_supervised(config, copy, log, load_tokenizer(config, copy))
    jax.tree.map(np.testing.assert_array_equal, params, finished.trained.params)


def test_what_is_loaded_is_what_was_trained(finished):
    config, workdir, trained = finished.config, finished.workdir, finished.trained
    loaded = load_tokenizer(config, workdir)
    for name, values in trained.tokenizer.ids.to_arrays().items():
        np.testing.assert_array_equal(loaded.ids.to_arrays()[name], values)
    np.testing.assert_array_equal(loaded.embedding_AxD, trained.tokenizer.embedding_AxD)
    assert loaded.figures == trained.tokenizer.figures
    _, params, figures = load_supervised(config, workdir, trained.log)
    jax.tree.map(np.testing.assert_array_equal, params, trained.params)
    lines = [line for line in metrics.read(workdir / "supervised") if "validation/ndcg@10" in line]
    best = max(lines, key=lambda line: line["validation/ndcg@10"])
    assert figures["chosen_step"] == best["step"]
    jax.tree.map(np.testing.assert_array_equal, params, restore_params(workdir / "supervised", step=best["step"]))


def test_later_stages_ask_for_the_earlier_ones(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished tokenizer: run experiments.train_tokenizer"):
        load_tokenizer(finished.config, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no finished supervised phase: run experiments.train_supervised"):
        load_supervised(finished.config, tmp_path, finished.trained.log)


def test_a_killed_run_resumes_bit_for_bit(finished, copy, make_config, tmp_path, caplog):
    shutil.rmtree(copy / "supervised")
    (copy / "supervised.json").unlink()
    (tmp_path / "config.json").write_text(to_json(finished.config))
    killed = subprocess.run([sys.executable, "-c", KILLED, copy, tmp_path / "config.json"], cwd=ROOT,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
                            check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (copy / "supervised" / workdir.DONE).exists()
    left = metrics.read(copy / "supervised")
    assert {line["step"] for line in left} >= {1, 6, 7}  # lines of steps that will be taken again

    log, tokenizer = finished.trained.log, finished.trained.tokenizer
    with pytest.raises(ValueError, match=r"unfinished run with other settings .*training.learning_rate"):
        train_supervised(make_config(training__learning_rate=0.5), copy, log, tokenizer)
    # By its name too where no array of the checkpoint would fit.
    with pytest.raises(ValueError, match=r"unfinished run with other settings \(model.dim: 16 then, 24 now\)"):
        train_supervised(make_config(model__dim=24), copy, log, tokenizer)

    caplog.set_level("INFO", logger="experiments")
    # How often it is saved and what is computed twice may change on the way.
    otherwise = make_config(training__checkpoint_every=5, training__keep_checkpoints=3, model__attention="einsum")
    _, params, figures = train_supervised(otherwise, copy, log, tokenizer)
    assert "from step 6" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, params, finished.trained.params)
    straight, resumed = (restore_params(folder / "supervised", step=12) for folder in (finished.workdir, copy))
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    lines = [[{name: value for name, value in line.items() if name not in pace.CLOCKED}
              for line in metrics.read(folder / "supervised")] for folder in (finished.workdir, copy)]
    assert lines[0] == lines[1]
    before = json.loads((finished.workdir / "supervised.json").read_text())
    assert {name: figures[name] for name in ("parameters", "chosen_step")} == {
        name: before[name] for name in ("parameters", "chosen_step")}


def test_how_a_run_was_watched_may_change_when_it_is_done(finished, copy, make_config):
    config = make_config(training__log_every=5, training__checkpoint_every=7, training__keep_checkpoints=1,
                         model__remat="full")
    file, log = copy / "supervised" / workdir.DONE, finished.trained.log
    assert not json.loads(file.read_text()).keys() & set(workdir.WATCHING)
    _, params, _ = load_supervised(config, copy, log)
    jax.tree.map(np.testing.assert_array_equal, params, finished.trained.params)
    with pytest.raises(ValueError, match=r"other settings \(model.gate: True then, False now\)"):
        load_supervised(make_config(model__gate=False), copy, log)


def test_metrics_have_a_line_for_every_step_and_validation(finished):
    lines = metrics.read(finished.workdir / "supervised")
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation/ndcg@10" in line] == [6, 12]
    assert all(0 <= line[f"train/{name}"] <= 1 for line in lines if "train/loss" in line
               for name in ("acc_q0", "acc_q1", "acc_all", "on_air"))


def test_without_any_validation_target_training_says_so(finished, make_config, tmp_path):
    config = make_config(data__valid_hours=0.0, data__test_hours=12.0)
    log = prepare(config, tmp_path)
    with pytest.raises(ValueError, match=r"validation period has no target .*config.data.valid_hours longer"):
        train_supervised(config, tmp_path, log, finished.trained.tokenizer)
