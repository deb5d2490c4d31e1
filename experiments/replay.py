"""Plays a log through the live service and asks at every strict target: are the answers those of the evaluation?

    python -m experiments.replay --workdir=W [--split=validation|test] [--targets=N] [--phase=policy]

What happened up to the split is the service's start; then the log's events come in order of time, and at each target
the person asks. Rankings must equal those of experiments.evaluate and scores lie within 1e-4; every request where they
do not is named. Exit code 1 where there is one.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare
    from experiments.stages.policy import load_phase
    from experiments.stages.replay import format_replay, replay
    from experiments.stages.tokenizer import load_tokenizer

    log = prepare(config, workdir)
    tokenizer = load_tokenizer(config, workdir, log)
    values = absl_flags.FLAGS
    model, params, _ = load_phase(config, workdir, log, values.phase)
    found = replay(config, log, tokenizer, model, params, values.split, values.targets)
    print(format_replay(found))
    if found.differing:
        sys.exit(1)


if __name__ == "__main__":
    flags.define_config(from_workdir=True, writes=False)
    absl_flags.DEFINE_enum("split", "test", ["validation", "test"], "which period's views are the targets")
    absl_flags.DEFINE_integer("targets", None, "ask only at the first so many targets", lower_bound=1)
    absl_flags.DEFINE_enum("phase", "supervised", ("supervised", "policy"), "whose parameters answer")
    flags.run(main)
