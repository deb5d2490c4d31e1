"""The demonstration: the world of the alignment study made smaller, from its log to a played A/B test.

    make demo        (or: python -m experiments.demo)

At a view of the last day 113 rooms are on air on average (22 to 187), so that HR@64 can be missed. Eleven
minutes on two cores; NDCG@10 .634 (own_counts_knn .627), true utility of the aligned model +.3 % (−.4 … +1.1 %).
"""

from experiments.configs import alignment
from onelive_jax.config import Config


def get_config() -> Config:
    config = alignment.get_config()
    config.name = "demo"
    config.simulator.users, config.simulator.authors, config.simulator.days = 2000, 800, 8
    config.data.max_targets = 1000
    config.data.live_slots = 64
    config.training.steps = 800
    config.training.eval_every = 400
    config.reward.steps = 2000
    config.alignment.steps = 150
    config.alignment.eval_every = config.alignment.checkpoint_every = 50
    return config
