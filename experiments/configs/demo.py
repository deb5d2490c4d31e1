"""The demonstration: a small simulated platform, from its log to recommendations and alignment.

    make demo        (or: python -m experiments.demo)
"""

from onelive_jax.config import Config

# What the simulated platform says that one of each is worth: click, long view, watch (of two hours), like, comment,
# follow, share, gift. And how its slates are read: a little less patiently than people are, so that the score does not
# pay for worth with clicks.
OBJECTIVE_VALUES = (0.2, 0.5, 0.6, 4.0, 4.0, 5.0, 5.0, 7.5)
READ_ON = 0.7


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
    # A small share of a short run would be no policy group at all: every request has one here.
    config.reward.steps, config.reward.candidates = 1500, 6
    config.reward.objective_values, config.reward.read_on = OBJECTIVE_VALUES, READ_ON
    config.reward.ippo_rate = 0.0  # the values are the trade-off; IPPO would move the score away from them
    config.alignment.share, config.alignment.weight, config.alignment.steps = 1.0, 30.0, 150
    config.alignment.learning_rate, config.alignment.sync_every, config.alignment.eval_every = 2e-4, 10, 50
    return config
