"""Learning from the stream: one pass over what happens, in the order in which it arrives, published all day.

A live state takes in every event; an example is what was known when a view began, and is learned from when the view is
over (data_pipelines/live/examples.py). Every so many minutes of the stream the parameters are published: a checkpoint
that holds the position in the stream and all that the position means (people, rooms, codes, examples that wait), so
that a killed run goes on from it as if nothing had happened. The server watches for it.
"""

import dataclasses
import io
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data_pipelines.live import snapshots
from data_pipelines.live.examples import Examples
from data_pipelines.live.state import LiveState
from data_pipelines.tables import moment
from experiments.common import distributed
from experiments.common.log import Log
from experiments.common.workdir import is_done, mark_done
from experiments.server.service import live_state
from experiments.stages.policy import phase_identity
from experiments.stages.supervised import load_fitting, make_model, stage_settings
from experiments.stages.tokenizer import Tokenizer
from onelive_jax.batch import Batch
from onelive_jax.config import Config, MeshConfig, TrainingConfig
from onelive_jax.files import write_json, write_whole
from onelive_jax.model.onelive import OneLive
from onelive_jax.sharding import partitioning
from onelive_jax.training import loop, supervised, train_state
from onelive_jax.training.author_rows import AuthorRows, with_spare_authors

logger = logging.getLogger(__name__)
ENDLESS = 10**9  # optimizer steps
MINUTE_MS = 60_000
KEPT = 3  # checkpoints, and files of what a position means


@dataclass(frozen=True)
class StreamPlan:
    """How a stream is learned from.

    Attributes:
      publish_minutes: of the stream, between two publications. save_minutes: between two checkpoints; 0: every
        publication is one.
      label_minutes: a view that lasts longer is learned from after so much of it.
      batch_size: examples of a step. learning_rate: constant, after warmup_steps.
    """

    publish_minutes: float = 5.0
    save_minutes: float = 0.0
    label_minutes: float = 30.0
    batch_size: int = 64
    learning_rate: float = 2e-4
    warmup_steps: int = 20

    def training(self, config: Config) -> TrainingConfig:
        """The settings of an optimizer whose rate stays what it is."""
        return dataclasses.replace(config.training, steps=ENDLESS, batch_size=self.batch_size, accumulate=1,
                                   learning_rate=self.learning_rate, warmup_steps=self.warmup_steps, final_rate=1.0)


class Made(NamedTuple):
    """What a step takes: a batch, embeddings of author rows that are news, and which of these rows are somebody else's
    now."""

    batch: Batch
    embeddings: dict[int, np.ndarray]
    fresh: set[int]


class StreamBatches:
    """Batches as labels become known; they end where a publication is due, and where the source has no more now.

    Attributes:
      state, examples, rows: all that was taken in so far. position: in the source. due_ms: the next publication.
      due: whether the batches ended for a publication (`go_on` goes on). ended: whether the source has no more.
      extras: (to_arrays, restore) by name, of what else must be kept with a position.
    """

    def __init__(self, source: Any, examples: Examples, rows: AuthorRows, plan: StreamPlan, folder: Path):
        self.source, self.examples, self.rows, self.plan, self.folder = source, examples, rows, plan, folder
        self.state: LiveState = examples.state
        self.position, self.events, self.taken = source.first, 0, 0
        self.due, self.ended, self.idle = False, False, False
        self.extras: dict[str, tuple[Callable, Callable]] = {}
        self._every_ms = round(plan.publish_minutes * MINUTE_MS)
        self.due_ms = (self.state.now_ms // self._every_ms + 1) * self._every_ms
        self._news: dict[int, np.ndarray] = {}
        self._from_ms = self.state.now_ms
        self._coming: Iterator | None = None
        self._next: tuple[Any, int, Any] | None = None

    def __iter__(self) -> "StreamBatches":
        return self

    def __next__(self) -> Made:
        size = self.plan.batch_size
        while len(self.examples.ready) < size:
            if self.due or self.ended or not self._peek():
                raise StopIteration
            position, received_ms, event = self._next
            if received_ms >= self.due_ms:
                self.examples.look()
                self.state.codes.flush()
                self.due = True
                raise StopIteration
            if received_ms < self._from_ms:
                self.examples.counts["events that had arrived when the log ended"] += 1
            else:
                self.examples.take_in(event, received_ms)
            self.position, self._next = position, None
            self.events += 1
        self.taken += 1
        self.state.codes.flush()  # whoever saves here flushes too: a stop must not change what is encoded together
        _, embeddings = self.state.codes.take_news()
        embeddings, self._news = self._news | embeddings, {}
        fresh, self.examples.newcomers = set(self.examples.newcomers), []
        return Made(self.examples.take(size), embeddings, fresh)

    def go_on(self) -> None:
        """After a publication: up to the next one."""
        _, received_ms, _ = self._next
        self.due, self.due_ms = False, (received_ms // self._every_ms + 1) * self._every_ms

    def _peek(self) -> bool:
        """Whether there is an event to take in; sets `ended` or `idle` where there is none."""
        self.idle = False
        if self._next is None:
            if self._coming is None:
                self._coming = iter(self.source.after(self.position))
            try:
                self._next = next(self._coming)
            except StopIteration:
                self.ended = True
                return False
            self.idle = self._next is None
        return self._next is not None

    # The position in the stream, for a checkpoint: JSON that names a file with what it means.

    def get_state(self) -> dict[str, Any]:
        """Writes the file, keeps the newest, and returns what names it."""
        arrays = {f"state/{name}": values for name, values in snapshots.to_arrays(self.state).items()}
        for part, (to_arrays, _) in self._parts().items():
            arrays |= {f"{part}/{name}": values for name, values in to_arrays().items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        name = f"position-{self.events:012d}.npz"
        write_whole(self.folder / name, buffer.getvalue())
        for old in sorted(self.folder.glob("position-*.npz"))[:-KEPT - 1]:
            old.unlink()
        return {"file": name, "position": self.position, "events": self.events, "taken": self.taken,
                "due_ms": self.due_ms}

    def set_state(self, kept: dict[str, Any]) -> None:
        """Raises: FileNotFoundError where the file is gone."""
        file = self.folder / kept["file"]
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, without which the stream cannot go on: delete {self.folder} "
                                    "to learn it from the start")
        with np.load(file, allow_pickle=False) as arrays:
            parts: dict[str, dict[str, np.ndarray]] = {}
            for name in arrays.files:
                part, _, rest = name.partition("/")
                parts.setdefault(part, {})[rest] = arrays[name]
        snapshots.restore(self.state, parts["state"])
        for part, (_, restore) in self._parts().items():
            restore(parts.get(part, {}))
        self.position, self.events, self.taken = kept["position"], kept["events"], kept["taken"]
        self.due_ms, self.due, self.ended, self._coming, self._next = kept["due_ms"], False, False, None, None
        # All restored embeddings count as news; most of them are in the rows already.
        _, embeddings = self.state.codes.take_news()
        said, new = self.rows.said, set(self.examples.newcomers)
        self._news = {row: embedding for row, embedding in embeddings.items()
                      if row in new or row not in said or not np.array_equal(embedding, said[row])}

    def _parts(self) -> dict[str, tuple[Callable, Callable]]:
        return {"examples": (self.examples.to_arrays, self.examples.restore),
                "rows": (self.rows.to_arrays, self.rows.restore), **self.extras}


@dataclass
class Learner:
    """All that learns from a stream: `make_learner`."""

    model: OneLive
    batches: StreamBatches
    first_state: train_state.TrainState
    take_step: Callable


def make_learner(config: Config, log: Log, tokenizer: Tokenizer, params: Any, source: Any, from_ms: int,
                 plan: StreamPlan, folder: Path, on_look: Callable | None = None) -> Learner:
    """As of a moment of the workdir's log, with these parameters (of its authors, without spare rows)."""
    state = live_state(config, log, tokenizer, from_ms)
    spare = config.serving.spare_authors
    model = make_model(config, log).clone(num_authors=log.num_authors + spare)
    rows = AuthorRows(log.num_authors, spare, config.model.author_scale)
    examples = Examples(state, config.seed, plan.label_minutes, on_look=on_look)
    folder.mkdir(parents=True, exist_ok=True)
    batches = StreamBatches(source, examples, rows, plan, folder)
    training = dataclasses.replace(config, training=plan.training(config))
    tx = train_state.make_optimizer(training.training)
    step_fn = jax.jit(supervised.make_train_step(model, tx, training), donate_argnums=0)
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    placed = jax.tree.map(jax.numpy.asarray, with_spare_authors(params, log.num_authors, spare))
    first = train_state.TrainState(jax.numpy.int32(0), placed, tx.init(placed), jax.random.key(config.seed))

    def take_step(step: int, state: train_state.TrainState, made: Made):
        state = rows.change(state, made.embeddings, made.fresh)
        return step_fn(state, partitioning.put_batch(made.batch, mesh))

    return Learner(model, batches, first, take_step)


def stream_settings(config: Config, log: Log, init_from: Path, plan: StreamPlan, source: str) -> dict:
    """What decides the parameters that come out."""
    return stage_settings(config, log) | {f"stream.{name}": value for name, value in dataclasses.asdict(plan).items()
                                          } | {"stream.source": source, "init_from": phase_identity(init_from),
                                               "serving.spare_authors": config.serving.spare_authors}


def learn(learner: Learner, folder: Path, settings: dict, plan: StreamPlan,
          published: Callable[[train_state.TrainState, int], None], due: Callable[[train_state.TrainState, int], None]
          | None = None, total: int | None = None) -> train_state.TrainState:
    """Learns to the end of the source, or for as long as it goes on; returns the last state.

    Args:
      due: called with the state and the moment whenever a publication is due, before anything is saved.
      published: called with both when the state is on disk. total: steps, where they are known.
    """
    batches, saved_ms = learner.batches, 0

    def progress(name: str, steps: int, done: int):
        return distributed.progress(name, total, done)

    with loop.Run(folder, loop.Schedule(ENDLESS, save_every=ENDLESS, log_every=10), settings, plan.batch_size, progress,
                  keep=KEPT) as run:
        state = run.start(learner.first_state, lambda: learner.first_state, batches)
        while not batches.ended:
            state = run.train(learner.take_step, state, batches)
            if batches.due or batches.ended:
                now_ms = batches.due_ms if batches.due else batches.state.now_ms
                if due is not None:
                    due(state, now_ms)
                if batches.due:
                    batches.go_on()
                if batches.ended or now_ms - saved_ms >= plan.save_minutes * MINUTE_MS:
                    if run.save(state, batches):
                        published(state, now_ms)
                    saved_ms = now_ms
            if run.stopping:
                run.stop(state, batches)
    return state


def train_stream(config: Config, workdir: Path, log: Log, tokenizer: Tokenizer, init_from: Path, source: Any,
                 from_ms: int, name: str, plan: StreamPlan) -> dict:
    """One pass over a source, or what is left of it; returns the report, which is also W/stream.json.

    name: of the source, by which a run knows that it goes on with the same one.
    """
    folder, settings = workdir / "stream", stream_settings(config, log, init_from, plan, name)
    is_done(folder, settings)  # refuses another run
    learner = make_learner(config, log, tokenizer, load_fitting(init_from, config, log), source, from_ms, plan, folder)
    batches = learner.batches

    def report(state: train_state.TrainState, now_ms: int) -> dict:
        """W/stream.json names the step that the server is to take."""
        examples, step = batches.examples, int(state.step)
        made = {"chosen_step": step, "published_ms": now_ms, "published": moment(now_ms, config.data.utc_offset_hours),
                "steps": step, "events": batches.events, "position": batches.position,
                "authors": {str(row): batches.state.authors.names[row] for row in sorted(batches.rows.said)},
                "views": dict(sorted(examples.counts.items())) | {
                    "ready, and fewer than a batch": len(examples.ready), "not over yet": examples.waiting},
                "stream": dict(sorted(batches.state.counts.items()))}
        write_json(folder.with_name("stream.json"), made)
        return made

    state = learn(learner, folder, settings, plan, report, total=steps_of(source, log, from_ms, plan))
    made = report(state, batches.state.now_ms)
    mark_done(folder, settings)
    return made


def steps_of(source: Any, log: Log, from_ms: int, plan: StreamPlan) -> int | None:
    """About how many steps the workdir's own log has behind a moment; None of any other source."""
    if getattr(source, "log", None) is not log:
        return None
    return math.ceil(int((log.views.start_ms > from_ms).sum()) / plan.batch_size)


def format_report(made: dict) -> str:
    """What was taken in, what was learned from and what was not."""
    lines = [f"{made['events']:,} events, {made['steps']:,} steps; step {made['chosen_step']} is published "
             f"({made['published']})"]
    lines += [f"  views {name}: {count:,}" for name, count in made["views"].items()]
    return "\n".join([*lines, *(f"  {name}: {count:,}" for name, count in made["stream"].items())])
