"""What a --workdir records: which stages are finished, and the settings that they were finished with."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from onelive_jax.config import Config, differing, to_json
from onelive_jax.files import write_json, write_whole

DONE = "done.json"
HEURISTIC_ARMS = ("random", "viewers", "own_counts", "logging", "oracle")  # of A/B tests, beside trained workdirs
# Settings that say how a run is watched, kept and computed. They do not decide its result (model.* only by rounding),
# so they may change while it is resumed and after it is done, and no stage records them.
WATCHING = ("training.profile_at", "training.profile_steps", "training.log_every", "training.checkpoint_every",
            "training.keep_checkpoints", "model.remat", "model.attention", "reward.log_every",
            "reward.checkpoint_every", "alignment.log_every", "alignment.checkpoint_every")


def flat(config: Config, *sections: str) -> dict:
    """The settings of some sections that decide a result (all but `WATCHING`), as {"section.field": value}."""
    result = {}
    for section in sections:
        node = getattr(config, section)
        for name, value in (dataclasses.asdict(node).items() if dataclasses.is_dataclass(node) else [("", node)]):
            result[f"{section}.{name}".rstrip(".")] = value
    return {name: value for name, value in result.items() if name not in WATCHING}


def is_done(folder: Path, settings: dict) -> bool:
    """Whether the stage that writes `folder` is finished.

    Raises: ValueError if it was finished with other settings, with the fields that differ.
    """
    file = folder / DONE
    if not file.is_file():
        return False
    if changed := differing(json.loads(file.read_text()), settings):
        raise ValueError(f"{folder} was made with other settings ({changed}): choose another --workdir, or delete "
                         f"{folder} and the stages after it")
    return True


def mark_done(folder: Path, settings: dict) -> None:
    """Records that the stage that writes `folder` is finished; its last file."""
    write_json(folder / DONE, settings)


def save_config(config: Config, workdir: Path) -> None:
    """Writes WORKDIR/config.json, from which later commands on the workdir take their settings."""
    write_whole(workdir / "config.json", to_json(config))


def phase_of(path: str | Path, others: Sequence[str] = ()) -> tuple[Path, Path]:
    """(workdir, folder of the phase) of a workdir, whose supervised model is meant, or of the folder of a phase.

    Raises: FileNotFoundError where it is neither, with `others`, the names that could have stood there too.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder, folder / "supervised"
    if (folder.parent / "config.json").is_file() and folder.is_dir():
        return folder.parent, folder
    names = f", nor one of {', '.join(others)}" if others else ""
    raise FileNotFoundError(f"{path} is neither a trained workdir nor the folder of a phase of one (W/policy){names}")
