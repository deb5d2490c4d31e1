"""The simulated platform in accelerated time against the real server: people arrive, are answered over HTTP, click.

    python -m experiments.live_platform --workdir=W [--minutes=5] [--speed=60] [--rate=20] [--port=8000]

Half of the people see the model's answers, half the rooms with most viewers; the page at http://127.0.0.1:PORT shows
click-through and true utility of both by the minute. It starts `experiments.serve` itself (events are kept in a folder
that goes when it ends) and stops after --minutes.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config

STARTING_S = 600.0  # until every program is compiled, on a busy machine


@contextlib.contextmanager
def server(workdir: Path, port: int, speed: float):
    """`experiments.serve` as a process of its own, with a state of its own; yields a client once it is ready.

    Raises: OSError where it does not come up.
    """
    import httpx

    with tempfile.TemporaryDirectory() as state:
        process = subprocess.Popen([sys.executable, "-m", "experiments.serve", f"--workdir={workdir}", f"--port={port}",
                                    f"--state={state}", "--clock=log", f"--speed={speed}"])
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                for _ in range(round(STARTING_S / 0.5)):
                    if process.poll() is not None:
                        raise OSError("the server did not start (what it said stands above)")
                    with contextlib.suppress(httpx.TransportError):
                        if client.get("/readyz").is_success:
                            break
                    time.sleep(0.5)
                else:
                    raise OSError(f"the server was not ready after {STARTING_S:.0f} s")
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


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
