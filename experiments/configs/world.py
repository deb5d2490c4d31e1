"""A simulated world of many rooms on air with moving content, for tables 2 and 3.

1,200 rooms are on air on average, 2,600 in the evening, when most people watch, and 300 before dawn.

    python -m experiments.table3 --config=experiments/configs/world.py --workdir=W [--worlds=3]
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="world")
    config.data.source = "simulated"
    config.data.valid_hours = config.data.test_hours = 24.0
    config.data.max_targets = 2000
    config.data.history_items, config.data.history_window = 32, 128
    config.data.live_slots = 256
    config.simulator.users, config.simulator.authors, config.simulator.days = 4000, 12_000, 7
    config.simulator.segment_seconds = 600
    config.simulator.play_days = 0
    config.tokenizer.codes = 128
    config.tokenizer.dim = 32
    config.tokenizer.steps, config.tokenizer.batch_size = 1000, 256
    config.training.batch_size, config.training.steps, config.training.eval_every = 64, 1500, 500
    return config
