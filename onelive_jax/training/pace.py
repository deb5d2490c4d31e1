"""What a run says of the machine: seconds, steps and examples a second, memory; and a profiler's window."""

import logging
import time
from pathlib import Path
from typing import Any

import jax

from onelive_jax.training import flops
from onelive_jax.training.metrics import device_memory, read

logger = logging.getLogger(__name__)
# Metrics that tell of the machine and not of the model: another run of the same settings has others.
CLOCKED = tuple(f"train/{name}" for name in ("seconds", "step_seconds", "examples_per_second", "flops_per_second",
                                             "mfu", "device_bytes", "device_peak_bytes"))


class Stopwatch:
    """Seconds of a run over all its resumptions, and of its steps without compiling, validation and checkpoints.

    Attributes:
      steps, stepping: steps timed in this process and their seconds.
    """

    def __init__(self):
        self.steps, self.stepping = 0, 0.0
        self._begun, self._before, self._since = time.perf_counter(), 0.0, None
        self._last = (0, 0.0)

    def resume(self, folder: Path, step: int) -> None:
        """Goes on from what the log of an earlier process says was spent up to `step`."""
        spent = [line["train/seconds"] for line in read(folder) if "train/seconds" in line and line["step"] <= step]
        self._before = max(spent, default=0.0)

    def tick(self, state: Any) -> None:
        """After every step: the first of a process, and the first after `stop`, only starts the time (what comes before
        a first step is compiling)."""
        if self._since is not None:
            self.steps += 1
            return
        jax.block_until_ready(state)
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self.stepping += time.perf_counter() - self._since
            self._since = None

    def elapsed(self) -> float:
        return self._before + time.perf_counter() - self._begun

    def split(self) -> tuple[int, float]:
        """(steps, their seconds) since the last call."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        now = self.steps, self.stepping + running
        (steps, seconds), self._last = self._last, now
        return now[0] - steps, now[1] - seconds


class Profiler:
    """A profiler trace of `steps` steps from step `first` on (none where `first` is 0), for TensorBoard or Perfetto."""

    def __init__(self, folder: Path, first: int, steps: int):
        self._folder, self._first, self._last, self._running = folder, first, first + steps, False

    def before(self, step: int, state: Any) -> None:
        """Call it before each step; starts and stops the trace where its window does."""
        if self._first and step == self._first:
            jax.block_until_ready(state)  # what was dispatched before is no part of the window
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif step == self._last:
            self.close(state)

    def close(self, state: Any) -> None:
        """Ends a trace that is running, when the device is done with it."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
            logger.info("profile of steps %d … %d: %s", self._first, self._last - 1, self._folder)


def pace(clock: Stopwatch, batch_size: int, per_example: float | None = None) -> dict[str, float | None]:
    """`CLOCKED` (without "train/") since the last call; no rates where no step was timed since.

    per_example: FLOPs of an example's step, where they are known.
    """
    values, (steps, seconds) = {}, clock.split()
    if steps > 0 and seconds > 0:
        rate = steps * batch_size / seconds
        values = {"step_seconds": seconds / steps, "examples_per_second": rate}
        if per_example is not None:
            device = jax.devices()[0].device_kind
            values |= {"flops_per_second": rate * per_example,
                       "mfu": flops.utilisation(rate, per_example, jax.device_count(), device)}
    return values | device_memory() | {"seconds": clock.elapsed()}
