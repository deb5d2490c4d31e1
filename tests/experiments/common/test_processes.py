"""Which experiments several processes may run together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.common import flags

ROOT = Path(__file__).resolve().parents[3]
TWO = {"coordinator_address": "h:1", "num_processes": 2, "process_id": 0}


def test_the_three_phases_of_training_are_for_several_processes():
    for script in flags.SEVERAL:
        assert (ROOT / (script.replace(".", "/") + ".py")).is_file()
        flags.check_processes(script, TWO)
        flags.check_processes(script, {})


def test_every_other_experiment_is_for_one():
    others = [f"experiments.{file.stem}" for file in (ROOT / "experiments").glob("*.py")
              if "flags.run(main)" in file.read_text() and f"experiments.{file.stem}" not in flags.SEVERAL]
    assert {"experiments.run", "experiments.evaluate", "experiments.train_tokenizer"} <= set(others)
    for script in others:
        flags.check_processes(script, None)
        flags.check_processes(script, TWO | {"num_processes": 1})
        for arguments in (TWO, {}, {"cluster_detection_method": "slurm"}):
            with pytest.raises(ValueError, match="is for one process, but its flags or its environment"):
                flags.check_processes(script, arguments)


def test_a_command_for_one_process_refuses_before_it_waits_for_others(tmp_path):
    command = [sys.executable, "-m", "experiments.run", "--config=experiments/configs/demo.py",
               f"--workdir={tmp_path}/w"]
    pod = {"JAX_COORDINATOR_ADDRESS": "run-0.run:8476", "JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | pod, capture_output=True, text=True, check=False,
                          timeout=120)
    assert done.returncode == 1
    assert "experiments.run: this experiment is for one process" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()
