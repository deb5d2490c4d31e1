"""The paper's Table 4: what multi-token prediction gains in throughput and latency (python -m experiments.table4).

The decoder answers one request after the other over one catalogue of rooms on air. Weights and requests are random: the
time does not depend on them. The service around it is measured by `experiments.benchmark --what=serve_table4`.
"""

import dataclasses

import jax
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
from experiments.common.tables import table
from onelive_jax.config import Config
from onelive_jax.decoding import live_index

LAYERS = (6, 3)
# (layers, with MTP) → the paper's gain of QPS, mean and 99th percentile of latency in ms (their GPU service).
PAPER = {(6, False): (None, 6.82, 13.34), (6, True): (.620, 2.97, 5.04), (3, False): (None, 5.05, 8.48),
         (3, True): (.318, 2.25, 3.62)}


def sizes_of(config: Config, authors: int, rooms: int) -> ModelSizes:
    """The problem of a config: its model, ids and history."""
    return ModelSizes(model=config.model, history=config.data.history_items, levels=config.tokenizer.levels,
                      codes=config.tokenizer.codes, authors=authors, author_dim=config.tokenizer.dim, rooms=rooms)


def measure(sizes: ModelSizes, beams: int, batch: int, repeats: int) -> list[dict]:
    """A row each for LAYERS without and with MTP: answers a second, milliseconds of a batch. The two of a pair take
    turns, so that the load of the machine hits both."""
    rng = np.random.default_rng(0)
    index = jax.device_put(live_index.from_rooms(random_rooms(rng, sizes, sizes.rooms), sizes.codes))
    example, requests = random_batch(rng, sizes), [random_request(rng, sizes, batch) for _ in range(8)]
    rows = []
    for layers in LAYERS:
        pair = {}
        for mtp in (False, True):
            model = make_model(sizes, dataclasses.replace(sizes.model, num_layers=layers, mtp=mtp))
            pair[mtp] = caller(model, random_parameters(model, example), index, beams, requests)
        seconds = time_interleaved(pair, repeats)
        for mtp, values in seconds.items():
            rows.append({"layers": layers, "mtp": mtp, "qps": batch * len(values) / sum(values),
                         "mean_ms": 1e3 * float(np.mean(values)), "p99_ms": 1e3 * float(np.percentile(values, 99))})
    return rows


def format_table4(rows: list[dict]) -> str:
    plain = {row["layers"]: row["qps"] for row in rows if not row["mtp"]}
    cells = []
    for row in rows:
        gain, mean, p99 = PAPER[row["layers"], row["mtp"]]
        cells.append([f"{row['layers']} layers, {'+ MTP' if row['mtp'] else 'lazy decoder'}", f"{row['qps']:,.0f}",
                      f"{row['qps'] / plain[row['layers']] - 1:+.1%}" if row["mtp"] else "", f"{row['mean_ms']:.2f}",
                      f"{row['p99_ms']:.2f}", "" if gain is None else f"{gain:+.1%}", f"{mean:.2f}", f"{p99:.2f}"])
    return table(["", "QPS", "gain", "mean, ms", "p99, ms", "paper: gain", "mean, ms", "p99, ms"], cells)
