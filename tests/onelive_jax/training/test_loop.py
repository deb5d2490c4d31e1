"""The training loop: whatever stops a run, the same command ends it as a run left alone ends, metrics and all."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tqdm import tqdm

from onelive_jax.training import checkpoints, loop, metrics, pace, stopping
from onelive_jax.training.train_state import TrainState

ROOT = Path(__file__).resolve().parents[3]
STEPS, EVERY = 8, 4
TX = optax.adam(0.1)
SETTINGS = {"learning_rate": 0.1}
SCHEDULE = loop.Schedule(STEPS, save_every=3, validate_every=EVERY, validate_last=True)


class Numbers:
    """Batches 0, 1, 2, …"""

    def __init__(self):
        self.next = 0

    def __next__(self):
        self.next += 1
        return np.float32(self.next - 1)

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


@jax.jit
def update(state, batch):
    target = batch + jax.random.normal(jax.random.fold_in(state.key, state.step), (3,))
    loss, grads = jax.value_and_grad(lambda params: jnp.sum((params["w"] - target) ** 2))(state.params)
    updates, opt_state = TX.update(grads, state.opt_state, state.params)
    return state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates),
                         opt_state=opt_state), {"loss": loss}


def first_state() -> TrainState:
    params = {"w": jnp.zeros(3)}
    return TrainState(jnp.int32(0), params, TX.init(params), jax.random.key(0))


def halved(step, state):
    """A validation that changes the state, as that of the reward model does; its figure is always the same."""
    return state.replace(params=jax.tree.map(lambda x: x / 2, state.params)), {"score": 0.5, "unknown": None}


def bar(name, total, done):
    return tqdm(total=total, initial=done, disable=True)


def train(folder, before_step=lambda step: None, validate=halved, settings=SETTINGS, schedule=SCHEDULE, until=None):
    """(the final state, the best step) of a run in `folder`."""
    def take_step(step, state, batch):
        before_step(step)
        return update(state, batch)

    with loop.Run(folder, schedule, settings, 1, bar, validate=validate, keep=2, best_metric="score") as run:
        batches = Numbers()
        state = run.start(first_state(), first_state, batches)
        for end in until or (None,):
            state = run.train(take_step, state, batches, end)
        run.checkpoints.wait()
        return state, run.checkpoints.best_step()


def lines(folder: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in pace.CLOCKED} for line in metrics.read(folder)]


def signal_at(step: int, number: int = signal.SIGTERM):
    return lambda at: os.kill(os.getpid(), number) if at == step else None


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(folder, final state, best step) of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, *train(folder)


def assert_same(one, two) -> None:
    jax.tree.map(np.testing.assert_array_equal, (one.params, one.opt_state), (two.params, two.opt_state))


def test_a_run_logs_validates_and_saves_when_it_is_due(alone):
    folder, state, best = alone
    assert int(state.step) == STEPS
    assert [line["step"] for line in lines(folder) if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [line for line in lines(folder) if "validation/score" in line] == [
        {"step": step, "validation/score": 0.5, "validation/unknown": None} for step in (4, 8)]
    # Of equal validations the earliest is best, and it is kept beside the two newest.
    assert best == 4
    assert sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) == [4, 6, 8]


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_stopped_run_resumes_bit_for_bit(alone, tmp_path, step, caplog):
    """At any step: between checkpoints, where one is due anyway, where a validation is due, and at the last one."""
    with pytest.raises(stopping.Stopped) as stopped:
        train(tmp_path, signal_at(step))
    assert stopped.value.code == 75
    assert f"saved at step {step}; run the same command to resume" in caplog.text
    assert (tmp_path / loop.PENDING / str(step)).is_dir() == (step % EVERY == 0)
    folder, state, best = alone
    again, chosen = train(tmp_path)
    assert_same(again, state)
    assert chosen == best
    assert lines(tmp_path) == lines(folder)
    assert not (tmp_path / loop.PENDING).exists()
    for kept in (best, STEPS):
        one, two = (checkpoints.read(where, kept) for where in (folder, tmp_path))
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_stop_does_not_change_which_of_equal_validations_is_best(tmp_path):
    """It saves a step more, which must not push out the earlier one."""
    schedule = dataclasses.replace(SCHEDULE, save_every=STEPS)
    state, best = train(tmp_path / "alone", schedule=schedule)
    for step in (5, 6):
        with pytest.raises(stopping.Stopped):
            train(tmp_path / "stopped", signal_at(step), schedule=schedule)
    again, chosen = train(tmp_path / "stopped", schedule=schedule)
    assert_same(again, state)
    assert chosen == best == EVERY


def test_ctrl_c_is_sigterms_twin(alone, tmp_path):
    with pytest.raises(stopping.Stopped) as stopped:
        train(tmp_path, signal_at(5, signal.SIGINT))
    assert stopped.value.code == 130
    assert_same(train(tmp_path)[0], alone[1])


def test_a_signal_in_the_last_validation_stops_what_would_follow(alone, tmp_path):
    def validate(step, state):
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return halved(step, state)

    with pytest.raises(stopping.Stopped) as stopped:
        train(tmp_path, validate=validate)
    assert stopped.value.code == 75
    assert not (tmp_path / loop.PENDING).exists()  # it has been made

    def never(step, state):
        raise AssertionError("a validation was made twice")

    assert_same(train(tmp_path, validate=never)[0], alone[1])


def test_handlers_are_as_before_when_a_run_is_over(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_killed_validation_is_made_up_once(alone, tmp_path):
    """A process was stopped where a validation was due; the next one is killed between its line and its checkpoint."""
    with pytest.raises(stopping.Stopped):
        train(tmp_path, signal_at(EVERY))
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write(json.dumps({"step": EVERY, "validation/score": 0.5, "validation/unknown": None}) + "\n")
    assert_same(train(tmp_path)[0], alone[1])
    assert lines(tmp_path) == lines(alone[0])


def test_a_damaged_pending_step_is_passed_over(alone, tmp_path, caplog):
    with pytest.raises(stopping.Stopped):
        train(tmp_path, signal_at(STEPS))
    (tmp_path / loop.PENDING / str(STEPS) / "meta" / "metadata").unlink()
    assert_same(train(tmp_path)[0], alone[1])
    assert "are all damaged" in caplog.text
    assert "Going on from step 6" in caplog.text
    assert lines(tmp_path) == lines(alone[0])


def test_a_damaged_checkpoint_is_passed_over(alone, tmp_path, caplog):
    with pytest.raises(stopping.Stopped):
        train(tmp_path, signal_at(7))
    (tmp_path / "7" / "data" / "metadata").unlink()
    assert_same(train(tmp_path)[0], alone[1])
    assert "7 is damaged and is passed over" in caplog.text
    assert lines(tmp_path) == lines(alone[0])


def test_other_settings_are_refused_by_name(alone, tmp_path):
    shutil.copytree(alone[0], tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(learning_rate: 0.1 then, 0.2 now\)"):
        train(tmp_path / "run", settings={"learning_rate": 0.2})


def test_a_run_may_be_trained_range_by_range(alone, tmp_path):
    """As the online rounds are, each with batches of its own."""
    state, best = train(tmp_path, until=(2, 5, STEPS))
    assert_same(state, alone[1])
    assert best == alone[2]


SECOND_SIGNAL = """
import hashlib, os, sys, threading, time
from onelive_jax.training.stopping import StopSignal

with StopSignal() as stop:
    print("ready", flush=True)
    # As XLA compiling: long, in C, without a bytecode between in which Python would run a handler.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_even_while_python_cannot_run(number):
    with subprocess.Popen([sys.executable, "-c", SECOND_SIGNAL], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.send_signal(number)  # timeout(1) signals twice, a moment apart: that is one request
        time.sleep(2 * stopping.SAME_SECONDS)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        said = process.stderr.read()
    assert "a second signal ends the run at once" in said
    assert "Traceback" not in said
