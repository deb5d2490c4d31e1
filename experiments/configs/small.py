"""A simulated platform of 400 people and 150 streamers over 14 days: enough for a decoder to learn from, in minutes.

    python -m experiments.run --config=experiments/configs/small.py --workdir=W

207 s on two cores that had other work (load 3 to 9); strict test NDCG@10 .712, own counts with item-kNN .690. QK-norm
and the scaling law are studied on it (docs/scaling.md); dynamic_ids.py and refresh.py start from it.
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="small")
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
