"""The supervised phase: the decoder learns codes and rooms from views."""

import logging
from pathlib import Path

import jax
import numpy as np

from data_pipelines.batches.loader import training_batches
from experiments.common import calibration, distributed, scoring
from experiments.common.fingerprint import identity
from experiments.common.log import Log
from experiments.common.workdir import DONE, flat, is_done, mark_done, read_record, remake
from experiments.stages.tokenizer import Tokenizer, settings_of
from onelive_jax import presets
from onelive_jax.batch import HABIT_FEATURES, ROOM_FEATURES, SIMILARITIES
from onelive_jax.config import Config
from onelive_jax.files import write_json
from onelive_jax.model.onelive import OneLive
from onelive_jax.settings import differing
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.sharding.processes import is_main, wait_for_all
from onelive_jax.training import flops, loop, supervised, train_state
from onelive_jax.training.checkpoints import restore_params

logger = logging.getLogger(__name__)
BEST = "ndcg@10"
# A phase may go on from parameters that were trained with others of these.
HOW_TRAINED = {"data.path", *(f"model.{name}" for name in (
    "loss_weights", "live_softmax", "full_softmax", "identity_loss", "author_negatives", "author_scale", "dropout",
    "activation_dtype"))}


def make_model(config: Config, log: Log) -> OneLive:
    return OneLive(config.model, config.tokenizer.levels, config.tokenizer.codes, log.num_authors,
                   config.tokenizer.dim, config.data.sequences)


def stage_settings(config: Config, log: Log) -> dict:
    """What decides the parameters that come out: settings, the log by its content, how many features there are."""
    return settings_of(config) | flat(config, "data", "model", "training") | {
        "log": identity(log), "features": [len(HABIT_FEATURES), len(ROOM_FEATURES), len(SIMILARITIES)]}


def load_params(folder: Path, step: int | None = None) -> dict:
    """Parameters of a finished phase, by its folder: W/supervised, W/policy, … (`step`: another than the chosen one).

    Raises: FileNotFoundError where the phase has not run to its end; ValueError where the checkpoint is damaged or of
      another run.
    """
    report, done = folder.with_name(folder.name + ".json"), folder / DONE
    for file in (report, done):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {folder} holds no finished phase. Train it first, or correct "
                                    "the folder")
    figures = read_record(report, folder, "chosen_step")
    step = figures["chosen_step"] if step is None else step
    try:
        params = restore_params(folder, step=step, settings=read_record(done, folder))
        return calibrated(params, figures)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{error}. {remake(folder)}") from error


def calibrated(params: dict, figures: dict) -> dict:
    """Parameters with the weights that were fitted after training, where the figures of their phase hold them."""
    return params | {"combine": np.array(figures["combine"], np.float32)} if "combine" in figures else params


def load_fitting(folder: Path, config: Config, log: Log) -> dict:
    """`load_params` of a phase that may be of another workdir (--init_from, --policy).

    Raises: as `load_params`; ValueError where it was trained on another log, tokenizer or model, with what differs.
    """
    params, then = load_params(folder), read_record(folder / DONE, folder)
    sections = settings_of(config) | flat(config, "model")
    now = {name: value for name, value in stage_settings(config, log).items()
           if name in ("log", "features") or name in sections.keys() - HOW_TRAINED}
    if changed := differing({name: then.get(name) for name in now}, now):
        raise ValueError(f"{folder} was trained with another log, tokenizer or model than this workdir ({changed}). "
                         "Its parameters mean nothing here: name a phase of the same log and settings")
    return params


@distributed.stage("supervised training")
def train_supervised(config: Config, workdir: Path, log: Log, tokenizer: Tokenizer) -> tuple[OneLive, dict, dict]:
    """Trains, or loads what was trained. Returns (model, parameters, figures)."""
    folder, settings = workdir / "supervised", stage_settings(config, log)
    model, figures_file = make_model(config, log), workdir / "supervised.json"
    if is_done(folder, settings):
        return load_supervised(config, workdir, log)

    c = config.training
    training = log.training_part()
    maker = training.batch_maker(tokenizer.ids, config)
    views = training.training_views
    late = calibration.held_out(training.views.start_ms[views], c.held_out_share)
    views, late = views[~late], views[late]
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

    abstract = train_state.abstract_state(init_params, tx, mesh)
    placed = train_state.shardings(abstract)
    step_fn = jax.jit(supervised.make_train_step(on_mesh(model, mesh), tx, config), donate_argnums=0,
                      in_shardings=(placed, partitioning.batch_sharding(mesh)),
                      out_shardings=(placed, partitioning.replicated(mesh)))
    # Parameters are scored where they lie; with several processes, whole on one device of each (scoring.validate).
    placed_model = on_mesh(model, mesh) if jax.process_count() == 1 else model
    rank = scoring.make_ranker(placed_model, config, tokenizer, log)
    validation = scoring.targets(log, config, "validation", "strict")
    validation_maker = log.batch_maker(tokenizer.ids, config)

    def init_state() -> train_state.TrainState:
        state = train_state.init_state(init_params, tx, mesh, jax.random.key(config.seed))
        if "author_table" not in state.params:
            return state
        return train_state.with_author_table(state, tokenizer.embedding_AxD * config.model.author_scale)

    def take_step(step, state, batch):
        return step_fn(state, partitioning.put_batch(batch, mesh))

    def validate(step, state):
        return state, scoring.validate(rank, state.params, validation_maker, validation)

    schedule = loop.Schedule(c.steps, c.checkpoint_every, c.log_every, c.eval_every, validate_last=True,
                             profile_at=c.profile_at, profile_steps=c.profile_steps)
    with loop.Run(folder, schedule, settings, c.batch_size, distributed.progress,
                  flops=flops.training_flops(model, abstract.params, example, c.batch_size),
                  validate=validate, shown=("loss", "acc_all", BEST), keep=c.keep_checkpoints, best_metric=BEST) as run:
        state = run.start(abstract, init_state, batches)
        parameters = presets.count(state.params, author_rows=True)
        run.train(take_step, state, batches)
        run.checkpoints.wait()
        chosen, clock = run.checkpoints.best_step(), run.clock
    params = restore_params(folder, step=chosen, settings=settings)
    figures = {"parameters": parameters, "seconds": clock.elapsed(), "chosen_step": chosen,
               "examples_per_second": clock.steps * c.batch_size / clock.stepping if clock.steps else None}
    if config.model.identity:
        late = late[maker.shown_by_others(late)]
        figures["combine"], figures["calibration"] = calibration.fit(model, params, maker, late, config.seed)
    if is_main():
        write_json(figures_file, figures)
        mark_done(folder, settings)
    wait_for_all("supervised is done")
    return model, load_params(folder), figures


def load_supervised(config: Config, workdir: Path, log: Log) -> tuple[OneLive, dict, dict]:
    """What `train_supervised` left in a workdir: (model, parameters of the best validation, figures).

    Raises: FileNotFoundError where it has not run to its end; ValueError where it ran with other settings.
    """
    folder = workdir / "supervised"
    if not is_done(folder, stage_settings(config, log)):
        raise FileNotFoundError(f"{folder} holds no finished supervised phase: run experiments.train_supervised, or "
                                f"all stages with experiments.run, on --workdir={workdir}")
    figures = read_record(workdir / "supervised.json", folder, "parameters", "seconds", "chosen_step",
                          "examples_per_second")
    return make_model(config, log), load_params(folder), figures
