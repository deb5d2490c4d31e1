"""The first stage: a log becomes canonical tables, stored timelines, a split, and who is on air when."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines import tables
from data_pipelines.batches.training import BatchMaker
from data_pipelines.log import store, tasks
from data_pipelines.log.presence import NOBODY, Presence
from data_pipelines.log.timelines import Timelines
from data_pipelines.prepare import read_source
from experiments.common.workdir import flat, is_done, mark_done
from onelive_jax.config import Config
from onelive_jax.files import write_json

logger = logging.getLogger(__name__)
SOURCE = "source.json"


@dataclass
class Log:
    """A prepared log.

    Attributes:
      tables: the canonical tables. views: all watched views. presence: who is on air when.
      outcomes: objective → float32 [V], what came of each watched view, for the objectives that the log has beside the
        click itself: "long_view", "like", "comment", "follow", "share" (0 or 1 each) and "gift" (0 or 1).
      others: the further sequences that the log can make: "gift", "video" (data_pipelines/batches/training.py).
      split: the times p1, p2 and the end. lifetimes: true room lifetimes, or None where views are all there is.
    """

    tables: tables.Tables
    views: Timelines
    presence: Presence
    split: tables.Split
    lifetimes: tasks.Lifetimes | None
    others: dict[str, Timelines] = dataclasses.field(default_factory=dict)
    outcomes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

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
        return dataclasses.replace(self, views=views, presence=who_is_on_air(views, self.lifetimes), others=others,
                                   outcomes=outcomes)

    def batch_maker(self, ids, config: Config) -> BatchMaker:
        return BatchMaker(self.views, self.presence, ids, config.data, self.others)


def data_settings(config: Config) -> dict:
    """What the tables depend on (how a history is cut does not change them)."""
    settings = {f"data.{name}": getattr(config.data, name) for name in ("source", "path")}
    return settings | (flat(config, "simulator") if config.data.source == "simulated" else {})


def prepare(config: Config, workdir: Path) -> Log:
    """Reads the log of `config.data`, once a workdir, and returns it ready for use."""
    folder = workdir / "data"
    settings = data_settings(config)
    if is_done(folder, settings):
        check_unchanged(config, folder)
        log = tables.load(folder)
    else:
        log = read(config)
        for line in log.report.lines():
            logger.info("%s", line)
        tables.save(log, folder)
        if config.data.path:
            write_json(folder / SOURCE, {"bytes": _bytes(Path(config.data.path))})
        mark_done(folder, settings)
    store.build(log, workdir / "examples")
    arrays = store.load_timelines(workdir / "examples")
    views = Timelines(*(arrays[name] for name in ("user_ptr", "author", "room", "start_ms", "stop_ms")))
    split = tables.split_times(log, config.data.valid_hours, config.data.test_hours)
    lifetimes = None
    if log.rooms_are_true_lifetimes:
        # Rooms that are on air together lie together: looking at many of them is then quick.
        rooms = log.rooms.with_columns(pl.col("end_ms").fill_null(split.end_ms)).sort("start_ms", "room_id")
        columns = ("author_id", "start_ms", "end_ms", "room_id")
        lifetimes = tasks.Lifetimes(*(rooms[name].to_numpy() for name in columns))
    return Log(log, views, who_is_on_air(views, lifetimes), split, lifetimes, other_sequences(log, arrays),
               outcomes_of(arrays, config.data.long_view_seconds))


def outcomes_of(arrays: dict[str, np.ndarray], long_view_seconds: float) -> dict[str, np.ndarray]:
    """See `Log.outcomes`; an objective that no view has is left out, and so are long views if every view is one."""
    result = {"long_view": arrays["stop_ms"] - arrays["start_ms"] >= 1000 * long_view_seconds}
    result |= {name: arrays[name] > 0 for name in ("like", "comment", "follow", "share")}
    result["gift"] = arrays["gift_value"] > 0
    return {name: values.astype(np.float32) for name, values in result.items() if values.any() and not values.all()}


def other_sequences(log: tables.Tables, arrays: dict[str, np.ndarray]) -> dict[str, Timelines]:
    """Timelines of gifts (where there is any) and of short videos (where the log has them)."""
    result = {}
    given = arrays["gift_value"] > 0
    if given.any():
        names = ("user_ptr", "author", "room", "start_ms", "stop_ms")
        gifts = Timelines(*(arrays[name] for name in names)).where(given)
        # The moment of the gift is not logged: that there was one is known for certain when the view is over.
        result["gift"] = gifts.sorted_by(gifts.stop_ms, gifts.stop_ms)
    if log.videos is not None:
        videos = log.videos
        start = videos["start_ms"].to_numpy()
        ptr = np.searchsorted(videos["user_id"].to_numpy(), np.arange(len(log.users) + 1))
        author = videos["author_id"].to_numpy()
        result["video"] = Timelines(ptr, author, np.full(author.size, -1, np.int32), start,
                                    start + videos["watch_ms"].to_numpy())
    return result


def who_is_on_air(views: Timelines, lifetimes: tasks.Lifetimes | None) -> Presence:
    """From true lifetimes, or, where there are none, from the views themselves."""
    watching = Presence(views.start_ms, views.stop_ms, views.author, views.room, views.users())
    if lifetimes is None:
        return watching
    return Presence(lifetimes.start_ms, lifetimes.end_ms, lifetimes.author, lifetimes.room, NOBODY, watching)


def check_unchanged(config: Config, folder: Path) -> None:
    """Raises ValueError where the log is no longer the one that was read. A log that is gone is no matter."""
    file, record = Path(config.data.path), folder / SOURCE
    if record.is_file() and file.exists():
        before, now = json.loads(record.read_text())["bytes"], _bytes(file)
        if before != now:
            raise ValueError(f"{file} has {now:,} bytes now and had {before:,} when {folder} was made from it: choose "
                             f"another --workdir for the new log, or delete {folder} and the stages after it")


def _bytes(path: Path) -> int:
    """Of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def read(config: Config) -> tables.Tables:
    """The canonical tables of the log of `config.data`."""
    return read_source(config.data.source, config.data.path, simulator_config=config.simulator)
