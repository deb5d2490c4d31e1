"""How long the train step takes to compile, by number of blocks, with and without scanned layers.

    python -m experiments.benchmark --what=compile --report=compile.json

The target is that of a scanned stack: 24 blocks compile in at most 1.5 times the time of 6. Every figure is the
least of its repeats, each in a fresh trace; the persistent compile cache is off.
"""

import time
from dataclasses import asdict, replace

import jax
import numpy as np

from experiments import benchmark
from onelive_jax.config import Config
from onelive_jax.training import partitioning, train_state
from onelive_jax.training.supervised import make_train_step

TARGET, FEW, MANY = 1.5, 6, 24


def compile_seconds(sizes: benchmark.Sizes, layers: int, scan: bool) -> float:
    """Seconds to trace, lower and compile the train step of a model with `layers` blocks; nothing is allocated."""
    config = Config(model=replace(sizes.model, num_layers=layers, scan_layers=scan))
    model, tx = benchmark.make_model(sizes, config.model), train_state.make_optimizer(config.training)
    batch, mesh = benchmark.random_batch(np.random.default_rng(0), sizes), partitioning.make_mesh(config.mesh)
    state = train_state.abstract_state(lambda key: model.init(key, batch)["params"], tx, mesh)
    start = time.perf_counter()
    jax.jit(make_train_step(model, tx, config), donate_argnums=0).lower(state, batch).compile()
    return time.perf_counter() - start


def make_report(sizes: benchmark.Sizes, repeats: int = 2) -> dict:
    """Seconds of every repeat and the ratios of 24 blocks to 6; ready for JSON."""
    jax.config.update("jax_enable_compilation_cache", False)
    before, seconds = benchmark.environment(), {}
    for _ in range(repeats):
        for scan in (True, False):
            for layers in (FEW, MANY):
                name = f"{'scanned' if scan else 'unrolled'}, {layers} blocks"
                seconds.setdefault(name, []).append(compile_seconds(sizes, layers, scan))
    ratio = {kind: min(seconds[f"{kind}, {MANY} blocks"]) / min(seconds[f"{kind}, {FEW} blocks"])
             for kind in ("scanned", "unrolled")}
    rows = [benchmark.row(f"scanned: compile time of {MANY} blocks over that of {FEW}", "<=", TARGET, ratio["scanned"])]
    return {"what": "compile", "before": before, "after": benchmark.environment(), "sizes": asdict(sizes), "rows": rows,
            "seconds": seconds, "ratios": ratio}


def as_text(report: dict) -> str:
    """The ratios, and the seconds behind them."""
    lines = [f"{name:<22}{min(values):>8.1f} s" for name, values in report["seconds"].items()]
    target, ratios, after = report["rows"][0], report["ratios"], report["after"]
    lines.append(f"{MANY} blocks over {FEW}: scanned {ratios['scanned']:.2f} (target {target['sense']} "
                 f"{target['target']}{'' if target['met'] else ', missed'}), unrolled {ratios['unrolled']:.2f}")
    lines.append(f"{after['device']}, {after['cores']} cores, load {report['before']['load_average']:.1f} before, "
                 f"{after['load_average']:.1f} after, jax {after['versions']['jax']}, {after['date']}")
    return "\n".join(lines)
