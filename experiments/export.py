"""The trained recommender as a StableHLO artefact for CPUs, GPUs and TPUs: W/export/.

    python -m experiments.export --workdir=W [--phase=policy] [--batch=16] [--k=10]

    recommend.stablehlo   (parameters, request, rooms on air) → slot, score, author, codes
    params.npz            the parameters, by the artefact's names
    inputs.json           name, shape and dtype of every input, in order

docs/serving.md shows how it is loaded without this project.
"""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare
    from experiments.stages.policy import load_phase
    from experiments.stages.tokenizer import load_tokenizer
    from onelive_jax.decoding.exporting import OUTPUTS, export_recommender
    from onelive_jax.decoding.live_index import empty
    from onelive_jax.decoding.recommend import make_recommender
    from onelive_jax.files import write_json, write_whole

    values = absl_flags.FLAGS
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError("the artefact is kept by flatbuffers: pip install -r requirements/serve.txt")
    log = prepare(config, workdir)
    tokenizer = load_tokenizer(config, workdir, log)
    model, params, _ = load_phase(config, workdir, log, values.phase)
    rows = np.zeros(values.batch, np.int32)
    request = log.batch_maker(tokenizer.ids, config).request(rows, np.full(values.batch, log.split.end_ms - 1))
    rooms = empty(config.decoding.capacity, config.tokenizer.levels, config.tokenizer.codes).as_rooms()
    artefact, inputs = export_recommender(make_recommender(model, config.decoding, values.k), params, request, rooms,
                                          config.tokenizer.codes)
    folder, buffer = workdir / "export", io.BytesIO()
    folder.mkdir(exist_ok=True)
    np.savez(buffer, **{name: value for name, value in inputs if name.startswith("params/")})
    write_whole(folder / "recommend.stablehlo", artefact)
    write_whole(folder / "params.npz", buffer.getvalue())
    write_json(folder / "inputs.json", {"outputs": OUTPUTS, "inputs": [
        {"name": name, "shape": value.shape, "dtype": str(value.dtype)} for name, value in inputs]})
    print(json.dumps({"folder": str(folder), "megabytes": round(len(artefact) / 2**20, 2), "inputs": len(inputs)}))


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_enum("phase", "supervised", ("supervised", "policy"), "whose parameters")
    absl_flags.DEFINE_integer("batch", 16, "requests of a call", lower_bound=1)
    absl_flags.DEFINE_integer("k", 10, "rooms of an answer", lower_bound=1)
    flags.run(main)
