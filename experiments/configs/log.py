"""Anybody's log: a .csv, .tsv or .parquet file (or a folder of them) with a row a view. ids from co-viewing.

    python -m data_pipelines.prepare --source=log --data_dir=views.csv --dry_run          (how it is understood)
    python -m experiments.run --config=experiments/configs/log.py --config.data.path=views.csv --workdir=W

The last three days are the test period, the three before them validation. Where columns are called otherwise, add
--config.data.columns=user=uid,author=channel,start=joined_at,watch=secs:s (docs/data.md). Sized for a log of about
100,000 views on two cores: some 10 minutes, as experiments/configs/twitch.py, whose settings these are. The figure to
reach is your own: the best heuristic of the table that it prints.
"""

from experiments.configs import twitch
from onelive_jax.config import Config


def get_config() -> Config:
    config = twitch.get_config()
    config.name = config.data.source = "log"
    config.data.valid_hours = config.data.test_hours = 72.0
    return config
