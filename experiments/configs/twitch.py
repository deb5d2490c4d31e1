"""Twitch viewing (LiveRec form or with a header), ids from co-viewing.

    python -m experiments.run --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="twitch")
    config.data.source = "twitch"
    return config
