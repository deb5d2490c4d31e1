"""What scanning the blocks does to compile time and to step time.

    python -m experiments.benchmark --what=compile --report=compile.json

The target is that of a scanned stack: 24 blocks compile in at most 1.5 times the time of 6. Every compilation is a
fresh trace, with the persistent cache off; of its repeats the least counts. Beside wall-clock seconds stand those of
the processor, which other work on the machine hardly changes. A step is timed at 6 blocks: the least of its repeats.
"""

import time
from dataclasses import asdict, replace

import jax
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.problem import ModelSizes, make_model, random_batch
from experiments.benchmarks.report import row
from experiments.common.tables import table
from onelive_jax.config import Config
from onelive_jax.sharding import partitioning
from onelive_jax.training import train_state
from onelive_jax.training.supervised import make_train_step

TARGET, FEW, MANY = 1.5, 6, 24
STEPS = 20


def compile_step(sizes: ModelSizes, layers: int, scan: bool):
    """(train step of a model with `layers` blocks, abstract state, batch, (wall-clock, processor) seconds that tracing,
    lowering and compiling took); no state is allocated."""
    config = Config(model=replace(sizes.model, num_layers=layers, scan_layers=scan))
    model, tx = make_model(sizes, config.model), train_state.make_optimizer(config.training)
    batch, mesh = random_batch(np.random.default_rng(0), sizes), partitioning.make_mesh(config.mesh)
    state = train_state.abstract_state(lambda key: model.init(key, batch)["params"], tx, mesh)
    start, processor = time.perf_counter(), time.process_time()
    compiled = jax.jit(make_train_step(model, tx, config), donate_argnums=0).lower(state, batch).compile()
    return compiled, state, batch, (time.perf_counter() - start, time.process_time() - processor)


def step_seconds(compiled, abstract: train_state.TrainState, batch, steps: int = STEPS) -> float:
    """Least wall-clock seconds of a step, of `steps` of them from parameters of 0.02."""
    def fill(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jax.numpy.full(leaf.shape, 0.02 if leaf.ndim else 0, leaf.dtype)

    state, batch, taken = jax.tree.map(fill, abstract), jax.device_put(batch), []
    for _ in range(steps):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure_compiling(sizes: ModelSizes, repeats: int = 2, steps: int = STEPS) -> dict:
    """Seconds of every repeat and the ratios of 24 blocks to 6; ready for JSON."""
    jax.config.update("jax_enable_compilation_cache", False)
    seconds, processor, step = {}, {}, {}
    plans = [(scan, layers) for _ in range(repeats) for scan in (True, False) for layers in (FEW, MANY)]
    for scan, layers in tqdm(plans, desc="compile", disable=None):
        kind = "scanned" if scan else "unrolled"
        compiled, state, batch, (wall, cpu) = compile_step(sizes, layers, scan)
        seconds.setdefault(f"{kind}, {layers} blocks", []).append(wall)
        processor.setdefault(f"{kind}, {layers} blocks", []).append(cpu)
        if layers == FEW:
            step[kind] = min(step_seconds(compiled, state, batch, steps), step.get(kind, np.inf))
    ratio, cpu_ratio = ({kind: min(taken[f"{kind}, {MANY} blocks"]) / min(taken[f"{kind}, {FEW} blocks"])
                         for kind in ("scanned", "unrolled")} for taken in (seconds, processor))
    rows = [row(f"scanned: compile time of {MANY} blocks over that of {FEW}", "<=", TARGET, ratio["scanned"])]
    return {"sizes": asdict(sizes), "rows": rows, "seconds": seconds, "processor_seconds": processor, "ratios": ratio,
            "processor_ratios": cpu_ratio, "step_seconds": step}


def compiling_lines(report: dict) -> list[str]:
    """The seconds behind the ratio, by the wall clock and of the processor."""
    rows = [[name, f"{min(values):.1f}", f"{min(report['processor_seconds'][name]):.1f}"]
            for name, values in report["seconds"].items()]
    rows += [[f"{kind}, {MANY} blocks over {FEW}", f"{report['ratios'][kind]:.2f}",
              f"{report['processor_ratios'][kind]:.2f}"] for kind in report["ratios"]]
    steps = ", ".join(f"{kind} {seconds * 1e3:.1f} ms" for kind, seconds in report["step_seconds"].items())
    return [table(["", "seconds", "of the processor"], rows),
            f"a step of {FEW} blocks, batch {report['sizes']['batch']}: {steps}"]
