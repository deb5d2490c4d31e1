"""Kills a training run with SIGKILL at random moments, asynchronous saves included, a given number of times.

    python -m experiments.studies.kill_and_resume --kills=20 [--workdir=W] [--steps=120] [--seed=0]

A small run on a simulated log is trained once without interruption, then again under fire: most kills come at a random
moment after the first step of a life, every fifth one while the process still starts. A run that reaches its end
begins anew until all kills are spent. Every finished run must have the same parameters, optimizer state, random key,
place in the data and metric lines as the one that was left alone, bit for bit. Exit code 1 where one differs.
"""

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    absl_flags.DEFINE_integer("kills", 20, "lives to end", lower_bound=1)
    absl_flags.DEFINE_integer("steps", 120, "optimizer steps of a run; a checkpoint every two", lower_bound=6)
    absl_flags.DEFINE_float("stretch", 1.0, "a kill comes within this many seconds after a life's first step",
                            lower_bound=0.0)
    absl_flags.DEFINE_integer("seed", 0, "of the moments", lower_bound=0)
    absl_flags.DEFINE_string("workdir", None, "new folder for the runs; a temporary one without")
    flags.read(plain=True)

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from experiments.common.log import prepare
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import Config, ModelConfig, SimulatorConfig, TokenizerConfig, TrainingConfig
from onelive_jax.training import checkpoints, metrics
from onelive_jax.training.pace import CLOCKED

STARTING = 5  # every fifth kill comes while the process starts
POLL_SECONDS = 0.01
# A child is a copy of this process, which never starts a backend of jax before the last child has ended.
FORK = multiprocessing.get_context("fork")


@dataclass
class Outcome:
    """What happened: kills by where they hit, and names of runs that differ from the one that was left alone."""

    kills: int = 0
    while_starting: int = 0
    while_saving: int = 0  # an unfinished checkpoint was left behind
    resumed_from: list[int] = field(default_factory=list)
    finished: list[Path] = field(default_factory=list)


def small_config(steps: int) -> Config:
    config = Config(name="kill_and_resume")
    config.data.source = "simulated"
    config.data.valid_hours = config.data.test_hours = 12.0
    config.data.history_items, config.data.history_window = 8, 32
    config.data.live_slots, config.data.max_targets = 8, 30
    config.simulator = SimulatorConfig(users=60, authors=20, days=5)
    config.tokenizer = TokenizerConfig(levels=2, codes=4, dim=8, hidden=16, history_items=8, steps=10, batch_size=64)
    config.model = ModelConfig(dim=16, num_layers=1, num_heads=2, num_groups=1, mlp_dim=16, loss_weights=(1.0, 1.0))
    config.training = TrainingConfig(steps=steps, batch_size=16, warmup_steps=2, log_every=1,
                                     eval_every=max(steps // 2, 1), checkpoint_every=2)
    return config.validate()


def live(config: Config, workdir: Path) -> None:
    """One life of a run, in a process of its own; what it says goes to W/said.txt."""
    with (workdir / "said.txt").open("a") as said:
        os.dup2(said.fileno(), sys.stdout.fileno())
        os.dup2(said.fileno(), sys.stderr.fileno())
        log = prepare(config, workdir)
        train_supervised(config, workdir, log, train_tokenizer(config, workdir, log))


def start(config: Config, workdir: Path):
    process = FORK.Process(target=live, args=(config, workdir))
    process.start()
    return process


def finish(config: Config, workdir: Path) -> None:
    """A life that is not killed. Raises RuntimeError where it fails."""
    process = start(config, workdir)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a run that nobody killed ended with {process.exitcode}; see {workdir / 'said.txt'}")


def size_of(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def newest(folder: Path) -> int:
    """The newest checkpoint's step, 0 without one."""
    steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=0)


def fire(config: Config, straight: Path, root: Path, kills: int, rng: np.random.Generator, starting_seconds: float,
         stepping_seconds: float) -> Outcome:
    """Runs under fire, in root/0, root/1, …, until `kills` lives were ended."""
    outcome, workdir = Outcome(), None
    while outcome.kills < kills:
        if workdir is None:
            workdir = root / str(len(outcome.finished))
            shutil.copytree(straight, workdir, ignore=shutil.ignore_patterns("supervised*", "said.txt"))
        folder = workdir / "supervised"
        before, early = size_of(folder / metrics.FILE), outcome.kills % STARTING == STARTING - 1
        process = start(config, workdir)
        if early:
            process.join(rng.uniform(0, starting_seconds))
        else:
            # Lines of steps that will be taken again are removed before the first new one is written.
            while process.is_alive() and size_of(folder / metrics.FILE) == before:
                time.sleep(POLL_SECONDS)
            process.join(rng.uniform(0, stepping_seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            outcome.kills += 1
            outcome.while_starting += early
            outcome.while_saving += any("tmp" in entry.name for entry in folder.iterdir()) if folder.is_dir() else 0
            outcome.resumed_from.append(newest(folder))
        elif process.exitcode:
            raise RuntimeError(f"a resumed run ended with {process.exitcode}; see {workdir / 'said.txt'}")
        else:
            outcome.finished.append(workdir)
            workdir = None
    if workdir is not None:
        finish(config, workdir)
        outcome.finished.append(workdir)
    return outcome


def differences(one: Path, two: Path, step: int) -> list[str]:
    """Names of what differs between the final states of two runs."""
    states = [checkpoints.read(workdir / "supervised", step) for workdir in (one, two)]
    leaves = [{jax.tree_util.keystr(path): np.asarray(leaf)
               for path, leaf in jax.tree_util.tree_leaves_with_path(state)} for state in states]
    found = [name for name in leaves[0].keys() | leaves[1].keys()
             if name not in leaves[0] or name not in leaves[1]
             or leaves[0][name].tobytes() != leaves[1][name].tobytes()]
    lines = [[{name: value for name, value in line.items() if name not in CLOCKED}
              for line in metrics.read(workdir / "supervised")] for workdir in (one, two)]
    return sorted(found) + (["metrics.jsonl"] if lines[0] != lines[1] else [])


def main() -> None:
    values = absl_flags.FLAGS
    config, began = small_config(values.steps), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(values.workdir).expanduser().resolve() if values.workdir else Path(temporary)
        straight = root / "straight"
        straight.mkdir(parents=True)  # a new folder: what an earlier study left must not be taken for a result
        finish(config, straight)
        stepping = json.loads((straight / "supervised.json").read_text())["seconds"]
        outcome = fire(config, straight, root / "fire", values.kills, np.random.default_rng(values.seed), stepping,
                       values.stretch)
        worst = {str(workdir.name): differences(straight, workdir, values.steps) for workdir in outcome.finished}
    steps = ", ".join(map(str, outcome.resumed_from))
    print(f"{outcome.kills} kills: {outcome.while_starting} while starting, {outcome.while_saving} with a checkpoint "
          f"half written; {len(outcome.finished)} runs reached step {values.steps}, in "
          f"{time.perf_counter() - began:.0f} s\nnewest checkpoint after each kill: {steps}")
    differing = {name: found for name, found in worst.items() if found}
    print("every run ended in the state of the one that was left alone, bit for bit" if not differing else
          f"runs that differ: {differing}")
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    flags.run_plain(main)
