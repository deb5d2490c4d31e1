"""The live service: events in, rooms out, over HTTP.

    python -m experiments.serve --workdir=W [--port=8000] [--phase=supervised|policy] [--token=…] [--state=FOLDER]

It starts from the end of the workdir's log, or from where the server before on the same --state stopped. What happens
on the platform comes in at POST /v1/events, questions at POST /v1/recommend; /docs lists everything, / shows it.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    try:
        from experiments.server import start
    except ModuleNotFoundError as missing:
        raise ValueError(f"the server needs {missing.name}: pip install -r requirements/serve.txt") from missing
    values = absl_flags.FLAGS
    start.serve(config, workdir, start.Options(values.host, values.port, values.phase, values.token, values.rate,
                                               values.state and Path(values.state).expanduser(), values.clock,
                                               values.bus, values.speed))


if __name__ == "__main__":
    flags.define_config(from_workdir=True, writes=False)
    absl_flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 for all (set --token then)")
    absl_flags.DEFINE_integer("port", 8000, "port", lower_bound=0, upper_bound=65535)
    absl_flags.DEFINE_enum("phase", "supervised", ("supervised", "policy", "stream"), "whose parameters answer")
    absl_flags.DEFINE_string("token", "", "bearer token that is asked for (or ONELIVE_TOKEN); none where it is empty")
    absl_flags.DEFINE_float("rate", 0.0, "most requests a second of one client address; 0: no limit", lower_bound=0.0)
    absl_flags.DEFINE_string("state", None, "folder for events and snapshots; W/serving if not given")
    absl_flags.DEFINE_string("bus", "", "redis://HOST:PORT: one of several replicas behind a stream, not --state")
    absl_flags.DEFINE_enum("clock", "auto", ("auto", "wall", "log"), "wall: the machine's. log: goes on from the end "
                           "of the log. auto: the log's where it ended more than config.serving.room_hours ago")
    absl_flags.DEFINE_float("speed", 1.0, "seconds of the log's clock in a second: a simulated platform runs ahead",
                            lower_bound=0.001)
    flags.run(main)
