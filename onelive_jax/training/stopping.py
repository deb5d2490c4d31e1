"""How a run is stopped: at the first SIGTERM or Ctrl-C after the step at hand, at a second one at once."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from onelive_jax.sharding.processes import is_main

logger = logging.getLogger(__name__)

# 75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on from here. 130 is the shell's for Ctrl-C.
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
SAME_SECONDS = 0.5  # timeout(1) and batch systems signal a process and then its group: one request, not two


class Stopped(SystemExit):
    """A run that was asked to stop, and did after it saved a step. Its code is of `EXIT_CODES`."""

    def __init__(self, folder: Path, step: int, number: int | None):
        super().__init__(EXIT_CODES[number or signal.SIGTERM])
        if is_main():
            logger.warning("%s: saved at step %d; run the same command to resume", folder, step)


class StopSignal:
    """Within it, the first SIGTERM or SIGINT sets `number`; a second one ends the process (exit code 128 + number).

    Of several processes jax itself catches SIGTERM and tells all of them; SIGINT is handed on to it as SIGTERM.
    Outside the main thread, where Python allows no handlers, signals end the process as ever.

    Attributes: number: the signal that came; None before.
    """

    def __init__(self):
        self.number: int | None = None

    def __enter__(self) -> "StopSignal":
        self._handlers = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        caught = tuple(EXIT_CODES) if jax.process_count() == 1 else (signal.SIGINT,)
        self._handlers = {number: signal.signal(number, self._first) for number in caught}
        # Python runs handlers between bytecodes, so not while XLA compiles. A second signal must work there, too: a
        # thread reads what the C handler writes.
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._write)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to save `step` and stop. Every process calls it, after every step: all of them stop after the same
        one, whichever was signalled."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.number is not None

    def _first(self, number: int, frame) -> None:
        self.number = number
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def _watch(self, read: int) -> None:
        first = None
        while received := os.read(read, 1):
            if received[0] not in self._handlers:
                continue
            if first is None:
                first = time.monotonic()
                logger.warning("stopping after this step; a second signal ends the run at once")
            elif time.monotonic() - first > SAME_SECONDS:
                print("ended without saving", file=sys.stderr, flush=True)
                os._exit(128 + received[0])
        os.close(read)
