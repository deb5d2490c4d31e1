"""The reward model: a head per objective and one score that fuses them, from what people did with what they saw."""

import functools
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.batches.feedback import FeedbackMaker, objectives_of, read_shown
from data_pipelines.batches.loader import training_batches
from experiments.common import distributed
from experiments.common.log import Log
from experiments.common.tables import number, parameter_table, table
from experiments.common.workdir import flat, is_done, mark_done
from experiments.stages.supervised import check_same_run, stage_settings
from experiments.stages.tokenizer import Tokenizer
from onelive_jax.batch import Feedback
from onelive_jax.config import Config
from onelive_jax.evaluation import objective_metrics
from onelive_jax.reward import reward_step
from onelive_jax.reward.model import RewardModel, labels
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.training import train_state
from onelive_jax.training.checkpoints import Checkpoints, restore_params
from onelive_jax.training.metrics import MetricWriter, OneStepLate
from onelive_jax.training.pace import Profiler, Stopwatch, pace

logger = logging.getLogger(__name__)
CHUNK = 256  # validation requests scored together
JUDGED = 16_384  # validation requests at most
LEAST_POSITIVES = 50  # an AUC of fewer is mostly noise, and no objective's weight is to follow that


@dataclass
class Judged:
    """Validation requests and what came of them: batches of `CHUNK`, whose last rows may be padding (weight 0)."""

    batches: list[Feedback]
    users: list[np.ndarray]


def make_reward_model(config: Config, log: Log) -> RewardModel:
    return RewardModel(config.reward, config.tokenizer.levels, config.tokenizer.codes, log.num_authors,
                       config.tokenizer.dim, objectives_of(log.outcomes), config.data.sequences)


def reward_settings(config: Config) -> dict:
    """What decides the reward model that comes out."""
    watching = ("reward.log_every", "reward.checkpoint_every")
    return {name: value for name, value in (stage_settings(config) | flat(config, "reward")).items()
            if name not in watching}


def train_reward(config: Config, workdir: Path, log: Log, tokenizer: Tokenizer) -> tuple[RewardModel, dict, dict]:
    """Trains, or loads what was trained. Returns (model, parameters, report)."""
    folder, settings = workdir / "reward", reward_settings(config)
    if is_done(folder, settings):
        return load_reward(config, workdir, log)
    c, model, started = config.reward, make_reward_model(config, log), time.perf_counter()
    shown = read_shown(log.tables, model.objectives, config.data.long_view_seconds, to_ms=log.split.p1_ms,
                       over_by_ms=log.split.p1_ms)
    logger.info("feedback of the training period: %s", shown.counts)
    maker = FeedbackMaker(log.training_part().batch_maker(tokenizer.ids, config), shown, c.candidates)
    mesh = partitioning.make_mesh(config.mesh)
    batches = training_batches(maker, (np.arange(shown.user.size),), (1.0,), c.batch_size, config.seed,
                               partitioning.local_rows(mesh, c.batch_size))
    tx = reward_step.make_reward_optimizer(config, len(model.objectives))
    example = maker.batch(np.arange(1), np.random.default_rng(0))

    def init_params(key):
        return model.init(key, example.request, example.rooms)["params"]

    abstract = train_state.abstract_state(init_params, tx, mesh)
    placed = train_state.shardings(abstract)
    step_fn = jax.jit(reward_step.make_reward_step(on_mesh(model, mesh), tx, config), donate_argnums=0,
                      in_shardings=(placed, partitioning.batch_sharding(mesh)),
                      out_shardings=(placed, partitioning.replicated(mesh)))
    judged, predict = validation(config, log, tokenizer, model), make_predictor(model)
    with Checkpoints(folder) as saved, distributed.stopping() as wanted:
        first, clock = 0, Stopwatch()
        if saved.latest_step() is None:
            state = train_state.with_author_table(
                train_state.init_state(init_params, tx, mesh, jax.random.key(config.seed)), tokenizer.embedding_AxD)
        else:
            restored = saved.restore(abstract, check=lambda before: check_same_run(before, config, folder,
                                                                                   reward_settings))
            state, first = restored.state, int(restored.state.step)
            batches.set_state(restored.data)
            logger.info("resuming %s from step %d", folder, first)
        logger.info("%s", parameter_table(state.params))
        with MetricWriter(folder, first) as writer, distributed.progress(c.steps, first, "reward") as bar:
            if first and distributed.is_main():
                clock.resume(folder, first)
            late = OneStepLate(functools.partial(_log, writer, bar, clock, c.batch_size), c.log_every)
            profiler = Profiler(folder / "profile", config.training.profile_at, config.training.profile_steps)
            for step in range(first + 1, c.steps + 1):
                profiler.before(step, state)
                state, metrics = step_fn(state, partitioning.put_batch(next(batches), mesh))
                late.push(step, metrics)
                clock.tick(state)
                bar.update(1)
                if step % c.ippo_every == 0:
                    late.flush()
                    clock.stop()
                    state = balance(state, config, model, predict, judged, writer, step)
                stop = wanted(step)
                if step % c.checkpoint_every == 0 or step == c.steps or stop:
                    late.flush()
                    clock.stop()
                    saved.save(state, batches.get_state(), config)
                if stop and step < c.steps:
                    profiler.close(state)
                    saved.wait()
                    raise distributed.Stopped(folder, step)
            profiler.close(state)
        saved.wait()
    weights = np.asarray(state.opt_state.weight_O).tolist()
    report = {"objectives": evaluate_reward(config, model, predict, distributed.on_this_process(state.params), judged),
              "weights": dict(zip(model.objectives, weights, strict=True)), "feedback": shown.counts,
              "seconds": time.perf_counter() - started, "chosen_step": c.steps}
    params = restore_params(folder, step=c.steps)
    if distributed.is_main():
        (workdir / "reward.json").write_text(json.dumps(report, indent=1))
        mark_done(folder, settings)
    distributed.wait_for_all("the reward model is done")
    return model, params, report


def load_reward(config: Config, workdir: Path, log: Log) -> tuple[RewardModel, dict, dict]:
    """What `train_reward` left in a workdir: (model, parameters, report).

    Raises: FileNotFoundError where it has not run to its end; ValueError where it ran with other settings.
    """
    folder = workdir / "reward"
    if not is_done(folder, reward_settings(config)):
        raise FileNotFoundError(f"{folder} holds no finished reward model: run experiments.train_reward on "
                                f"--workdir={workdir}")
    report = json.loads((workdir / "reward.json").read_text())
    return make_reward_model(config, log), restore_params(folder, step=report["chosen_step"]), report


def validation(config: Config, log: Log, tokenizer: Tokenizer, model: RewardModel) -> Judged:
    """Requests of the validation period, at most `JUDGED` of them, drawn at random."""
    shown = read_shown(log.tables, model.objectives, config.data.long_view_seconds, log.split.p1_ms, log.split.p2_ms)
    maker = FeedbackMaker(log.batch_maker(tokenizer.ids, config), shown, config.reward.candidates)
    rng = np.random.default_rng(config.seed)
    rows = rng.permutation(shown.user.size)[:JUDGED]
    if rows.size < shown.user.size:
        logger.info("%d of %d validation requests are judged, drawn at random", rows.size, shown.user.size)
    batches, users = [], []
    for low in range(0, rows.size, CHUNK):
        # The last part is filled up, so that there is one shape and one compilation.
        part = rows[np.minimum(np.arange(low, low + CHUNK), rows.size - 1)]
        weight = (np.arange(low, low + CHUNK) < rows.size).astype(np.float32)
        batches.append(maker.batch(part, rng).replace(weight=weight))
        users.append(shown.user[part])
    return Judged(batches, users)


def make_predictor(model: RewardModel):
    """Jitted (params, Feedback) → (probabilities of the objectives [B, C, O], score [B, C])."""
    @jax.jit
    def predict(params, feedback):
        logits, score = model.apply({"params": params}, feedback.request, feedback.rooms)
        return jax.nn.sigmoid(logits), jax.nn.sigmoid(score)

    return predict


def evaluate_reward(config: Config, model: RewardModel, predict, params, judged: Judged) -> dict[str, dict]:
    """`objective_metrics.objective_report` on validation rows."""
    columns = {name: [] for name in ("user", "probability", "score", "label", "known")}
    for batch, users in zip(judged.batches, judged.users, strict=True):
        probability, score = map(np.asarray, predict(params, batch))
        rows = batch.rooms.mask & (batch.weight > 0)[:, None]
        columns["user"].append(np.broadcast_to(users[:, None], rows.shape)[rows])
        columns["probability"].append(probability[rows])
        columns["score"].append(score[rows])
        columns["label"].append(np.asarray(labels(jax.numpy.asarray(batch.outcomes), model.objectives,
                                                  config.reward.watch_cap))[rows])
        columns["known"].append(batch.known[rows])
    user, probability, score, label, known = (np.concatenate(parts) for parts in columns.values())
    return objective_metrics.objective_report(model.objectives, user, probability, score, label, known)


def balance(state, config: Config, model: RewardModel, predict, judged: Judged, writer: MetricWriter, step: int):
    """The state with the objective weights of the next round (IPPO), from validation rows."""
    report = evaluate_reward(config, model, predict, distributed.on_this_process(state.params), judged)
    enough = {name: figures["rows"] * (figures["mean"] or 0) >= LEAST_POSITIVES for name, figures in report.items()}
    head, fused = ([figures[kind] if enough[name] else None for name, figures in report.items()]
                   for kind in ("auc", "score_auc"))
    weights = reward_step.ippo_weights(np.asarray(state.opt_state.weight_O), head, fused, config.reward.ippo_rate,
                                  config.reward.ippo_limit)
    weights = distributed.of_main(weights)  # another host may round otherwise
    writer.write(step, {f"validation/{kind}_{name}": figures[kind] for name, figures in report.items()
                        for kind in ("auc", "score_auc")})
    return reward_step.with_objective_weights(state, weights)


def _log(writer: MetricWriter, bar: tqdm, clock: Stopwatch, batch_size: int, step: int, metrics: dict) -> None:
    values = metrics | pace(clock, batch_size)
    writer.write(step, {f"train/{name}": value for name, value in values.items()})
    bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)


def format_report(report: dict) -> str:
    """The table of objectives and the weights that the score gives them."""
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in report["weights"].items())
    return (table(*objective_rows(report)) + "\n\nscore_auc, score_user_auc: of the one fused score, for this "
            f"objective\nweights of the objectives in the score: {weights}")


def objective_rows(report: dict) -> tuple[list[str], list[list[str]]]:
    """(headers, a row per objective) of a reward report."""
    columns = ("rows", "mean", "auc", "user_auc", "users", "ece", "ratio", "score_auc", "score_user_auc")
    return ["objective", *columns], [[name, *(number(figures[column], ".4f") for column in columns)]
                                     for name, figures in report["objectives"].items()]
