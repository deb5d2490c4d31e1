"""Settings of a test run; they must stand before jax is imported."""

import os
from pathlib import Path

from hypothesis import settings

# Compiled programs are kept between runs (a checkout's own folder, not under version control).
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Tests compare numbers, so they run where numbers are the same everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of a test run for milliseconds; most of the time would go into optimising them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# How long an example takes says nothing where several tests share two cores.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
