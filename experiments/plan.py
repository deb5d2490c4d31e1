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

from dataclasses import asdict
from pathlib import Path

from absl import app
from absl import flags as absl_flags

from experiments.common import flags


def main() -> None:
    values = absl_flags.FLAGS
    if unknown := set(values.what) - {"train", "kmeans", "decode"}:
        raise app.UsageError(f"--what={','.join(sorted(unknown))}: there are train, kmeans, decode")
    import jax

    from experiments.benchmarks.planning import PLANS, Problem, as_text, chips_of, on_chip, parse_mesh
    from onelive_jax import presets
    from onelive_jax.files import write_json
    from onelive_jax.sharding import partitioning

    mesh_config, config = parse_mesh(values.mesh), presets.preset(values.preset)
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
        write_json(Path(values.report), {"settings": settings, "plans": report})


if __name__ == "__main__":
    absl_flags.DEFINE_enum("preset", "0.8b", flags.PRESETS, "model")
    absl_flags.DEFINE_string("mesh", "data:64,fsdp:4,tensor:1", "devices along each axis")
    absl_flags.DEFINE_integer("batch", 16_384, "examples of a step, over all devices", lower_bound=1)
    absl_flags.DEFINE_integer("accumulate", 1, "microbatches of a step", lower_bound=1)
    absl_flags.DEFINE_enum("remat", None, ["none", "dots", "full"], "rematerialisation; the preset's unless given")
    absl_flags.DEFINE_list("what", ["train"], "what is planned: train, kmeans, decode")
    absl_flags.DEFINE_integer("history", 256, "items of a history", lower_bound=1)
    absl_flags.DEFINE_integer("authors", 4_000_000, "authors of the platform", lower_bound=1)
    absl_flags.DEFINE_integer("author_negatives", None, "config.model.author_negatives; the preset's unless given",
                         lower_bound=0)
    absl_flags.DEFINE_integer("rooms", 16_384, "rooms on air (decode)", lower_bound=2)
    absl_flags.DEFINE_integer("beams", 128, "beam width (decode)", lower_bound=1)
    absl_flags.DEFINE_integer("requests", 256, "requests answered together, over all devices (decode)", lower_bound=1)
    absl_flags.DEFINE_float("efficiency", 0.4, "share of the peak that the products reach", lower_bound=0.01,
                       upper_bound=1.0)
    absl_flags.DEFINE_float("link_efficiency", 0.7, "share of the interconnect that is reached", lower_bound=0.01,
                       upper_bound=1.0)
    absl_flags.DEFINE_string("report", None, "JSON file for the figures")
    flags.run_plain(main)
