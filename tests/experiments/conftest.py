"""One small run from log to report, trained once for every test that looks at a finished run."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.stages.run import Trained, run
from onelive_jax.config import Config, DecodingConfig, ModelConfig, SimulatorConfig, TokenizerConfig, TrainingConfig


def tiny_config(**changes) -> Config:
    """Settings small enough for a test; changes are "section.field" (with "__" for the point) → value."""
    config = Config(name="tiny")
    config.data.source = "simulated"
    config.data.valid_hours = config.data.test_hours = 12.0
    config.data.history_items, config.data.history_window = 8, 32
    config.data.live_slots, config.data.max_targets = 16, 60
    config.simulator = SimulatorConfig(users=60, authors=20, days=5)
    config.tokenizer = TokenizerConfig(levels=2, codes=4, dim=8, hidden=16, history_items=8, steps=30, batch_size=64)
    config.model = ModelConfig(dim=16, num_layers=1, num_heads=2, num_groups=1, mlp_dim=16, loss_weights=(1.0, 1.0))
    config.decoding = DecodingConfig(beams=16, capacity=32)
    config.training = TrainingConfig(steps=12, batch_size=16, warmup_steps=2, log_every=1, eval_every=6,
                                     checkpoint_every=6)
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    return config.validate()


@dataclass
class Finished:
    """A finished run: its settings, its folder, and what it held in memory."""

    config: Config
    workdir: Path
    trained: Trained


@pytest.fixture(scope="session")
def make_config():
    return tiny_config


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    """Tests must not change its folder; they copy it."""
    config, workdir = tiny_config(), tmp_path_factory.mktemp("finished")
    return Finished(config, workdir, run(config, workdir))
