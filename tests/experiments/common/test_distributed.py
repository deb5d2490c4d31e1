"""Several processes: how they find each other. (That two of them train what one trains:
tests/experiments/test_alignment_commands.py, where there is a run of all phases to compare with.)"""


import pytest
from absl import flags as absl_flags

from experiments.common import flags

SLURM = {"SLURM_JOB_ID": "9", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16", "SLURM_PROCID": "3",
         "SLURM_LOCALID": "3"}
POD = {"JAX_COORDINATOR_ADDRESS": "run-0.run:8476", "JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}


def arguments_of(environment=(), *argv):
    values = absl_flags.FlagValues()
    flags.define_config(flag_values=values)
    values(["test", *argv])
    return flags.arguments_of(values, dict(environment))


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
