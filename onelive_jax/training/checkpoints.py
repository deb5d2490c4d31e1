"""Checkpoints of a run, and artifacts (a fitted tokenizer) handed from stage to stage. The only file that knows orbax.

A checkpoint of step s lies in FOLDER/s and has four items: `params`, `state` (the other arrays of the training state),
`data` (where the batches were) and `meta` (step, random key, settings, metrics), the last two readable as JSON. It is
written beside its final name and renamed when it is whole, so that an interrupted save leaves nothing that could be
loaded. One that was damaged later is set aside as FOLDER/s.damaged when a run resumes, with a warning, and the one
before it is used.

Nothing in a checkpoint depends on the mesh or on the number of processes that wrote it.
"""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from onelive_jax.files import explain_full_disk, first_line, json_damage
from onelive_jax.settings import differing
from onelive_jax.sharding.processes import broadcast, is_main, wait_for_all
from onelive_jax.training.train_state import TrainState, fields_of

ARRAYS, JSON = ("params", "state"), ("data", "meta")
ITEMS = ARRAYS + JSON

logger = logging.getLogger(__name__)

# What reading a damaged checkpoint raises: missing files, cut or altered ones, and metadata that is no JSON any more.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)

PASSED_OVER = "%s/%d is damaged and is passed over: %s"

# orbax describes every save in several lines at INFO.
logging.getLogger("orbax").setLevel(logging.WARNING)


class NoneWhole(ValueError):
    """A folder has checkpoints, and all of them are damaged."""


@dataclasses.dataclass
class KeepBest:
    """Keeps the checkpoint that `Checkpoints.best_step` names. (orbax's BestN keeps the latest of equals.)"""

    rank: Any

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = best_of({info.step: self.rank(info.metrics or {}) for info in checkpoints})
        return [info.step == best for info in checkpoints]


def best_of(ranks: Mapping[int, float]) -> int | None:
    """The step of the highest rank, of equal ones the earliest; None where no rank is above −inf."""
    step = max(ranks, key=lambda step: (ranks[step], -step), default=None)
    return None if step is None or ranks[step] == -math.inf else step


class Checkpoints:
    """The checkpoints of one run; use it as a context manager, so that the last save is finished on leaving.

    Args:
      folder: the run's folder; made if it is missing.
      keep: newest checkpoints kept; older ones are deleted.
      best_metric: name of a metric given to `save`; the checkpoint with its best value (the largest; of
        equal ones the earliest) is kept as well.
    """

    def __init__(self, folder: str | Path, keep: int = 2, best_metric: str | None = None):
        self.folder = Path(folder).resolve()
        self.best_metric = best_metric
        policies = [ocp.checkpoint_managers.LatestN(keep)]
        if best_metric is not None:
            policies.append(KeepBest(self._rank))
        if is_main():  # orbax reads the metrics of all steps at once, and fails of a single one
            for step in _steps(self.folder):
                metrics = self.folder / str(step) / "metrics" / "metrics"
                damage = json_damage(metrics) if metrics.exists() else None
                if damage is not None:
                    logger.warning(PASSED_OVER, self.folder, step, f"metrics: {damage}")
                    _set_aside(self.folder, step)
        wait_for_all(f"{self.folder}: damaged checkpoints are set aside")
        # orbax writes metrics only where best_fn is set; which checkpoints stay is up to the policies.
        self._manager = ocp.CheckpointManager(self.folder, item_names=ITEMS, options=ocp.CheckpointManagerOptions(
            create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True,
            best_fn=None if best_metric is None else self._rank,
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies)))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _rank(self, metrics: Mapping[str, float]) -> float:
        return metrics.get(self.best_metric, -math.inf)

    def save(self, state: TrainState, data: Any, settings: Mapping[str, Any],
             metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state of step `int(state.step)`; returns when the arrays are copied, and writes in the background.

        Every process calls it.

        Args:
          state: the training state. It may be donated to the next step as soon as this returns.
          data: the batch iterator's state, a JSON value. It must be the same on every process, i.e. say where the run
            is in an order of examples that is common to all; that of process 0 is written.
          settings: JSON values that decide what the run makes; `restore` compares them.
          metrics: validation metrics of this very step; they decide which checkpoint is best.

        Raises:
          ValueError: the step is saved already, or a metric is not a finite number.
          OSError: the disk is full (perhaps already at the save before). Checkpoints that are there stay.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            raise ValueError(f"{self.folder} already has a checkpoint of step {step}")
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"checkpoint of step {step}: metric {name} is {value}, not a finite number")
        meta = {
            "step": step,
            "key": np.asarray(jax.random.key_data(state.key)).tolist(),
            "key_impl": str(jax.random.key_impl(state.key)),
            "settings": dict(settings),
            "metrics": metrics,
        }
        ranked = metrics if self.best_metric in metrics else None
        with explain_full_disk(self.folder, "a checkpoint"):
            saved = self._manager.save(step, metrics=ranked, args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                state=ocp.args.StandardSave(_other_arrays(state)),
                data=ocp.args.JsonSave({"iterator": data}),
                meta=ocp.args.JsonSave(meta)))
        if not saved:
            raise ValueError(f"{self.folder}: step {step} is not after the newest checkpoint, {self.latest_step()}; "
                             "resume from the newest, or use another folder")

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The checkpoint's step with the best `best_metric`, of equal ones the earliest; None if none has it."""
        return best_of({step: self._rank(self._manager.metrics(step) or {}) for step in self._manager.all_steps()})

    def restore(self, target: TrainState, step: int | None = None,
                settings: Mapping[str, Any] | None = None) -> tuple[TrainState, Any]:
        """(the training state bit for bit as it was saved, the state of the batch iterator).

        Args:
          target: shapes, dtypes and shardings to restore to (`train_state.abstract_state`, or a state); the mesh may
            be another than the one it was saved under, and so may the number of processes.
          step: which checkpoint; when None the newest that is whole. Newer ones are set aside (FOLDER/s.damaged).
          settings: those of this run, compared before arrays are read; None: not compared.

        Raises:
          FileNotFoundError: there is no (such) checkpoint.
          NoneWhole: no checkpoint is whole.
          ValueError: it was saved with other settings (names them), or its arrays have other names or shapes.
        """
        self._manager.wait_until_finished()
        steps = self._manager.all_steps()
        if step is None and steps:
            step = self._set_damaged_aside(sorted(steps))
        step = _existing_step(self.folder, steps, step)
        meta, data = (_read_json(self.folder / str(step) / item) for item in ("meta", "data"))
        if settings is not None and (changed := differing(meta["settings"], settings)):
            raise ValueError(f"{self.folder} holds an unfinished run with other settings ({changed}): choose another "
                             f"--workdir, or delete {self.folder}")
        _check_shapes(target.params, self.folder / str(step) / "params")
        arrays = self._manager.restore(step, args=ocp.args.Composite(
            params=ocp.args.StandardRestore(_abstract(target.params)),
            state=ocp.args.StandardRestore(_abstract(_other_arrays(target)))))
        key = jax.random.wrap_key_data(_placed(np.asarray(meta["key"], np.uint32), target.key), impl=meta["key_impl"])
        return target.replace(step=_placed(np.asarray(meta["step"], np.int32), target.step), params=arrays.params,
                              key=key, **arrays.state), data["iterator"]

    def _set_damaged_aside(self, steps: list[int]) -> int:
        """The newest step that process 0 can read in full; what is newer gets another name."""
        whole = -1
        if is_main():
            whole = _newest_whole(self.folder, steps, ITEMS)
            for step in steps[steps.index(whole) + 1:] if whole >= 0 else ():
                _set_aside(self.folder, step)
        whole = int(broadcast(np.asarray(whole, np.int32)))
        if whole < 0:
            raise NoneWhole(f"no checkpoint in {self.folder} is whole: {', '.join(map(str, steps))} are all damaged. "
                            f"Restore one from a backup, or delete {self.folder} to start anew")
        if whole != steps[-1]:
            self._manager.reload()
        return whole

    def wait(self) -> None:
        """Blocks until the last save is on disk; raises what went wrong while it was written (a full disk: OSError)."""
        with explain_full_disk(self.folder, "a checkpoint"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes the last save and ends the background threads; raises as `wait`."""
        with explain_full_disk(self.folder, "a checkpoint"):
            self._manager.close()


def restore_params(folder: str | Path, target: Any = None, step: int | None = None,
                   settings: Mapping[str, Any] | None = None) -> Any:
    """Restores parameters alone, without optimizer or iterator.

    Args:
      folder: a run's folder of checkpoints.
      target: tree of arrays or `jax.ShapeDtypeStruct`s with shardings; None gives NumPy arrays on the host.
      step: which checkpoint; when None the newest whose parameters are whole (`Checkpoints.best_step` tells the best).
      settings: those that the checkpoint must have been saved with; None: not compared.

    Raises:
      FileNotFoundError: there is no (such) checkpoint.
      ValueError: no checkpoint is whole or that of the step is damaged, it was saved with other settings (names them),
        or its arrays have other names or shapes than the target.
    """
    folder = Path(folder).resolve()
    steps = _steps(folder)
    if step is None and steps:
        step = _newest_whole(folder, steps, ("params", "meta"))
        if step < 0:
            raise ValueError(f"no checkpoint in {folder} is whole: {', '.join(map(str, steps))} are all damaged")
    step = _existing_step(folder, steps, step)
    path = folder / str(step) / "params"
    try:
        saved = _read_json(folder / str(step) / "meta")["settings"]
        changed = "" if settings is None else differing(saved, settings)
        arrays = _read_arrays(path) if target is None else None
    except UNREADABLE as error:
        raise ValueError(f"{folder / str(step)} is damaged ({first_line(error)})") from error
    if changed:
        raise ValueError(f"{folder / str(step)} is a checkpoint of another run ({changed})")
    if target is None:
        return arrays
    _check_shapes(target, path)
    return ocp.StandardCheckpointHandler().restore(path, args=ocp.args.StandardRestore(_abstract(target)))


def read(folder: str | Path, step: int) -> dict[str, Any]:
    """All that the checkpoint of a step holds, on the host: "params", "state" (trees of NumPy arrays), "data" and
    "meta". For looking at; a run resumes by `Checkpoints.restore`. Raises FileNotFoundError.
    """
    folder = Path(folder).resolve()
    path = folder / str(_existing_step(folder, _steps(folder), step))
    return {item: (_read_arrays if item in ARRAYS else _read_json)(path / item) for item in ITEMS}


def save_artifact(folder: str | Path, arrays: Any, meta: Mapping[str, Any]) -> None:
    """Saves a fitted thing for later stages; replaces an artifact that is there.

    Args:
      folder: where to; its parents are made.
      arrays: tree (dicts, lists) of arrays, any dtype.
      meta: JSON values; must have `kind` (str) and `version` (int), by which `load_artifact` knows it.

    Raises:
      ValueError: `kind` or `version` is missing, or the folder holds something else than an artifact.
    """
    folder = Path(folder).resolve()
    if not isinstance(meta.get("kind"), str) or not isinstance(meta.get("version"), int):
        raise ValueError(f"an artifact's meta needs kind (str) and version (int), got {dict(meta)}")
    if folder.exists() and any(folder.iterdir()) and not (folder / "arrays").is_dir():
        raise ValueError(f"{folder} exists and is not an artifact: not overwritten; give an empty or new folder")
    # Without the other processes, which may not come here at all.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me},
                                               barrier_sync_key_prefix=f"only_{me}")
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as writer:
        writer.save(folder, force=True, args=ocp.args.Composite(
            arrays=ocp.args.StandardSave(jax.tree.map(np.asarray, arrays)), meta=ocp.args.JsonSave(dict(meta))))


def load_artifact(folder: str | Path, kind: str, version: int) -> tuple[Any, dict[str, Any]]:
    """Loads what `save_artifact` saved: (tree of NumPy arrays, meta).

    Raises:
      FileNotFoundError: there is no artifact in the folder.
      ValueError: it is damaged, or of another kind or version.
    """
    folder = Path(folder).resolve()
    if not (folder / "arrays").is_dir() or not (folder / "meta").is_dir():
        raise FileNotFoundError(f"{folder} holds no saved {kind}; run the stage that writes it first")
    try:
        meta = _read_json(folder / "meta")
        found = (meta["kind"], meta["version"])
    except UNREADABLE as error:
        raise ValueError(f"{folder} is damaged (meta: {first_line(error)})") from error
    if found != (kind, version):
        raise ValueError(f"{folder} holds {found[0]!r} version {found[1]}, but {kind!r} version {version} is needed; "
                         "run the stage that writes it again")
    try:
        return _read_arrays(folder / "arrays"), meta
    except UNREADABLE as error:
        raise ValueError(f"{folder} is damaged (arrays: {first_line(error)})") from error


def _steps(folder: Path) -> list[int]:
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def _existing_step(folder: Path, steps, step: int | None) -> int:
    steps = sorted(steps)
    if not steps:
        raise FileNotFoundError(f"{folder} has no checkpoint; train first, or correct the folder")
    if step is not None and step not in steps:
        raise FileNotFoundError(f"{folder} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def _newest_whole(folder: Path, steps: list[int], items: tuple[str, ...]) -> int:
    """The last of `steps` (ascending) whose items can be read in full; −1 if none can. Warns of those that cannot."""
    for step in reversed(steps):
        damage = _damage(folder / str(step), items)
        if damage is None:
            return step
        logger.warning(PASSED_OVER, folder, step, damage)
    return -1


def _damage(path: Path, items: tuple[str, ...]) -> str | None:
    """What keeps a checkpoint from being read, or None. Reads all of it, one item at a time, onto the host."""
    for item in items:
        arrays = item in ARRAYS
        files = (path / item / "array_metadatas").glob("*") if arrays else [path / item / "metadata"]
        damage = next(filter(None, map(json_damage, files)), None)
        if damage is None and arrays:
            try:
                _read_arrays(path / item)
            except UNREADABLE as error:
                damage = first_line(error)
        if damage is not None:
            return f"{item}: {damage}"
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON item of a checkpoint that lies in the folder `path`."""
    return json.loads((path / "metadata").read_text("utf-8"))


def _set_aside(folder: Path, step: int) -> None:
    """Gives a step a name under which it is no checkpoint any more, nor in the way of the next one of that step."""
    aside = folder / f"{step}.damaged"
    shutil.rmtree(aside, ignore_errors=True)
    (folder / str(step)).rename(aside)


def _other_arrays(state: TrainState) -> dict[str, Any]:
    """All fields of a state (or of a subclass) but those that lie elsewhere in a checkpoint."""
    return {name: value for name, value in fields_of(state).items() if name not in ("step", "params", "key")}


def _saved_tree(path: Path) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(path).tree


def _read_arrays(path: Path) -> Any:
    """Host arrays exactly as saved; no device and no sharding is involved."""
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _saved_tree(path))
    return ocp.PyTreeCheckpointHandler().restore(path, args=ocp.args.PyTreeRestore(restore_args=restore_args))


def _check_shapes(target: Any, path: Path) -> None:
    """Names the first parameter whose presence or shape differs, where orbax prints two whole trees."""
    def shapes(tree):
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {jax.tree_util.keystr(name, simple=True, separator="/"): tuple(leaf.shape) for name, leaf in leaves}

    saved, wanted = shapes(_saved_tree(path)), shapes(target)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise ValueError(f"{path}: {name} has shape {saved.get(name, 'none (it is not there)')}, the model wants "
                             f"{wanted.get(name, 'none (no such parameter)')}; use the config the run was saved with")


def _abstract(tree: Any) -> Any:
    def abstract(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or _first_device())

    return jax.tree.map(abstract, tree)


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _placed(value: Any, target: Any) -> jax.Array:
    return jax.device_put(value, getattr(target, "sharding", None) or _first_device())
