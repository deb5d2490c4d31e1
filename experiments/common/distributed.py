"""Runs of several processes: how they find each other, who speaks, what is done once, and how a run is stopped.

    python -m experiments.train_supervised … --distributed=auto|none|tpu|slurm|coordinator

Every process runs the same command on one shared --workdir. The stages before training (the log, the tokenizer) are
done by process 0 alone; the others wait, and then read what it wrote. Training is done by all of them. Process 0 alone
logs, prints, and writes metrics and reports; a checkpoint is written by all, each its own parts.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from experiments.common.flags import arguments_of

logger = logging.getLogger(__name__)

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on from here
ASK_SECONDS = 1.0


def initialize(values: flags.FlagValues = flags.FLAGS) -> None:
    """Joins the run's processes; to be called before anything else of jax is. Only process 0 logs from here on."""
    arguments = arguments_of(values, os.environ)
    if arguments is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPUs; says nothing of accelerators
    jax.distributed.initialize(**arguments)
    if not is_main():
        for package in ("onelive_jax", "data_pipelines", "experiments"):
            logging.getLogger(package).setLevel(logging.ERROR)
    logger.info("%d processes, %d devices", jax.process_count(), jax.device_count())


def is_main() -> bool:
    """Whether this is process 0, which writes, logs and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def main_first(marker: Path) -> Iterator[None]:
    """What stands within is done by process 0 first, and by the others when it is through.

    Meant for a stage that finds its own finished work, and then only reads it. The others look for the file `marker`
    rather than wait inside a collective: a stage may last longer than a collective may.

    Args: marker: a file that process 0 makes when it is through; removed when all are.

    Raises: SystemExit on the other processes, where process 0 failed.
    """
    if jax.process_count() == 1:
        yield
        return
    if is_main():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
    wait_for_all(f"{marker} begins")
    if is_main():
        said = "failed"
        try:
            yield
            said = "done"
        finally:
            new = marker.with_name(marker.name + ".tmp")
            new.write_text(said)
            new.replace(marker)
    else:
        while not marker.exists():
            time.sleep(ASK_SECONDS)
        if marker.read_text() == "failed":
            raise SystemExit(1)
        yield
    wait_for_all(f"{marker} ends")
    if is_main():
        marker.unlink()


def of_main(value: Any) -> Any:
    """What process 0 gives; every process calls it, with a value of the same shape and type."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def progress(total: int, done: int, name: str) -> tqdm:
    """A line of progress in steps: of process 0, on a terminal."""
    return tqdm(total=total, initial=done, desc=name, unit="step", disable=None if is_main() else True)


def say(bar: tqdm, line: str) -> None:
    """Writes a line beside a progress bar; process 0 only."""
    if is_main():
        bar.write(line)


def on_this_process(tree: Any) -> Any:
    """The tree whole on the first device of this process, to be used without the others; all must call it.

    With one process, the tree as it is.
    """
    if jax.process_count() == 1:
        return tree
    def everywhere(x):
        return NamedSharding(x.sharding.mesh, PartitionSpec())

    whole = jax.jit(lambda x: x, out_shardings=jax.tree.map(everywhere, tree))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)


class Stopped(SystemExit):
    """A run that was asked to stop (SIGTERM), and did, with a checkpoint: exit code 75."""

    def __init__(self, folder: Path, step: int):
        super().__init__(STOPPED)
        if is_main():
            logger.warning("%s: stopped after step %d, which is saved. The same command goes on from there", folder,
                           step)


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[int], bool]]:
    """Within it, SIGTERM does not end the process, but makes `wanted` true.

    Gives: wanted(step), to be called once after every step, on every process; whether to save this step and raise
    `Stopped`. With several processes, all are told the same step, whichever of them was signalled.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point  # jax itself took SIGTERM over when the processes met
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # only the main thread may handle signals
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
