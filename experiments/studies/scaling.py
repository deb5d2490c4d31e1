"""Loss against parameters (paper, Figure 4): a ladder of models on one log, and the power law through them.

    python -m experiments.studies.scaling --config=experiments/configs/demo.py --workdir=W [--rungs=d32,d64,d96,d128] \
        [--config.training.steps=N]

Every rung is a supervised run of its own under W/RUNG on the same examples and the same batches, so a killed ladder
resumes where it was, and a rung that is done is not repeated. Writes W/scaling.json and W/scaling.png.

L(N) = floor + a · N^(−b) is fitted to the code loss of the main decoder over the last tenth of the logged steps, with
N as onelive_jax/presets.py counts it (without the rows of authors). Beside it stand the paper's four models.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.ablate import changed
from experiments.common import flags
from experiments.common.log import prepare
from experiments.common.workdir import save_config
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax import presets
from onelive_jax.config import Config
from onelive_jax.training import metrics

# Name → settings of the model that differ from the given config.
LADDER: dict[str, dict[str, object]] = {
    f"d{dim}": {"model.dim": dim, "model.num_layers": layers, "model.num_heads": heads, "model.mlp_dim": 3 * dim}
    for dim, layers, heads in ((16, 1, 2), (32, 2, 4), (64, 2, 4), (96, 3, 6), (128, 4, 8), (192, 6, 12))
}
PAPER = {0.04e9: 5.65, 0.08e9: 5.40, 0.2e9: 5.17, 0.8e9: 4.92}
LOSS = "train/loss_main"


def train_variant(config: Config, settings: dict[str, object], name: str, workdir: Path) -> tuple[list[dict], int]:
    """Trains (or finds trained) `config` with some settings changed, under W/NAME, on the log and ids under W/data.

    Returns: (lines of its metrics, parameters without the rows of authors).

    Raises: FloatingPointError where the loss became NaN or infinite; its metrics up to there are on disk.
    """
    base, folder = workdir / "data", workdir / name
    log = prepare(config, base)
    train_tokenizer(config, base, log)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("data", "examples", "tokenizer", "tokenizer.json"):
        if (base / part).exists() and not (folder / part).exists():
            (shutil.copytree if (base / part).is_dir() else shutil.copy)(base / part, folder / part)
    config = changed(config, settings, config.seed)
    log = prepare(config, folder)
    _, params, _ = train_supervised(config, folder, log, train_tokenizer(config, folder, log))
    save_config(config, folder)
    return metrics.read(folder / "supervised"), presets.count(params)


def last_loss(lines: list[dict], name: str = LOSS) -> float:
    """Mean of a metric over the last tenth of the lines that have it."""
    values = [line[name] for line in lines if name in line]
    return float(np.mean(values[-max(1, len(values) // 10):]))


def fit(parameters: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """floor, a, b of L(N) = floor + a · N^(−b), least squares in log L; and the largest relative error.

    The floor is fitted where four points or more are given, and 0 otherwise: two numbers are all that three points
    bear.
    """
    log_n = np.log(np.asarray(parameters, np.float64))
    losses = np.asarray(losses, np.float64)
    floors = np.linspace(0.0, 0.99 * losses.min(), 400) if len(losses) >= 4 else np.zeros(1)
    best: dict[str, float] = {}
    for floor in floors:
        slope, intercept = np.polyfit(log_n, np.log(losses - floor), 1)
        error = np.abs(floor + np.exp(intercept + slope * log_n) - losses) / losses
        if not best or np.sum(error**2) < best["squares"]:
            best = {"floor": float(floor), "a": float(np.exp(intercept)), "b": float(-slope),
                    "largest_error": float(error.max()), "squares": float(np.sum(error**2))}
    return best


def plot(path: Path, results: dict[str, dict], law: dict[str, float]) -> None:
    """Loss over training steps; the last loss over parameters with the fitted law; and, on axes of their own since the
    data are others, the paper's four models with theirs."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    steps, ours, paper = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    for name, result in results.items():
        steps.plot(result["steps"], result["losses"], lw=1.0, label=f"{name}: {result['parameters'] / 1e6:.2f} M")
    steps.set(xlabel="step", ylabel="code loss of the main decoder", title="training")
    steps.legend(title="parameters")
    points = {result["parameters"]: result["loss"] for result in results.values()}
    for axes, values, fitted, title in ((ours, points, law, "this ladder"),
                                        (paper, PAPER, fit(list(PAPER), list(PAPER.values())), "paper, Figure 4")):
        sizes = np.array(list(values))
        axes.plot(sizes, list(values.values()), "o")
        if fitted:
            line = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3, 100)
            floor = f"{fitted['floor']:.2f} + " if fitted["floor"] else ""
            axes.plot(line, fitted["floor"] + fitted["a"] * line**-fitted["b"], "-",
                      label=f"{floor}{fitted['a']:.3g} · N^(−{fitted['b']:.3f})")
            axes.legend()
        axes.set(xlabel="parameters N", ylabel="last loss", xscale="log", title=title)
    for name, result in results.items():
        ours.annotate(name, (result["parameters"], result["loss"]), (6, 6), textcoords="offset points")
    for axes in (steps, ours, paper):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def main(config: Config, workdir: Path) -> None:
    rungs = absl_flags.FLAGS.rungs
    unknown = [name for name in rungs if name not in LADDER]
    if unknown or not rungs:
        raise ValueError(f"--rungs={','.join(rungs)}: there are {', '.join(LADDER)}")
    results: dict[str, dict] = {}
    for name in rungs:
        lines, parameters = train_variant(config, LADDER[name], name, workdir)
        logged = [line for line in lines if LOSS in line]
        results[name] = {"parameters": parameters, "loss": last_loss(lines), "steps": [line["step"] for line in logged],
                         "losses": [line[LOSS] for line in logged]}
        print(f"{name}: {parameters:,} parameters, loss {results[name]['loss']:.4f}", flush=True)
    law = {}
    if len(results) > 1:
        law = fit(*zip(*((result["parameters"], result["loss"]) for result in results.values()), strict=True))
    report = {"rungs": results, "fit": law, "paper": {"points": PAPER, "fit": fit(list(PAPER), list(PAPER.values()))}}
    (workdir / "scaling.json").write_text(json.dumps(report, indent=1))
    plot(workdir / "scaling.png", results, law)
    for name, f in (("this ladder", law), ("paper", report["paper"]["fit"])):
        if f:
            print(f"{name}: L(N) = {f['floor']:.3f} + {f['a']:.4g} N^-{f['b']:.4f}, largest error "
                  f"{f['largest_error']:.2%}")


if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("rungs", list(LADDER), "models of the ladder, smallest first")
    flags.run(main)
