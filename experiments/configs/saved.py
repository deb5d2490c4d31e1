"""The settings that a workdir was made with: what commands use when they are given --workdir and no --config."""

from pathlib import Path

from onelive_jax.config import Config, from_json


def get_config(workdir: str) -> Config:
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: train first (python -m experiments.run --workdir={workdir} "
                                "--config=…), or name a --config")
    return from_json(file.read_text())
