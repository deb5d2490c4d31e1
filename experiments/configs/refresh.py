"""A simulated platform with four days after training, for daily refreshes of the codebooks.

    python -m experiments.studies.refresh --config=experiments/configs/refresh.py --workdir=W --days=3

One training and three refreshes (the run time was not recorded). At most 1.1 % of q0 and 4.9 % of ids change a day
without new content, distortion stays below 1.006 of a new fit's (docs/tokenizer.md).
"""

from experiments.configs import small
from onelive_jax.config import Config


def get_config() -> Config:
    config = small.get_config()
    config.name = "refresh"
    config.data.valid_hours, config.data.test_hours = 24.0, 72.0
    config.simulator.users, config.simulator.authors, config.simulator.days = 1500, 1000, 14
    config.simulator.segment_seconds = 300
    config.training.batch_size = 128
    return config
