"""A small simulated world that moves: what experiments.studies.freshness measures on.

    python -m experiments.studies.freshness --config=experiments/configs/moving.py --workdir=W

Each week a tenth of the authors are new, everybody's liking changes within days, tastes drift, and two rooms a day are
for everybody. Seven days are learned from beforehand, five are streamed.
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="moving")
    config.data.source = "simulated"
    config.data.valid_hours, config.data.test_hours = 12.0, 0.0
    config.data.max_targets = 1000
    config.data.history_items, config.data.history_window, config.data.live_slots = 24, 128, 64
    config.simulator.users, config.simulator.authors, config.simulator.days = 300, 120, 12
    config.simulator.play_days, config.simulator.segment_seconds = 0, 300
    config.simulator.trends, config.simulator.taste_drift = 1.0, 0.6
    config.simulator.new_authors, config.simulator.shared_events = 0.1, 2.0
    config.tokenizer.codes, config.tokenizer.dim, config.tokenizer.hidden = 16, 32, 64
    config.tokenizer.steps, config.tokenizer.batch_size = 400, 256
    config.model.dim, config.model.num_layers, config.model.mlp_dim = 32, 1, 64
    config.training.steps, config.training.eval_every, config.training.checkpoint_every = 800, 400, 200
    config.serving.spare_authors = 64
    return config
