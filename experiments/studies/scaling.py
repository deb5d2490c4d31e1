"""Loss against parameters (paper, Figure 4): a ladder of models on one log, and the power law through them.

    python -m experiments.studies.scaling --config=experiments/configs/small.py --workdir=W [--rungs=d32,d64,d96,d128] \
        [--config.training.steps=N]

Every rung is a supervised run of its own under W/RUNG on the same examples and the same batches, so a killed ladder
resumes where it was, and a rung that is done is not repeated. Writes W/scaling.json and W/scaling.png.

L(N) = floor + a · N^(−b) is fitted to the code loss of the main decoder over the last tenth of the logged steps, with
N as onelive_jax/presets.py counts it (without the rows of authors). Beside it stand the paper's four models.
"""

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("rungs", None, "models of the ladder, smallest first; all of them unless given")
    flags.read()

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import optimize

from data_pipelines.pictures import plots
from experiments.common import study
from experiments.common.tables import table
from onelive_jax import presets
from onelive_jax.config import Config
from onelive_jax.files import write_json
from onelive_jax.training import metrics

# Name → settings of the model that differ from the given config.
LADDER: dict[str, dict[str, object]] = {
    f"d{dim}": {"model.dim": dim, "model.num_layers": layers, "model.num_heads": heads, "model.mlp_dim": 3 * dim}
    for dim, layers, heads in ((16, 1, 2), (32, 2, 4), (64, 2, 4), (96, 3, 6), (128, 4, 8), (192, 6, 12))
}
PAPER = {0.04e9: 5.65, 0.08e9: 5.40, 0.2e9: 5.17, 0.8e9: 4.92}
LOSS = "train/loss_main"


def run_rung(config: Config, name: str, workdir: Path) -> dict:
    """Trains a model of the ladder (or finds it trained) on the log and ids under W/data: {"parameters", "loss",
    "steps", "losses"}, kept."""
    rung, folder = study.changed(config, LADDER[name], config.seed), workdir / name

    def losses() -> dict:
        params = study.train(rung, folder, config, workdir / "data").params
        lines = metrics.read(folder / "supervised")
        logged = [line for line in lines if LOSS in line]
        return {"parameters": presets.count(params), "loss": last_loss(lines),
                "steps": [line["step"] for line in logged], "losses": [line[LOSS] for line in logged]}

    return study.kept(folder / study.RESULT, rung, losses)


def last_loss(lines: list[dict], name: str = LOSS) -> float:
    """Mean of a metric over the last tenth of the lines that have it."""
    values = [line[name] for line in lines if name in line]
    return float(np.mean(values[-max(1, len(values) // 10):]))


def fit(parameters: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """floor, a, b of L(N) = floor + a · N^(−b), least squares in log(L − floor); and the largest relative error.

    The floor (0 … 0.99 of the least loss) is fitted by the relative error of L where four points or more are given, and
    is 0 otherwise: two numbers are all that three points bear.
    """
    log_n, losses = np.log(np.asarray(parameters, np.float64)), np.asarray(losses, np.float64)

    def law(floor: float) -> tuple[float, float, np.ndarray]:
        slope, intercept = np.polyfit(log_n, np.log(losses - floor), 1)
        return slope, intercept, np.abs(floor + np.exp(intercept + slope * log_n) - losses) / losses

    floor = 0.0
    if len(losses) >= 4:
        found = optimize.minimize_scalar(lambda floor: np.sum(law(floor)[2]**2), method="bounded",
                                         bounds=(0.0, 0.99 * losses.min()), options={"xatol": 1e-6})
        floor = float(found.x) if found.fun < np.sum(law(0.0)[2]**2) else 0.0  # the bounds themselves are not tried
    slope, intercept, error = law(floor)
    return {"floor": floor, "a": float(np.exp(intercept)), "b": float(-slope), "largest_error": float(error.max())}


def draw(results: dict[str, dict], law: dict[str, float]) -> Figure:
    """Loss over training steps; the last loss over parameters with the fitted law; and, on axes of their own since the
    data are others, the paper's four models with theirs."""
    figure, ((steps, ours, paper),) = plots.panels(1, 3, 14, 4.4, width_ratios=(4, 4, 3))
    for name, result in results.items():
        steps.plot(result["steps"], result["losses"], lw=1.0, label=f"{name}: {result['parameters'] / 1e6:.2f} M")
    steps.set(xlabel="step", ylabel="code loss of the main decoder")
    plots.legend_above(steps, title="parameters")
    points = {result["parameters"]: result["loss"] for result in results.values()}
    for axes, values, fitted, title in ((ours, points, law, "this ladder"),
                                        (paper, PAPER, fit(list(PAPER), list(PAPER.values())), "paper, Figure 4")):
        sizes = np.array(list(values))
        axes.plot(sizes, list(values.values()), "o", label=title)
        if fitted:
            line = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.3, 100)
            floor = f"{fitted['floor']:.2f} + " if fitted["floor"] else ""
            axes.plot(line, fitted["floor"] + fitted["a"] * line**-fitted["b"], "-",
                      label=f"{floor}{fitted['a']:.3g} · N^(−{fitted['b']:.3f})")
        axes.set(xlabel="parameters N", ylabel="last loss", xscale="log")
        plots.legend_above(axes, columns=1)
    for name, result in results.items():
        ours.annotate(name, (result["parameters"], result["loss"]), (6, 6), textcoords="offset points")
    return figure


def main(config: Config, workdir: Path) -> None:
    rungs = list(LADDER) if absl_flags.FLAGS.rungs is None else absl_flags.FLAGS.rungs
    unknown = [name for name in rungs if name not in LADDER]
    if unknown or not rungs:
        raise ValueError(f"--rungs={','.join(rungs)}: there are {', '.join(LADDER)}")
    results: dict[str, dict] = {}
    for name in rungs:
        results[name] = run_rung(config, name, workdir)
        print(f"{name}: {results[name]['parameters']:,} parameters, loss {results[name]['loss']:.4f}", flush=True)
    law = {}
    if len(results) > 1:
        law = fit(*zip(*((result["parameters"], result["loss"]) for result in results.values()), strict=True))
    paper = fit(list(PAPER), list(PAPER.values()))
    write_json(workdir / "scaling.json", {"rungs": results, "fit": law, "paper": {"points": PAPER, "fit": paper}})
    study.save_plot(draw(results, law), workdir / "scaling.png")
    laws = {"this ladder": law, "paper": paper} if law else {"paper": paper}
    print(table(["L(N) = floor + a N^-b", "floor", "a", "b", "largest error"],
                [[name, f"{f['floor']:.3f}", f"{f['a']:.4g}", f"{f['b']:.4f}", f"{f['largest_error']:.2%}"]
                 for name, f in laws.items()]))


if __name__ == "__main__":
    flags.run(main)
