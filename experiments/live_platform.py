"""The simulated platform in accelerated time against the real server: people arrive, are answered over HTTP, click.

    python -m experiments.live_platform --workdir=W [--minutes=5] [--speed=60] [--rate=20] [--port=8000]

Half of the people see the model's answers, half the rooms with most viewers; the page at http://127.0.0.1:PORT shows
click-through and true utility of both by the minute. It starts `experiments.serve` itself (events are kept in a folder
that goes when it ends) and stops after --minutes.
"""

import contextlib
import signal
import tempfile
from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


@contextlib.contextmanager
def server(workdir: Path, port: int, speed: float):
    """`experiments.serve` as a process of its own, with a state of its own; yields a client once it is ready.

    Raises: OSError where it does not come up.
    """
    from experiments.server import process

    with tempfile.TemporaryDirectory() as state:
        running = process.start(workdir, port, Path(state), "--clock=log", f"--speed={speed}")
        try:
            with process.ready(running, port) as client:
                yield client
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(60)


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare

    try:
        from experiments.server.simulated import LivePlatform, format_arms
    except ModuleNotFoundError as missing:
        raise ValueError(f"the platform needs {missing.name}: pip install -r requirements/serve.txt") from missing
    values = absl_flags.FLAGS
    log = prepare(config, workdir)
    with server(workdir, values.port, values.speed) as client:
        print(f"watch http://127.0.0.1:{values.port}/ for {values.minutes:g} minutes (Ctrl-C ends it)", flush=True)
        platform = LivePlatform(config, log, client, values.speed, values.rate, values.minutes)
        with contextlib.suppress(KeyboardInterrupt):
            platform.run()
        print(format_arms(platform))


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_float("minutes", 5.0, "it stops after so many minutes", lower_bound=0.01)
    absl_flags.DEFINE_float("speed", 60.0, "simulated seconds in a second", lower_bound=1.0, upper_bound=600.0)
    absl_flags.DEFINE_float("rate", 20.0, "people who ask, a second", lower_bound=0.1)
    absl_flags.DEFINE_integer("port", 8000, "port of the server", lower_bound=1, upper_bound=65535)
    flags.run(main)
