"""The supervised phase: the decoder learns codes and rooms from views."""

import functools
import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.batches.loader import training_batches
from experiments.common import distributed, scoring
from experiments.common.log import Log
from experiments.common.tables import parameter_table
from experiments.common.workdir import WATCHING, differing, flat, is_done, mark_done
from experiments.stages.tokenizer import Tokenizer, settings_of
from onelive_jax import presets
from onelive_jax.config import Config
from onelive_jax.model.onelive import OneLive
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.training import flops, supervised, train_state
from onelive_jax.training.checkpoints import Checkpoints, NoneWhole, Restored, restore_params
from onelive_jax.training.metrics import MetricWriter, OneStepLate, read
from onelive_jax.training.pace import Profiler, Stopwatch, pace

logger = logging.getLogger(__name__)
BEST = "ndcg@10"
UNJUDGED = "unjudged"  # folder, in that of the run, of a step that is saved and whose validation is still to be made


def make_model(config: Config, log: Log) -> OneLive:
    return OneLive(config.model, config.tokenizer.levels, config.tokenizer.codes, log.num_authors,
                   config.tokenizer.dim, config.data.sequences)


def stage_settings(config: Config) -> dict:
    """What decides the parameters that come out; how the run is watched does not."""
    settings = settings_of(config) | flat(config, "data", "model", "training")
    return {name: value for name, value in settings.items() if name not in WATCHING}


def train_supervised(config: Config, workdir: Path, log: Log, tokenizer: Tokenizer) -> tuple[OneLive, dict, dict]:
    """Trains, or loads what was trained. Returns (model, parameters, figures)."""
    folder, settings = workdir / "supervised", stage_settings(config)
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
    mesh = partitioning.make_mesh(config.mesh)
    batches = training_batches(maker, (views[shown], views[~shown]), (config.data.on_air_share,
                               1 - config.data.on_air_share), c.batch_size, config.seed,
                               partitioning.local_rows(mesh, c.batch_size, c.accumulate))
    tx = train_state.make_optimizer(c)
    example = maker.batch(views[:1], np.random.default_rng(0))

    def init_params(key):
        return model.init(key, example)["params"]

    shardings = train_state.shardings(train_state.abstract_state(init_params, tx, mesh))
    step_fn = jax.jit(supervised.make_train_step(on_mesh(model, mesh), tx, config), donate_argnums=0,
                      in_shardings=(shardings, partitioning.batch_sharding(mesh)),
                      out_shardings=(shardings, partitioning.replicated(mesh)))
    # Parameters are judged where they lie; with several processes, whole on one device of each (scoring.validate).
    placed = on_mesh(model, mesh) if jax.process_count() == 1 else model
    validation, rank = scoring.targets(log, config, "validation", "strict"), scoring.make_ranker(placed, config)
    judge = log.batch_maker(tokenizer.ids, config)
    with Checkpoints(folder, c.keep_checkpoints, BEST) as saved, distributed.stopping() as wanted:
        first, clock = 0, Stopwatch()
        restored = restore(saved, train_state.abstract_state(init_params, tx, mesh), config)
        if restored is None:
            state = train_state.init_state(init_params, tx, mesh, jax.random.key(config.seed))
            if "author_table" in state.params:
                state = train_state.with_author_table(state, tokenizer.embedding_AxD * config.model.author_scale)
        else:
            state, first = restored.state, int(restored.state.step)
            batches.set_state(restored.data)
            logger.info("resuming %s from step %d", folder, first)
        parameters = presets.count(state.params, author_rows=True)
        logger.info("%s", parameter_table(state.params))
        per_example = flops_per_example(config, log)
        with MetricWriter(folder, first) as writer, distributed.progress(c.steps, first, "supervised") as bar:
            if first and distributed.is_main():
                clock.resume(folder, first)
            late = OneStepLate(functools.partial(_log, writer, bar, clock, c.batch_size, per_example), c.log_every)
            profiler = Profiler(folder / "profile", c.profile_at, c.profile_steps)

            def judge_and_save(step, state, told=False):
                scores = scoring.validate(rank, state.params, judge, validation)
                if not told:
                    writer.write(step, {f"validation/{name}": value for name, value in scores.items()})
                distributed.say(bar, f"step {step}: validation NDCG@10 {scores[BEST]:.4f}")
                saved.save(state, batches.get_state(), config, scores)

            if first and saved.latest_step() != first:  # it was left to be judged
                # A process that was killed at this point has left the line, though not the checkpoint. (Process 0 alone
                # reads what it alone writes.)
                told = distributed.is_main() and any(line["step"] == first and f"validation/{BEST}" in line
                                                     for line in read(folder))
                judge_and_save(first, state, told)
                saved.wait()
            forget_unjudged(folder)
            for step in range(first + 1, c.steps + 1):
                profiler.before(step, state)
                state, metrics = step_fn(state, partitioning.put_batch(next(batches), mesh))
                late.push(step, metrics)
                clock.tick(state)
                bar.update(1)
                judged = step == c.steps or (c.eval_every > 0 and step % c.eval_every == 0)
                stop = wanted(step)
                if not judged and not stop and step % c.checkpoint_every:
                    continue
                late.flush()
                clock.stop()
                if stop and judged:  # a validation may outlast the time that is left
                    with Checkpoints(folder / UNJUDGED, keep=1) as left:
                        left.save(state, batches.get_state(), config)
                elif judged:
                    judge_and_save(step, state)
                else:
                    saved.save(state, batches.get_state(), config)
                if stop:
                    profiler.close(state)
                    saved.wait()
                    raise distributed.Stopped(folder, step)
            profiler.close(state)
        saved.wait()
        chosen = saved.best_step()
    figures = {"parameters": parameters, "seconds": clock.elapsed(), "chosen_step": chosen,
               "examples_per_second": clock.steps * c.batch_size / clock.stepping if clock.steps else None}
    params = restore_params(folder, step=chosen)
    if distributed.is_main():
        figures_file.write_text(json.dumps(figures, indent=1))
        mark_done(folder, settings)
    distributed.wait_for_all("supervised is done")
    return model, params, figures


def restore(saved: Checkpoints, target: train_state.TrainState, config: Config) -> Restored | None:
    """What a run goes on from: its newest checkpoint, or the step that was left to be judged, where that is newer.

    Returns: None where there is neither.

    Raises: ValueError where the run had other settings, and as `Checkpoints.restore`.
    """
    def check(before: Config) -> None:
        check_same_run(before, config, saved.folder)

    latest = saved.latest_step()
    if (saved.folder / UNJUDGED).is_dir():
        with Checkpoints(saved.folder / UNJUDGED, keep=1) as left:
            if (left.latest_step() or 0) > (latest or 0):
                try:
                    return left.restore(target, check=check)
                except NoneWhole as damaged:
                    logger.warning("%s Going on from %s", damaged, "the start" if latest is None else f"step {latest}")
    return None if latest is None else saved.restore(target, check=check)


def forget_unjudged(folder: Path) -> None:
    """Removes what waited to be judged, when it is among the checkpoints. Every process calls it."""
    distributed.wait_for_all("unjudged is read")
    if distributed.is_main():
        shutil.rmtree(folder / UNJUDGED, ignore_errors=True)


def flops_per_example(config: Config, log: Log) -> int:
    """FLOPs of one example's step (onelive_jax/training/flops.py)."""
    return flops.training_flops(config.model, history=config.data.history_items * len(config.data.sequences),
                                levels=config.tokenizer.levels, codes=config.tokenizer.codes, authors=log.num_authors,
                                author_dim=config.tokenizer.dim)


def _log(writer: MetricWriter, bar: tqdm, clock: Stopwatch, batch_size: int, per_example: int, step: int,
         metrics: dict) -> None:
    speed = pace(clock, batch_size, per_example)
    writer.write(step, {f"train/{name}": value for name, value in (metrics | speed).items()})
    shown = {"examples/s": f"{speed['examples_per_second']:,.0f}"} if "examples_per_second" in speed else {}
    bar.set_postfix(loss=f"{metrics['loss']:.3f}", acc=f"{metrics['acc_all']:.3f}", **shown, refresh=False)


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


def check_same_run(before: Config, now: Config, folder: Path, settings=stage_settings) -> None:
    """Raises ValueError naming the settings (of those that `settings` of a config gives) in which a checkpoint's run
    differs from this one."""
    if changed := differing(settings(before), settings(now), "config."):
        raise ValueError(f"{folder} holds an unfinished run with other settings ({changed}): choose another "
                         f"--workdir, or delete {folder}")
