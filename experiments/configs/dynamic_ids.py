"""Is it worth it that ids follow the content? A simulated platform large enough to tell.

    python -m experiments.studies.dynamic_ids --workdir=W --seeds=0,1,2

Six trainings and three tokenizers a seed (the run time was not recorded). HR@10 after a jump, mean of twelve worlds:
dynamic .829, static .818, content only .825 (docs/tokenizer.md).
"""

from experiments.configs import small
from onelive_jax.config import Config


def get_config() -> Config:
    config = small.get_config()
    config.name = "dynamic_ids"
    config.simulator.users, config.simulator.authors, config.simulator.days = 1500, 400, 8
    config.simulator.segment_seconds = 60
    config.simulator.jump_size = 2.5  # after a jump a room is mostly about something else than its author is
    config.data.max_targets = 8000
    config.data.history_items, config.data.live_slots = 32, 96
    # About as many codes as there are kinds of content: with 64, what a person watched says little of what is on.
    config.tokenizer.codes = 16
    config.tokenizer.negatives, config.tokenizer.gate_limit = "same time", 0.5
    config.tokenizer.dim = 64
    config.tokenizer.steps = 500
    config.tokenizer.batch_size = 512
    config.model.num_layers, config.model.dropout = 1, 0.2
    config.training.batch_size = 96
    config.training.steps = 600
    config.training.learning_rate = 2e-3
    config.training.eval_every = 0
    return config
