"""The settings that a workdir was made with: what commands use when they are given --workdir and no --config."""

from pathlib import Path

from onelive_jax.config import Config, from_json


def get_config(workdir: str) -> Config:
    file = Path(workdir) / "config.json"
    try:
        return from_json(file.read_text("utf-8"))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): name the config that the workdir was made with "
                         "(--config=NAME)") from error
