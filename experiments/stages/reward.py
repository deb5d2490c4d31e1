"""The reward model: a head per objective and one score that fuses them, from what people did with what they saw."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from data_pipelines.batches.feedback import FeedbackMaker, objectives_of, read_shown
from data_pipelines.batches.loader import training_batches
from experiments.common import distributed
from experiments.common.log import Log
from experiments.common.tables import counted, number, table
from experiments.common.workdir import flat, is_done, mark_done, read_record
from experiments.stages.supervised import load_params, stage_settings
from experiments.stages.tokenizer import Tokenizer
from onelive_jax.batch import Feedback
from onelive_jax.config import Config
from onelive_jax.evaluation import objective_metrics
from onelive_jax.files import write_json
from onelive_jax.reward import reward_step
from onelive_jax.reward.model import RewardModel, labels
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.sharding.processes import broadcast, is_main, on_this_process, wait_for_all
from onelive_jax.training import loop, train_state

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


def reward_settings(config: Config, log: Log) -> dict:
    """What decides the reward model that comes out."""
    return stage_settings(config, log) | flat(config, "reward")


@distributed.stage("reward model")
def train_reward(config: Config, workdir: Path, log: Log, tokenizer: Tokenizer) -> tuple[RewardModel, dict, dict]:
    """Trains, or loads what was trained. Returns (model, parameters, report)."""
    folder, settings = workdir / "reward", reward_settings(config, log)
    if is_done(folder, settings):
        return load_reward(config, workdir, log)
    c, model = config.reward, make_reward_model(config, log)
    training = log.training_part()
    shown = read_shown(log.tables, training.presence, model.objectives, config.data.long_view_seconds,
                       to_ms=log.split.p1_ms, over_by_ms=log.split.p1_ms, scale=log.satisfaction)
    logger.info("feedback of the training period: %s", counted(shown.counts))
    maker = FeedbackMaker(training.batch_maker(tokenizer.ids, config), shown, c.candidates)
    mesh = partitioning.make_mesh(config.mesh)
    batches = training_batches(maker, (np.arange(shown.user.size),), (1.0,), c.batch_size, config.seed,
                               partitioning.local_rows(mesh, c.batch_size))
    tx = reward_step.make_reward_optimizer(config)
    example = maker.batch(np.arange(1), np.random.default_rng(0))

    def init_params(key):
        return model.init(key, example.request, example.rooms)["params"]

    extend = functools.partial(reward_step.with_objectives, num_objectives=len(model.objectives))
    abstract = train_state.abstract_state(init_params, tx, mesh, extend)
    placed = train_state.shardings(abstract)
    step_fn = jax.jit(reward_step.make_reward_step(on_mesh(model, mesh), tx, config), donate_argnums=0,
                      in_shardings=(placed, partitioning.batch_sharding(mesh)),
                      out_shardings=(placed, partitioning.replicated(mesh)))
    judged, predict = validation(config, log, tokenizer, model), make_predictor(model)

    def init_state() -> reward_step.RewardState:
        state = train_state.init_state(init_params, tx, mesh, jax.random.key(config.seed), extend)
        return train_state.with_author_table(state, tokenizer.embedding_AxD)

    def take_step(step, state, batch):
        return step_fn(state, partitioning.put_batch(batch, mesh))

    def validate(step, state):
        """The weights of the next round (IPPO) come from validation requests."""
        figures = evaluate_reward(config, model, predict, on_this_process(state.params), judged)
        return balance(state, config, figures), {f"{kind}_{name}": row[kind] for name, row in figures.items()
                                                 for kind in ("auc", "score_auc")}

    schedule = loop.Schedule(c.steps, c.checkpoint_every, c.log_every, c.ippo_every,
                             profile_at=config.training.profile_at, profile_steps=config.training.profile_steps)
    with loop.Run(folder, schedule, settings, c.batch_size, distributed.progress,
                  validate=validate) as run:
        state = run.start(abstract, init_state, batches)
        state = run.train(take_step, state, batches)
    weights = np.asarray(state.objective_weight_O).tolist()
    report = {"objectives": evaluate_reward(config, model, predict, on_this_process(state.params), judged),
              "weights": dict(zip(model.objectives, weights, strict=True)), "feedback": shown.counts,
              "seconds": run.clock.elapsed(), "chosen_step": c.steps}
    if is_main():
        write_json(workdir / "reward.json", report)
        mark_done(folder, settings)
    wait_for_all("the reward model is done")
    return model, load_params(folder), report


def load_reward(config: Config, workdir: Path, log: Log) -> tuple[RewardModel, dict, dict]:
    """What `train_reward` left in a workdir: (model, parameters, report).

    Raises: FileNotFoundError where it has not run to its end; ValueError where it ran with other settings.
    """
    folder = workdir / "reward"
    if not is_done(folder, reward_settings(config, log)):
        raise FileNotFoundError(f"{folder} holds no finished reward model: run experiments.train_reward on "
                                f"--workdir={workdir}")
    report = read_record(workdir / "reward.json", folder, "objectives", "weights", "chosen_step")
    return make_reward_model(config, log), load_params(folder), report


def validation(config: Config, log: Log, tokenizer: Tokenizer, model: RewardModel) -> Judged:
    """Requests of the validation period, at most `JUDGED` of them, drawn at random."""
    shown = read_shown(log.tables, log.presence, model.objectives, config.data.long_view_seconds, log.split.p1_ms,
                       log.split.p2_ms, scale=log.satisfaction)
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


def balance(state: reward_step.RewardState, config: Config, report: dict[str, dict]) -> reward_step.RewardState:
    """The state with the objective weights of the next round (IPPO), from `evaluate_reward`."""
    enough = {name: figures["rows"] * (figures["mean"] or 0) >= LEAST_POSITIVES for name, figures in report.items()}
    head, fused = ([figures[kind] if enough[name] else None for name, figures in report.items()]
                   for kind in ("auc", "score_auc"))
    weights = reward_step.ippo_weights(np.asarray(state.objective_weight_O), head, fused, config.reward.ippo_rate,
                                       config.reward.ippo_limit)
    return reward_step.with_objective_weights(state, broadcast(weights))  # another host may round otherwise


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
