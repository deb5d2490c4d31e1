"""What the model costs: examples per second, milliseconds per decode, and what multi-token prediction gains.

    python -m experiments.benchmark --what=train
    python -m experiments.benchmark --what=decode

The targets are for two CPU cores that do nothing else. Weights and requests are random; the time of a step does not
depend on them.

Axes: B batch, T history items, L levels, K codes, N rooms on air, D model width.
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.problem import (
    ModelSizes,
    caller,
    make_model,
    random_batch,
    random_parameters,
    random_request,
    random_rooms,
    time_interleaved,
)
from experiments.benchmarks.report import row
from experiments.common.tables import table
from onelive_jax.config import Config
from onelive_jax.decoding import live_index
from onelive_jax.sharding import partitioning
from onelive_jax.training import flops, train_state
from onelive_jax.training.supervised import make_train_step

TRAIN_TARGET = 800.0  # examples a second
MODEL_TARGET, BLOCKS_TARGET = 4_400_000, 3_000_000  # parameters: a smaller model would meet the others too easily


def count_parameters(params: Any) -> tuple[int, int]:
    """(all parameters, those in decoder blocks: the main decoder's and one in each multi-token-prediction module)."""
    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    modules = [value["block"] for name, value in params.items() if name.startswith("mtp")]
    return count(params), count(params["decoder"]) + count(modules)


def block_limit(layers: int, beams: int, levels: int) -> float:
    """Block applications without multi-token prediction over those with it: (N + (L−1)·N·W) / (N + (L−1)·W).

    What both share (context, code scores, search) keeps a measurement below it; that a block of one position needs no
    self-attention scores, and a block over a cache does, lifts it.
    """
    return (layers + (levels - 1) * layers * beams) / (layers + (levels - 1) * beams)


def matmul_rates(sizes: ModelSizes, repeats: int) -> dict[str, dict[str, float]]:
    """GFLOP/s of float32 matrix products alone: "m x k x n" → {"median": …, "best": …}. The first is the largest."""
    D, side = sizes.model.dim, sizes.square
    shapes = [(side, side, side), (sizes.batch * sizes.levels, D, sizes.model.mlp_dim),
              (sizes.batch * sizes.levels, D, D), (sizes.batch * sizes.history, D, D),
              (sizes.batch, sizes.author_dim, sizes.authors)]
    product = jax.jit(jnp.matmul)
    rates = {}
    for m, k, n in shapes:
        a, b = jnp.ones((m, k)), jnp.ones((k, n))
        seconds = time_interleaved({"": lambda a=a, b=b: product(a, b).block_until_ready()}, repeats)[""]
        giga = 2 * m * k * n / 1e9
        rates[f"{m} x {k} x {n}"] = {"median": giga / statistics.median(seconds), "best": giga / min(seconds)}
    return rates


def measure_training(sizes: ModelSizes, repeats: int = 12, steps: int = 20) -> dict:
    """Whole steps (batch put on the device, loss, gradient, AdamW), `steps` in a row a repeat."""
    config = Config(model=sizes.model)
    config.training.batch_size = sizes.batch
    model, tx = make_model(sizes, sizes.model), train_state.make_optimizer(config.training)
    mesh = partitioning.make_mesh(config.mesh)
    rng = np.random.default_rng(0)
    batches = [random_batch(rng, sizes) for _ in range(8)]
    params = random_parameters(model, batches[0])
    parameter_rows = _parameter_rows(params)
    state = jax.device_put(train_state.TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(0)),
                           partitioning.replicated(mesh))
    start = time.perf_counter()
    step = jax.jit(make_train_step(model, tx, config), donate_argnums=0).lower(
        state, partitioning.put_batch(batches[0], mesh)).compile()
    compile_seconds = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        for i in range(steps):
            state, metrics = step(state, partitioning.put_batch(batches[i % len(batches)], mesh))
        jax.block_until_ready((state.params, metrics))

    seconds = [total / steps for total in time_interleaved({"": run}, repeats)[""]]
    rates = matmul_rates(sizes, 30)
    examples = [sizes.batch / s for s in seconds]
    per_example = flops.training_flops(model, params, batches[0], sizes.batch)
    per_second = statistics.median(examples) * per_example / 1e9
    return {
        "rows": [row("training, examples/s", ">=", TRAIN_TARGET, statistics.median(examples)), *parameter_rows],
        "step_seconds": seconds,
        "examples_per_second_best": max(examples),
        "compile_seconds": compile_seconds,
        "flops_per_example": per_example,
        "step_gflops_per_second": per_second,
        "matmul_gflops_per_second": rates,
        "share_of_matmul_rate": {shape: per_second / rate["median"] for shape, rate in rates.items()},
    }


def measure_decoding(sizes: ModelSizes, repeats: int = 200) -> dict:
    """Request arrays on the host in, ranked rooms on the host out; one index of `rooms` rooms shared by all."""
    rng = np.random.default_rng(0)
    index = jax.device_put(live_index.from_rooms(random_rooms(rng, sizes, sizes.rooms), sizes.codes))
    example = random_batch(rng, sizes)
    model = make_model(sizes, sizes.model)
    params = random_parameters(model, example)
    rows, milliseconds = [], {}
    for beams, batch, limit in sizes.searches:
        call = caller(model, params, index, beams, [random_request(rng, sizes, batch) for _ in range(8)])
        name = f"beam {beams}, batch {batch}, ms"
        milliseconds[name] = [s * 1e3 for s in time_interleaved({"": call}, repeats)[""]]
        rows.append(row(name, "<=", limit, statistics.median(milliseconds[name])))
    gains = {}
    beams, batch = sizes.gain_search
    requests = [random_request(rng, sizes, batch) for _ in range(4)]
    for layers, least in sizes.gains:
        pair = {}
        for name, mtp in (("with", True), ("without", False)):
            other = make_model(sizes, replace(sizes.model, num_layers=layers, mtp=mtp))
            pair[name] = caller(other, random_parameters(other, example), index, beams, requests)
        seconds = time_interleaved(pair, max(1, repeats // 10))
        gains[f"{layers} layers"] = {name: [s * 1e3 for s in values] for name, values in seconds.items()}
        # The two of a pair ran one after the other: their ratio is less moved by the load than that of two medians.
        ratio = statistics.median(b / a for a, b in zip(seconds["with"], seconds["without"], strict=True))
        rows.append(row(f"multi-token prediction, {layers} layers, beam {beams}, batch {batch}: times the throughput",
                        ">=", least, ratio, block_limit(layers, beams, sizes.levels)))
    rows += _parameter_rows(params)
    return {"rows": rows, "milliseconds": milliseconds, "gain_milliseconds": gains}


# The report.


def _parameter_rows(params: Any) -> list[dict]:
    parameters, in_blocks = count_parameters(params)
    return [row("parameters", ">=", MODEL_TARGET, parameters),
            row("of which in decoder blocks", ">=", BLOCKS_TARGET, in_blocks)]


def training_lines(report: dict) -> list[str]:
    """What the rows of `measure_training` do not say: a step beside matrix products alone."""
    rates = [[shape, f"{rate['median']:.0f}", f"{report['share_of_matmul_rate'][shape]:.0%}"]
             for shape, rate in report["matmul_gflops_per_second"].items()]
    return [f"a step takes {statistics.median(report['step_seconds']) * 1e3:.1f} ms and compiles in "
            f"{report['compile_seconds']:.1f} s; {report['flops_per_example'] / 1e6:.1f} MFLOP per example: "
            f"{report['step_gflops_per_second']:.0f} GFLOP/s", table(["matrix product", "GFLOP/s", "the step reaches"],
                                                                     rates)]
