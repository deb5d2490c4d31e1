"""QK-norm's worth (paper, Figure 3): largest QK logit and loss with and without, at a rate where it matters.

    python -m experiments.studies.qk_norm --config=experiments/configs/small.py --workdir=W [--rates=0.003,0.03,0.1] \
        [--seeds=0,1,2]

Both variants of a rate and seed see the same examples in the same order (--seeds counts, not --seed). A run whose loss
becomes NaN or infinite ends there and is reported as diverged. A killed study resumes. Writes W/qk_norm.json and
W/qk_norm.png.
"""

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("rates", ["0.003", "0.03", "0.1"], "peak learning rates")
    absl_flags.DEFINE_list("seeds", ["0"], "seeds, each with its own start and order of examples")
    flags.read()

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from data_pipelines.pictures import plots
from experiments.common import study
from experiments.common.tables import table
from experiments.studies.scaling import last_loss
from onelive_jax.config import Config
from onelive_jax.files import write_json
from onelive_jax.training import metrics

LOGIT, LOSS = "train/largest_logit", "train/loss"
COLOURS, STYLES = {True: plots.BLUE, False: plots.ORANGE}, ("-", "--", ":", "-.")
SMOOTHED = 20  # a batch's loss is noise for the most part: the plot shows means over this many logged steps


def variant(norm: bool) -> str:
    return f"{'with' if norm else 'without'} QK-norm"


def run_variant(config: Config, norm: bool, rate: float, seed: int, workdir: Path) -> dict:
    """One run: steps, largest logits and losses as logged, and at which step it diverged, if it did. Kept."""
    base, folder = workdir / str(seed) / "data", workdir / str(seed) / f"{'with' if norm else 'without'}_{rate:g}"
    config, plain = (study.changed(config, settings, seed)
                     for settings in ({"model.qk_norm": norm, "training.learning_rate": rate}, {}))

    def curves() -> dict:
        diverged = None
        try:
            study.train(config, folder, plain, base)
        except FloatingPointError as error:
            diverged = str(error).split(":")[0]
        lines = metrics.read(folder / "supervised")
        logged = [line for line in lines if LOGIT in line]
        return {"qk_norm": norm, "rate": rate, "seed": seed, "diverged": diverged,
                "steps": [line["step"] for line in logged], "largest_logit": [line[LOGIT] for line in logged],
                "loss": [line[LOSS] for line in logged], "last_loss": last_loss(lines, LOSS) if logged else None,
                "top_logit": max((line[LOGIT] for line in logged), default=None)}

    return study.kept(folder / study.RESULT, config, curves)


def smooth(values: list[float], width: int = SMOOTHED) -> np.ndarray:
    """Mean of each value and the `width` − 1 before it, as far as there are any."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    at = np.arange(1, len(values) + 1)
    low = np.maximum(at - width, 0)
    return (sums[at] - sums[low]) / (at - low)


def draw(runs: list[dict]) -> Figure:
    """Largest logit and loss over steps: a row per learning rate, a line style per seed."""
    rates, seeds = sorted({run["rate"] for run in runs}), sorted({run["seed"] for run in runs})
    figure, grid = plots.panels(len(rates), 2, 11, 3.2 * len(rates) + 0.4, sharex=True, sharey="col")
    for row, rate in zip(grid, rates, strict=True):
        for norm in (True, False):
            chosen = [run for run in runs if run["rate"] == rate and run["qk_norm"] == norm]
            lost = sum(run["diverged"] is not None for run in chosen)
            label = variant(norm) + (f" ({lost} of {len(chosen)} diverged)" if lost else "")
            for run in chosen:
                # The two runs of a seed saw the same batches: one style of line for both.
                style = {"color": COLOURS[norm], "lw": 1.0, "ls": STYLES[seeds.index(run["seed"]) % len(STYLES)],
                         "label": label if run is chosen[0] else None}
                row[0].plot(run["steps"], run["largest_logit"], **style)
                row[1].plot(run["steps"], smooth(run["loss"]), **style)
        row[0].set(ylabel=f"largest |QK logit|, rate {rate:g}", yscale="log")
        row[1].set(ylabel=f"training loss, mean of {SMOOTHED} logged")
        plots.legend_above(row[0], columns=2)
    for axes in grid[-1]:
        axes.set(xlabel="step")
    return figure


def format_study(runs: list[dict]) -> str:
    """One line per rate and variant: median over seeds, and the range; then what leaving QK-norm out adds to the last
    loss, seed by seed."""
    rows = []
    for rate, norm in dict.fromkeys((run["rate"], run["qk_norm"]) for run in runs):
        chosen = [run for run in runs if run["rate"] == rate and run["qk_norm"] == norm]
        cells = []
        for name in ("top_logit", "last_loss"):
            values = [run[name] for run in chosen if run[name] is not None]
            cells.append(f"{np.median(values):,.3f} ({min(values):,.3f} … {max(values):,.3f})" if values else "-")
        lost = sum(run["diverged"] is not None for run in chosen)
        rows.append([f"{rate:g}", variant(norm), *cells, f"{lost} of {len(chosen)}"])
    lines = [table(["rate", "", "largest logit", "last loss", "diverged"], rows, left=2)]
    last = {(run["rate"], run["qk_norm"], run["seed"]): run["last_loss"] for run in runs}
    for rate in dict.fromkeys(run["rate"] for run in runs):
        added = [last[rate, False, seed] - last[rate, True, seed] for r, norm, seed in last
                 if r == rate and norm and None not in (last.get((rate, False, seed)), last[rate, True, seed])]
        lines.append(f"rate {rate:g}: without QK-norm, the last loss of a seed is higher by "
                     + (", ".join(f"{value:+.3f}" for value in added) or "- (not both reached a line)"))
    return "\n".join(lines)


def main(config: Config, workdir: Path) -> None:
    values, runs = absl_flags.FLAGS, []
    for rate in sorted(map(float, values.rates)):
        for norm in (True, False):
            for seed in map(int, values.seeds):
                runs.append(run_variant(config, norm, rate, seed, workdir))
    write_json(workdir / "qk_norm.json", runs)
    study.save_plot(draw(runs), workdir / "qk_norm.png")
    print(format_study(runs))


if __name__ == "__main__":
    flags.run(main)
