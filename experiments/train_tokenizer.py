"""Towers, residual k-means and the table of semantic ids.

    python -m experiments.train_tokenizer --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W
"""

import json
from pathlib import Path

from experiments.common import flags
from experiments.common.workdir import DONE, save_config
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare
    from experiments.stages.tokenizer import recall_line, train_tokenizer

    log = prepare(config, workdir)
    tokenizer = train_tokenizer(config, workdir, log)
    if not (workdir / "supervised" / DONE).is_file():  # a finished run keeps the settings it was made with
        save_config(config, workdir)
    print(json.dumps(tokenizer.figures, indent=1))
    print(recall_line(tokenizer.figures))


if __name__ == "__main__":
    flags.define_config()
    flags.run(main)
