"""From a log to a trained model, honest numbers and recommendations: all stages in turn.

    python -m experiments.run --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W [--seed=N]

A finished stage is not repeated; a killed one resumes. Writes W/report.json and W/report.html.
"""

from pathlib import Path

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.stages.run import print_report, run

    print_report(run(config, workdir), workdir)


if __name__ == "__main__":
    flags.define_config()
    flags.run(main)
