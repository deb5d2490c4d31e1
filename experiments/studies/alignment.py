"""Does alignment serve people better? The whole proof, over several worlds: every seed is another platform.

    python -m experiments.studies.alignment --config=experiments/configs/alignment.py --workdir=W [--seeds=3] \
        [--requests=20000] [--losses=grpo,dpo]

For each seed, under W/seed_S: log, tokenizer, supervised model, reward model, one policy per loss; then played A/B
tests of each policy against the supervised model on the same requests, HR@128 on the strict test split, and the true
utility of every saved checkpoint on other requests, beside the reward that the reward model predicts for it. What is
finished is kept: a killed study resumes.

Writes W/study.json, W/study.png (predicted reward and true utility over training) and prints the tables.
"""

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    flags.define_config("alignment")
    absl_flags.DEFINE_integer("seeds", 3, "worlds, from config.seed on", lower_bound=1)
    absl_flags.DEFINE_integer("requests", 20_000, "requests of the final A/B tests", lower_bound=2)
    absl_flags.DEFINE_integer("watched", 4000, "requests that every checkpoint is played on", lower_bound=2)
    absl_flags.DEFINE_list("losses", ["grpo", "dpo"], "policy losses, the first against the others")
    flags.read()

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data_pipelines.pictures import plots
from data_pipelines.simulator.platform import Platform, Policy
from experiments.common import played, scoring, study
from experiments.common.log import Log, prepare
from experiments.common.tables import table
from experiments.common.workdir import save_config
from experiments.stages import ab_test
from experiments.stages.policy import load_params, train_policy
from experiments.stages.reward import train_reward
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import Config
from onelive_jax.files import write_json

FINAL, WATCHED = 1, 2  # seeds of the requests of the final A/B tests, and of those that checkpoints are watched on
HEURISTICS = ("viewers", "own_counts", "oracle")
# DPO sums over a room's tokens, has no clip and looks at two candidates: of 1/15, 1/3 and 1 of the weight of the
# others, a third served world 0 best.
WEIGHT = {"dpo": 1 / 3}
STRICT = {"ndcg@10": "NDCG@10", "hr@10": "HR@10", "hr@128": "HR@128"}


def study_seed(config: Config, workdir: Path, losses: list[str], requests: int, watched: int) -> dict:
    """All stages of one seed; returns its report, which is kept in W/seed_S/study.json.

    Raises: ValueError where that file was made with other settings.
    """
    return study.kept(workdir / "study.json", config, lambda: run_seed(config, workdir, losses, requests, watched),
                      losses=losses, requests=requests, watched=watched)


def run_seed(config: Config, workdir: Path, losses: list[str], requests: int, watched: int) -> dict:
    log = prepare(config, workdir)
    tokenizer = train_tokenizer(config, workdir, log)
    model, params, _ = train_supervised(config, workdir, log, tokenizer)
    save_config(config, workdir)
    _, _, reward = train_reward(config, workdir, log, tokenizer)
    arms, runs = {"supervised": params}, {}
    for loss in losses:
        settings = study.changed(config, {"alignment.loss": loss, "alignment.weight": config.alignment.weight
                                          * WEIGHT.get(loss, 1.0)}, config.seed)
        _, arms[loss], runs[loss] = train_policy(settings, workdir, log, tokenizer, workdir / "supervised",
                                                 f"policy_{loss}")
    platform = played.make_platform(config, log)
    policy = played.ranking(model, config, log, platform, tokenizer)
    final = platform.requests(requests, FINAL)
    outcomes = {name: platform.play(policy(values), final) for name, values in arms.items()}
    outcomes |= {name: platform.play(policy, final) for name, policy in played.heuristics(platform).items()
                 if name in HEURISTICS}
    first, *others = losses
    return {
        "seed": config.seed, "losses": losses, "reward": reward["objectives"],
        "ab": {name: ab_test.report(outcomes["supervised"], outcomes[name]) for name in outcomes
               if name != "supervised"},
        "against": {loss: ab_test.report(outcomes[loss], outcomes[first]) for loss in others},
        "strict": strict_figures(config, log, tokenizer, model, arms),
        "chosen_step": {loss: run["chosen_step"] for loss, run in runs.items()},
        "curves": {loss: watch(workdir / f"policy_{loss}", run, platform, policy, watched)
                   for loss, run in runs.items()},
    }


def strict_figures(config: Config, log: Log, tokenizer, model, arms: dict) -> dict[str, dict]:
    """The figures of `STRICT` of every arm on the strict test split."""
    task, maker = scoring.targets(log, config, "test", "strict"), log.batch_maker(tokenizer.ids, config)
    rank = scoring.make_ranker(model, config, tokenizer, log)
    result = {}
    for name, params in arms.items():
        figures = scoring.evaluate_task(rank, params, maker, task)["all"]
        result[name] = {key: figures[key] for key in ("n", *STRICT)}
    return result


def watch(folder: Path, run: dict, platform: Platform, policy: Callable[[Any], Policy], requests: int) -> list[dict]:
    """The judged steps of a run with the true utility of their checkpoints on requests of their own."""
    asked = platform.requests(requests, WATCHED)
    result = []
    for line in run["validation"]:
        outcomes = platform.play(policy(load_params(folder, line["step"])), asked)
        result.append(line | {"utility": float(outcomes.utility.mean())})
    return result


def lifts(seeds: list[dict], arm: str, name: str) -> dict:
    """A lift of an arm over the supervised model: its expectation seed by seed ("each"), the mean of what was observed,
    and in how many seeds the interval of what was observed lies above or below 0."""
    observed = [seed["ab"][arm]["observed"][name] for seed in seeds]
    return {"each": [seed["ab"][arm]["expected"][name]["lift"] for seed in seeds],
            "observed": float(np.mean([x["lift"] for x in observed])),
            "above": sum(x["low"] > 0 for x in observed), "below": sum(x["high"] < 0 for x in observed)}


def summary(seeds: list[dict]) -> dict[str, dict[str, dict]]:
    """Arm → outcome → `lifts`."""
    return {arm: {name: lifts(seeds, arm, name) for name in ab_test.ROWS} for arm in seeds[0]["ab"]}


def format_study(seeds: list[dict]) -> str:
    """Lifts of every arm over the supervised model, figures of the strict split, and the steps that are handed on."""
    total = summary(seeds)
    parts = [
        f"lift over the supervised model: its expectation, mean ± standard deviation over {len(seeds)} seeds; in "
        "brackets, seeds in which the interval of what was observed lies above / below 0\n",
        table(["", *total], [[label, *(f"{study.over_seeds(x['each'], '+.2%')} ({x['above']}/{x['below']})"
                                       for x in (rows[name] for rows in total.values()))]
                             for name, label in ab_test.ROWS.items()]) + "\n",
        table(["strict test", *STRICT.values()], [[arm, *(study.over_seeds([seed["strict"][arm][key] for seed in seeds])
                                                          for key in STRICT)] for arm in seeds[0]["strict"]]) + "\n"]
    for seed in seeds:
        parts.append(f"seed {seed['seed']}: handed on "
                     + ", ".join(f"{loss} step {step}" for loss, step in seed["chosen_step"].items()))
    for loss in seeds[0]["against"]:
        each = [seed["against"][loss]["expected"]["utility"]["lift"] for seed in seeds]
        parts.append(f"{seeds[0]['losses'][0]} over {loss}, true utility: {study.over_seeds(each, '+.2%')} ("
                     + ", ".join(f"{lift:+.2%}" for lift in each) + ")")
    return "\n".join(parts)


def draw(seeds: list[dict]) -> Figure:
    """Predicted reward (left) and true utility (right) over steps, and the chosen step; a panel per seed and loss."""
    losses = seeds[0]["losses"]
    figure, grid = plots.panels(len(seeds), len(losses), 4.6 * len(losses), 3.1 * len(seeds))
    for row, seed in zip(grid, seeds, strict=True):
        for axes, loss in zip(row, losses, strict=True):
            curve = seed["curves"][loss]
            steps = [line["step"] for line in curve]
            left = axes.plot(steps, [line["predicted_reward"] for line in curve], color=plots.BLUE, marker="o", ms=3,
                             label="predicted reward")
            other = axes.twinx()
            right = other.plot(steps, [line["utility"] for line in curve], color=plots.ORANGE, marker="s", ms=3,
                               label="true utility")
            chosen = axes.axvline(seed["chosen_step"][loss], color=plots.INK, lw=1, ls="--", label="handed on")
            axes.set(xlabel=f"policy steps (seed {seed['seed']}, {loss})", ylabel="predicted reward")
            other.set_ylabel("true utility per request")
            plots.legend_above(axes, handles=[*left, *right, chosen], fontsize=7)
    return figure


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    reports = []
    for seed in range(config.seed, config.seed + values.seeds):
        settings = study.changed(config, {"simulator.seed": seed}, seed)
        reports.append(study_seed(settings, workdir / f"seed_{seed}", values.losses, values.requests, values.watched))
    write_json(workdir / "study.json", {"summary": summary(reports), "seeds": reports})
    study.save_plot(draw(reports), workdir / "study.png")
    print(format_study(reports))
    print(f"\n{workdir / 'study.json'} and {workdir / 'study.png'}")


if __name__ == "__main__":
    flags.run(main)
