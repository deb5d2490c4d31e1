"""The first stage: a log becomes canonical tables, stored timelines, a split, and who is on air when."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines import tables
from data_pipelines.batches.feedback import satisfaction_of, satisfaction_scale
from data_pipelines.batches.training import BatchMaker
from data_pipelines.log import audiences, store
from data_pipelines.log.presence import Lifetimes, Presence, true_lifetimes
from data_pipelines.log.split import Split, periods, split_times
from data_pipelines.log.timelines import Timelines, other_timelines
from data_pipelines.prepare import READERS, described, options_of, read_source
from experiments.common.workdir import flat, is_done, mark_done, read_record
from onelive_jax.config import Config
from onelive_jax.files import write_json

logger = logging.getLogger(__name__)
SOURCE = "source.json"
OPTIONS = ("columns", "utc_offset_hours", "room_gap_min", "default_watch_s", "bad_rows")  # of config.data


@dataclass
class Log:
    """A prepared log.

    Attributes:
      tables: the canonical tables. views: all watched views. presence: who is on air when.
      outcomes: objective → float32 [V], what came of each watched view, for the objectives that the log has beside the
        click itself: "long_view", "like", "comment", "follow", "share", "gift" (0 or 1 each), and "satisfaction", 1 for
        an answer in the upper half of the scale.
      others: the further sequences that the log can make: "gift", "video" (data_pipelines/batches/training.py).
      split: the times p1, p2 and the end. lifetimes: true room lifetimes, or None where views are all there is.
      satisfaction: (worst, best) answer of the training period, None where people were not asked.
      audiences: what training views say of authors and of who shares an audience.
    """

    tables: tables.Tables
    views: Timelines
    presence: Presence
    split: Split
    lifetimes: Lifetimes | None
    audiences: audiences.Audiences
    others: dict[str, Timelines] = dataclasses.field(default_factory=dict)
    outcomes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    satisfaction: tuple[float, float] | None = None

    @property
    def num_authors(self) -> int:
        return len(self.tables.authors)

    @property
    def training_views(self) -> np.ndarray:
        """int64, views that end before the validation period: all that anything may be learned from."""
        return np.flatnonzero(self.views.stop_ms <= self.split.p1_ms)

    def training_part(self) -> "Log":
        """The log as training may see it: no history, no room on air and no example comes from any other view."""
        views, others = self.views.until(self.split.p1_ms), {}
        for name, other in self.others.items():
            others[name] = other.until(self.split.p1_ms)
        outcomes = {name: values[self.views.stop_ms <= self.split.p1_ms] for name, values in self.outcomes.items()}
        return dataclasses.replace(self, views=views, outcomes=outcomes, others=others,
                                   presence=Presence.of(views, self.lifetimes, self.num_authors))

    def batch_maker(self, ids, config: Config) -> BatchMaker:
        return BatchMaker(self.views, self.presence, ids, config.data, self.others, self.audiences)


def data_settings(config: Config) -> dict:
    """What the tables depend on (how a history is cut does not change them)."""
    names = ("source", "path") + (OPTIONS if config.data.source in READERS else ())
    settings = {f"data.{name}": getattr(config.data, name) for name in names}
    return settings | (flat(config, "simulator") if config.data.source == "simulated" else {})


def prepare(config: Config, workdir: Path) -> Log:
    """Reads the log of `config.data`, once a workdir, and returns it ready for use."""
    folder = workdir / "data"
    settings = data_settings(config)
    fresh = not is_done(folder, settings)
    if not fresh:
        check_unchanged(config, folder)
        log = tables.load(folder)
    else:
        log = read(config)
        for line in [*log.report.lines(), *described(log, config.data.utc_offset_hours)]:
            logger.info("%s", line)
        tables.save(log, folder)
        if config.data.path:
            write_json(folder / SOURCE, {"bytes": _bytes(Path(config.data.path))})
        mark_done(folder, settings)
    store.build(log, workdir / "examples")
    arrays = store.load_timelines(workdir / "examples")
    views = Timelines.from_arrays(arrays)
    split = split_times(log, config.data.valid_hours, config.data.test_hours)
    if fresh:
        for line in periods(log, split, config.data.utc_offset_hours):
            logger.info("%s", line)
    lifetimes = true_lifetimes(log, split.end_ms)
    counted = audiences.stored(workdir / "examples", views, len(log.authors), split.p1_ms, config.data.utc_offset_hours)
    outcomes, scale = outcomes_of(arrays, config.data.long_view_seconds), satisfaction_scale(log, split.p1_ms)
    if scale:
        watched = log.interactions.filter(pl.col("watch_ms") > 0)  # the views, in their order
        outcomes["satisfaction"] = (satisfaction_of(watched, scale) > 0.5).astype(np.float32)
    return Log(log, views, Presence.of(views, lifetimes, len(log.authors)), split, lifetimes, counted,
               other_timelines(log, arrays), outcomes, scale)


def outcomes_of(arrays: dict[str, np.ndarray], long_view_seconds: float) -> dict[str, np.ndarray]:
    """See `Log.outcomes`; an objective that no view has is left out, and so are long views if every view is one."""
    result = {"long_view": arrays["stop_ms"] - arrays["start_ms"] >= 1000 * long_view_seconds}
    result |= {name: arrays[name] > 0 for name in ("like", "comment", "follow", "share")}
    result["gift"] = arrays["gift_value"] > 0
    return {name: values.astype(np.float32) for name, values in result.items() if values.any() and not values.all()}


def check_unchanged(config: Config, folder: Path) -> None:
    """Raises ValueError where the log is no longer the one that was read. A log that is gone is no matter."""
    file, record = Path(config.data.path), folder / SOURCE
    if record.is_file() and file.exists():
        before, now = read_record(record, folder, "bytes")["bytes"], _bytes(file)
        if before != now:
            raise ValueError(f"{file} has {now:,} bytes now and had {before:,} when {folder} was made from it: choose "
                             f"another --workdir for the new log, or delete {folder} and the stages after it")


def _bytes(path: Path) -> int:
    """Of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def read(config: Config) -> tables.Tables:
    """The canonical tables of the log of `config.data`."""
    options = options_of(**{name: getattr(config.data, name) for name in OPTIONS})
    return read_source(config.data.source, config.data.path, options, config.simulator)
