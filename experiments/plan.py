"""What a run would take on a machine that is not here: memory, traffic and time, from the program that would run.

    python -m experiments.plan --preset=0.8b --mesh=data:64,fsdp:4,tensor:1 --batch=16384
    python -m experiments.plan --preset=0.8b --mesh=data:64,fsdp:4,tensor:1 --what=kmeans,decode

The real step is compiled for as many fake CPU devices as the mesh has; nothing is allocated. Memory and collectives are
those of that program, a device each. A CPU's compiler widens bfloat16 products and does not fuse as an accelerator's
does: activations and traffic are upper bounds. FLOPs are those of the matrix products (onelive_jax/training/flops.py).
K-means sums its clusters by a matrix product on TPUs and by a scatter on GPUs: each is planned, for its own chips.

The step time is the larger of FLOPs / (peak x --efficiency) and memory traffic / bandwidth, plus bytes sent /
(interconnect x --link_efficiency), as if those did not overlap; the largest of the three is what overlap could reach.
Memory traffic is that of a program which reads its arguments once, writes its results once (parameters and moments are
both), and writes and reads its temporaries, gradients among them, once: the least for the buffers of the compiled
program, but for tables of which only some rows are read (decode). It is an estimate and not a measurement.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from absl import logging as absl_logging

from experiments.benchmarks.problem import Sizes, random_batch, random_request, random_rooms
from experiments.common import hlo
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


def sizes_of(config: Config, problem: Problem) -> Sizes:
    return Sizes(model=config.model, history=problem.history, levels=config.tokenizer.levels,
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
    # What leaves the neighbourhood is not told apart: a mesh larger than it is limited by the slower link throughout.
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
    gib = lambda name: f"{figures[name] / GIB:.2f} GiB"  # noqa: E731
    mesh = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    lines = [
        f"{figures['what']}: {figures['devices']} devices ({mesh}), compiled in {figures['compile_seconds']:.0f} s",
        f"  parameters                 {figures['parameters']:,} (with the rows of authors "
        f"{figures['all_parameters']:,})",
        f"  a device: parameters       {gib('parameter_bytes')}",
        f"            optimizer        {gib('optimizer_bytes')}",
        f"            arguments        {gib('argument_bytes')} (parameters, optimizer, batch)",
        f"            activations      {gib('activation_bytes')} (temporaries, gradients included)",
        f"            sends            {sum(figures['sent_bytes'].values()) / GIB:.2f} GiB: " + (", ".join(
            f"{kind} {sent / GIB:.2f} ({figures['collectives'][kind]:,} of them)"
            for kind, sent in figures["sent_bytes"].items()) or "nothing"),
        *(f"              {largest['bytes'] / GIB:.2f} GiB {largest['kind']} of {largest['operation'][-78:]}"
          for largest in figures["largest"]),
        f"  FLOPs                      {figures['flops_per_example'] / 1e9:.3f} GFLOP an example, "
        f"{figures['flops_per_device'] / 1e12:.3f} TFLOP a device and step of {figures['examples']:,} examples",
        f"  at {efficiency:.0%} of the peak, {link_efficiency:.0%} of the links:",
    ]
    if figures["unknown_loops"]:
        lines.insert(-1, f"  {figures['unknown_loops']} loops with collectives have no known length: counted once")
    for name, chip in chips_of(figures).items():
        r = on_chip(figures, chip, efficiency, link_efficiency)
        fits = "fits" if r["fits"] else f"DOES NOT FIT in {chip.memory / 1e9:.0f} GB"
        lines.append(f"    {name:<5} {r['seconds'] * 1e3:>9.1f} ms (compute {r['compute_seconds'] * 1e3:.1f}, "
                     f"memory {r['memory_seconds'] * 1e3:.1f}, collectives {r['collective_seconds'] * 1e3:.1f}; "
                     f"overlapped {r['seconds_if_overlapped'] * 1e3:.1f}), {r['examples_per_second']:,.0f} examples/s, "
                     f"MFU {r['mfu']:.0%}, {fits}")
    return "\n".join(lines)


PLANS = {"train": (plan_training,), "kmeans": (partial(plan_kmeans, tpu=True), partial(plan_kmeans, tpu=False)),
         "decode": (plan_decoding,)}


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    try:
        mesh_config = parse_mesh(values.mesh)
        config = presets.preset(values.preset)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    unknown = set(values.what) - PLANS.keys()
    if len(argv) > 1 or unknown:
        raise app.UsageError(f"--what={','.join(values.what)}: there are {', '.join(PLANS)}" if unknown else
                             f"unexpected argument {argv[1]!r}")
    absl_logging.set_verbosity(absl_logging.ERROR)
    devices = mesh_config.data * mesh_config.fsdp * mesh_config.tensor
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)  # before any device is asked for
    config.training.batch_size, config.training.accumulate = values.batch, values.accumulate
    config.model.remat = values.remat or config.model.remat
    if values.author_negatives is not None:
        config.model.author_negatives = values.author_negatives
    rows = mesh_config.data * mesh_config.fsdp
    if values.batch % (rows * values.accumulate) or values.requests % rows:
        raise app.UsageError(f"--batch={values.batch} and --requests={values.requests} must be multiples of data x "
                             f"fsdp = {rows} (the batch of {rows} x --accumulate={values.accumulate})")
    problem = Problem(batch=values.batch, history=values.history, authors=values.authors, rooms=values.rooms,
                      beams=values.beams, requests=values.requests)
    mesh, report = partitioning.make_mesh(mesh_config), []
    for plan in (plan for what in values.what for plan in PLANS[what]):
        figures = plan(config, problem, mesh)
        print(as_text(figures, values.efficiency, values.link_efficiency), flush=True)
        report.append(figures | {"chips": {name: on_chip(figures, chip, values.efficiency, values.link_efficiency)
                                           for name, chip in chips_of(figures).items()}})
    if values.report:
        settings = {"preset": values.preset, "problem": asdict(problem), "model": asdict(config.model),
                    "efficiency": values.efficiency, "link_efficiency": values.link_efficiency}
        Path(values.report).write_text(json.dumps({"settings": settings, "plans": report}, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_enum("preset", "0.8b", list(presets.PRESETS), "model")
    flags.DEFINE_string("mesh", "data:64,fsdp:4,tensor:1", "devices along each axis")
    flags.DEFINE_integer("batch", 16_384, "examples of a step, over all devices", lower_bound=1)
    flags.DEFINE_integer("accumulate", 1, "microbatches of a step", lower_bound=1)
    flags.DEFINE_enum("remat", None, ["none", "dots", "full"], "rematerialisation; the preset's unless given")
    flags.DEFINE_list("what", ["train"], "what is planned: train, kmeans, decode")
    flags.DEFINE_integer("history", 256, "items of a history", lower_bound=1)
    flags.DEFINE_integer("authors", 4_000_000, "authors of the platform", lower_bound=1)
    flags.DEFINE_integer("author_negatives", None, "config.model.author_negatives; the preset's unless given",
                         lower_bound=0)
    flags.DEFINE_integer("rooms", 16_384, "rooms on air (decode)", lower_bound=2)
    flags.DEFINE_integer("beams", 128, "beam width (decode)", lower_bound=1)
    flags.DEFINE_integer("requests", 256, "requests answered together, over all devices (decode)", lower_bound=1)
    flags.DEFINE_float("efficiency", 0.4, "share of the peak that the products reach", lower_bound=0.01,
                       upper_bound=1.0)
    flags.DEFINE_float("link_efficiency", 0.7, "share of the interconnect that is reached", lower_bound=0.01,
                       upper_bound=1.0)
    flags.DEFINE_string("report", None, "JSON file for the figures")
    app.run(main)
