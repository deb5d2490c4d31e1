"""The supervised phase on a mesh of eight devices, stopped half way and resumed; and once more, without a stop. The
latter is judged, too.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.experiments.stages.sharded_run --config=… \\
        --workdir=W --straight=V --config.mesh.data=2 --config.mesh.fsdp=2 --config.mesh.tensor=2

SIGTERM comes while the step half way is prepared, which is to be judged.
"""

import os
import signal
from pathlib import Path

import jax
from absl import flags as absl_flags

from experiments import train_supervised
from experiments.common import flags, scoring
from experiments.stages import run
from onelive_jax.sharding import partitioning
from onelive_jax.training import stopping


def stop_at(put_batch, step):
    """`put_batch` with the signal in its call number `step`."""
    calls = []

    def put_and_signal(batch, mesh):
        assert mesh.size == jax.device_count() == 8
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(batch, mesh)

    return put_and_signal


def checked(on_all_devices):
    """`on_all_devices`, of whose parameters each must lie on eight devices, and the author table in parts."""
    def on_eight(*arguments):
        model, params = on_all_devices(*arguments)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)} == {8}
        assert not params["author_table"].sharding.is_fully_replicated
        print("judged on eight devices")
        return model, params

    return on_eight


def main(config, workdir):
    put_batch, half = partitioning.put_batch, config.training.steps // 2
    partitioning.put_batch = stop_at(put_batch, half)
    try:
        train_supervised.main(config, workdir)
    except stopping.Stopped:
        print("stopped")
    partitioning.put_batch = put_batch
    straight = Path(absl_flags.FLAGS.straight)
    for folder in (workdir, straight):
        train_supervised.main(config, folder)
    scoring.on_all_devices = checked(scoring.on_all_devices)
    run.run(config, straight)  # all that is left to do is to judge it


if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_string("straight", None, "workdir of the run without a stop", required=True)
    flags.run(main)
