"""Online signals: the played platform's own feedback, round by round, fed back by GBPO on logged probabilities."""

import copy
import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines.batches.feedback import LEFT_AT_ONCE_MS, MINUTE_MS
from data_pipelines.batches.loader import training_batches
from data_pipelines.batches.training import BatchMaker
from data_pipelines.simulator.platform import Batch as Asked
from data_pipelines.simulator.platform import Lift, Outcomes, Platform, PlayRequests, Policy, compare
from data_pipelines.simulator.world import World
from experiments.common import distributed, played
from experiments.common.log import prepare
from experiments.common.tables import interval, table
from experiments.common.workdir import differing
from experiments.stages.policy import load_params, policy_settings
from experiments.stages.supervised import make_model
from experiments.stages.tokenizer import load_tokenizer
from onelive_jax import batch as arrays
from onelive_jax.alignment import policy_step
from onelive_jax.config import Config, MeshConfig
from onelive_jax.reward.rewards import make_reward, shape_feedback
from onelive_jax.sharding import partitioning
from onelive_jax.training import train_state
from onelive_jax.training.checkpoints import Checkpoints, restore_params
from onelive_jax.training.metrics import MetricWriter, OneStepLate

logger = logging.getLogger(__name__)


@dataclass
class Round:
    """What was asked, what came of it, and the histories that the policy read (without this round)."""

    asked: Asked
    outcomes: Outcomes
    maker: BatchMaker


class RoundsMaker:
    """(batch, feedback) of played requests, exactly as they were served: rooms on air, viewers, histories so far.

    Attributes: rounds; clicked: int64, requests with a click, numbered over all rounds: the others have no target, and
    take no part, with what was disliked there.

    Raises: ValueError without any click.
    """

    def __init__(self, asker: played.Asker, rounds: list[Round], now_ms: int):
        self.asker, self.rounds = asker, rounds
        self.first = np.append(0, np.cumsum([round.asked.user.size for round in rounds]))
        self.clicked = np.concatenate([low + np.flatnonzero(round.outcomes.clicked.any(1))
                                       for low, round in zip(self.first, rounds, strict=False)])
        if not self.clicked.size:
            raise ValueError("nobody clicked in any round so far: nothing can be learned. Set --requests higher")
        self.reward = rewards_of(asker.platform.world, rounds, now_ms)

    def batch(self, row: np.ndarray, rng: np.ndarray) -> tuple[arrays.Batch, arrays.Feedback]:
        """Of requests `row` int64 [B]. Nothing is drawn: `rng` is not read."""
        parts, order = [], []
        number = np.searchsorted(self.first, row, side="right") - 1
        for i in np.unique(number):
            at = np.flatnonzero(number == i)
            parts.append(self._of_round(i, row[at] - self.first[i]))
            order.append(at)
        back = np.argsort(np.concatenate(order))
        return jax.tree.map(lambda *x: np.concatenate(x)[back], *parts)

    def _of_round(self, i: int, row: np.ndarray) -> tuple[arrays.Batch, arrays.Feedback]:
        asked, outcomes = self.rounds[i].asked, self.rounds[i].outcomes
        users, times = asked.user[row], asked.time_ms[row]
        world, live = self.asker.platform.world, self.asker.rooms(asked, row)
        request = self.rounds[i].maker.request(users, times)
        room = outcomes.room[row]
        shown = room >= 0
        author = np.where(shown, world.room_author[room], 0)
        same = (live.author[:, None] == author[..., None]) & live.mask[:, None]
        slot = np.where(shown, same.argmax(-1), 0)
        codes, features = (np.take_along_axis(x, slot[..., None], 1) for x in (live.codes, live.features))
        rooms = arrays.LiveRooms(author.astype(np.int32), codes, features, shown)
        empty = np.zeros((*room.shape, 1), np.float32)
        ones = np.ones(row.size, np.float32)
        feedback = arrays.Feedback(request, rooms, empty, empty > 0, self.reward[i][row], shown,
                                   np.where(shown, outcomes.propensity[row], 0).astype(np.float32), ones)
        place = outcomes.clicked[row].argmax(1)
        at = np.arange(row.size)
        batch = arrays.Batch(request, live, author[at, place].astype(np.int32), codes[at, place],
                             slot[at, place].astype(np.int32), ones)
        return batch, feedback


def rewards_of(world: World, rounds: list[Round], now_ms: int) -> list[np.ndarray]:
    """float32 [n, S] a round: −1, 0 or 1 (`shape_feedback` over all rounds), 0 without a click or dislike.

    now_ms: what lies after it is not known: a room that is still on air is as long as it has been so far.
    """
    rows = []
    for i, round in enumerate(rounds):
        request, place = np.nonzero(round.outcomes.clicked | round.outcomes.negative)
        rows.append((np.full(request.size, i), request, place))
    number, request, place = (np.concatenate(column) for column in zip(*rows, strict=True))
    pick = lambda of: np.concatenate([of(round)[request[number == i], place[number == i]]  # noqa: E731
                                      for i, round in enumerate(rounds)])
    room, clicked, negative = (pick(of) for of in (lambda r: r.outcomes.room, lambda r: r.outcomes.clicked,
                                                   lambda r: r.outcomes.negative))
    user, watch = (np.concatenate([of(round)[request[number == i]] for i, round in enumerate(rounds)])
                   for of in (lambda r: r.asked.user, lambda r: r.outcomes.watch_ms))
    watch = watch * clicked
    length = (np.minimum(world.room_end_ms[room], now_ms) - world.room_start_ms[room]) / MINUTE_MS
    value, counts = shape_feedback(user, length, watch / MINUTE_MS, negative | (clicked & (watch < LEFT_AT_ONCE_MS)))
    # A request without a click is not trained on: a dislike there is counted, and not used.
    used = pick(lambda r: np.broadcast_to(r.outcomes.clicked.any(1)[:, None], r.outcomes.room.shape))
    logger.info("rewards of %d rounds: %s, %d of them of requests without a click and left out", len(rounds), counts,
                int((~used).sum()))
    result = [np.zeros(round.outcomes.room.shape, np.float32) for round in rounds]
    for i in range(len(rounds)):
        mine = number == i
        result[i][request[mine], place[mine]] = value[mine]
    return result


@dataclass(frozen=True)
class Plan:
    """Rounds, requests of each (and of the judged hours), steps after each, hours at the end that only judge."""

    rounds: int
    requests: int
    steps: int
    judged_hours: float


def online(config: Config, workdir: Path, init_from: Path, plan: Plan) -> dict:
    """Plays and learns on one device, or goes on where it was; returns the report.

    Raises: ValueError where the judged hours are the whole played period, or W/online is of other settings.
    """
    folder, total = workdir / "online", plan.rounds * plan.steps
    a = dataclasses.replace(config.alignment, loss="gbpo", reward="feedback", sampler="logged", share=1.0, steps=total,
                            warmup_steps=min(config.alignment.warmup_steps, total - 1))
    # Feedback comes without end: the rate stays what it is, and every round counts alike.
    config = dataclasses.replace(config, alignment=a, training=dataclasses.replace(config.training, final_rate=1.0))
    settings = policy_settings(config, init_from) | dataclasses.asdict(plan)
    check_same_plan(folder, settings)
    log = prepare(config, workdir)
    tokenizer = load_tokenizer(config, workdir, log)
    model, begun = make_model(config, log), load_params(init_from)
    learning = played.make_platform(config, log)
    still = copy.deepcopy(learning)
    askers = [played.make_asker(config, log, platform, tokenizer) for platform in (learning, still)]
    learner, drawer = (played.drawer(asker, model) for asker in askers)
    edges = edges_of(learning, plan)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = policy_step.make_policy_optimizer(config)
    step_fn = jax.jit(policy_step.make_policy_step(model, tx, config, make_reward("feedback")), donate_argnums=0)
    sync = jax.jit(policy_step.sync_reference, donate_argnums=0)
    begun = jax.tree.map(jax.numpy.asarray, begun)
    state = train_state.TrainState(jax.numpy.int32(0), jax.tree.map(jax.numpy.copy, begun), tx.init(begun),
                                   jax.random.key(config.seed))
    history, lines = [], []
    with Checkpoints(folder, keep=plan.rounds + 1) as saved, distributed.stopping() as wanted:
        if saved.latest_step() is not None:
            state = saved.restore(state).state
            logger.info("resuming %s after round %d", folder, int(state.step) // plan.steps)
        first = int(state.step)
        with MetricWriter(folder, first) as writer, distributed.progress(total, first, "online") as bar:
            for i in range(plan.rounds):
                asked = learning.requests(plan.requests, i, int(edges[i]), int(edges[i + 1]))
                outcomes = play(learning, learner(state.params), asked, folder / f"shown_{i + 1}.npz")
                control = play(still, drawer(begun), asked, folder / f"shown_{i + 1}_still.npz")
                told = learning.batch(asked)
                history.append(Round(told._replace(log=None), outcomes, askers[0].maker(told.log)))
                learning.append(outcomes)
                still.append(control)
                lines.append(line_of(i + 1, compare(control, outcomes)["utility"]))
                if i * plan.steps < first:
                    continue
                distributed.say(bar, format_rounds(lines[-1:]).splitlines()[-1])
                maker = RoundsMaker(askers[0], history, int(edges[i + 1]))
                batches = training_batches(maker, (maker.clicked,), (1.0,), config.training.batch_size, config.seed + i)
                late = OneStepLate(lambda step, metrics: writer.write(
                    step, {f"train/{name}": value for name, value in metrics.items()}))
                stop = False
                for step in range(i * plan.steps + 1, (i + 1) * plan.steps + 1):
                    batch, feedback = next(batches)
                    state, metrics = step_fn(state, partitioning.put_batch(batch, mesh), None,
                                             partitioning.put_batch(feedback, mesh))
                    late.push(step, metrics)
                    bar.update(1)
                    stop |= wanted(step)
                late.flush()
                state = sync(state)
                saved.save(state, None, config)
                if stop:
                    saved.wait()
                    raise distributed.Stopped(folder, int(state.step))
        saved.wait()
    judged = judge(still, drawer, begun, folder, plan, int(edges[-1]))
    return {"rounds": lines, "judged": judged, "plan": dataclasses.asdict(plan), "init_from": str(init_from)}


def edges_of(platform: Platform, plan: Plan) -> np.ndarray:
    """int64 [rounds + 1]: ends of the rounds, Unix ms; from the last one on the policies are judged."""
    world = platform.world
    end = world.play_end_ms - round(plan.judged_hours * 60 * MINUTE_MS)
    if end <= world.end_ms:
        raise ValueError(f"--judged_hours={plan.judged_hours:g} leaves no time for rounds: the played period has "
                         f"{(world.play_end_ms - world.end_ms) / (60 * MINUTE_MS):g} hours")
    return np.linspace(world.end_ms, end, plan.rounds + 1).astype(np.int64)


def check_same_plan(folder: Path, settings: dict) -> None:
    """Raises ValueError with the settings in which an earlier call in this folder differs."""
    file = folder / "settings.json"
    if file.is_file() and (changed := differing(json.loads(file.read_text()), settings)):
        raise ValueError(f"{folder} holds rounds of other settings ({changed}): choose another --workdir, or delete "
                         f"{folder}")


def play(platform: Platform, policy: Policy, asked: PlayRequests, file: Path) -> Outcomes:
    """Plays a policy, or again what `file` says that it showed; what came of it is the same."""
    if file.is_file():
        with np.load(file) as kept:
            return platform.play(again(kept["room"], kept["propensity"]), asked)
    outcomes = platform.play(policy_step, asked)
    draft = file.with_name("draft.npz")
    np.savez(draft, room=outcomes.room, propensity=outcomes.propensity)
    draft.replace(file)
    return outcomes


def again(room: np.ndarray, propensity: np.ndarray) -> Policy:
    """The policy that shows these slates [n, S]; the platform asks for them part by part, in order."""
    at = 0

    def policy(batch: Asked) -> tuple[np.ndarray, np.ndarray]:
        nonlocal at
        part = slice(at, at + batch.user.size)
        at = part.stop
        return room[part], propensity[part]

    return policy_step


def judge(platform: Platform, drawer: Callable[[Any], Policy], begun: Any, folder: Path, plan: Plan,
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
