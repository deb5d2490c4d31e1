"""The paper's Table 1 on a simulated platform of 200,000 authors (experiments/table1.py).

    python -m experiments.table1 --workdir=W

About 25 minutes on two cores. Residual k-means of IA embeddings, 3 × 188 codes: 71.25 % of L0 × L1 in use, 54.15 % of
the authors share their id; of the content alone 92.23 % and 7.42 % (docs/tokenizer.md).
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="table1")
    config.data.source = "simulated"
    config.data.valid_hours = config.data.test_hours = 0.0  # ids are judged as ids: nothing is held out
    config.simulator.users, config.simulator.authors, config.simulator.days = 20_000, 200_000, 3
    config.simulator.segment_seconds = 7200
    config.simulator.play_days = 0
    config.tokenizer.dim, config.tokenizer.hidden = 64, 256
    config.tokenizer.steps, config.tokenizer.batch_size = 4000, 1024
    config.tokenizer.history_items = 16
    return config
