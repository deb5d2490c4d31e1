"""`experiments.serve` as a process of its own, for whoever plays a platform against it, or kills it."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

STARTING_S = 600.0  # until every program is compiled, on a busy machine


def start(workdir: Path, port: int, state: Path, *arguments: str) -> subprocess.Popen:
    """Begins to serve; events and snapshots are kept in `state`. arguments: further flags of the command."""
    return subprocess.Popen([sys.executable, "-m", "experiments.serve", f"--workdir={workdir}", f"--port={port}",
                             f"--state={state}", *arguments])


@contextlib.contextmanager
def ready(process: subprocess.Popen, port: int) -> Iterator[httpx.Client]:
    """A client of it, once it answers. Raises OSError where it does not come up."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in range(round(STARTING_S / 0.1)):
            if process.poll() is not None:
                raise OSError("the server did not start (what it said stands above)")
            with contextlib.suppress(httpx.TransportError):
                if client.get("/readyz").is_success:
                    break
            time.sleep(0.1)
        else:
            raise OSError(f"the server was not ready after {STARTING_S:.0f} s")
        yield client


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
