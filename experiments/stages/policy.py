"""Alignment: the supervised model becomes a policy that is rewarded for many objectives (paper, section c)."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.batches.feedback import FeedbackMaker, PairMaker, objectives_of, read_shown
from data_pipelines.batches.loader import training_batches
from data_pipelines.log import tasks
from experiments.common import distributed, scoring
from experiments.common.log import Log
from experiments.common.tables import counted, table
from experiments.common.workdir import DONE, flat, is_done, mark_done, read_record
from experiments.stages.reward import load_reward, reward_settings
from experiments.stages.supervised import load_fitting, load_params, load_supervised, make_model, stage_settings
from experiments.stages.tokenizer import Tokenizer
from onelive_jax.alignment import policy_step
from onelive_jax.config import Config
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.files import write_json
from onelive_jax.model.onelive import OneLive
from onelive_jax.reward.rewards import make_reward
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.sharding.processes import is_main, on_this_process, wait_for_all
from onelive_jax.training import loop, train_state
from onelive_jax.training.checkpoints import restore_params
from onelive_jax.training.metrics import read

logger = logging.getLogger(__name__)
LEAST_HR128 = 0.99  # of step 0: neither a judged step below it nor one after that is handed on
FIGURES = ("ndcg@10", "hr@10", "hr@128", "mrr")
SHOWN = 6  # best rooms of a validation request whose predicted reward is watched


def policy_settings(config: Config, log: Log, init_from: Path) -> dict:
    """What decides the policy that comes out."""
    settings = reward_settings(config, log) if config.alignment.reward != "feedback" else stage_settings(config, log)
    settings |= flat(config, "alignment") | {"init_from": phase_identity(init_from),
                                             "decoding.identity_weight": config.decoding.identity_weight}
    if reads_feedback(config):
        settings["reward.candidates"] = config.reward.candidates
    return settings


def phase_identity(folder: Path) -> str:
    """What a finished phase is known by wherever it lies: its settings (and the log among them) and the chosen step.

    Raises: FileNotFoundError where it has not run to its end.
    """
    files = folder / DONE, folder.with_name(folder.name + ".json")
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing: {folder} holds no finished phase. Train it first, or "
                                "correct the folder")
    settings, report = (read_record(file, folder) for file in files)
    return hashlib.sha256(json.dumps([settings, report.get("chosen_step")], sort_keys=True).encode()).hexdigest()[:16]


@distributed.stage("alignment")
def train_policy(config: Config, workdir: Path, log: Log, tokenizer: Tokenizer, init_from: Path,
                 name: str = "policy") -> tuple[OneLive, dict, dict]:
    """Aligns, or loads what was aligned. Returns (model, parameters of the chosen step, report)."""
    folder, settings = workdir / name, policy_settings(config, log, init_from)
    report_file, model = workdir / f"{name}.json", make_model(config, log)
    if is_done(folder, settings):
        return model, load_params(folder), read_record(report_file, folder, "validation", "chosen_step")
    a, begun = config.alignment, load_fitting(init_from, config, log)
    scorer, reward_params = None, None
    if a.reward == "feedback" and a.sampler != "logged":
        logger.warning("config.alignment.reward='feedback' is known only of rooms that were shown: with sampler=%r "
                       "most groups have none or one of them and teach nothing (dead_groups counts them); "
                       "sampler='logged' takes the rooms that were shown", a.sampler)
    if config.model.activation_dtype == "bfloat16":
        logger.info("bfloat16 activations: the ratio of policy to reference begins at 0.98 to 1.01, not at 1 (two "
                    "programs round at different places); config.model.activation_dtype='float32' gives 1")
    if a.reward != "feedback":
        scorer, reward_params, _ = load_reward(config, workdir, log)
    mesh = partitioning.make_mesh(config.mesh)
    tx = policy_step.make_policy_optimizer(config)
    batches, example, left_out = alignment_batches(config, log, tokenizer,
                                                   partitioning.local_rows(mesh, config.training.batch_size))

    def init_params(key):
        return model.init(key, example)["params"]

    abstract = train_state.abstract_state(init_params, tx, mesh, policy_step.with_reference)
    placed = train_state.shardings(abstract)
    judge = Judge(config, log, tokenizer, on_mesh(model, mesh) if jax.process_count() == 1 else model, scorer,
                  reward_params)
    everywhere, rows = partitioning.replicated(mesh), partitioning.batch_sharding(mesh)
    where = None
    if scorer is not None:
        # Its tables are as long as the policy's: they are split as those are.
        where = partitioning.logical_to_sharding(
            jax.eval_shape(lambda: scorer.init(jax.random.key(0), example.request, example.live)["params"]), mesh)
        reward_params, scorer = partitioning.put_whole(reward_params, where), on_mesh(scorer, mesh)
    reward = make_reward(a.reward, scorer, a.mix)
    feedback_rows = rows if reads_feedback(config) else None
    # Two programs: with and without a policy term. `is_policy_step` chooses.
    steps = {with_policy: jax.jit(policy_step.make_policy_step(on_mesh(model, mesh), tx, config, reward, with_policy),
                                  donate_argnums=0, in_shardings=(placed, rows, where, feedback_rows),
                                  out_shardings=(placed, everywhere)) for with_policy in (True, False)}
    sync = jax.jit(policy_step.sync_reference, donate_argnums=0, in_shardings=(placed,), out_shardings=placed)

    def init_state() -> policy_step.PolicyState:
        params, reference = (partitioning.put_whole(begun, placed.params) for _ in range(2))
        return policy_step.PolicyState(
            partitioning.put_whole(np.int32(0), placed.step), params,
            jax.jit(tx.init, out_shardings=placed.opt_state)(params),
            jax.jit(lambda: jax.random.key(config.seed), out_shardings=placed.key)(), reference)

    def take_step(step, state, made):
        batch, feedback = (None if part is None else partitioning.put_batch(part, mesh) for part in _both(made))
        chosen = steps[policy_step.is_policy_step(step - 1, a, config.training.batch_size)]
        state, metrics = chosen(state, batch, reward_params, feedback)
        return sync(state) if policy_step.is_sync_step(step, a) else state, metrics

    def validate(step, state):
        return state, judge(state.params)

    schedule = loop.Schedule(a.steps, a.checkpoint_every, a.log_every, a.eval_every, validate_last=True,
                             profile_at=config.training.profile_at, profile_steps=config.training.profile_steps)
    with loop.Run(folder, schedule, settings, config.training.batch_size, distributed.progress, validate=validate,
                  shown=("loss", "reward_mean", *FIGURES, "predicted_reward"), keep=a.steps + 1) as run:
        state = run.start(abstract, init_state, batches)
        if int(state.step) == 0:  # it may turn out to be the best: it is kept as all judged steps are
            state, figures = run.validate(0, state)
            if run.checkpoints.latest_step() is None:
                run.checkpoints.save(state, batches.get_state(), settings, figures)
        run.train(take_step, state, batches)
    if not is_main():  # process 0 writes what all of them read
        wait_for_all("the policy is done")
        return model, load_params(folder), json.loads(report_file.read_text())
    curve = validation_curve(folder)
    report = {"chosen_step": choose_step(curve), "steps": a.steps, "loss": a.loss, "left_out": left_out,
              "validation": curve, "seconds": run.clock.elapsed()}
    if report["chosen_step"] < a.steps:
        logger.warning("%s: %s", folder, handed_on(report))
    write_json(report_file, report)
    mark_done(folder, settings)
    wait_for_all("the policy is done")
    return model, load_params(folder), report


def reads_feedback(config: Config) -> bool:
    return config.alignment.reward != "model" or config.alignment.sampler == "logged"


def alignment_batches(config: Config, log: Log, tokenizer: Tokenizer,
                      rows: np.ndarray) -> tuple[Iterator, Any, dict[str, int]]:
    """(endless batches of the training period, or of (batch, feedback) where logged feedback is read; an example batch;
    what was left out). rows: of each batch, those that this process makes."""
    training = log.training_part()
    maker = training.batch_maker(tokenizer.ids, config)
    if reads_feedback(config):
        shown = read_shown(log.tables, training.presence, objectives_of(log.outcomes), config.data.long_view_seconds,
                           to_ms=log.split.p1_ms, over_by_ms=log.split.p1_ms, scale=log.satisfaction)
        pairs = PairMaker(FeedbackMaker(maker, shown, config.reward.candidates))
        source, groups, shares = pairs, (pairs.with_target,), (1.0,)
        left_out = shown.counts | {"requests without a click": int(shown.user.size - pairs.with_target.size)}
        logger.info("feedback of the training period: %s", counted(left_out))
    else:
        views = training.training_views
        there = maker.shown_by_others(views)
        source, groups = maker, (views[there], views[~there])
        shares = (config.data.on_air_share, 1 - config.data.on_air_share)
        left_out = {}
    batches = training_batches(source, groups, shares, config.training.batch_size, config.seed, rows)
    example, _ = _both(source.batch(groups[0][:1] if len(groups[0]) else groups[1][:1], np.random.default_rng(0)))
    return batches, example, left_out


class Judge:
    """Scores a policy on validation: the strict protocol, and the reward that the reward model predicts for its best
    `SHOWN` rooms (the quantity that is optimized, so the one that may be hacked)."""

    def __init__(self, config: Config, log: Log, tokenizer: Tokenizer, model: OneLive, scorer, reward_params):
        self.task = scoring.targets(log, config, "validation", "strict")
        self.maker = log.batch_maker(tokenizer.ids, config)
        self.rank = scoring.make_ranker(model, config, tokenizer, log)
        # Every candidate's predicted reward, once: the reward model stays as it is.
        self.reward_C = None if scorer is None else predicted_rewards(scorer, reward_params, self.maker, self.task)

    def __call__(self, params: Any) -> dict[str, float]:
        score_C = scoring.score(self.rank, on_this_process(params), self.maker, self.task)
        ranks = ranking_metrics.ranks(score_C, self.task.offsets, self.task.position)
        result = ranking_metrics.metrics(ranks, self.task.repeat)["all"]
        scores = {name: result[name] for name in FIGURES}
        if self.reward_C is not None:
            scores["predicted_reward"] = mean_of_best(score_C, self.reward_C, self.task.offsets, SHOWN)
        return scores


def predicted_rewards(scorer, reward_params, maker, task: tasks.Task) -> np.ndarray:
    """float32 [C]: the reward model's score of every candidate of a task."""
    @jax.jit
    def rank(params, request, rooms, user_R, time_ms_R):
        score = jax.nn.sigmoid(scorer.apply({"params": params}, request, rooms)[1])
        slot = np.broadcast_to(np.arange(rooms.mask.shape[1], dtype=np.int32), rooms.mask.shape)
        return slot, score, rooms.mask

    return scoring.score(rank, reward_params, maker, task)


def mean_of_best(score_C: np.ndarray, value_C: np.ndarray, offsets: np.ndarray, k: int) -> float:
    """Mean over requests of the mean value of the k candidates of highest score (all, where there are fewer)."""
    owner = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    order = np.lexsort((-score_C, owner))
    place = np.arange(owner.size) - offsets[owner]
    kept = order[(place < k)]
    total = np.bincount(owner[kept], value_C[kept], offsets.size - 1)
    return float((total / np.maximum(np.bincount(owner[kept], minlength=offsets.size - 1), 1)).mean())


def validation_curve(folder: Path) -> list[dict]:
    """The judged steps of a run, from its metrics: {"step", "ndcg@10", "hr@128", "predicted_reward", …} each."""
    lines = [line for line in read(folder) if "validation/hr@128" in line]
    return [{name.removeprefix("validation/"): value for name, value in line.items()} for line in lines]


def choose_step(curve: list[dict]) -> int:
    """The last judged step with a higher predicted reward than step 0, of those before HR@128 falls below `LEAST_HR128`
    of step 0; step 0 itself, the model that alignment began with, where there is none."""
    first, chosen = curve[0], curve[0]["step"]
    for line in curve[1:]:
        if line["hr@128"] < LEAST_HR128 * first["hr@128"]:
            break
        if line.get("predicted_reward", 1.0) > first.get("predicted_reward", 0.0):
            chosen = line["step"]
    return chosen


def handed_on(report: dict) -> str:
    """Which step is handed on, and why, in a sentence or two."""
    first, step = report["validation"][0], report["chosen_step"]
    chosen = next(line for line in report["validation"] if line["step"] == step)
    rewarded = "predicted_reward" in first
    rule = f"{'a higher predicted reward than step 0 and ' if rewarded else ''}at least {LEAST_HR128:.0%} of its HR@128"
    if step == first["step"]:
        return (f"Step {step} is handed on, the model that alignment began with: no judged step had {rule}. Lower "
                "config.alignment.learning_rate or weight, or judge more often (config.alignment.eval_every).")
    moved = {name: f"{first[name]:.4f} → {chosen[name]:.4f}" for name in chosen if name != "step"}
    text = (f"Step {step} is handed on, the last judged one with {rule} ("
            + (f"predicted reward {moved['predicted_reward']}, " if rewarded else "") + f"HR@128 {moved['hr@128']}).")
    if chosen["ndcg@10"] < first["ndcg@10"]:
        text += (f" NDCG@10 falls ({moved['ndcg@10']}): it counts the room that was clicked, "
                 "alignment what a click is worth.")
    return text


def _both(made: Any) -> tuple[Any, Any]:
    return made if type(made) is tuple else (made, None)


def format_curve(report: dict) -> str:
    """The judged steps as a table, and why one of them is handed on."""
    return table(*curve_rows(report)) + "\n\n" + handed_on(report)


def curve_rows(report: dict) -> tuple[list[str], list[list[str]]]:
    """(headers, a row per judged step) of a policy report; the step that is handed on is marked."""
    names = [name for name in report["validation"][0] if name != "step"]
    return ["step", *names, ""], [[str(line["step"]), *(f"{line[name]:.4f}" for name in names),
                                   "<- handed on" if line["step"] == report["chosen_step"] else ""]
                                  for line in report["validation"]]


def load_phase(config: Config, workdir: Path, log: Log, phase: str) -> tuple[OneLive, dict, str]:
    """(model, parameters of "supervised", "policy" or "stream", their name PHASE/STEP) of a workdir.

    Raises: FileNotFoundError where that phase has not run to its end; ValueError where it ran with other settings.
    """
    model, params, figures = load_supervised(config, workdir, log)
    if phase == "policy":
        folder = workdir / "policy"
        params, figures = load_params(folder), read_record(workdir / "policy.json", folder, "chosen_step")
    if phase == "stream":  # which goes on, and is never done
        figures = read_record(workdir / "stream.json", workdir / "stream", "chosen_step")
        params = restore_params(workdir / "stream", step=figures["chosen_step"])
    return model, params, f"{phase}/{figures['chosen_step']}"
