"""Online signals: the played platform's own feedback, round by round, fed back by GBPO on logged probabilities.

    python -m experiments.online --workdir=W [--init_from=W/policy] [--rounds=10] [--requests=4000]
        [--steps_per_round=60] [--config.alignment.learning_rate=…]

The played period is cut into rounds. In each, the policy answers requests by drawing rooms from its own distribution
and logs with what probability; what people did goes into the platform's log (habits, follows and histories move on);
then the policy takes steps on all rounds so far, rewarded by the feedback itself (config.alignment.reward=feedback,
sampler=logged, loss=gbpo). An arm that does not learn answers the same requests on a platform of its own. Writes
W/online.json: true utility per request of both arms, round by round.
"""

import copy
import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from absl import flags as absl_flags
from tqdm import tqdm

from data_pipelines.batches import BatchMaker
from data_pipelines.feedback import LEFT_AT_ONCE_MS, MINUTE_MS
from data_pipelines.loader import training_batches
from data_pipelines.platform import Batch as Asked
from data_pipelines.platform import Outcomes, Platform, compare
from experiments import flags, played
from experiments.prepare import prepare
from experiments.train_policy import load_params
from experiments.train_supervised import make_model
from experiments.train_tokenizer import load_tokenizer
from onelive_jax import batch as arrays
from onelive_jax.alignment.rewards import make_reward, shape_feedback
from onelive_jax.config import Config
from onelive_jax.training import partitioning, policy, train_state

logger = logging.getLogger(__name__)
WATCHED = ("ratio_min", "ratio_max", "kl", "entropy")  # of every step, in the report


@dataclass
class Round:
    """What was asked, what came of it, and the histories that the policy read (without this round)."""

    asked: Asked
    outcomes: Outcomes
    maker: BatchMaker


class RoundsMaker:
    """(batch, feedback) of played requests, exactly as they were served: rooms on air, viewers, histories so far.

    Attributes: rounds; clicked: int64, requests with a click, numbered over all rounds: the others have no target.
    """

    def __init__(self, asker: played.Asker, rounds: list[Round]):
        self.asker, self.rounds = asker, rounds
        self.first = np.append(0, np.cumsum([round.asked.user.size for round in rounds]))
        self.clicked = np.concatenate([low + np.flatnonzero(round.outcomes.clicked.any(1))
                                       for low, round in zip(self.first, rounds, strict=False)])
        self.reward = rewards_of(asker.platform, rounds)

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


def rewards_of(platform: Platform, rounds: list[Round]) -> list[np.ndarray]:
    """float32 [n, S] a round: −1, 0 or 1 (`shape_feedback` over all rounds), 0 without a click or dislike."""
    world, rows = platform.world, []
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
    length = (world.room_end_ms[room] - world.room_start_ms[room]) / MINUTE_MS
    value, counts = shape_feedback(user, length, watch / MINUTE_MS, negative | (clicked & (watch < LEFT_AT_ONCE_MS)))
    logger.info("rewards of %d rounds: %s", len(rounds), counts)
    result = [np.zeros(round.outcomes.room.shape, np.float32) for round in rounds]
    for i in range(len(rounds)):
        mine = number == i
        result[i][request[mine], place[mine]] = value[mine]
    return result


def online(config: Config, workdir: Path, init_from: Path, rounds: int, requests: int, steps: int) -> dict:
    """Plays and learns; returns the report."""
    log = prepare(config, workdir)
    tokenizer = load_tokenizer(config, workdir, log)
    model, params = make_model(config, log), load_params(init_from)
    learning = played.make_platform(config, log)
    still = copy.deepcopy(learning)
    askers = [played.make_asker(config, log, platform, tokenizer) for platform in (learning, still)]
    world = learning.world
    edges = np.linspace(world.end_ms, world.play_end_ms, rounds + 1).astype(np.int64)
    a = dataclasses.replace(config.alignment, loss="gbpo", reward="feedback", sampler="logged", steps=rounds * steps,
                            warmup_steps=min(config.alignment.warmup_steps, rounds * steps - 1))
    config = dataclasses.replace(config, alignment=a)
    mesh = partitioning.make_mesh(config.mesh)
    tx = policy.make_policy_optimizer(config)
    step_fn = jax.jit(policy.make_policy_step(model, tx, config, make_reward("feedback")), donate_argnums=0)
    sync = jax.jit(policy.sync_reference, donate_argnums=0)
    begun = jax.tree.map(jax.numpy.asarray, params)
    state = train_state.TrainState(jax.numpy.int32(0), jax.tree.map(jax.numpy.copy, begun), tx.init(begun),
                                   jax.random.key(config.seed))
    history, lines = [], []
    with tqdm(total=rounds * steps, desc="online", unit="step", disable=None) as bar:
        for i in range(rounds):
            asked = learning.requests(requests, i, int(edges[i]), int(edges[i + 1]))
            outcomes = learning.play(played.drawn(askers[0], model, state.params), asked)
            control = still.play(played.drawn(askers[1], model, begun), asked)
            lift = compare(control, outcomes)["utility"]
            told = learning.batch(asked)
            history.append(Round(told._replace(log=None), outcomes, askers[0].maker(told.log)))
            learning.append(outcomes)
            still.append(control)
            maker = RoundsMaker(askers[0], history)
            batches = training_batches(maker, (maker.clicked,), (1.0,), config.training.batch_size, config.seed + i)
            seen = []
            for _ in range(steps):
                batch, feedback = next(batches)
                state, metrics = step_fn(state, partitioning.put_batch(batch, mesh), None,
                                         partitioning.put_batch(feedback, mesh))
                seen.append(metrics)
                bar.update(1)
            state = sync(state)
            line = {"round": i + 1, "learning": lift.treatment, "control": lift.control, "lift": lift.lift,
                    "low": lift.low, "high": lift.high,
                    **{name: [float(metrics[name]) for metrics in seen] for name in WATCHED}}
            lines.append(line)
            bar.write(format_rounds([line]).splitlines()[-1])
    return {"rounds": lines, "requests": requests, "steps_per_round": steps, "init_from": str(init_from)}


def format_rounds(lines: list[dict]) -> str:
    """One line a round: true utility per request of both arms, and the lift with its interval."""
    head = f"{'round':>5}{'learning':>12}{'control':>12}{'lift':>10}   95 % interval"
    return "\n".join([head] + [f"{x['round']:>5}{x['learning']:>12.4f}{x['control']:>12.4f}{x['lift']:>+10.2%}   "
                               f"{x['low']:+.2%} … {x['high']:+.2%}" for x in lines])


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    init_from = Path(values.init_from).expanduser() if values.init_from else workdir / "supervised"
    report = online(config, workdir, init_from, values.rounds, values.requests, values.steps_per_round)
    (workdir / "online.json").write_text(json.dumps(report, indent=1))
    print("true utility per request:\n" + format_rounds(report["rounds"]))


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_string("init_from", None, "folder of the phase whose parameters it starts from (W/supervised)")
    absl_flags.DEFINE_integer("rounds", 10, "rounds that the played period is cut into", lower_bound=1)
    absl_flags.DEFINE_integer("requests", 4000, "requests of a round", lower_bound=2)
    absl_flags.DEFINE_integer("steps_per_round", 60, "optimizer steps after each round", lower_bound=1)
    flags.run(main)
