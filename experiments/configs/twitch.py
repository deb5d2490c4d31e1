"""Twitch viewing (LiveRec form or with a header), ids from co-viewing.

    python -m experiments.run --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W

On the 100,000-view sample of docs/quality.md, two cores: under 10 minutes on a quiet machine; strict
test NDCG@10 .825 ± .002 (see there).
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="twitch")
    config.data.source = "twitch"
    # Tuned on the validation period of that sample: docs/quality.md.
    config.training.batch_size = 128
    config.training.steps = 1600
    config.training.eval_every = 400
    config.training.checkpoint_every = 200
    return config
