"""The reward model: a head per objective and one score that fuses them, from what people did with what they saw.

    python -m experiments.train_reward --workdir=W [--config.reward.steps=…]

After the supervised phase, with the settings of W/config.json. A killed run resumes. Writes W/reward/ and
W/reward.json: AUC, AUC within viewers and calibration of every objective on validation rows, and the AUC of the score.
"""

from pathlib import Path

from experiments.common import flags
from experiments.common.workdir import save_config
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare
    from experiments.reports import run_page
    from experiments.stages.reward import format_report, train_reward
    from experiments.stages.tokenizer import load_tokenizer
    from onelive_jax.sharding.processes import is_main

    log = prepare(config, workdir)
    _, _, report = train_reward(config, workdir, log, load_tokenizer(config, workdir, log))
    if is_main():
        save_config(config, workdir)
        print(format_report(report))
        run_page.refresh(workdir)


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    flags.run(main)
