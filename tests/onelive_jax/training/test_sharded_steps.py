"""Eight devices give what one gives, for everything that runs on a mesh; see sharded_steps.py for what is checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.onelive_jax.training.sharded_steps import STEPS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def said():
    """One process of eight CPU devices (the flag is read when jax starts) tries all steps: its output."""
    # NPROC: threads of XLA's CPU devices. With as many as devices, two collectives that one device runs at once take
    # another device's thread, and all wait for ever.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "NPROC": "32",
                   "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-m", "tests.onelive_jax.training.sharded_steps", *STEPS], env=environment,
                          capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("step", STEPS)
def test_eight_devices_give_what_one_gives(step, said):
    assert f"{step}: {len(STEPS[step][1])} meshes give what one device gives" in said, said[-3000:]
