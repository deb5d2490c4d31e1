"""What a model of a preset costs on the device at hand: step time, FLOP/s, utilisation, memory, the largest batch.

    python -m experiments.benchmark --what=train  --preset=0.04b --dtype=bfloat16 --batch=256
    python -m experiments.benchmark --what=train  --preset=0.8b  --batch=0 --report=train.json
    python -m experiments.benchmark --what=decode --preset=0.04b --batch=16 --beams=128 --rooms=16384

--batch=0 doubles the batch until the memory is full or --max_batch is reached, and reports every batch that ran. A step
is the whole one (batch put on the devices, loss, gradient, AdamW) on a mesh with all devices on data; a ranking is one
call on one device (request arrays in, ranked rooms out). Weights and requests are random. jax takes three quarters of
a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise: the table names what there was.

MFU counts the operations of onelive_jax/training/flops.py over the device's bfloat16 peak, whatever --dtype is. Peak
memory is what the backend reports since the start of the process; the program's own need is the compiler's count of
arguments, results and temporaries.

Axes: as in experiments/benchmarks/problem.py; W beams.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks.problem import (
    ModelSizes,
    caller,
    make_model,
    random_batch,
    random_request,
    random_rooms,
    time_interleaved,
)
from experiments.common.tables import number, table
from onelive_jax import presets
from onelive_jax.config import Config, DecodingConfig, MeshConfig
from onelive_jax.decoding import live_index
from onelive_jax.sharding import partitioning
from onelive_jax.sharding.placement import on_mesh
from onelive_jax.training import flops, train_state
from onelive_jax.training.supervised import make_train_step

GIB = 2**30
FIRST = 8  # a device: where the search for the largest batch begins
BATCH = {"train": 256, "decode": 16}  # unless --batch says so


@dataclass(frozen=True)
class Setting:
    """What is timed.

    Attributes:
      preset: a name of onelive_jax/presets.py. dtype, remat: of activations; the preset's where None.
      batch: examples (over all devices) or requests; 0 searches from FIRST a device to `max_batch` (None: no bound).
      history: T. authors: A. contrasted: rooms on air of a training example. rooms, beams: N, W of decoding.
      repeats, steps: repeats of a measurement, and steps in a row of each.
    """

    preset: str
    dtype: str | None = None
    remat: str | None = None
    batch: int = 256
    max_batch: int | None = None
    history: int = 256
    authors: int = 1_000_000
    contrasted: int = 128
    rooms: int = 16_384
    beams: int = 128
    repeats: int = 5
    steps: int = 5


def config_of(setting: Setting) -> Config:
    config = presets.preset(setting.preset)
    given = {"activation_dtype": setting.dtype, "remat": setting.remat}
    config.model = replace(config.model, **{name: value for name, value in given.items() if value is not None})
    config.decoding.beams, config.decoding.capacity = setting.beams, setting.rooms
    return config


def sizes_of(setting: Setting, config: Config) -> ModelSizes:
    return ModelSizes(model=config.model, history=setting.history, levels=config.tokenizer.levels,
                 codes=config.tokenizer.codes, authors=setting.authors, author_dim=config.tokenizer.dim, batch=1,
                 contrasted=setting.contrasted, rooms=setting.rooms)


# One batch size.


def figures_of(batch: int, seconds: list[float], per_example: float, devices: list[jax.Device]) -> dict:
    """Rates of one batch size from the seconds of its steps or calls; MFU and memory are None where not known."""
    rate = batch / statistics.median(seconds)
    memory = [device.memory_stats() or {} for device in devices if device.process_index == jax.process_index()]
    peaks = [stats["peak_bytes_in_use"] for stats in memory if "peak_bytes_in_use" in stats]
    return {"batch": batch, "seconds": seconds, "step_seconds": statistics.median(seconds),
            "examples_per_second": rate, "flops_per_example": per_example, "flops_per_second": rate * per_example,
            "mfu": flops.utilisation(rate, per_example, len(devices), devices[0].device_kind),
            "peak_bytes": max(peaks, default=None), "limit_bytes": memory[0].get("bytes_limit")}


def trainer(setting: Setting) -> tuple[dict[str, int], Callable[[int], dict]]:
    """(numbers of parameters, batch size → figures); the state is made by the first and goes from size to size."""
    config = config_of(setting)
    sizes, mesh = sizes_of(setting, config), partitioning.make_mesh(config.mesh)
    model, tx = make_model(sizes, config.model), train_state.make_optimizer(config.training)
    rng = np.random.default_rng(0)
    example = random_batch(rng, sizes)
    arguments = (lambda key: model.init(key, example)["params"], tx, mesh)
    abstract, state = train_state.abstract_state(*arguments), None
    placed = train_state.shardings(abstract)
    step_fn = jax.jit(make_train_step(on_mesh(model, mesh), tx, config), donate_argnums=0,
                      in_shardings=(placed, partitioning.batch_sharding(mesh)),
                      out_shardings=(placed, partitioning.replicated(mesh)))
    def attempt(batch: int) -> dict:
        nonlocal state
        state = train_state.init_state(*arguments, jax.random.key(0)) if state is None else state
        batches = [random_batch(rng, replace(sizes, batch=batch)) for _ in range(2)]
        start = time.perf_counter()
        step = step_fn.lower(state, partitioning.put_batch(batches[0], mesh)).compile()
        compile_seconds = time.perf_counter() - start
        metrics: dict[str, Any] = {}

        def run() -> None:
            nonlocal state, metrics
            for i in range(setting.steps):
                state, metrics = step(state, partitioning.put_batch(batches[i % 2], mesh))
            jax.block_until_ready((state, metrics))

        seconds = [total / setting.steps for total in time_interleaved({"": run}, setting.repeats)[""]]
        per_example = flops.training_flops(model, abstract.params, example, batch)
        return figures_of(batch, seconds, per_example, list(mesh.devices.flat)) | {
            "compile_seconds": compile_seconds, "program_bytes": program_bytes(step), "loss": float(metrics["loss"])}

    return parameters_of(abstract.params), attempt


def decoder(setting: Setting) -> tuple[dict[str, int], Callable[[int], dict]]:
    """(numbers of parameters, requests answered together → figures), on one device."""
    config = config_of(setting)
    sizes, mesh = sizes_of(setting, config), partitioning.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    model, rng = make_model(sizes, config.model), np.random.default_rng(0)
    example = random_batch(rng, sizes)
    # An optimizer that keeps nothing: serving holds parameters alone.
    arguments, params = (lambda key: model.init(key, example)["params"], optax.identity(), mesh), None
    index = jax.device_put(live_index.from_rooms(random_rooms(rng, sizes, sizes.rooms), sizes.codes))

    def attempt(batch: int) -> dict:
        nonlocal params
        params = train_state.init_state(*arguments, jax.random.key(0)).params if params is None else params
        call = caller(model, params, index, setting.beams, [random_request(rng, sizes, batch) for _ in range(4)])
        start = time.perf_counter()
        call()
        compile_seconds = time.perf_counter() - start  # and one call
        seconds = time_interleaved({"": call}, setting.repeats * setting.steps)[""]
        decoding = DecodingConfig(beams=setting.beams, capacity=index.capacity)
        per_request = flops.decoding_flops(model, decoding, params, example.request, index, batch)
        return figures_of(batch, seconds, per_request, list(mesh.devices.flat)) | {"compile_seconds": compile_seconds}

    return parameters_of(train_state.abstract_state(*arguments).params), attempt


def parameters_of(params: Any) -> dict[str, int]:
    return {"parameters": presets.count(params), "all_parameters": presets.count(params, True)}


def program_bytes(compiled: Any) -> int | None:
    """Bytes that a compiled program needs on a device: arguments, results that are not written over them, temporaries.

    None where the backend does not say.
    """
    memory = compiled.memory_analysis()
    return None if memory is None else (memory.argument_size_in_bytes + memory.output_size_in_bytes
                                        - memory.alias_size_in_bytes + memory.temp_size_in_bytes)


# The largest batch.


def is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def search(attempt: Callable[[int], dict], first: int, max_batch: int | None) -> tuple[list[dict], int | None]:
    """Doubles the batch from `first` until `attempt` runs out of memory or the next would exceed `max_batch`.

    Returns: (figures of every batch that ran, the one that did not fit or None). Errors of other kinds are raised.
    """
    ran, batch = [], first
    while max_batch is None or batch <= max_batch:
        try:
            ran.append(attempt(batch))
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return ran, batch
        batch *= 2
    return ran, None


# The report.


def check(what: str, setting: Setting) -> None:
    """Raises ValueError, with the flag, for a batch or a bound that the devices cannot do."""
    devices = devices_of(what)
    if setting.batch % devices:
        raise ValueError(f"--batch={setting.batch} must be a multiple of the {devices} devices")
    if setting.batch == 0 and setting.max_batch is None and jax.default_backend() == "cpu":
        raise ValueError("--batch=0 needs --max_batch on a CPU: where a host's memory is full, the system ends the "
                         "process instead of telling it")
    if setting.batch == 0 and setting.max_batch is not None and setting.max_batch < FIRST * devices:
        raise ValueError(f"--max_batch={setting.max_batch} is below {FIRST * devices}, where the search begins")


def devices_of(what: str) -> int:
    return jax.device_count() if what == "train" else 1


def measure_preset(what: str, setting: Setting) -> dict:
    """Setting, and figures of every batch that ran; ready for JSON. Raises ValueError as `check` does."""
    check(what, setting)
    devices = devices_of(what)
    parameters, attempt = (trainer if what == "train" else decoder)(setting)
    first = setting.batch or FIRST * devices
    # A batch that is named is tried, and no other.
    ran, refused = search(attempt, first, setting.max_batch if setting.batch == 0 else first)
    return {"setting": asdict(setting), **parameters, "model": asdict(config_of(setting).model),
            "device_kind": jax.devices()[0].device_kind, "devices": devices, "figures": ran,
            "largest_batch": ran[-1]["batch"] if ran else None, "out_of_memory_at": refused}


def preset_lines(report: dict) -> list[str]:
    """A line for every batch that ran, and what stopped the search."""
    setting, model, kind = report["setting"], report["model"], report["device_kind"]
    noun, work = ("examples", f"remat {model['remat']}") if report["what"] == "train" else (
        "requests", f"{setting['rooms']:,} rooms on air, beam {setting['beams']}")
    lines = [f"{report['what']}, preset {setting['preset']}, {model['activation_dtype']}, "
             f"history {setting['history']}, {setting['authors']:,} authors, {work}",
             f"{report['parameters']:,} parameters ({report['all_parameters']:,} with the rows of authors) on "
             f"{report['devices']} x {kind}",
             table(["batch", "ms", "least", "most", f"{noun}/s", "GFLOP each", "TFLOP/s", "MFU", "peak GiB",
                    "program GiB", "compile s"], [
                 [f"{r['batch']:,}", f"{r['step_seconds'] * 1e3:.2f}", f"{min(r['seconds']) * 1e3:.2f}",
                  f"{max(r['seconds']) * 1e3:.2f}", f"{r['examples_per_second']:,.1f}",
                  f"{r['flops_per_example'] / 1e9:.4f}", f"{r['flops_per_second'] / 1e12:.4f}", number(r["mfu"], ".1%"),
                  _gib(r["peak_bytes"]), _gib(r.get("program_bytes")), f"{r['compile_seconds']:.1f}"]
                 for r in report["figures"]], left=0)]
    if report["out_of_memory_at"]:
        lines.append(f"{report['out_of_memory_at']:,} {noun} are out of memory")
    if setting["batch"] == 0:
        left = "" if report["out_of_memory_at"] else f" (--max_batch={setting['max_batch']}; memory was left)"
        lines.append(f"largest batch that ran: {report['largest_batch']:,}{left}" if report["figures"] else
                     "no batch ran")
    if flops.peak_flops(kind) is None:
        lines.append(f"MFU: the bfloat16 peak of {kind!r} is not known (PEAK_BF16 in onelive_jax/training/flops.py)")
    if report["figures"]:
        limit = report["figures"][-1]["limit_bytes"]
        lines.append("peak memory: this backend does not report it" if report["figures"][-1]["peak_bytes"] is None else
                     f"peak memory: of {_gib(limit)} GiB that jax may take of a device")
        if not np.isfinite(report["figures"][-1].get("loss", 0.0)):
            lines.append(f"the loss became {report['figures'][-1]['loss']}: this is no step that trains")
    return lines


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"
