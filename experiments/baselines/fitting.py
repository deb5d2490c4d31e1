"""How a baseline is trained: the library's loop, its optimizer, its checkpoints, and the best validation is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from data_pipelines.log.tasks import Task
from experiments.common import distributed
from experiments.common.workdir import is_done, mark_done, read_record
from onelive_jax.config import MeshConfig, TrainingConfig
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.files import write_json
from onelive_jax.sharding import partitioning
from onelive_jax.training import loop, train_state
from onelive_jax.training.checkpoints import restore_params

BEST = "ndcg@10"


class ByStep:
    """Batches that are a function of the number of the step, from 0: an iterator that resumes anywhere."""

    def __init__(self, make: Callable[[int], Any]):
        self._make, self._step = make, 0

    def __next__(self) -> Any:
        self._step += 1
        return self._make(self._step - 1)

    def get_state(self) -> dict:
        return {"step": self._step}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._step = state["step"]


@dataclass(frozen=True)
class Training:
    """How long and how fast a baseline is trained.

    Attributes:
      steps, validate_every: optimizer steps of the run, and between validations. learning_rate: peak of AdamW.
      weight_decay: of matrices that are no tables.
    """

    steps: int = 1000
    validate_every: int = 250
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


def train(folder: Path, settings: dict, c: Training, seed: int, init_params: Callable[[jax.Array], Any],
          loss_fn: Callable[[Any, Any, jax.Array], jax.Array], make_batch: Callable[[int], Any],
          validate: Callable[[Any], dict[str, float]]) -> Any:
    """Trains, or finds trained; returns the parameters with the best validation NDCG@10. A killed run resumes.

    Args:
      folder: checkpoints, metrics and validations of the run. settings: JSON values that decide the result.
      init_params: random key → parameters. loss_fn: (parameters, batch, random key) → float32 [].
      make_batch: number of the step, from 0 → NumPy arrays, the first of which has a row an example.
      validate: parameters → figures, "ndcg@10" among them.

    Raises: ValueError where the folder was made with other settings.
    """
    record = folder.with_name(folder.name + ".json")
    if not is_done(folder, settings):
        config = TrainingConfig(steps=c.steps, learning_rate=c.learning_rate, weight_decay=c.weight_decay,
                                warmup_steps=min(100, c.steps // 10))
        tx, mesh = train_state.make_optimizer(config), partitioning.make_mesh(MeshConfig())
        abstract = train_state.abstract_state(init_params, tx, mesh)

        def step_of(state: train_state.TrainState, batch: Any) -> tuple[train_state.TrainState, dict]:
            key = jax.random.fold_in(state.key, state.step)
            loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, key)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {
                "loss": loss, "grad_norm": optax.global_norm(grads)}

        step_fn = jax.jit(step_of, donate_argnums=0)
        schedule = loop.Schedule(c.steps, c.validate_every, log_every=20, validate_every=c.validate_every,
                                 validate_last=True)
        batches, examples = ByStep(make_batch), len(jax.tree.leaves(make_batch(0))[0])
        with loop.Run(folder, schedule, settings, examples, distributed.progress, keep=1, best_metric=BEST,
                      validate=lambda step, state: (state, validate(state.params)), shown=("loss", BEST)) as run:
            state = run.start(abstract, lambda: train_state.init_state(init_params, tx, mesh, jax.random.key(seed)),
                              batches)
            run.train(lambda step, state, batch: step_fn(state, batch), state, batches)
            run.checkpoints.wait()
            chosen, seconds = run.checkpoints.best_step(), run.clock.elapsed()
        write_json(record, {"chosen_step": chosen, "seconds": seconds})
        mark_done(folder, settings)
    step = read_record(record, folder, "chosen_step")["chosen_step"]
    return restore_params(folder, step=step, settings=settings)


def judge(score: Callable[[Task], np.ndarray], tasks: Sequence[Task]) -> np.ndarray:
    """`ranking_metrics.ranks` of the targets of several tasks, one after another: float64 [R, 2]."""
    return np.concatenate([ranking_metrics.ranks(score(task), task.offsets, task.position) for task in tasks])


def validation_figures(score: Callable[[Task], np.ndarray], tasks: Sequence[Task]) -> dict[str, float]:
    """The figures that a training run watches."""
    gains = ranking_metrics.gains(judge(score, tasks))
    return {name: float(gains[name].mean()) for name in ("ndcg@10", "hr@10", "hr@64", "mrr")}
