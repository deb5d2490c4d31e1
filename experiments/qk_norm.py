"""QK-norm's worth (paper, Figure 3): largest QK logit and loss with and without, at a rate where it matters.

    python -m experiments.qk_norm --config=experiments/configs/demo.py --workdir=W [--rates=0.003,0.01,0.03]

Both variants of a rate see the same examples in the same order. A run whose loss becomes NaN or infinite ends there and
is told as diverged. Resumes like the ladder of experiments.scaling; writes W/qk_norm.json and W/qk_norm.png.
"""

import json
from pathlib import Path

from absl import flags as absl_flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments import flags
from experiments.scaling import last_loss, train_variant
from onelive_jax.config import Config
from onelive_jax.training import metrics

LOGIT, LOSS = "train/largest_logit", "train/loss"


def run_variant(config: Config, norm: bool, rate: float, workdir: Path) -> dict:
    """One run: steps, largest logits and losses as logged, and whether it diverged."""
    name = f"{'with' if norm else 'without'}_{rate:g}"
    diverged = None
    try:
        lines, _ = train_variant(config, {"model.qk_norm": norm, "training.learning_rate": rate}, name, workdir)
    except FloatingPointError as error:
        lines, diverged = metrics.read(workdir / name / "supervised"), str(error).split(":")[0]
    logged = [line for line in lines if LOGIT in line]
    return {"qk_norm": norm, "rate": rate, "diverged": diverged, "steps": [line["step"] for line in logged],
            "largest_logit": [line[LOGIT] for line in logged], "loss": [line[LOSS] for line in logged],
            "last_loss": last_loss(lines, LOSS) if logged else None,
            "top_logit": max((line[LOGIT] for line in logged), default=None)}


def plot(path: Path, runs: list[dict]) -> None:
    """Largest logit and loss over steps; a row a learning rate."""
    rates = sorted({run["rate"] for run in runs})
    figure = Figure(figsize=(11, 3.6 * len(rates)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, rate in zip(figure.subplots(len(rates), 2, squeeze=False), rates, strict=True):
        for run in (run for run in runs if run["rate"] == rate):
            label = f"{'with' if run['qk_norm'] else 'without'} QK-norm{', diverged' if run['diverged'] else ''}"
            for axes, name in zip(row, ("largest_logit", "loss"), strict=True):
                axes.plot(run["steps"], run[name], label=label)
                axes.set(xlabel="step", ylabel=name.replace("_", " "), yscale="log", title=f"learning rate {rate:g}")
        row[0].legend()
    figure.savefig(path, dpi=120)


def main(config: Config, workdir: Path) -> None:
    runs = []
    for rate in sorted(map(float, absl_flags.FLAGS.rates)):
        for norm in (True, False):
            runs.append(run_variant(config, norm, rate, workdir))
            run = runs[-1]
            shown = [f"{run[name]:.3f}" if run[name] is not None else "-" for name in ("top_logit", "last_loss")]
            print(f"rate {rate:g}, {'with' if norm else 'without'} QK-norm: largest logit {shown[0]}, last loss "
                  f"{shown[1]}{', diverged at ' + run['diverged'] if run['diverged'] else ''}", flush=True)
    (workdir / "qk_norm.json").write_text(json.dumps(runs, indent=1))
    plot(workdir / "qk_norm.png", runs)


if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("rates", ["0.003", "0.01", "0.03"], "peak learning rates")
    flags.run(main)
