"""Is it worth it that ids follow the content? A simulated platform large enough to tell (experiments/dynamic_ids.py).

    python -m experiments.dynamic_ids --workdir=W --seeds=0,1,2
"""

from experiments.configs import demo
from onelive_jax.config import Config


def get_config() -> Config:
    config = demo.get_config()
    config.name = "dynamic_ids"
    config.simulator.users, config.simulator.authors, config.simulator.days = 1000, 400, 8
    config.simulator.segment_seconds = 60
    config.simulator.jump_size = 2.5  # after a jump a room is mostly about something else than its author is
    config.data.max_targets = 4000
    config.tokenizer.codes = 64
    config.tokenizer.dim = 64
    config.tokenizer.steps = 800
    config.tokenizer.batch_size = 512
    config.training.batch_size = 96
    config.training.steps = 600
    config.training.eval_every = 0
    return config
