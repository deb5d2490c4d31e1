"""Does alignment serve people better? The whole proof, over several worlds: every seed is another platform.

    python -m experiments.studies.alignment --config=experiments/configs/alignment.py --workdir=W [--seeds=3]
        [--requests=20000] [--losses=grpo,dpo]

For each seed, under W/seed_S: log, tokenizer, supervised model, reward model, one policy a loss; then played A/B tests
of each policy against the supervised model on the same requests, HR@128 on the strict test split, and the true utility
of every saved checkpoint on other requests, beside the reward that the reward model predicts for it. Everything that
is finished is kept: a killed study goes on where it was.

Writes W/study.json, W/study.png (predicted reward against true utility over training) and prints the tables.
"""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_pipelines.simulator.platform import Platform, Policy
from experiments.common import flags, played, scoring
from experiments.common.log import Log, prepare
from experiments.common.workdir import save_config
from experiments.stages import ab_test
from experiments.stages.policy import load_params, train_policy
from experiments.stages.reward import train_reward
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import Config

logger = logging.getLogger(__name__)
FINAL, WATCHED = 1, 2  # seeds of the requests of the final A/B tests, and of those that checkpoints are watched on
HEURISTICS = ("viewers", "own_counts", "oracle")
# DPO sums over a room's tokens, has no clip and looks at two candidates: of 1/15, 1/3 and 1 of the weight of the
# others, a third served world 0 best.
WEIGHT = {"dpo": 1 / 3}
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#52606d"


def study_seed(config: Config, workdir: Path, losses: list[str], requests: int, watched: int) -> dict:
    """All stages of one seed; returns its report, which is also W/seed_S/study.json."""
    asked = {"losses": losses, "requests": requests, "watched": watched}
    file = workdir / "study.json"
    if file.is_file() and json.loads(file.read_text())["asked"] == asked:
        return json.loads(file.read_text())
    log = prepare(config, workdir)
    tokenizer = train_tokenizer(config, workdir, log)
    model, params, _ = train_supervised(config, workdir, log, tokenizer)
    save_config(config, workdir)
    _, _, reward = train_reward(config, workdir, log, tokenizer)
    arms, runs = {"supervised": params}, {}
    for loss in losses:
        settings = copy.deepcopy(config)
        settings.alignment.loss = loss
        settings.alignment.weight = config.alignment.weight * WEIGHT.get(loss, 1.0)
        _, arms[loss], runs[loss] = train_policy(settings, workdir, log, tokenizer, workdir / "supervised",
                                                 f"policy_{loss}")
    platform = played.make_platform(config, log)
    policy = played.ranking(model, config, log, platform, tokenizer)
    final = platform.requests(requests, FINAL)
    outcomes = {name: platform.play(policy(values), final) for name, values in arms.items()}
    outcomes |= {name: platform.play(policy, final) for name, policy in played.heuristics(platform).items()
                 if name in HEURISTICS}
    report = {
        "asked": asked, "seed": config.seed, "reward": reward["objectives"],
        "ab": {name: ab_test.report(outcomes["supervised"], outcomes[name]) for name in outcomes
               if name != "supervised"},
        "strict": strict_figures(config, log, tokenizer, model, arms),
        "chosen_step": {loss: run["chosen_step"] for loss, run in runs.items()},
        "curves": {loss: watch(workdir / f"policy_{loss}", run, platform, policy, watched)
                   for loss, run in runs.items()},
    }
    if len(losses) > 1:
        first, *rest = losses
        report["against"] = {loss: ab_test.report(outcomes[loss], outcomes[first]) for loss in rest}
    file.write_text(json.dumps(report, indent=1))
    return report


def strict_figures(config: Config, log: Log, tokenizer, model, arms: dict) -> dict[str, dict]:
    """NDCG@10, HR@10 and HR@128 of every arm on the strict test split."""
    task, maker = scoring.targets(log, config, "test", "strict"), log.batch_maker(tokenizer.ids, config)
    rank = scoring.make_ranker(model, config, tokenizer, log)
    result = {}
    for name, params in arms.items():
        figures = scoring.evaluate_task(rank, params, maker, task)["all"]
        result[name] = {key: figures[key] for key in ("n", "ndcg@10", "hr@10", "hr@128")}
    return result


def watch(folder: Path, run: dict, platform: Platform, policy: Callable[[Any], Policy], requests: int) -> list[dict]:
    """The judged steps of a run with the true utility of their checkpoints on requests of their own."""
    asked = platform.requests(requests, WATCHED)
    begun = folder.parent / "supervised"
    result = []
    for line in run["validation"]:
        params = load_params(begun) if line["step"] == 0 else load_params(folder, line["step"])
        outcomes = platform.play(policy(params), asked)
        result.append(line | {"utility": float(outcomes.utility.mean())})
    return result


def summary(seeds: list[dict]) -> dict:
    """Mean and spread over seeds of the expected lifts, and in how many seeds an interval lies above or below 0."""
    result = {}
    for arm in seeds[0]["ab"]:
        rows = {}
        for name in ab_test.ROWS:
            lifts = [seed["ab"][arm]["expected"][name] for seed in seeds]
            seen = [seed["ab"][arm]["observed"][name] for seed in seeds]
            values = [x["lift"] for x in lifts]
            rows[name] = {"lift": float(np.mean(values)), "spread": float(np.std(values)), "each": values,
                          "observed": float(np.mean([x["lift"] for x in seen])),
                          "above": sum(x["low"] > 0 for x in seen), "below": sum(x["high"] < 0 for x in seen)}
        result[arm] = rows
    return result


def format_study(seeds: list[dict]) -> str:
    """Tables of the study: lifts of every arm over the supervised model, and what the strict split says."""
    total, count = summary(seeds), len(seeds)
    lines = [f"lift over the supervised model, mean ± spread over {count} seeds of its expectation; in brackets seeds "
             "in which the interval of what was observed lies above / below 0", ""]
    arms = list(total)
    lines.append(f"{'':<14}" + "".join(f"{arm:>26}" for arm in arms))
    for name, label in ab_test.ROWS.items():
        cells = [total[arm][name] for arm in arms]
        lines.append(f"{label:<14}" + "".join(f"{x['lift']:>+11.2%} ±{x['spread']:6.2%} ({x['above']}/{x['below']})"
                                              .rjust(26) for x in cells))
    lines += ["", f"{'strict test':<14}" + "".join(f"{name:>12}" for name in ("NDCG@10", "HR@10", "HR@128"))]
    for arm in seeds[0]["strict"]:
        means = [np.mean([seed["strict"][arm][key] for seed in seeds]) for key in ("ndcg@10", "hr@10", "hr@128")]
        lines.append(f"{arm:<14}" + "".join(f"{mean:>12.4f}" for mean in means))
    for seed in seeds:
        steps = ", ".join(f"{loss} step {step}" for loss, step in seed["chosen_step"].items())
        lines.append(f"seed {seed['seed']}: handed on {steps}")
    for loss in seeds[0].get("against", {}):
        lifts = [seed["against"][loss]["expected"]["utility"]["lift"] for seed in seeds]
        lines.append(f"{seeds[0]['asked']['losses'][0]} over {loss}, true utility: "
                     + ", ".join(f"{lift:+.2%}" for lift in lifts))
    return "\n".join(lines)


def draw(seeds: list[dict]) -> Figure:
    """Predicted reward (left axis) and true utility (right) over steps, a panel a seed and loss; the step handed on."""
    losses = seeds[0]["asked"]["losses"]
    figure = Figure(figsize=(4.6 * len(losses), 2.9 * len(seeds)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(seeds), len(losses), squeeze=False)
    for row, seed in zip(panels, seeds, strict=True):
        for axes, loss in zip(row, losses, strict=True):
            curve = seed["curves"][loss]
            steps = [line["step"] for line in curve]
            left = axes.plot(steps, [line["predicted_reward"] for line in curve], color=BLUE, marker="o", ms=3,
                             label="predicted reward")
            other = axes.twinx()
            right = other.plot(steps, [line["utility"] for line in curve], color=ORANGE, marker="s", ms=3,
                               label="true utility")
            axes.axvline(seed["chosen_step"][loss], color=GREY, lw=1, ls="--")
            axes.set(title=f"seed {seed['seed']}, {loss}", xlabel="policy steps", ylabel="predicted reward")
            other.set_ylabel("true utility per request")
            axes.legend(handles=left + right, fontsize=7, loc="lower right")
    return figure


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    losses = [loss.strip() for loss in values.losses.split(",")]
    reports = []
    for seed in range(config.seed, config.seed + values.seeds):
        settings = copy.deepcopy(config)
        settings.seed = settings.simulator.seed = seed
        reports.append(study_seed(settings.validate(), workdir / f"seed_{seed}", losses, values.requests,
                                  values.watched))
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "study.json").write_text(json.dumps({"summary": summary(reports), "seeds": reports}, indent=1))
    draw(reports).savefig(workdir / "study.png")
    print(format_study(reports))
    print(f"\n{workdir / 'study.json'} and {workdir / 'study.png'}")


if __name__ == "__main__":
    flags.define_config(str(Path(__file__).parent / "configs" / "alignment.py"))
    absl_flags.DEFINE_integer("seeds", 3, "worlds, from config.seed on", lower_bound=1)
    absl_flags.DEFINE_integer("requests", 20_000, "requests of the final A/B tests", lower_bound=2)
    absl_flags.DEFINE_integer("watched", 4000, "requests that every checkpoint is played on", lower_bound=2)
    absl_flags.DEFINE_string("losses", "grpo,dpo", "policy losses, the first against the others")
    flags.run(main)
