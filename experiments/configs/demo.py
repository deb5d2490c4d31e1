"""The demonstration: a small simulated platform, from its log to recommendations.

    make demo        (or: python -m experiments.demo)
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="demo")
    config.data.source = "simulated"
    config.data.valid_hours = config.data.test_hours = 24.0
    config.data.max_targets = 2000
    config.tokenizer.codes = 32
    config.tokenizer.dim = 32
    config.tokenizer.steps = 500
    config.tokenizer.batch_size = 256
    config.training.steps = 1000
    config.training.eval_every = 500
    return config
