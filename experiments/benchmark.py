"""What the model costs: training examples a second, milliseconds a decode, and what multi-token prediction gains.

    python -m experiments.benchmark --what=train  --report=train.json        (experiments/benchmarks/model.py)
    python -m experiments.benchmark --what=decode --report=decode.json
    python -m experiments.benchmark --what=train --preset=0.04b             (experiments/benchmarks/train.py)
    python -m experiments.benchmark --what=compile --report=compile.json     (experiments/benchmarks/compiling.py)
    python -m experiments.benchmark --what=tokenizer [--size=large]          (experiments/benchmarks/tokenizer.py)
    python -m experiments.benchmark --what=policy  --report=policy.json      (experiments/benchmarks/policy.py)
    python -m experiments.benchmark --what=serve [--rate=350] [--seconds=30]  (experiments/benchmarks/serve.py)
    python -m experiments.benchmark --what=serve_table4                      (the same)

Prints target, limit and measurement side by side. The targets are for two CPU cores that do nothing else: the report
carries the machine's load and its matrix-product rate in the same run, so that a figure can be judged elsewhere.
Weights and requests are random; the time of a step does not depend on them.
"""

from pathlib import Path

from absl import app
from absl import flags as absl_flags

from experiments.common import flags

PRESET_FLAGS = ("dtype", "remat", "batch", "max_batch", "history", "authors", "rooms", "beams")


def main() -> None:
    values = absl_flags.FLAGS
    given = {name: getattr(values, name) for name in PRESET_FLAGS if getattr(values, name) is not None}
    if (given or values.preset) and (values.preset is None or values.what not in ("train", "decode")):
        raise app.UsageError(f"--{'preset' if values.preset else next(iter(given))} is for --what=train or decode with "
                             "--preset")
    from experiments.benchmarks import compiling, model, policy, report, tokenizer, train
    from experiments.benchmarks.problem import ModelSizes
    from onelive_jax.files import write_json

    repeats = {} if values.repeats is None else {"repeats": values.repeats}
    measure, lines = {
        "train": (lambda: model.measure_training(ModelSizes(), **repeats), model.training_lines),
        "decode": (lambda: model.measure_decoding(ModelSizes(), **repeats), None),
        "compile": (lambda: compiling.measure_compiling(ModelSizes(), **repeats), compiling.compiling_lines),
        "tokenizer": (lambda: tokenizer.measure(values.size, values.repeats or 3, lambda line: print(line, flush=True)),
                      None),
        "policy": (lambda: policy.measure_policy(ModelSizes(), **repeats), None),
    }.get(values.what, (None, None))
    if values.what in ("serve", "serve_table4"):
        from experiments.benchmarks import serve  # FastAPI and uvicorn are needed for it alone

        open_loop = serve.Load(rate=values.rate, seconds=values.seconds)
        beams, connections = ModelSizes().gain_search
        closed_loop = serve.Load(rate=0.0, seconds=values.seconds, room_events=0, view_events=0, beams=beams,
                                 connections=connections)
        measure, lines = {
            "serve": (lambda: serve.measure_serving(ModelSizes(), open_loop, **repeats), serve.serving_lines),
            "serve_table4": (lambda: serve.measure_table4(ModelSizes(), closed_loop, **repeats), serve.table4_lines),
        }[values.what]
    if values.preset:
        setting = train.Setting(preset=values.preset, **({"batch": train.BATCH[values.what]} | given | repeats))
        measure, lines = lambda: train.measure_preset(values.what, setting), train.preset_lines
    result = report.make_report(values.what, measure)
    if values.report:
        write_json(Path(values.report), result)
    print(report.as_text(result, lines(result) if lines else ()))


if __name__ == "__main__":
    absl_flags.DEFINE_enum("what", None, ["train", "decode", "compile", "tokenizer", "policy", "serve", "serve_table4"],
                           "what is measured", required=True)
    absl_flags.DEFINE_enum("size", "normal", ["small", "normal", "large"], "the problem of --what=tokenizer")
    absl_flags.DEFINE_string("report", None, "JSON file for the figures and every repeat")
    absl_flags.DEFINE_enum("preset", None, flags.PRESETS, "train or decode a model of this size instead")
    absl_flags.DEFINE_enum("dtype", None, ["bfloat16", "float32"], "activations; the preset's unless given")
    absl_flags.DEFINE_enum("remat", None, ["none", "dots", "full"], "rematerialisation; the preset's unless given")
    absl_flags.DEFINE_integer("batch", None, "examples of a step, over all devices, or requests answered together; 0: "
                              "twice as many until the memory is full", lower_bound=0)
    absl_flags.DEFINE_integer("max_batch", None, "where --batch=0 stops at the latest", lower_bound=1)
    absl_flags.DEFINE_integer("history", None, "items of a history (256 unless given)", lower_bound=1)
    absl_flags.DEFINE_integer("authors", None, "authors of the platform (1,000,000 unless given)", lower_bound=2)
    absl_flags.DEFINE_integer("rooms", None, "rooms on air when decoding (16,384 unless given)", lower_bound=2)
    absl_flags.DEFINE_integer("beams", None, "beam width (128 unless given)", lower_bound=1)
    absl_flags.DEFINE_float("rate", 350.0, "serve: requests a second", lower_bound=0.1)
    absl_flags.DEFINE_float("seconds", 30.0, "serve, serve_table4: how long", lower_bound=0.1)
    absl_flags.DEFINE_integer("repeats", None, "repeats of every measurement; the median is reported", lower_bound=1)
    flags.run_plain(main)
