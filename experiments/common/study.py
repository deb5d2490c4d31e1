"""The frame of every study: variants of one config, each trained and judged once, and how they are compared.

A unit of a study (a variant under a seed, usually) has a folder of its own. Its result is kept in one file together
with all settings, so that a killed study resumes, and a study with other settings is refused rather than mistaken for
this one.
"""

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from data_pipelines.pictures.plots import png
from experiments.common.log import Log, prepare
from experiments.common.workdir import flat, save_config
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import Tokenizer, settings_of, train_tokenizer
from onelive_jax.config import Config
from onelive_jax.files import write_json, write_whole
from onelive_jax.model.onelive import OneLive
from onelive_jax.settings import differing

RESULT = "result.json"
# What workdirs may share: what is read of a log, and the tokenizer.
LOG_PARTS, TOKENIZER_PARTS = ("data", "examples"), ("tokenizer", "tokenizer.json")


def changed(config: Config, settings: dict[str, object], seed: int) -> Config:
    """A copy of `config` with a seed and dotted settings ("model.mtp") replaced. Raises: ValueError as `validate`."""
    result = copy.deepcopy(config)
    result.seed = seed
    for name, value in settings.items():
        section, field = name.split(".")
        setattr(getattr(result, section), field, value)
    return result.validate()


def all_settings(config: Config, **asked: object) -> dict:
    """Every setting that decides a result, and what a command was asked beside them."""
    sections = (field.name for field in dataclasses.fields(config) if field.name not in ("name", "mesh"))
    return flat(config, *sections) | asked


def kept(file: Path, config: Config, make: Callable[[], Any], **asked: object) -> Any:
    """The result that is kept in `file`; where there is none, that of `make()`, which is then kept.

    Args:
      config, asked: what the result depends on, compared whole.
      make: gives a JSON value.

    Raises: ValueError where the file was made with other settings, with the fields that differ.
    """
    settings = all_settings(config, **asked)
    if file.is_file():
        before = json.loads(file.read_text())
        if found := differing(before["settings"], settings):
            raise ValueError(f"{file} was made with other settings ({found}): choose another --workdir, or delete "
                             "that file to make it again")
        return before["result"]
    write_json(file, {"settings": settings, "result": make()})
    return json.loads(file.read_text())["result"]


def share(base: Path, folder: Path, *parts: str) -> None:
    """Makes parts of the workdir `base` parts of the workdir `folder` too, by relative links.

    A part that `folder` has already stays. Nobody writes through a link: a stage that finds its folder done with other
    settings refuses.
    """
    if folder == base:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if (base / part).exists() and not os.path.lexists(folder / part):
            (folder / part).symlink_to(os.path.relpath(base / part, folder))


class Variant(NamedTuple):
    """A trained variant: its settings and what its training holds in memory. figures: of the supervised phase."""

    config: Config
    folder: Path
    log: Log
    tokenizer: Tokenizer
    model: OneLive
    params: dict
    figures: dict


def train(config: Config, folder: Path, base_config: Config, base: Path, share_towers: bool = False) -> Variant:
    """The supervised model of a variant in the workdir `folder`: trained, or found trained.

    The log is that of the workdir `base`, and so is its tokenizer, where both configs ask for the same one. A variant
    with a tokenizer of its own still reads the base's towers with `share_towers`.

    Raises: FloatingPointError where the loss became NaN or infinite; its metrics up to there are on disk.
    """
    log = prepare(base_config, base)
    tokenizer = train_tokenizer(base_config, base, log)
    share(base, folder, *LOG_PARTS)
    if config.data != base_config.data:
        log = prepare(config, folder)
    if settings_of(config) == settings_of(base_config):
        share(base, folder, *TOKENIZER_PARTS)
    else:
        tokenizer = train_tokenizer(config, folder, log, tokenizer if share_towers else None)
    model, params, figures = train_supervised(config, folder, log, tokenizer)
    save_config(config, folder)
    return Variant(config, folder, log, tokenizer, model, params, figures)


def over_seeds(values: Sequence[float | None], form: str = ".4f") -> str:
    """Mean ± standard deviation (n − 1) of a figure over seeds, as text; None, a figure a seed lacks, is left out."""
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    sd = f" ± {np.std(found, ddof=1):{form.replace('+', '')}}" if len(found) > 1 else ""
    return f"{np.mean(found):{form}}{sd}"


def save_plot(figure: Figure, file: Path) -> None:
    write_whole(file, png(figure))
