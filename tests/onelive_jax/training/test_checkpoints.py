"""Checkpoints: a restored state is the saved one bit for bit, and nothing half-written is ever loaded."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onelive_jax.config import TrainingConfig
from onelive_jax.training import checkpoints
from onelive_jax.training.train_state import TrainState, make_optimizer

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {"data.source": "simulated", "seed": 0}
TX = make_optimizer(TrainingConfig(steps=10, warmup_steps=2))


def new_state(seed: int = 0) -> TrainState:
    key = jax.random.key(seed)
    block = {"w": jax.random.normal(key, (4, 3)), "half": jnp.ones((3,), jnp.bfloat16) / 3}
    params = {"block": block, "b": jnp.ones(3)}
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=TX.init(params), key=key)


@jax.jit
def train(state: TrainState) -> TrainState:
    """One step whose result depends on parameters, moments, step and key."""
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (4, 3))
    grads = jax.grad(lambda p: jnp.sum((p["block"]["w"] - noise) ** 2) + jnp.sum(p["b"] ** 2)
                     + jnp.sum(p["block"]["half"].astype(jnp.float32) ** 2))(state.params)
    updates, opt_state = TX.update(grads, state.opt_state, state.params)
    return state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)


def assert_same_bits(one: TrainState, two: TrainState) -> None:
    chex.assert_trees_all_equal_structs(one, two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path):
    state = new_state()
    for _ in range(2):
        state = train(state)
    with checkpoints.Checkpoints(tmp_path) as saver:
        saver.save(state, {"place": 2}, SETTINGS)
    straight = train(train(state))

    with checkpoints.Checkpoints(tmp_path) as again:
        assert again.latest_step() == 2
        restored, place = again.restore(new_state(seed=1), settings=SETTINGS)
    assert_same_bits(restored, state)
    assert_same_bits(train(train(restored)), straight)
    assert place == {"place": 2}


@pytest.mark.parametrize("data", [None, {"epoch": 3, "rows": [1, 2]}, "text", 7])
def test_iterator_states_come_back_as_they_were(tmp_path, data):
    state = new_state()
    with checkpoints.Checkpoints(tmp_path) as saver:
        saver.save(state, data, SETTINGS)
        _, restored = saver.restore(state)
    assert restored == data
    assert type(restored) is type(data)


def test_a_state_may_change_while_it_is_written(tmp_path):
    state = new_state()
    want = np.asarray(state.params["block"]["w"]).copy()
    step = jax.jit(lambda state: train(state), donate_argnums=0)
    with checkpoints.Checkpoints(tmp_path) as saver:
        saver.save(state, None, SETTINGS)
        step(state)
    found = checkpoints.restore_params(tmp_path)
    np.testing.assert_array_equal(found["block"]["w"], want)


def test_newest_and_best_are_kept(tmp_path):
    scores = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.3, 5: 0.4, 6: None}
    with checkpoints.Checkpoints(tmp_path, keep=2, best_metric="ndcg") as saver:
        assert saver.latest_step() is None
        assert saver.best_step() is None
        for step, score in scores.items():
            metrics = None if score is None else {"ndcg": score, "loss": 1.0}
            saver.save(new_state().replace(step=jnp.int32(step)), None, SETTINGS, metrics)
        saver.wait()
        assert (saver.latest_step(), saver.best_step()) == (6, 2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["2", "5", "6"]
    with checkpoints.Checkpoints(tmp_path, keep=2, best_metric="ndcg") as reopened:
        assert reopened.best_step() == 2
        assert int(reopened.restore(new_state(), step=2)[0].step) == 2
    assert checkpoints.read(tmp_path, 2)["meta"]["metrics"] == {"ndcg": 0.9, "loss": 1.0}


def test_params_alone(tmp_path):
    state = train(new_state())
    with checkpoints.Checkpoints(tmp_path) as saver:
        saver.save(state, None, SETTINGS)
    on_host = checkpoints.restore_params(tmp_path)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
    chex.assert_trees_all_equal(on_host, jax.device_get(state.params))
    on_device = checkpoints.restore_params(tmp_path, state.params, step=1)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(on_device))
    chex.assert_trees_all_equal(on_device, state.params)


def test_an_empty_folder_says_so(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as saver, pytest.raises(FileNotFoundError, match="has no checkpoint"):
        saver.restore(new_state())
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/nowhere has no checkpoint"):
        checkpoints.restore_params(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_step_names_those_there_are(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as saver:
        saver.save(new_state().replace(step=jnp.int32(4)), None, SETTINGS)
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 5; there are 4"):
            saver.restore(new_state(), step=5)


def test_another_model_is_refused_by_the_parameters_name(tmp_path):
    state = new_state()
    with checkpoints.Checkpoints(tmp_path) as saver:
        saver.save(state, None, SETTINGS)
        wider = state.replace(params={**state.params, "block": {**state.params["block"], "w": jnp.ones((4, 5))}})
        with pytest.raises(ValueError, match=r"block/w has shape \(4, 3\), the model wants \(4, 5\)"):
            saver.restore(wider)
    with pytest.raises(ValueError, match="more has shape none"):
        checkpoints.restore_params(tmp_path, {**state.params, "more": jnp.ones(2)})


def test_a_step_is_saved_once_and_in_order(tmp_path):
    with checkpoints.Checkpoints(tmp_path) as saver:
        saver.save(new_state().replace(step=jnp.int32(4)), None, SETTINGS)
        with pytest.raises(ValueError, match="already has a checkpoint of step 4"):
            saver.save(new_state().replace(step=jnp.int32(4)), None, SETTINGS)
        with pytest.raises(ValueError, match="step 3 is not after the newest checkpoint, 4"):
            saver.save(new_state().replace(step=jnp.int32(3)), None, SETTINGS)
        with pytest.raises(ValueError, match="step 5: metric loss is nan"):
            saver.save(new_state().replace(step=jnp.int32(5)), None, SETTINGS, {"loss": float("nan")})


KILLED = """
import os
import jax.numpy as jnp
from test_checkpoints import SETTINGS, new_state
from onelive_jax.training import checkpoints

saver = checkpoints.Checkpoints({folder!r})
saver.save(new_state().replace(step=jnp.int32(1)), "one", SETTINGS)
saver.wait()
# The arrays of the second checkpoint get written, but the process dies where it would be given its name.
os.rename = os.replace = lambda *args, **kwargs: os._exit(9)
saver.save(new_state().replace(step=jnp.int32(2)), "two", SETTINGS)
saver.wait()
"""


def test_a_run_killed_while_saving_leaves_the_checkpoint_before(tmp_path):
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path))], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == 9, done.stderr
    left = [p for p in tmp_path.iterdir() if p.name.startswith("2")]
    assert len(left) == 1, "the unfinished checkpoint is there, under a temporary name"
    chex.assert_trees_all_equal(checkpoints.restore_params(tmp_path), jax.device_get(new_state().params))
    with checkpoints.Checkpoints(tmp_path) as saver:
        assert saver.latest_step() == 1
        assert saver.restore(new_state())[1] == "one"
        saver.save(new_state().replace(step=jnp.int32(2)), "again", SETTINGS)
        assert saver.restore(new_state())[1] == "again"
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["1", "2"]


def damage(step: Path, how: str) -> None:
    if how == "no metadata":
        (step / "meta" / "metadata").unlink()
    elif how == "half of the place in the data":
        os.truncate(step / "data" / "metadata", 9)
    elif how == "half of an array":
        file = next((step / "state" / "d").iterdir())
        os.truncate(file, file.stat().st_size // 2)
    elif how == "zeros in an array":
        file = next((step / "params" / "d").iterdir())
        file.write_bytes(bytes(file.stat().st_size))
    elif how == "no parameters":
        shutil.rmtree(step / "params")
    elif how == "half of the metrics":
        os.truncate(step / "metrics" / "metrics", 5)
    elif how == "half of an index":
        os.truncate(step / "params" / "array_metadatas" / "process_0", 20)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """Checkpoints of steps 1 and 2, and what a process that was killed while saving step 3 leaves behind."""
    folder = tmp_path_factory.mktemp("two") / "run"
    with checkpoints.Checkpoints(folder, best_metric="m") as saver:
        for step in (1, 2):
            saver.save(new_state().replace(step=jnp.int32(step)), {"taken": step}, SETTINGS, {"m": float(step)})
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "3.orbax-checkpoint-tmp" / "params")
    return folder


@pytest.mark.parametrize("how", ["no metadata", "half of the place in the data", "half of an array",
                                 "zeros in an array", "no parameters", "half of the metrics", "half of an index"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_told(two_steps, tmp_path, caplog, how):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    damage(folder / "2", how)
    with checkpoints.Checkpoints(folder, best_metric="m") as saver:
        restored, place = saver.restore(new_state(seed=1))
        assert (int(restored.step), place) == (1, {"taken": 1})
        assert f"{folder}/2 is damaged and is passed over" in caplog.text
        assert (saver.latest_step(), saver.best_step()) == (1, 1)
        # The steps after it are taken and saved again.
        saver.save(new_state().replace(step=jnp.int32(2)), {"taken": 2}, SETTINGS, {"m": 2.0})
        assert saver.restore(new_state())[1] == {"taken": 2}
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "2", "2.damaged"]


def test_a_checkpoint_of_another_run_and_a_damaged_one_are_named(two_steps, tmp_path):
    assert checkpoints.restore_params(two_steps, step=2, settings=SETTINGS)["b"].shape == (3,)
    with pytest.raises(ValueError, match="/2 is a checkpoint of another run .seed: 0 then, 1 now"):
        checkpoints.restore_params(two_steps, step=2, settings=SETTINGS | {"seed": 1})
    shutil.copytree(two_steps, tmp_path / "run")
    damage(tmp_path / "run" / "2", "zeros in an array")
    with pytest.raises(ValueError, match="run/2 is damaged"):
        checkpoints.restore_params(tmp_path / "run", step=2)


def test_parameters_alone_come_from_the_newest_whole_checkpoint(two_steps, tmp_path, caplog):
    shutil.copytree(two_steps, tmp_path / "run")
    damage(tmp_path / "run" / "2", "half of an array")  # of the optimizer's
    checkpoints.restore_params(tmp_path / "run")
    assert "passed over" not in caplog.text
    damage(tmp_path / "run" / "2", "zeros in an array")
    checkpoints.restore_params(tmp_path / "run")
    assert "run/2 is damaged and is passed over" in caplog.text
    damage(tmp_path / "run" / "1", "no parameters")
    with pytest.raises(ValueError, match="no checkpoint in .*run is whole: 1, 2 are all damaged"):
        checkpoints.restore_params(tmp_path / "run")
    with (checkpoints.Checkpoints(tmp_path / "run", best_metric="m") as saver,
          pytest.raises(ValueError, match="are all damaged. Restore one from a backup, or delete")):
        saver.restore(new_state())


FULL = """
import resource, signal
import jax.numpy as jnp
from test_checkpoints import SETTINGS, new_state
from onelive_jax.training import checkpoints

state = new_state()
state = state.replace(params={{**state.params, "b": jnp.arange(300_000.0)}}, opt_state={{"count": jnp.ones(2)}})
saver = checkpoints.Checkpoints({folder!r})
saver.save(state.replace(step=jnp.int32(1)), "one", SETTINGS)
saver.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # from here on the disk takes no large file
try:
    saver.save(state.replace(step=jnp.int32(2)), "two", SETTINGS)
    saver.wait()
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path):
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run([sys.executable, "-c", FULL.format(folder=str(tmp_path))], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path}, check=False)
    assert f"a checkpoint could not be written to {tmp_path}, where" in done.stdout, done.stderr
    assert "MiB are free. Make room" in done.stdout
    assert checkpoints.read(tmp_path, 1)["params"]["b"][-1] == 299_999


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"),
                                   ValueError("RESOURCE_EXHAUSTED: writing [No space left on device]")])
def test_every_form_of_a_full_disk_is_known(tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    with checkpoints.Checkpoints(tmp_path) as saver:
        monkeypatch.setattr(saver._manager, "save", refuse)
        with pytest.raises(OSError, match=f"a checkpoint could not be written to {tmp_path}.*Make room"):
            saver.save(new_state(), None, SETTINGS)


def test_artifacts_keep_every_dtype(tmp_path):
    arrays = {"books": [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2,), np.float16)],
              "counts": np.array([2**40, 1]), "on": np.array([True, False]), "device": jnp.arange(3)}
    folder = tmp_path / "a" / "tokenizer"
    checkpoints.save_artifact(folder, arrays, {"kind": "tokenizer", "version": 2, "levels": 3})
    loaded, meta = checkpoints.load_artifact(folder, "tokenizer", 2)
    assert meta == {"kind": "tokenizer", "version": 2, "levels": 3}
    chex.assert_trees_all_equal_structs(loaded, arrays)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(arrays), strict=True):
        assert isinstance(a, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_an_artifact_is_replaced_by_the_next(tmp_path):
    for value in (1.0, 2.0):
        checkpoints.save_artifact(tmp_path / "t", {"x": np.full(2, value)}, {"kind": "tokenizer", "version": 1})
    arrays, _ = checkpoints.load_artifact(tmp_path / "t", "tokenizer", 1)
    np.testing.assert_array_equal(arrays["x"], [2.0, 2.0])


def test_an_artifact_of_another_kind_or_version_is_refused_by_name(tmp_path):
    folder = tmp_path / "t"
    with pytest.raises(FileNotFoundError, match="holds no saved tokenizer"):
        checkpoints.load_artifact(folder, "tokenizer", 1)
    checkpoints.save_artifact(folder, {"x": np.ones(2)}, {"kind": "reward model", "version": 1})
    with pytest.raises(ValueError, match="'reward model' version 1, but 'tokenizer' version 1 is needed"):
        checkpoints.load_artifact(folder, "tokenizer", 1)
    with pytest.raises(ValueError, match="version 1, but 'reward model' version 3 is needed"):
        checkpoints.load_artifact(folder, "reward model", 3)
    with pytest.raises(ValueError, match="needs kind"):
        checkpoints.save_artifact(folder, {"x": np.ones(2)}, {"kind": "tokenizer"})


def test_an_artifact_does_not_overwrite_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an artifact"):
        checkpoints.save_artifact(tmp_path, {"x": np.ones(2)}, {"kind": "tokenizer", "version": 1})
    assert (tmp_path / "notes.txt").read_text() == "mine"
