"""The live service on Ray Serve: replicas behind one Redis stream, on one machine or many.

    python -m experiments.serve_ray --workdir=W --bus=redis://HOST:PORT [--replicas=2] [--gpus=0] [--port=8000]

Needs `pip install "ray[serve]>=2.40"`. On a cluster, --workdir lies on a file system that all machines share, and the
command is typed on one of them (RAY_ADDRESS=auto). The interface is that of `experiments.serve`.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    try:
        from experiments.server import on_ray, start
    except ModuleNotFoundError as missing:
        raise ValueError(f"the service on Ray needs {missing.name}: pip install -r requirements/serve.txt "
                         "\"ray[serve]>=2.40\"") from missing
    values = absl_flags.FLAGS
    options = start.Options(values.host, values.port, values.phase, values.token, clock=values.clock, bus=values.bus)
    on_ray.run(config, workdir.resolve(), options, values.replicas, values.gpus)


if __name__ == "__main__":
    flags.define_config(from_workdir=True, writes=False)
    absl_flags.DEFINE_string("bus", None, "redis://HOST:PORT of the stream that all replicas read", required=True)
    absl_flags.DEFINE_integer("replicas", 2, "processes that answer", lower_bound=1)
    absl_flags.DEFINE_float("gpus", 0.0, "GPUs of a replica", lower_bound=0.0)
    absl_flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 for all (set --token then)")
    absl_flags.DEFINE_integer("port", 8000, "port", lower_bound=1, upper_bound=65535)
    absl_flags.DEFINE_enum("phase", "supervised", ("supervised", "policy"), "whose parameters answer")
    absl_flags.DEFINE_string("token", "", "bearer token that is asked for; none where it is empty")
    absl_flags.DEFINE_enum("clock", "auto", ("auto", "wall", "log"), "as of experiments.serve")
    flags.run(main)
