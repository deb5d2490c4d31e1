"""Several processes: how they find each other, and that two of them train what one trains."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import distributed, flags, prepare, train_supervised
from onelive_jax.training import metrics
from onelive_jax.training.checkpoints import read

ROOT = Path(__file__).resolve().parents[2]
SLURM = {"SLURM_JOB_ID": "9", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16", "SLURM_PROCID": "3",
         "SLURM_LOCALID": "3"}
POD = {"JAX_COORDINATOR_ADDRESS": "run-0.run:8476", "JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}


def arguments_of(environment=(), *argv):
    values = absl_flags.FlagValues()
    flags.define_config(flag_values=values)
    values(["test", *argv])
    return distributed.arguments_of(values, dict(environment))


@pytest.mark.parametrize("environment,argv,wanted", [
    ({}, (), None),
    (SLURM, ("--distributed=none",), None),
    (SLURM | {"SLURM_NTASKS": "1"}, (), None),
    ({name: value for name, value in SLURM.items() if name != "SLURM_PROCID"}, (), None),  # a batch script, no step
    (SLURM, (), {"cluster_detection_method": "slurm"}),
    ({"TPU_WORKER_HOSTNAMES": "a"}, (), None),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, (), {}),
    ({}, ("--distributed=tpu",), {}),
    (POD, (), {"coordinator_address": "run-0.run:8476", "num_processes": 2, "process_id": 1,
               "cluster_detection_method": "deactivate"}),
    (POD | SLURM, ("--process=0", "--coordinator=h:1"), {"coordinator_address": "h:1", "num_processes": 2,
                                                         "process_id": 0, "cluster_detection_method": "deactivate"}),
])
def test_flags_and_environment_say_how_processes_meet(environment, argv, wanted):
    assert arguments_of(environment, *argv) == wanted


@pytest.mark.parametrize("environment,argv,words", [
    ({}, ("--distributed=slurm",), "SLURM_JOB_ID, SLURM_STEP_NODELIST, .* are not set: start the command with srun"),
    ({}, ("--distributed=coordinator",), "--coordinator is missing"),
    ({}, ("--coordinator=h:1", "--process=0"), "--processes is missing.*JAX_NUM_PROCESSES"),
    ({}, ("--coordinator=h:1", "--processes=2"), "--process is missing"),
    (POD | {"JAX_NUM_PROCESSES": "two"}, (), "JAX_NUM_PROCESSES='two' is not a whole number"),
    (POD, ("--process=2",), "--process=2 is not one of 2 processes"),
])
def test_what_is_missing_is_named(environment, argv, words):
    with pytest.raises(ValueError, match=words):
        arguments_of(environment, *argv)


# A process of the real command. Process 1 is sent SIGTERM while it prepares step 4; steps then take a little while, as
# those of a real run do: the processes have to tell each other.
PROCESS = """
import os, runpy, signal, sys, time
from onelive_jax.training import partitioning

original, calls = partitioning.put_batch, []

def put_batch(batch, mesh):
    calls.append(1)
    if len(calls) == 4 and "--process=1" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.4 if len(calls) >= 4 else 0)
    return original(batch, mesh)

partitioning.put_batch = put_batch
runpy.run_module("experiments.train_supervised", run_name="__main__", alter_sys=True)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in metrics.read(workdir / "supervised") if "train/loss" in line}


def test_two_processes_train_what_one_trains_stop_together_and_one_goes_on(finished, tmp_path):
    """The real command in two processes (gloo), from the tokenizer on. SIGTERM to one of them stops both after the
    same step; one process alone resumes from there, and ends where the uninterrupted run of one process ended."""
    workdir = tmp_path / "copy"
    shutil.copytree(finished.workdir, workdir, ignore=shutil.ignore_patterns("supervised*", "tokenizer*"))
    address = f"localhost:{free_port()}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    processes = [subprocess.Popen(
        [sys.executable, "-c", PROCESS, f"--config={ROOT}/experiments/configs/saved.py:{finished.workdir}",
         f"--workdir={workdir}", f"--coordinator={address}", "--processes=2", f"--process={number}"], cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in range(2)]
    said = [process.communicate(timeout=550) for process in processes]
    assert [process.returncode for process in processes] == [distributed.STOPPED] * 2, said
    stopped = max(int(entry.name) for entry in (workdir / "supervised").iterdir() if entry.name.isdigit())
    assert 4 <= stopped < finished.config.training.steps
    assert f"stopped after step {stopped}, which is saved" in said[0][1]
    assert "2 processes, 2 devices" in said[0][1]
    # The other process says nothing, whatever libraries do.
    assert "stopped after" not in said[1][1]
    assert "experiments" not in said[1][0]
    assert not (workdir / "prepared").exists()

    both = losses(workdir)
    assert list(both) == list(range(1, stopped + 1))  # by process 0 alone: every step once
    alone = losses(finished.workdir)
    np.testing.assert_allclose([both[step] for step in both], [alone[step] for step in both], rtol=1e-5)
    log, tokenizer = finished.trained.log, finished.trained.tokenizer
    train_supervised.train_supervised(finished.config, workdir, log, tokenizer)
    assert prepare.is_done(workdir / "supervised", train_supervised.stage_settings(finished.config))
    one, two = (read(folder / "supervised", finished.config.training.steps) for folder in (finished.workdir, workdir))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), two["params"], one["params"])
    assert two["data"] == one["data"]
    assert two["meta"]["key"] == one["meta"]["key"]


def test_sigterm_outside_training_ends_the_process_as_ever():
    before = signal.getsignal(signal.SIGTERM)
    with distributed.stopping() as wanted:
        assert not wanted(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert wanted(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_finishes_the_step_saves_and_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "copy"
    shutil.copytree(finished.workdir, workdir, ignore=shutil.ignore_patterns("supervised*"))
    original, calls = train_supervised.partitioning.put_batch, []

    def put_batch(batch, mesh):
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch, mesh)

    log, tokenizer = finished.trained.log, finished.trained.tokenizer
    monkeypatch.setattr(train_supervised.partitioning, "put_batch", put_batch)
    with pytest.raises(SystemExit) as stopped:
        train_supervised.train_supervised(finished.config, workdir, log, tokenizer)
    assert stopped.value.code == 75
    assert len(calls) == 8
    assert json.loads((workdir / "supervised" / "8" / "meta" / "metadata").read_text())["step"] == 8
    train_supervised.train_supervised(finished.config, workdir, log, tokenizer)
    one, two = (read(folder / "supervised", 12) for folder in (finished.workdir, workdir))
    jax.tree.map(np.testing.assert_array_equal, one, two)
