"""Online signals: the played platform's own feedback, round by round, fed back by GBPO on logged probabilities."""

import copy
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.batches.feedback import MINUTE_MS
from data_pipelines.batches.loader import training_batches
from data_pipelines.batches.played import Round, RoundsMaker
from data_pipelines.simulator.platform import Lift, Outcomes, Platform, PlatformRequests, PlayRequests, Policy, compare
from experiments.common import distributed, played
from experiments.common.log import prepare
from experiments.common.tables import interval, table
from experiments.stages.policy import policy_settings
from experiments.stages.supervised import load_fitting, make_model
from experiments.stages.tokenizer import load_tokenizer
from onelive_jax.alignment import policy_step
from onelive_jax.config import Config, MeshConfig
from onelive_jax.reward.rewards import make_reward
from onelive_jax.sharding import partitioning
from onelive_jax.training import loop, train_state
from onelive_jax.training.checkpoints import restore_params

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnlinePlan:
    """Rounds, requests of each (and of the judged hours), steps after each, hours at the end that only judge."""

    rounds: int
    requests: int
    steps: int
    judged_hours: float


def online(config: Config, workdir: Path, init_from: Path, plan: OnlinePlan) -> dict:
    """Plays and learns on one device, or goes on where it was; returns the report.

    Raises: ValueError where the judged hours are the whole played period, or W/online is of other settings.
    """
    folder, total = workdir / "online", plan.rounds * plan.steps
    a = dataclasses.replace(config.alignment, loss="gbpo", reward="feedback", sampler="logged", share=1.0, steps=total,
                            warmup_steps=min(config.alignment.warmup_steps, total - 1))
    # Feedback comes without end: the rate stays what it is, and every round counts alike.
    config = dataclasses.replace(config, alignment=a, training=dataclasses.replace(config.training, final_rate=1.0))
    log = prepare(config, workdir)
    settings = policy_settings(config, log, init_from) | dataclasses.asdict(plan)
    tokenizer = load_tokenizer(config, workdir, log)
    model, begun = make_model(config, log), load_fitting(init_from, config, log)
    learning = played.make_platform(config, log)
    still = copy.deepcopy(learning)
    arrays = [played.platform_arrays(config, log, platform, tokenizer) for platform in (learning, still)]
    learner, drawer = (played.drawer(each, model) for each in arrays)
    edges = edges_of(learning, plan)
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = policy_step.make_policy_optimizer(config)
    step_fn = jax.jit(policy_step.make_policy_step(model, tx, config, make_reward("feedback")), donate_argnums=0)
    sync = jax.jit(policy_step.sync_reference, donate_argnums=0)
    begun = jax.tree.map(jax.numpy.asarray, begun)
    first_state = policy_step.with_reference(train_state.TrainState(
        jax.numpy.int32(0), jax.tree.map(jax.numpy.copy, begun), tx.init(begun), jax.random.key(config.seed)))

    def take_step(step, state, made):
        batch, feedback = (partitioning.put_batch(part, mesh) for part in made)
        state, metrics = step_fn(state, batch, None, feedback)
        return sync(state) if step % plan.steps == 0 else state, metrics

    history, lines = [], []
    schedule = loop.Schedule(total, save_every=plan.steps)
    with loop.Run(folder, schedule, settings, config.training.batch_size, distributed.progress,
                  shown=("loss", "reward_mean"), keep=total + 1) as run:
        state = run.start(first_state, lambda: first_state)
        first = int(state.step)
        if run.checkpoints.latest_step() is None:  # what is shown from here on is of these settings
            run.checkpoints.save(state, None, settings)
            run.checkpoints.wait()
        for i in range(plan.rounds):
            asked = learning.requests(plan.requests, i, int(edges[i]), int(edges[i + 1]))
            outcomes = play(learning, learner(state.params), asked, folder / f"shown_{i + 1}.npz")
            control = play(still, drawer(begun), asked, folder / f"shown_{i + 1}_still.npz")
            told = learning.rooms_for(asked)
            history.append(Round(told._replace(log=None), outcomes, arrays[0].requests(told.log)))
            learning.append(outcomes)
            still.append(control)
            lines.append(line_of(i + 1, compare(control, outcomes)["utility"]))
            if (i + 1) * plan.steps <= first:
                continue
            run.say(format_rounds(lines[-1:]).splitlines()[-1])
            maker = RoundsMaker(arrays[0], history, int(edges[i + 1]))
            batches = training_batches(maker, (maker.clicked,), (1.0,), config.training.batch_size, config.seed + i)
            if i * plan.steps < first:  # the run was stopped within this round
                batches.set_state(run.place)
            state = run.train(take_step, state, batches, until=(i + 1) * plan.steps)
    judged = judge(still, drawer, begun, folder, plan, int(edges[-1]))
    return {"rounds": lines, "judged": judged, "plan": dataclasses.asdict(plan), "init_from": str(init_from)}


def edges_of(platform: Platform, plan: OnlinePlan) -> np.ndarray:
    """int64 [rounds + 1]: ends of the rounds, Unix ms; from the last one on the policies are judged."""
    world = platform.world
    end = world.play_end_ms - round(plan.judged_hours * 60 * MINUTE_MS)
    if end <= world.end_ms:
        raise ValueError(f"--judged_hours={plan.judged_hours:g} leaves no time for rounds: the played period has "
                         f"{(world.play_end_ms - world.end_ms) / (60 * MINUTE_MS):g} hours")
    return np.linspace(world.end_ms, end, plan.rounds + 1).astype(np.int64)


def play(platform: Platform, policy: Policy, asked: PlayRequests, file: Path) -> Outcomes:
    """Plays a policy, or again what `file` says that it showed; what came of it is the same."""
    if file.is_file():
        with np.load(file) as kept:
            return platform.play(again(kept["room"], kept["propensity"]), asked)
    outcomes = platform.play(policy, asked)
    draft = file.with_name("draft.npz")
    np.savez(draft, room=outcomes.room, propensity=outcomes.propensity)
    draft.replace(file)
    return outcomes


def again(room: np.ndarray, propensity: np.ndarray) -> Policy:
    """The policy that shows these slates [n, S]; the platform asks for them part by part, in order."""
    at = 0

    def policy(told: PlatformRequests) -> tuple[np.ndarray, np.ndarray]:
        nonlocal at
        part = slice(at, at + told.user.size)
        at = part.stop
        return room[part], propensity[part]

    return policy


def judge(platform: Platform, drawer: Callable[[Any], Policy], begun: Any, folder: Path, plan: OnlinePlan,
          from_ms: int) -> list[dict]:
    """The policy after each round against the one that it began as, on the same requests of the judged hours."""
    if plan.judged_hours == 0:
        return []
    asked = platform.requests(plan.requests, plan.rounds, from_ms)
    control = play(platform, drawer(begun), asked, folder / "judged_0.npz")
    lines = []
    for i in tqdm(range(plan.rounds), desc="judged", unit="policy", disable=None):
        params = restore_params(folder, step=(i + 1) * plan.steps)
        outcomes = play(platform, drawer(params), asked, folder / f"judged_{i + 1}.npz")
        lines.append(line_of(i + 1, compare(control, outcomes)["utility"]))
    return lines


def line_of(number: int, lift: Lift) -> dict:
    return {"round": number, "learning": lift.treatment, "control": lift.control, "lift": lift.lift, "low": lift.low,
            "high": lift.high}


def format_rounds(lines: list[dict]) -> str:
    """One line a round: true utility per request of both arms, and the lift with its interval."""
    return table(["round", "learning", "control", "lift", "95 % interval"], [
        [str(x["round"]), f"{x['learning']:.4f}", f"{x['control']:.4f}", f"{x['lift']:+.2%}",
         interval((x["low"], x["high"]), "+.2%")] for x in lines])
