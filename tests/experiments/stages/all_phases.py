"""Supervised phase, reward model and policy, one after the other, in each of several processes.

    python -m tests.experiments.stages.all_phases --config=… --workdir=W --coordinator=HOST:PORT --processes=2 …

While it prepares the policy's second step, process 1 is sent SIGTERM. Steps then take a little while, as those of a
real run do: the processes have to tell each other.
"""

import os
import signal
import time

import jax
from absl import flags as absl_flags

from experiments import train_policy, train_reward, train_supervised
from experiments.common import flags
from experiments.stages import reward
from onelive_jax.sharding import partitioning

SIGNALLED = 2


def stop_soon(put_batch):
    """`put_batch` with the signal in its call number `SIGNALLED`."""
    calls = []

    def put_and_signal(batch, mesh):
        calls.append(1)
        if len(calls) == SIGNALLED and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.4 if len(calls) >= SIGNALLED else 0)
        return put_batch(batch, mesh)

    return put_and_signal


def main(config, workdir):
    config.mesh.data, config.mesh.fsdp = 1, 2  # parameters and moments are split over the processes
    train_supervised.main(config, workdir)
    config.mesh.data, config.mesh.fsdp = 2, 1  # the batch alone is
    reward.LEAST_POSITIVES = 2  # as for the run in one process: there are few rows to balance objectives on
    train_reward.main(config, workdir)
    partitioning.put_batch = stop_soon(partitioning.put_batch)
    train_policy.main(config, workdir)


if __name__ == "__main__":
    flags.define_config()
    for name in ("init_from", "out"):
        absl_flags.DEFINE_string(name, None, "as in experiments.train_policy")
    flags.run(main)
