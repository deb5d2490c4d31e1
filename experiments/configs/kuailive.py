"""KuaiLive (arXiv 2508.05633), an unzipped folder: clicks, comments, likes and gifts, true lifetimes, titles.

    python -m experiments.run --config=experiments/configs/kuailive.py --config.data.path=DIR --workdir=W

Sized for one accelerator (11 million rooms, about 20,000 on air at a time). It has been run, made small,
on folders of this form that the simulator writes, not on KuaiLive itself: no run time and no figure is claimed here.
"""

from onelive_jax.config import Config


def get_config() -> Config:
    config = Config(name="kuailive")
    config.data.source = "kuailive"
    config.data.valid_hours = config.data.test_hours = 24.0
    config.data.utc_offset_hours = 8.0
    config.data.sequences = ("live", "gift")
    config.data.history_items, config.data.history_window = 64, 256
    config.data.effective_view_seconds = 5.0
    config.data.long_view_seconds = 60.0
    config.data.live_slots = 256
    config.data.max_targets = 1000  # each is ranked against every room on air
    config.tokenizer.codes = 512
    config.tokenizer.steps = 10_000
    config.tokenizer.batch_size = 2048
    config.model.dim, config.model.mlp_dim, config.model.num_layers = 128, 256, 3
    config.decoding.capacity = 65_536
    config.training.batch_size = 512
    config.training.steps = 20_000
    config.training.warmup_steps = 500
    config.training.eval_every = 5000
    config.training.checkpoint_every = 1000
    return config
