"""The supervised phase: the decoder learns codes and rooms from views.

    python -m experiments.train_supervised --config=experiments/configs/twitch.py --config.data.path=FILE --workdir=W

Trains the tokenizer first where the workdir has none. A killed run resumes from its newest checkpoint, bit for bit.
On SIGTERM or Ctrl-C it finishes the step, saves, and ends with exit code 75 or 130 (a second signal ends it at once); a
validation that was due then is made by the process that goes on. Several processes: experiments/common/distributed.py.
"""

import json
from pathlib import Path

from experiments.common import flags
from experiments.common.workdir import save_config
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.distributed import main_first
    from experiments.common.log import prepare
    from experiments.stages.supervised import train_supervised
    from experiments.stages.tokenizer import train_tokenizer
    from onelive_jax.sharding.processes import is_main

    with main_first(workdir / "prepared"):
        log = prepare(config, workdir)
        tokenizer = train_tokenizer(config, workdir, log)
    _, _, figures = train_supervised(config, workdir, log, tokenizer)
    if is_main():
        save_config(config, workdir)
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    flags.define_config()
    flags.run(main)
