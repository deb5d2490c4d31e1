"""Settings of a test run; they must stand before jax is imported."""

import functools
import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import eight_devices

# Compiled programs are kept between runs (a checkout's own folder, not under version control).
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Tests compare numbers, so they run where numbers are the same everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of a test run for milliseconds; most of the time would go into compiling them. The older emitters take half
# the time of the fusion emitters.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax  # noqa: E402

# How long an example takes says nothing where several tests share two cores.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


# The longest files come first: no process is left alone with one at the end.
LONGEST = ("test_alignment_commands.py", "test_sharded_steps.py", "test_sharded_run.py", "test_policy_step.py",
           "test_collisions.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_configure(config):
    config.addinivalue_line("markers", "eight_devices: runs in a process of eight CPU devices, with its file's others")


@functools.cache
def marked_tests_of(file: Path) -> str:
    """What pytest says of a file's tests for eight devices: a line "PASSED id" for each that does."""
    return eight_devices.run("-m", "pytest", "-n0", "-rfEp", "--tb=short", "-m", "eight_devices", str(file))[1]


def pytest_pyfunc_call(pyfuncitem):
    """Tests marked eight_devices are left to a process that has them."""
    if not pyfuncitem.get_closest_marker("eight_devices") or jax.device_count() == 8:
        return None
    said = marked_tests_of(pyfuncitem.path)
    if f"PASSED {pyfuncitem.nodeid}\n" not in said:
        pytest.fail(said, pytrace=False)
    return True
