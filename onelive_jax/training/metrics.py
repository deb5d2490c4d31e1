"""Metrics of a run: one JSON line a step in metrics.jsonl, the same numbers for TensorBoard, never a stalled device."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from onelive_jax.files import explain_full_disk, write_whole

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"


class MetricWriter:
    """Writes metrics.jsonl, and TensorBoard event files beside it where tensorboardX is installed.

    Of several processes, the first one writes; the others only check what they are given.

    Args:
      folder: the run's folder; made if it is missing.
      resume_step: step that the run goes on from. Lines of later steps, and a last line that a crash cut short, are
        removed (and counted in the log), so that no step is ever there twice. 0 starts anew.

    Raises:
      ValueError: an old metrics.jsonl is not one; names the line.
    """

    def __init__(self, folder: str | Path, resume_step: int = 0):
        self.folder = Path(folder)
        self._file = self._tensorboard = None
        if jax.process_index() != 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / FILE
        if path.exists():
            _truncate(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = _tensorboard(self.folder, resume_step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends {"step": step, name: value, …} as one line, on disk when this returns.

        Args:
          step: optimizer steps taken.
          metrics: name (e.g. "train/loss") → number, or None for a figure that is not defined here (such as a rate
            over no examples), which is written as null.

        Raises:
          FloatingPointError: a number is NaN or infinite; nothing is written.
          OSError: the disk is full; says what to do.
        """
        values = {name: None if value is None else _number(value) for name, value in metrics.items()}
        check_finite(step, values)
        if self._file is None:
            return
        with explain_full_disk(self.folder, FILE):
            self._file.write(json.dumps({"step": int(step), **values}) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            with explain_full_disk(self.folder, "TensorBoard's event file"):
                self._tensorboard(int(step), values)

    def close(self) -> None:
        """Closes the file of metrics. Nothing is held back: all lines and events are on disk already."""
        if self._file is not None:
            self._file.close()


class OneStepLate:
    """Hands a step's metrics on when the next step has been dispatched.

    Reading a device array waits until it is computed. Reading the metrics of step s only after step s + 1 was sent off
    keeps the device busy meanwhile. Every step is checked for NaN, also those that are not written.

    Args:
      write: called with (step, metrics on the host), e.g. `MetricWriter.write`.
      every: hands on steps that are a multiple of it.
    """

    def __init__(self, write: Callable[[int, dict[str, float]], None], every: int = 1):
        self._write = write
        self._every = every
        self._held: tuple[int, Mapping[str, Any]] | None = None

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Holds the (device) scalars of `step`, just dispatched, and hands on those of the step before.

        Raises:
          FloatingPointError: the step before had a NaN or an infinite metric.
        """
        self.flush()
        self._held = (step, metrics)

    def flush(self) -> None:
        """Hands on what is held; call it before a validation, a checkpoint and the end. Raises as `push`."""
        if self._held is None:
            return
        (step, metrics), self._held = self._held, None
        values = {name: _number(value) for name, value in jax.device_get(dict(metrics)).items()}
        check_finite(step, values)
        if step % self._every == 0:
            self._write(step, values)


def device_memory() -> dict[str, int]:
    """Bytes in use and the most that were, of this process's first device; empty where a backend does not say (CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"device_bytes": "bytes_in_use", "device_peak_bytes": "peak_bytes_in_use"}
    return {name: int(stats[key]) for name, key in names.items() if key in stats}


def check_finite(step: int, metrics: Mapping[str, float | None]) -> None:
    """Raises FloatingPointError naming the step and every metric that is NaN or infinite. None passes."""
    bad = {name: value for name, value in metrics.items() if value is not None and not math.isfinite(value)}
    if bad:
        found = ", ".join(f"{name} = {value}" for name, value in bad.items())
        rest = ", ".join(f"{name} = {value:.6g}" for name, value in metrics.items()
                         if value is not None and name not in bad)
        raise FloatingPointError(
            f"step {step}: {found} (the others: {rest or 'none'}). The run stops here; start again in another "
            "workdir with a lower config.training.learning_rate or config.training.clip_norm, or a longer warm-up")


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. Raises ValueError with the number of a line that is not JSON."""
    path = Path(folder) / FILE
    return [_parse(path, number, line) for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)]


def _number(value: Any) -> float:
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error}); remove or repair it") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(f"{path}, line {number} has no whole number under \"step\"; remove or repair it")
    return record


def _truncate(path: Path, resume_step: int) -> None:
    """Keeps lines of steps ≤ resume_step (none at 0, where a run starts anew). Replaces the file in one move."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    cut_short = 1 if lines and not text.endswith("\n") else 0
    if cut_short:
        lines.pop()
    records = [_parse(path, number, line) for number, line in enumerate(lines, start=1)]
    kept = [line for line, record in zip(lines, records, strict=True) if resume_step and record["step"] <= resume_step]
    removed = len(lines) - len(kept)
    if removed or cut_short:
        logger.warning("%s: going on from step %d, so %d later lines are removed%s", path, resume_step, removed,
                       " and an unfinished one" if cut_short else "")
        write_whole(path, "".join(line + "\n" for line in kept))


_reported_missing: list[str] = []


def _tensorboard(folder: Path, resume_step: int) -> Callable[[int, Mapping[str, float | None]], None] | None:
    """A function (step, values) that writes an event; None without tensorboardX.

    tensorboardX's SummaryWriter hands events to a thread by a bounded queue: on a full disk the thread dies, and the
    next write waits for ever. Its synchronous writer raises.
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError:
        if not _reported_missing:
            _reported_missing.append("tensorboardX")
            logger.warning("tensorboardX is not installed: metrics go to %s only (pip install tensorboardX)", FILE)
        return None
    with explain_full_disk(folder, "TensorBoard's event file"):
        writer = EventsWriter(str(folder / "events"))
        if resume_step:  # TensorBoard hides what an earlier process wrote of later steps
            writer.write_event(Event(wall_time=time.time(), step=resume_step + 1,
                                     session_log=SessionLog(status=SessionLog.START)))
        writer.flush()

    def write(step: int, values: Mapping[str, float | None]) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()
                                 if value is not None])
        writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()

    return write
