"""What fresh parameters are worth: every target ranked by a model published before it, then learned from, in one pass.

    python -m experiments.studies.freshness --config=experiments/configs/moving.py --workdir=W [--worlds=3]
    python -m experiments.studies.freshness --workdir=W            # W's own log, over validation and test period

Four arms read the same requests and differ in when their parameters were published: never again (frozen), once a day,
once an hour, every five minutes (streaming). Beside them stand the heuristics, which count up to the last hour. Of a
simulated log, the first --train_days are learned from beforehand and the rest is streamed; authors who began later are
known to no model beforehand. W/freshness.json holds the figures; a killed study goes on where it was.

Axes: R targets, U people.
"""

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_integer("worlds", 3, "simulated worlds, with seeds from config.simulator.seed on", lower_bound=1)
    absl_flags.DEFINE_float("train_days", 7.0, "of a simulated log, learned from beforehand", lower_bound=1.0)
    absl_flags.DEFINE_float("after_days", 3.0, "a row of the table is of targets so long after the beginning",
                            lower_bound=0.0)
    absl_flags.DEFINE_integer("batch_size", 16, "examples of a step", lower_bound=1)
    absl_flags.DEFINE_float("learning_rate", 5e-4, "of the stream, constant", lower_bound=0.0, upper_bound=1.0)
    absl_flags.DEFINE_float("save_minutes", 720.0, "minutes of the stream between two checkpoints", lower_bound=0.0)
    flags.read()

import copy
import dataclasses
import io
import json
import time
from pathlib import Path

import numpy as np

from data_pipelines import tables as tables_lib
from data_pipelines.log import tasks
from data_pipelines.log.split import cut
from data_pipelines.simulator.simulation import simulate
from data_pipelines.simulator.world import START_MS
from data_pipelines.tables import HOUR_MS
from experiments.baselines import heuristics
from experiments.common import scoring
from experiments.common.log import Log, prepare
from experiments.common.study import all_settings
from experiments.common.tables import interval, table
from experiments.common.workdir import save_config
from experiments.stages.event_source import LogSource, longer_log
from experiments.stages.prequential import Judge
from experiments.stages.stream import StreamPlan, learn, make_learner, stream_settings
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import Config
from onelive_jax.evaluation import bootstrap, ranking_metrics
from onelive_jax.files import write_json, write_whole

DAY_MS = 24 * HOUR_MS
PERIODS = {"frozen": 0, "daily": 24 * 60, "hourly": 60, "streaming": 5}  # minutes between publications
HEURISTICS = ("own_counts_knn", "own_counts", "viewers")
AGES_HOURS = (0, 0.5, 1, 3, 6, 12, 24, 48, 72, 96, 120)
BIN_HOURS = 12


def first_log(config: Config, workdir: Path, train_days: float) -> tuple[Config, Log]:
    """The config of the part of a simulated log that is learned from beforehand, and the whole log."""
    whole, part = workdir / "whole", workdir / "first"
    if not (part / "done").is_file():
        made = simulate(config.simulator)
        tables_lib.save(made, whole)
        tables_lib.save(cut(made, START_MS + round(train_days * DAY_MS)), part)
        (part / "done").write_text("")
    config = copy.deepcopy(config)
    config.data.source, config.data.path = "canonical", str(part.resolve())
    return config.validate(), longer_log(whole)


def stream_through(config: Config, workdir: Path, whole: Log | None, plan: StreamPlan) -> dict[str, np.ndarray]:
    """All targets of the streamed period with their ranks by every arm and heuristic, as columns."""
    log = prepare(config, workdir)
    tokenizer = train_tokenizer(config, workdir, log)
    _, params, _ = train_supervised(config, workdir, log, tokenizer)
    save_config(config, workdir)
    from_ms = log.split.p1_ms if whole is None else log.split.end_ms
    played = log if whole is None else whole
    source, folder = LogSource(played, config, from_ms), workdir / "freshness"
    learner = make_learner(config, log, tokenizer, params, source, from_ms, plan, folder)
    batches, task = learner.batches, tasks.strict_targets(played.views, played.presence, from_ms)
    state, examples = batches.state, batches.examples
    slots = -(-int(np.diff(task.offsets).max()) // 32) * 32 + 32  # (a look may find some that the task leaves out)
    rank = scoring.make_ranker(learner.model, config, tokenizer, log)
    judge = Judge(rank, state, log.num_authors, config.model.author_scale, slots, learner.first_state.params, from_ms,
                  PERIODS)
    examples.on_look, examples.on_author = judge.look, judge.new_author
    batches.extras["judge"] = judge.to_arrays, judge.restore
    judging = [0.0]

    def due(learned, now_ms: int) -> None:
        began = time.perf_counter()
        judge.due(learned.params, now_ms, examples.newcomers)
        judging[0] += time.perf_counter() - began

    began = time.perf_counter()
    settings = stream_settings(config, log, workdir / "supervised", plan, str(from_ms))
    learned = learn(learner, folder, settings, plan, lambda *_: None, due)
    seconds = time.perf_counter() - began - judging[0]
    columns = judge.columns()
    people, names = played.tables.users["source_id"].to_list(), played.tables.authors["source_id"].to_list()
    columns["user"] = _rows_in(people, [state.users.names[row] for row in columns["user"].tolist()])
    columns["author"] = _rows_in(names, [state.authors.names[row] for row in columns["author"].tolist()])
    columns |= by_heuristics(config, log, played, task, columns)
    return columns | {"seconds": np.float64(seconds), "steps": np.int64(int(learned.step)),
                      "events": np.int64(batches.events)}


def _rows_in(names: list[str], wanted: list[str]) -> np.ndarray:
    row = {name: i for i, name in enumerate(names)}
    return np.array([row[name] for name in wanted], np.int64)


def by_heuristics(config: Config, log: Log, played: Log, task: tasks.Task, columns: dict[str, np.ndarray]
                  ) -> dict[str, np.ndarray]:
    """Ranks by the heuristics of the very same targets; what they count is at most an hour old. Their weights are tuned
    on the validation period before the stream."""
    tuned = scoring.make_task(log, config, "validation", "strict")
    weights = heuristics.tune(log.views, tuned, log.split.p1_ms) if tuned.user.size else heuristics.Weights()
    ranks = {name: np.full((task.user.size, 2), np.inf) for name in HEURISTICS}
    for hour in np.unique(task.time_ms // HOUR_MS):
        rows = np.flatnonzero(task.time_ms // HOUR_MS == hour)
        part = _part(task, rows)
        scores = heuristics.scores(played.views, part, int(hour * HOUR_MS), weights)
        for name in HEURISTICS:
            ranks[name][rows] = ranking_metrics.ranks(scores[name], part.offsets, part.position)
    key = {target: i for i, target in enumerate(zip(task.user.tolist(), task.time_ms.tolist(), task.target.tolist(),
                                                    strict=True))}
    at = [key.get(target, -1) for target in zip(columns["user"].tolist(), columns["time_ms"].tolist(),
                                                columns["author"].tolist(), strict=True)]
    known = np.array(at) >= 0
    return {"both": known} | {f"rank_{name}": np.where(known[:, None], values[at], np.inf)
                              for name, values in ranks.items()}


def _part(task: tasks.Task, rows: np.ndarray) -> tasks.Task:
    """Some of the requests of a task."""
    count = np.diff(task.offsets)[rows]
    flat = np.concatenate([np.arange(task.offsets[r], task.offsets[r + 1]) for r in rows])
    return dataclasses.replace(
        task, offsets=np.append(0, np.cumsum(count)),
        **{name: getattr(task, name)[rows] for name in ("user", "view", "time_ms", "target", "repeat", "position")},
        **{name: getattr(task, name)[flat] for name in ("candidates", "rooms", "viewers")})


def lift(columns: dict[str, np.ndarray], arm: str, over: str, kept: np.ndarray) -> list[float] | None:
    """[NDCG@10 of `over`, of `arm`, lift, low, high] on some targets, with a 95 % interval by person."""
    if not kept.any():
        return None
    user, at = np.unique(columns["user"][kept], return_inverse=True)

    def sums(name: str) -> np.ndarray:
        gain = ranking_metrics.gains(columns[f"rank_{name}"][kept])["ndcg@10"]
        return np.stack([np.bincount(at, gain, user.size), np.bincount(at, minlength=user.size)], 1)

    # (The second column is the same in both arms.)
    made = bootstrap.lifts(sums(over), sums(arm), lambda total: total[:, :1] / total[:, 1:])
    return [float(made.control[0]), float(made.treatment[0]), float(made.lift[0]), float(made.low[0]),
            float(made.high[0])]


def summary(columns: dict[str, np.ndarray], from_ms: int, after_days: float, jump_ms: int | None) -> dict:
    """What is said of one world: JSON."""
    both = columns["both"]
    late = both & (columns["time_ms"] >= from_ms + after_days * DAY_MS)
    groups = {"all": both, "repeat": both & columns["repeat"], "new": both & ~columns["repeat"],
              "unseen authors": both & columns["unseen"], f"after {after_days:g} days": late,
              f"unseen, after {after_days:g} days": late & columns["unseen"]}
    arms = [*PERIODS, *HEURISTICS]
    gain = {name: ranking_metrics.gains(columns[f"rank_{name}"])["ndcg@10"] for name in arms}
    made = {"targets": {name: int(kept.sum()) for name, kept in groups.items()},
            "left out": int((~both).sum()),
            "ndcg@10": {group: {arm: float(gain[arm][kept].mean()) if kept.any() else None for arm in arms}
                        for group, kept in groups.items()},
            "streaming over": {group: {arm: lift(columns, "streaming", arm, kept) for arm in arms if arm != "streaming"}
                               for group, kept in groups.items()},
            "seconds": float(columns["seconds"]), "steps": int(columns["steps"]), "events": int(columns["events"])}
    age = np.concatenate([columns[f"age_{arm}"] for arm in ("frozen", "daily", "hourly")]) / HOUR_MS
    fall = np.concatenate([gain[arm] - gain["streaming"] for arm in ("frozen", "daily", "hourly")])
    counted = np.tile(both, 3)
    made["staleness"] = [{"hours": [low, high], "n": int(kept.sum()), "ndcg@10": float(fall[kept].mean())}
                         for low, high in zip(AGES_HOURS, AGES_HOURS[1:], strict=False)
                         if (kept := counted & (age >= low) & (age < high)).any()]
    bins = (columns["time_ms"] - from_ms) // (BIN_HOURS * HOUR_MS)
    made["curve"] = {arm: [float(gain[arm][both & (bins == b)].mean()) if (both & (bins == b)).any() else None
                           for b in range(int(bins.max()) + 1)] for arm in arms}
    if jump_ms is not None:
        made["recovery"] = {arm: recovery(gain[arm][both], columns["time_ms"][both], jump_ms) for arm in PERIODS}
    return made


def recovery(gain: np.ndarray, time_ms: np.ndarray, jump_ms: int) -> dict:
    """NDCG@10 of the two days before a jump, the twelve hours behind it, and the hours until a window of twelve hours
    is within 2 % of the former again (null: not within the log)."""
    before = gain[(time_ms >= jump_ms - 2 * DAY_MS) & (time_ms < jump_ms)].mean()
    levels = {}
    for hours in range(0, int((time_ms.max() - jump_ms) / HOUR_MS) - 11):
        window = (time_ms >= jump_ms + hours * HOUR_MS) & (time_ms < jump_ms + (hours + 12) * HOUR_MS)
        if window.any():
            levels[hours] = float(gain[window].mean())
    back = next((hours for hours, level in levels.items() if level >= 0.98 * before), None)
    return {"before": float(before), "behind": levels.get(0), "hours": back}


def format_summary(made: dict) -> str:
    """NDCG@10 by arm and group, streaming's lifts, the cost of staleness, and what it took."""
    arms, groups = [*PERIODS, *HEURISTICS], list(made["targets"])
    show = lambda value: "-" if value is None else f"{value:.4f}"  # noqa: E731
    lines = [table(["NDCG@10", *arms], [[f"{group} ({made['targets'][group]:,})", *(
        show(made["ndcg@10"][group][arm]) for arm in arms)] for group in groups]), "",
        table(["streaming over", *(arm for arm in arms if arm != "streaming")], [[group, *(
            "-" if found is None else f"{found[2]:+.1%} {interval((found[3], found[4]), '+.1%')}"
            for found in made["streaming over"][group].values())] for group in groups]), "",
        table(["age of the parameters, h", "targets", "NDCG@10 − streaming's"], [
            [f"{row['hours'][0]:g} … {row['hours'][1]:g}", f"{row['n']:,}", f"{row['ndcg@10']:+.4f}"]
            for row in made["staleness"]]), "",
        f"{made['events']:,} events and {made['steps']:,} steps in {made['seconds']:.0f} s without judging"]
    for arm, found in made.get("recovery", {}).items():
        back = "not within the log" if found["hours"] is None else f"after {found['hours']} hours"
        lines.append(f"jump, {arm}: {found['before']:.4f} before, {found['behind']:.4f} in the 12 hours behind it; "
                     f"within 2 % of the former {back}")
    return "\n".join(lines)


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    plan = StreamPlan(publish_minutes=PERIODS["streaming"], save_minutes=values.save_minutes,
                      batch_size=values.batch_size, learning_rate=values.learning_rate)
    file, report = workdir / "freshness.json", {}
    simulated = config.data.source == "simulated"
    for world in range(values.worlds if simulated else 1):
        folder, run, whole = workdir, config, None
        if simulated:
            folder, run = workdir / f"world{world}", copy.deepcopy(config)
            run.simulator.seed = config.simulator.seed + world
            folder.mkdir(parents=True, exist_ok=True)
            run, whole = first_log(run, folder, values.train_days)
        kept, asked = folder / "targets.npz", json.dumps(all_settings(run, plan=dataclasses.asdict(plan)))
        if not kept.is_file():
            columns = stream_through(run, folder, whole, plan)
            buffer = io.BytesIO()
            np.savez(buffer, settings=np.array(asked), **columns)
            write_whole(kept, buffer.getvalue())
        with np.load(kept, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
        if str(columns.pop("settings")) != asked:
            raise ValueError(f"{kept} was made with other settings: choose another --workdir, or delete it")
        from_ms = int(columns["time_ms"].min())
        jump = START_MS + round(config.simulator.jump_day * DAY_MS) if config.simulator.jump_day else None
        report[f"world {world}" if simulated else "log"] = made = summary(columns, from_ms, values.after_days, jump)
        print(f"\n{'world ' + str(world) if simulated else 'log'}\n\n{format_summary(made)}", flush=True)
        write_json(file, report)


if __name__ == "__main__":
    flags.run(main)
