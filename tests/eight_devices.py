"""A process with eight CPU devices: their number is read when jax starts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> tuple[int | None, str]:
    """Python with these arguments, in the root of the checkout: (exit status, all that it prints). None: it hung."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    # NPROC: threads of XLA's CPU devices. With as many as devices, two collectives that one device runs at once take
    # another device's thread, and all wait for ever.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NPROC": "32", "XLA_FLAGS": flags}
    try:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, text=True, check=False,
                              timeout=1800, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired as error:
        return None, str(error)
    return done.returncode, done.stdout
