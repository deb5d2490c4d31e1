"""Runs of several processes: how they find each other, what is done once, and the bar that one of them shows.

    python -m experiments.train_supervised … --distributed=auto|none|tpu|slurm|coordinator

Every process runs the same command on one shared --workdir. The stages before training (the log, the tokenizer) are
done by process 0 alone; the others wait, and then read what it wrote. Training is done by all of them. Process 0 alone
logs, prints, and writes metrics and reports; a checkpoint is written by all, each its own parts.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags
from tqdm import tqdm

from experiments.common.flags import arguments_of
from onelive_jax.files import write_whole
from onelive_jax.sharding.processes import is_main, wait_for_all

logger = logging.getLogger(__name__)

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
            write_whole(marker, said)
    else:
        while not marker.exists():
            time.sleep(ASK_SECONDS)
        if marker.read_text() == "failed":
            raise SystemExit(1)
        yield
    wait_for_all(f"{marker} ends")
    if is_main():
        marker.unlink()


@contextlib.contextmanager
def stage(title: str) -> Iterator[None]:
    """A heading before a stage, and the time spent in it behind."""
    logger.info("== %s", title)
    started = time.perf_counter()
    yield
    logger.info("== %s: %.0f s", title, time.perf_counter() - started)


def progress(name: str, total: int, done: int) -> tqdm:
    """A progress bar in steps: of process 0, on a terminal."""
    return tqdm(total=total, initial=done, desc=name, unit="step", disable=None if is_main() else True)
