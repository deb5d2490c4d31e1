"""The settings that a workdir was made with: what commands use when they are given --workdir and no --config."""

from pathlib import Path

from onelive_jax.config import Config, from_json


def get_config(workdir: str) -> Config:
    return from_json((Path(workdir) / "config.json").read_text())
