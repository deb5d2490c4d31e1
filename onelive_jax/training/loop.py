"""The training loop of every phase: batches in, a jitted step, and every so many steps a line of metrics, a validation,
a checkpoint.

A run resumes bit for bit from its newest whole checkpoint. One that is stopped at a step that is to be validated leaves
that step in FOLDER/pending_validation, since a validation may outlast the time that is left; the process that goes on
makes it up.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onelive_jax import presets
from onelive_jax.sharding.processes import is_main, wait_for_all
from onelive_jax.training.checkpoints import Checkpoints, NoneWhole
from onelive_jax.training.metrics import MetricWriter, OneStepLate, read
from onelive_jax.training.pace import Profiler, Stopwatch, pace
from onelive_jax.training.stopping import Stopped, StopSignal
from onelive_jax.training.train_state import TrainState

logger = logging.getLogger(__name__)
PENDING = "pending_validation"
TELL_EVERY_S = 30.0  # without a terminal: a line of metrics at most so often
NO_MORE = object()


@dataclass(frozen=True)
class Schedule:
    """When a run does what, in optimizer steps.

    Attributes:
      steps: length of the run; its last step is always saved.
      save_every, log_every: steps between checkpoints, and between lines of metrics.
      validate_every: steps between validations; 0 for none. validate_last: whether the last step has one anyway.
      profile_at, profile_steps: first step of a profiler trace (0 for none) and its length.
    """

    steps: int
    save_every: int
    log_every: int = 1
    validate_every: int = 0
    validate_last: bool = False
    profile_at: int = 0
    profile_steps: int = 5

    def validated(self, step: int) -> bool:
        due = self.validate_every > 0 and step % self.validate_every == 0
        return due or (self.validate_last and step == self.steps)


class Run:
    """A run while it trains: `with Run(…) as run`, then `start`, then `train` once, or once for each range of steps.

    Args:
      folder: for checkpoints, metrics and profiles.
      settings: JSON values that decide the result. A checkpoint keeps them, and is refused by a run with others.
      batch_size, flops: examples of a step, and FLOPs of an example where they are known, for the pace.
      progress: (name, steps, steps done) → a progress bar (tqdm), as a context manager.
      validate: (step, state) → (state to go on with, figures by name).
      shown: which metrics and figures stand beside the bar.
      keep, best_metric: as in `Checkpoints`.

    Attributes: clock; checkpoints; place: state of the batch iterator where the run resumed, None in a fresh run.
    """

    def __init__(self, folder: Path, schedule: Schedule, settings: Mapping[str, Any], batch_size: int,
                 progress: Callable[[str, int, int], Any], *, flops: float | None = None,
                 validate: Callable[[int, TrainState], tuple[TrainState, dict]] | None = None,
                 shown: tuple[str, ...] = ("loss",), keep: int = 2, best_metric: str | None = None):
        self.folder, self.schedule, self.settings, self.clock = folder, schedule, settings, Stopwatch()
        self._batch_size, self._flops, self._progress, self._shown = batch_size, flops, progress, shown
        self._validate, self._keep, self._best = validate, keep, best_metric
        self._profiler = Profiler(folder / "profile", schedule.profile_at, schedule.profile_steps)
        self._late, self._saved = OneStepLate(self._log, schedule.log_every), 0
        self._told = time.monotonic()

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            self._stop = stack.enter_context(StopSignal())
            self.checkpoints = stack.enter_context(Checkpoints(self.folder, self._keep, self._best))
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        with self._resources:
            if exception[0] is None:
                self.checkpoints.wait()
                # A signal may have come since the last step, and what follows the training may be long.
                if self._stop.requested(self.schedule.steps + 1):
                    raise Stopped(self.folder, self._saved, self._stop.number)

    def start(self, target: TrainState, init: Callable[[], TrainState], batches: Any = None) -> TrainState:
        """The state to go on from. `batches` go on from where they were; without them, `place` says where that was.

        Args: target: shapes and shardings (`abstract_state`). init: makes the first state.

        Raises: ValueError where the folder's checkpoints are of other settings; as `Checkpoints.restore`.
        """
        restored = self._restore(target)
        state, self.place = (init(), None) if restored is None else restored
        step = self._saved = int(state.step)
        self._writer = self._resources.enter_context(MetricWriter(self.folder, step))
        self._bar = self._resources.enter_context(self._progress(self.folder.name, self.schedule.steps, step))
        logger.info("%s: %s parameters", self.folder.name, f"{presets.count(state.params, author_rows=True):,}")
        logger.debug("%s", presets.summary(state.params))
        if restored is not None:
            logger.info("resuming %s from step %d", self.folder, step)
            if batches is not None:
                batches.set_state(self.place)
            if step and is_main():
                self.clock.resume(self.folder, step)
            if self.checkpoints.latest_step() != step:
                # A process that was killed at this point has left the line, though not the checkpoint. (Process 0
                # alone reads what it alone writes.)
                written = is_main() and any(line["step"] == step and any(name.startswith("validation/")
                                                                         for name in line)
                                            for line in read(self.folder))
                state = self._validate_and_save(step, state, self.place, written)
                self.checkpoints.wait()
        wait_for_all("pending validation is made")
        if is_main():
            shutil.rmtree(self.folder / PENDING, ignore_errors=True)
        return state

    def train(self, step_fn: Callable[[int, TrainState, Any], tuple[TrainState, dict]], state: TrainState, batches: Any,
              until: int | None = None) -> TrainState:
        """Takes the steps from that of `state` to `until` (to the last one when None), or as many as `batches` has now;
        returns the state after them.

        Args:
          step_fn: (step, counted from 1; state, which it may donate; what `batches` gives) → (state, metrics).
          batches: an iterator with `get_state` and `set_state`.

        Raises: Stopped, after a checkpoint, where the process was asked to stop. FloatingPointError: a metric is NaN.
        """
        first = int(state.step) + 1
        for step in range(first, (until or self.schedule.steps) + 1):
            made = next(batches, NO_MORE)
            if made is NO_MORE:
                break
            self._profiler.before(step, state)
            compiling = step == first and not self.clock.steps
            if compiling:
                self._bar.set_postfix_str("compiling…")
                self._tell("compiling…")
            state, metrics = step_fn(step, state, made)
            if compiling:
                self._bar.set_postfix_str("", refresh=False)
            self._late.push(step, metrics)
            self.clock.tick(state)
            self._bar.update(1)
            validated, stop = self.schedule.validated(step), self._stop.requested(step)
            if not (validated or stop or step % self.schedule.save_every == 0 or step == self.schedule.steps):
                continue
            self._late.flush()
            self.clock.stop()
            if validated and not stop:
                state = self._validate_and_save(step, state, batches.get_state())
            elif validated:
                with Checkpoints(self.folder / PENDING, keep=1) as pending:
                    pending.save(state, batches.get_state(), self.settings)
            else:
                self.checkpoints.save(state, batches.get_state(), self.settings)
            self._saved = step
            if stop:
                self._profiler.close(state)
                self.checkpoints.wait()
                raise Stopped(self.folder, step, self._stop.number)
        self._late.flush()
        self._profiler.close(state)
        return state

    @property
    def stopping(self) -> bool:
        """Whether the process was asked to stop, for who waits between two steps."""
        return self._stop.requested(self._saved)

    def save(self, state: TrainState, batches: Any) -> bool:
        """Saves the state between two steps, whole when this returns; False where no step was taken since the last."""
        step = int(state.step)
        if step == (self.checkpoints.latest_step() or 0):
            return False
        self._late.flush()
        self.checkpoints.save(state, batches.get_state(), self.settings)
        self.checkpoints.wait()
        self._saved = step
        return True

    def stop(self, state: TrainState, batches: Any) -> None:
        """As a run that is asked to stop within `train`. Raises: Stopped."""
        self.save(state, batches)
        raise Stopped(self.folder, self._saved, self._stop.number)

    def validate(self, step: int, state: TrainState, written: bool = False) -> tuple[TrainState, dict[str, float]]:
        """Makes a validation, writes and shows its figures (where they are not `written` yet), and returns them."""
        state, figures = self._validate(step, state)
        if not written:
            self._writer.write(step, {f"validation/{name}": value for name, value in figures.items()})
        if shown := ", ".join(f"{name} {figures[name]:.4f}" for name in self._shown if name in figures):
            self.say(f"step {step}: validation {shown}")
        return state, {name: value for name, value in figures.items() if value is not None}

    def say(self, line: str) -> None:
        """Writes a line above the progress bar; process 0 only."""
        if is_main():
            self._bar.write(line)

    def _validate_and_save(self, step: int, state: TrainState, data: Any, written: bool = False) -> TrainState:
        state, figures = self.validate(step, state, written)
        self.checkpoints.save(state, data, self.settings, figures)
        return state

    def _restore(self, target: TrainState) -> tuple[TrainState, Any] | None:
        """The newest checkpoint, or the step whose validation is pending, where that is newer; None without either."""
        latest = self.checkpoints.latest_step()
        if (self.folder / PENDING).is_dir():
            with Checkpoints(self.folder / PENDING, keep=1) as pending:
                if (pending.latest_step() or 0) > (latest or 0):
                    try:
                        return pending.restore(target, settings=self.settings)
                    except NoneWhole as damaged:
                        logger.warning("%s Going on from %s", damaged,
                                       "the start" if latest is None else f"step {latest}")
        return None if latest is None else self.checkpoints.restore(target, settings=self.settings)

    def _log(self, step: int, metrics: dict) -> None:
        speed = pace(self.clock, self._batch_size, self._flops)
        self._writer.write(step, {f"train/{name}": value for name, value in (metrics | speed).items()})
        shown = {name: f"{metrics[name]:.3f}" for name in self._shown if name in metrics}
        if "examples_per_second" in speed:
            shown["examples/s"] = f"{speed['examples_per_second']:,.0f}"
        self._bar.set_postfix(shown, refresh=False)
        if time.monotonic() - self._told > TELL_EVERY_S:
            self._tell(", ".join([f"step {step} of {self.schedule.steps}", *(f"{name} {value}" for name, value
                                                                             in shown.items())]))

    def _tell(self, line: str) -> None:
        """Logs a line where there is no terminal to show the bar."""
        self._told = time.monotonic()
        if is_main() and getattr(self._bar, "disable", False):
            logger.info("%s: %s", self.folder.name, line)
