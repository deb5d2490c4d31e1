"""The supervised phase: the decoder learns codes and rooms from views.

    python -m experiments.train_supervised --config=experiments/configs/twitch.py --config.data.path=FILE --workdir=W

Trains the tokenizer first where the workdir has none. A killed run resumes from its newest checkpoint, bit for bit.
"""

import functools
import json
import logging
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_pipelines.loader import training_batches
from experiments import flags, scoring
from experiments.prepare import Log, flat, is_done, mark_done, prepare, save_config
from experiments.train_tokenizer import Tokenizer, settings_of, train_tokenizer
from onelive_jax.config import Config
from onelive_jax.model.onelive import OneLive
from onelive_jax.training import partitioning, supervised, train_state
from onelive_jax.training.checkpoints import Checkpoints, restore_params
from onelive_jax.training.metrics import MetricWriter, OneStepLate, read

logger = logging.getLogger(__name__)
BEST = "ndcg@10"


def make_model(config: Config, log: Log) -> OneLive:
    return OneLive(config.model, config.tokenizer.levels, config.tokenizer.codes, log.num_authors,
                   config.tokenizer.dim)


def stage_settings(config: Config) -> dict:
    return settings_of(config) | flat(config, "data", "model", "training")


def train_supervised(config: Config, workdir: Path, log: Log, tokenizer: Tokenizer) -> tuple[OneLive, dict, dict]:
    """Trains, or loads what was trained. Returns (model, parameters, figures)."""
    folder = workdir / "supervised"
    settings = stage_settings(config)
    model, figures_file = make_model(config, log), workdir / "supervised.json"
    if is_done(folder, settings):
        return load_supervised(config, workdir, log)

    c = config.training
    training = log.training_part()
    maker = training.batch_maker(tokenizer.ids, config)
    views = training.training_views
    shown = maker.shown_by_others(views)
    logger.info("%d of %d training views are of a room that others show on air; the live losses read only those",
                shown.sum(), shown.size)
    batches = training_batches(maker, (views[shown], views[~shown]), (config.data.on_air_share,
                               1 - config.data.on_air_share), c.batch_size // jax.process_count(), config.seed,
                               jax.process_index(), jax.process_count())
    mesh = partitioning.make_mesh(config.mesh)
    tx = train_state.make_optimizer(c)
    example = maker.batch(views[:1], np.random.default_rng(0))

    def init_params(key):
        params = model.init(key, example)["params"]
        if "author_table" in params:
            params["author_table"] = params["author_table"].replace_boxed(
                jnp.asarray(tokenizer.embedding_AxD) * config.model.author_scale)
        return params

    shardings = train_state.shardings(train_state.abstract_state(init_params, tx, mesh))
    step_fn = jax.jit(supervised.make_train_step(model, tx, config), donate_argnums=0,
                      in_shardings=(shardings, partitioning.batch_sharding(mesh)),
                      out_shardings=(shardings, partitioning.replicated(mesh)))
    validation, rank = scoring.targets(log, config, "validation", "strict"), scoring.make_ranker(model, config)
    judge = log.batch_maker(tokenizer.ids, config)
    with Checkpoints(folder, c.keep_checkpoints, BEST) as saved:
        first, clock = 0, Stopwatch()
        if saved.latest_step() is None:
            state = train_state.init_state(init_params, tx, mesh, jax.random.key(config.seed))
        else:
            restored = saved.restore(train_state.abstract_state(init_params, tx, mesh))
            check_same_run(restored.config, config, folder)
            state, first = restored.state, int(restored.state.step)
            batches.set_state(restored.data)
            clock.resume(folder, first)
            logger.info("resuming %s from step %d", folder, first)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        with MetricWriter(folder, first) as writer, tqdm(total=c.steps, initial=first, desc="supervised", unit="step",
                                                         disable=None) as bar:
            late = OneStepLate(functools.partial(_log, writer, bar, clock), c.log_every)
            for step in range(first + 1, c.steps + 1):
                state, metrics = step_fn(state, partitioning.put_batch(next(batches), mesh))
                late.push(step, metrics)
                if step == first + 1:
                    jax.block_until_ready(state.params)
                    clock.start()  # what comes before is compiling
                else:
                    clock.steps += 1
                bar.update(1)
                judged = step == c.steps or (c.eval_every > 0 and step % c.eval_every == 0)
                if not judged and step % c.checkpoint_every:
                    continue
                late.flush()
                clock.stop()
                scores = None
                if judged:
                    scores = scoring.validate(rank, state.params, judge, validation)
                    writer.write(step, {f"validation/{name}": value for name, value in scores.items()})
                    bar.write(f"step {step}: validation NDCG@10 {scores[BEST]:.4f}")
                saved.save(state, batches.get_state(), config, scores)
                clock.start()
        saved.wait()
        chosen = saved.best_step()
    figures = {"parameters": parameters, "seconds": clock.elapsed(), "chosen_step": chosen,
               "examples_per_second": clock.steps * c.batch_size / clock.stepping if clock.steps else None}
    figures_file.write_text(json.dumps(figures, indent=1))
    mark_done(folder, settings)
    return model, restore_params(folder, step=chosen), figures


class Stopwatch:
    """Seconds of a run over all its resumptions, and of its steps without compiling, validation and checkpoints.

    Attributes:
      steps, stepping: steps timed in this process and their seconds.
    """

    def __init__(self):
        self.steps, self.stepping = 0, 0.0
        self._begun, self._before, self._since = time.perf_counter(), 0.0, None

    def resume(self, folder: Path, step: int) -> None:
        """Goes on from what the log of an earlier process says was spent up to `step`."""
        spent = [line["train/seconds"] for line in read(folder) if "train/seconds" in line and line["step"] <= step]
        self._before = max(spent, default=0.0)

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self.stepping += time.perf_counter() - self._since
            self._since = None

    def elapsed(self) -> float:
        return self._before + time.perf_counter() - self._begun


def _log(writer: MetricWriter, bar: tqdm, clock: Stopwatch, step: int, metrics: dict) -> None:
    writer.write(step, {f"train/{name}": value for name, value in metrics.items()} | {"train/seconds": clock.elapsed()})
    bar.set_postfix(loss=f"{metrics['loss']:.3f}", acc=f"{metrics['acc_all']:.3f}", refresh=False)


def load_supervised(config: Config, workdir: Path, log: Log) -> tuple[OneLive, dict, dict]:
    """What `train_supervised` left in a workdir: (model, parameters of the best validation, figures).

    Raises: FileNotFoundError where it has not run to its end; ValueError where it ran with other settings.
    """
    folder = workdir / "supervised"
    if not is_done(folder, stage_settings(config)):
        raise FileNotFoundError(f"{folder} holds no finished supervised phase: run experiments.train_supervised, or "
                                f"all stages with experiments.run, on --workdir={workdir}")
    figures = json.loads((workdir / "supervised.json").read_text())
    return make_model(config, log), restore_params(folder, step=figures["chosen_step"]), figures


def check_same_run(before: Config, now: Config, folder: Path) -> None:
    """Raises ValueError naming the settings in which a checkpoint's run differs from this one."""
    old, new = (json.loads(json.dumps(stage_settings(c))) for c in (before, now))
    changed = [f"config.{name}: {old.get(name)!r} then, {new.get(name)!r} now"
               for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if changed:
        raise ValueError(f"{folder} holds an unfinished run with other settings ({'; '.join(changed)}): choose another "
                         f"--workdir, or delete {folder}")


def main(config: Config, workdir: Path) -> None:
    log = prepare(config, workdir)
    _, _, figures = train_supervised(config, workdir, log, train_tokenizer(config, workdir, log))
    save_config(config, workdir)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    flags.define_config()
    flags.run(main)
