"""What a run would take on a machine that is not here (python -m experiments.plan): the compiled program of a step, and
what is made of it for a chip.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.problem import ModelSizes, random_batch, random_request, random_rooms
from experiments.common import hlo
from experiments.common.tables import table
from onelive_jax import presets
from onelive_jax.config import Config, DecodingConfig, MeshConfig
from onelive_jax.decoding import live_index
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.model.onelive import OneLive
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.tokenizer import kmeans
from onelive_jax.training import flops, supervised, train_state

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device, from the vendor's public data sheet.

    Attributes:
      peak: dense bfloat16 FLOP/s. exact: float32 FLOP/s (TPUs make a float32 product of six bfloat16 ones).
      memory: bytes. bandwidth: bytes/s of memory.
      link: bytes/s that it can send to its neighbours; `near`: devices that reach each other so (a TPU slice, the GPUs
        of a host). wide: bytes/s that it can send beyond them.
      tpu: whether it is a TPU, where k-means sums its clusters by a matrix product.
    """

    peak: float
    exact: float
    memory: float
    bandwidth: float
    link: float
    near: int
    wide: float
    tpu: bool = False


# cloud.google.com/tpu/docs/v5e, /v6e (interconnect 1,600 and 3,584 Gbit/s a chip, both directions together; slices of
# up to 256 chips); nvidia.com data sheets of H100 SXM and H200 SXM (NVLink 900 GB/s, both directions together; 8 a
# host; one 400 Gbit/s adapter a GPU between hosts, as in the reference systems). TPU slices are joined by the data
# centre's network: 200 Gbit/s a host of 8 (v5e, v6e) are taken.
CHIPS = {
    "v5e": Chip(197e12, 197e12 / 6, 16e9, 819e9, 100e9, 256, 3e9, tpu=True),
    "v6e": Chip(918e12, 918e12 / 6, 32e9, 1640e9, 224e9, 256, 3e9, tpu=True),
    "H100": Chip(989e12, 67e12, 80e9, 3350e9, 450e9, 8, 50e9),
    "H200": Chip(989e12, 67e12, 141e9, 4800e9, 450e9, 8, 50e9),
}


@dataclass(frozen=True)
class Problem:
    """What is planned besides the model: items of a history, rooms contrasted with, authors, rooms on air, beams."""

    batch: int
    history: int = 256
    contrasted: int = 128
    authors: int = 4_000_000
    author_dim: int = 64
    rooms: int = 16_384
    beams: int = 128
    requests: int = 256


def parse_mesh(text: str) -> MeshConfig:
    """ "data:64,fsdp:4,tensor:1" → MeshConfig; an axis that is not named is 1. Raises ValueError for anything else."""
    sizes = dict.fromkeys(partitioning.MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition(":")
        if axis not in sizes or not size.isdigit() or int(size) < 1:
            raise ValueError(f"--mesh={text}: {part!r} is not AXIS:SIZE with an axis of "
                             f"{', '.join(partitioning.MESH_AXES)} and a size of 1 or more")
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def sizes_of(config: Config, problem: Problem) -> ModelSizes:
    return ModelSizes(model=config.model, history=problem.history, levels=config.tokenizer.levels,
                 codes=config.tokenizer.codes, authors=problem.authors, author_dim=problem.author_dim,
                 batch=1, contrasted=problem.contrasted)


def abstract(tree: Any, rows: int, sharding: Any) -> Any:
    """The arrays of one example as `jax.ShapeDtypeStruct`s of `rows` of them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *np.shape(x)[1:]), x.dtype, sharding=sharding), tree)


def make_model(config: Config, problem: Problem, mesh: jax.sharding.Mesh) -> OneLive:
    return on_mesh(OneLive(config.model, config.tokenizer.levels, config.tokenizer.codes, problem.authors,
                           problem.author_dim), mesh)


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of abstract arrays with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def plan_training(config: Config, problem: Problem, mesh: jax.sharding.Mesh) -> dict:
    """The supervised step: state and batch sharded, state donated."""
    model, tx = make_model(config, problem, mesh), train_state.make_optimizer(config.training)
    example = random_batch(np.random.default_rng(0), sizes_of(config, problem))
    state = train_state.abstract_state(lambda key: model.init(key, example)["params"], tx, mesh)
    shardings, rows = train_state.shardings(state), partitioning.batch_sharding(mesh)
    step = jax.jit(supervised.make_train_step(model, tx, config), donate_argnums=0, in_shardings=(shardings, rows),
                   out_shardings=(shardings, partitioning.replicated(mesh)))
    per_example = flops.training_flops(model, state.params, example, problem.batch)
    return compile_and_count(step, (state, abstract(example, problem.batch, rows)), mesh) | {
        "what": "train", "parameters": presets.count(state.params), "all_parameters": presets.count(state.params, True),
        "parameter_bytes": device_bytes(state.params), "optimizer_bytes": device_bytes(state.opt_state),
        "flops_per_example": per_example, "flops_per_device": per_example * problem.batch / mesh.size,
        "examples": problem.batch}


def plan_decoding(config: Config, problem: Problem, mesh: jax.sharding.Mesh) -> dict:
    """A batch of requests against one catalogue of rooms; one main decoder pass and one module a level a beam."""
    sizes, rng = sizes_of(config, problem), np.random.default_rng(0)
    model = make_model(config, problem, mesh)
    example = random_batch(rng, sizes)
    tx = train_state.make_optimizer(config.training)
    params = train_state.abstract_state(lambda key: model.init(key, example)["params"], tx, mesh).params
    everywhere = partitioning.replicated(mesh)
    rooms = abstract(random_rooms(rng, sizes, 1), problem.rooms, everywhere)
    index = jax.eval_shape(partial(live_index.from_rooms, num_codes=config.tokenizer.codes), rooms)
    index = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), index)
    requests = abstract(random_request(rng, sizes, 1), problem.requests, partitioning.batch_sharding(mesh))
    decoding = DecodingConfig(beams=problem.beams, capacity=problem.rooms)
    recommend = make_recommender(model, decoding)
    per_request = flops.decoding_flops(model, decoding, params, requests, index, problem.requests)
    return compile_and_count(recommend, (params, requests, index), mesh) | {
        "what": "decode", "parameters": presets.count(params), "all_parameters": presets.count(params, True),
        "parameter_bytes": device_bytes(params), "optimizer_bytes": 0, "flops_per_example": per_request,
        "flops_per_device": per_request * problem.requests / mesh.size, "examples": problem.requests}


def plan_kmeans(config: Config, problem: Problem, mesh: jax.sharding.Mesh, tpu: bool) -> dict:
    """One Lloyd iteration of one level over all authors, as a TPU (clusters summed by a product with a one-hot matrix)
    or a GPU (by a scatter) would be given it."""
    codes, dim, devices = config.tokenizer.codes, config.tokenizer.dim, mesh.shape["data"] * mesh.shape["fsdp"]
    size = min(kmeans.ACCELERATOR_SCORES // codes, -(-problem.authors // devices)) * devices
    blocks = -(-problem.authors // size)
    spec = jax.sharding.PartitionSpec(None, partitioning.batch_sharding(mesh).spec[0])
    points = jax.ShapeDtypeStruct((blocks, size, dim), jnp.float32, sharding=jax.NamedSharding(mesh, spec))
    everywhere = partitioning.replicated(mesh)
    centroids = jax.ShapeDtypeStruct((codes, dim), jnp.float32, sharding=everywhere)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    step = jax.jit(lambda points, centroids, count: kmeans.lloyd(kmeans.Blocks(points, count), centroids, 1,
                                                                 one_hot=tpu))
    per_point = 2 * codes * (dim + 1) + (2 * codes * dim if tpu else 0)  # distances; sums
    return compile_and_count(step, (points, centroids, count), mesh) | {
        "what": "kmeans", "parameters": codes * dim, "all_parameters": codes * dim,
        "parameter_bytes": device_bytes(centroids), "optimizer_bytes": 0, "flops_per_example": per_point,
        "flops_per_device": per_point * problem.authors / devices, "examples": problem.authors, "tpu": tpu}


def compile_and_count(function: Any, arguments: tuple, mesh: jax.sharding.Mesh) -> dict:
    """Compiles ahead of time; memory and traffic of the program, a device each."""
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    memory, sent = compiled.memory_analysis(), hlo.traffic(compiled.as_text(), mesh.size)
    return {"devices": mesh.size, "mesh": dict(mesh.shape), "compile_seconds": time.perf_counter() - start,
            "argument_bytes": memory.argument_size_in_bytes, "activation_bytes": memory.temp_size_in_bytes,
            "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "touched_bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes
            + 2 * memory.temp_size_in_bytes, "sent_bytes": sent.sent,
            "collectives": sent.calls, "largest": [
                {"kind": kind, "operation": name, "bytes": size} for (kind, name), size in
                sorted(sent.sources.items(), key=lambda item: -item[1])[:5]], "unknown_loops": sent.unknown_loops}


def on_chip(figures: dict, chip: Chip, efficiency: float, link_efficiency: float) -> dict:
    """Seconds of a step on one kind of chip, whether it fits, and the share of the peak that remains."""
    peak = chip.exact if figures["what"] == "kmeans" else chip.peak
    compute, memory = figures["flops_per_device"] / (peak * efficiency), figures["touched_bytes"] / chip.bandwidth
    # What leaves the neighbourhood is not counted by itself: a larger mesh is limited by the slower link throughout.
    link = chip.link if figures["devices"] <= chip.near else chip.wide
    moving = sum(figures["sent_bytes"].values()) / (link * link_efficiency)
    needed = figures["argument_bytes"] + figures["activation_bytes"] + figures["output_bytes"]
    seconds = max(compute, memory) + moving
    return {"compute_seconds": compute, "memory_seconds": memory, "collective_seconds": moving, "seconds": seconds,
            "seconds_if_overlapped": max(compute, memory, moving), "examples_per_second": figures["examples"] / seconds,
            "needed_bytes": needed, "fits": needed <= chip.memory,
            "mfu": figures["flops_per_device"] / (seconds * peak)}


def chips_of(figures: dict) -> dict[str, Chip]:
    """The chips that would run the planned program: all, unless it is made for TPUs or for others."""
    return {name: chip for name, chip in CHIPS.items() if figures.get("tpu", chip.tpu) == chip.tpu}


def as_text(figures: dict, efficiency: float, link_efficiency: float) -> str:
    """One plan as text."""
    def gib(size: float) -> str:
        return f"{size / GIB:.2f} GiB"

    mesh = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    sent = figures["sent_bytes"]
    rows = [["parameters", f"{figures['parameters']:,}", f"{figures['all_parameters']:,} with the rows of authors"],
            *([f"a device: {what}", gib(figures[f"{name}_bytes"]), note] for what, name, note in (
                ("parameters", "parameter", ""), ("optimizer", "optimizer", ""),
                ("arguments", "argument", "parameters, optimizer, batch"),
                ("activations", "activation", "temporaries, gradients included"))),
            ["a device sends", gib(sum(sent.values())), ", ".join(
                f"{kind} {size / GIB:.2f} ({figures['collectives'][kind]:,} of them)" for kind, size in sent.items())],
            *(["", gib(largest["bytes"]), f"{largest['kind']} of {largest['operation'][-78:]}"]
              for largest in figures["largest"]),
            ["FLOPs per example", f"{figures['flops_per_example'] / 1e9:.3f} GFLOP", ""],
            ["FLOPs per device and step", f"{figures['flops_per_device'] / 1e12:.3f} TFLOP",
             f"of {figures['examples']:,} examples"]]
    lines = [f"{figures['what']}: {figures['devices']} devices ({mesh}), compiled in "
             f"{figures['compile_seconds']:.0f} s", table(["", "", ""], rows, left=3)]
    if figures["unknown_loops"]:
        lines.append(f"{figures['unknown_loops']} loops with collectives have no known length: counted once")
    cells = []
    for name, chip in chips_of(figures).items():
        r = on_chip(figures, chip, efficiency, link_efficiency)
        times = ("seconds", "compute_seconds", "memory_seconds", "collective_seconds", "seconds_if_overlapped")
        cells.append([name, *(f"{r[key] * 1e3:.1f}" for key in times), f"{r['examples_per_second']:,.0f}",
                      f"{r['mfu']:.0%}", "yes" if r["fits"] else f"NO: {chip.memory / 1e9:.0f} GB"])
    lines.append(table([f"at {efficiency:.0%} of the peak, {link_efficiency:.0%} of the links", "ms", "compute",
                        "memory", "collectives", "overlapped", "examples/s", "MFU", "fits"], cells))
    return "\n".join(lines)


PLANS = {"train": (plan_training,), "kmeans": (partial(plan_kmeans, tpu=True), partial(plan_kmeans, tpu=False)),
         "decode": (plan_decoding,)}
