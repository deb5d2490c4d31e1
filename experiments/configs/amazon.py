"""Public item sequences (Amazon reviews): baselines against published figures, leave-one-out, full ranking.

    python -m experiments.public_check --config=experiments/configs/amazon.py --config.data.path=Beauty.txt --workdir=W

The log has no times, and every item can be recommended always (data_pipelines/readers/amazon.py).
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="amazon")
    config.data.source = "amazon"
    config.data.valid_hours = config.data.test_hours = 1 / 60  # a person's last item but one, and the last
    config.data.history_items, config.data.history_unit = 50, "views"
    return config
