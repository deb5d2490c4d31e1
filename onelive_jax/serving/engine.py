"""Arrays in, answers out: the one place that calls the device, with every program compiled before the first request.

Axes: R requests that were asked, B a bucket they fill up, C slots of the catalogue, M rooms of one's own, A authors and
spare rows, E author width, k ranks.
"""

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from onelive_jax.batch import Request
from onelive_jax.config import Config
from onelive_jax.decoding.recommend import Personal, make_recommender
from onelive_jax.model.onelive import OneLive
from onelive_jax.serving.catalogue import Snapshot
from onelive_jax.training.author_rows import with_rows_of

OWN_ROOMS = 4  # rooms that a person may watch at once and whose viewers are told without them


class Answers(NamedTuple):
    """slot: int32 [R, k], −1 past the last room. score: float32 [R, k]. codes: int32 [R, k, L]. model: its name."""

    slot: np.ndarray
    score: np.ndarray
    codes: np.ndarray
    model: str


@dataclasses.dataclass(frozen=True)
class Version:
    """Parameters on the device, whole: a swap puts one in the place of another in one assignment. since: time.time()
    of when they were loaded. learned: spare row → the author of whom it was learned (by a stream)."""

    name: str
    params: Any
    learned: Mapping[int, str] = dataclasses.field(default_factory=dict)
    since: float = dataclasses.field(default_factory=time.time)


class Engine:
    """Answers requests with one model; another can be put in its place while it works, and the last one back.

    Only one thread may call `answer`; `swap` and `rollback` may be called by any.
    """

    def __init__(self, model: OneLive, config: Config, params: Any, name: str):
        """model: of the trained authors; spare rows are added here. params: float32 tree of that model."""
        self.spare, self.trained = config.serving.spare_authors, model.num_authors
        self.model = model.clone(num_authors=model.num_authors + self.spare)
        self.config, self.buckets = config, [1 << i for i in range(config.serving.max_batch.bit_length())]
        beams = {config.decoding.beams, config.serving.narrow_beams or config.decoding.beams}
        self._recommend = {width: make_recommender(self.model, dataclasses.replace(config.decoding, beams=width),
                                                   config.serving.max_k) for width in beams}
        self._swapping = threading.Lock()
        self._newcomers: dict[int, np.ndarray] = {}
        self._who: dict[int, str] = {}  # has which of these rows
        self.running, self.previous = self._placed(params, name, {}), None

    def answer(self, request: Request, snapshot: Snapshot, features: np.ndarray, personal: Personal,
               narrow: bool = False, version: Version | None = None) -> Answers:
        """The best rooms on air of R ≤ max_batch requests.

        Args:
          request, personal: NumPy arrays [R, …]. features: float32 [C, R], of the snapshot's rooms now.
          narrow: with the beam width for times of load. version: another model than the running one.
        """
        asked, version = request.hour.shape[0], version or self.running
        bucket = next((size for size in self.buckets if size >= asked), None)
        if bucket is None or not asked:
            raise ValueError(f"{asked} requests at once: 1 to {self.buckets[-1]} are answered together "
                             "(config.serving.max_batch)")
        fill = np.minimum(np.arange(bucket), asked - 1)  # the last request again: any row will do
        request, personal = jax.tree.map(lambda x: x[fill], (request, personal))
        width = (self.config.serving.narrow_beams if narrow else 0) or self.config.decoding.beams
        index = snapshot.index.replace(features=features)
        ranking = self._recommend[width](version.params, request, index, personal=personal)
        slot, score, codes = jax.device_get((ranking.slot, ranking.score, ranking.codes))
        return Answers(slot[:asked], score[:asked], codes[:asked], version.name)

    def warm_up(self, request: Request, snapshot: Snapshot) -> int:
        """Compiles every program that `answer` may need, by a request [1, …] of any person; returns how many."""
        (capacity,), num_features = snapshot.room.shape, snapshot.index.features.shape[-1]
        features = np.zeros((capacity, num_features), np.float32)
        table = self.running.params.get("author_table")
        if table is not None:  # a first newcomer is not to wait for the compiler; this writes nothing
            rows = np.full(self.spare, len(table), np.int32)
            _write_rows(table, rows, np.zeros((self.spare, table.shape[1]), np.float32))
        for bucket in self.buckets:
            rows = jax.tree.map(lambda x, bucket=bucket: np.repeat(x, bucket, 0), request)
            for narrow in {False, self.config.serving.narrow_beams > 0}:
                self.answer(rows, snapshot, features, everyone_alike(bucket, capacity, num_features), narrow)
        return len(self.buckets) * len(self._recommend)

    def set_newcomers(self, embeddings: dict[int, np.ndarray], names: Sequence[str]) -> None:
        """Spare rows of the author table: row → IA embedding float32 [E]; names: of all rows. What a model has learned
        of an author stays."""
        if not embeddings:
            return
        with self._swapping:
            self._newcomers |= embeddings
            self._who |= {row: names[row] for row in embeddings}
            self.running = self._with(self.running, embeddings)
            if self.previous is not None:
                self.previous = self._with(self.previous, embeddings)

    def prepare(self, params: Any, name: str, learned: Mapping[int, tuple[str, int]] | None = None) -> Version:
        """Another model's parameters on the device, not in use yet.

        learned: our spare row → (author, row of `params`), of authors behind those of training whom it knows.

        Raises: ValueError where they are of another shape than the running ones.
        """
        version = self._placed(params, name, learned or {})
        ours, theirs = (jax.tree.map(lambda x: (x.shape, x.dtype), v.params) for v in (self.running, version))
        if ours != theirs:
            raise ValueError(f"the parameters of {name} have other shapes than those of {self.running.name}: they are "
                             "of another model or another log")
        return version

    def swap(self, version: Version) -> None:
        """From the next batch on, `version` answers; the one before is kept for `rollback` (the one before it, where
        the running model is loaded anew)."""
        with self._swapping:
            version = self._with(version, self._newcomers)
            if version.name != self.running.name:
                self.previous = self.running
            self.running = version

    def rollback(self) -> str:
        """Puts the model before back; returns its name. Raises ValueError where there is none."""
        with self._swapping:
            if self.previous is None:
                raise ValueError("there is no earlier model to go back to: none was swapped since the start")
            self.previous, self.running = self.running, self.previous
            return self.running.name

    def _placed(self, params: Any, name: str, learned: Mapping[int, tuple[str, int]]) -> Version:
        made = with_rows_of(params, self.trained, self.spare, {row: theirs for row, (_, theirs) in learned.items()})
        version = Version(name, jax.device_put(made), {row: who for row, (who, _) in learned.items()})
        return self._with(version, self._newcomers)

    def _with(self, version: Version, embeddings: dict[int, np.ndarray]) -> Version:
        embeddings = {row: embedding for row, embedding in embeddings.items()
                      if row not in version.learned or version.learned[row] != self._who[row]}
        params = version.params
        if "author_table" not in params or not embeddings:
            return version
        rows = np.array(list(embeddings))
        if rows.min() < self.trained or rows.max() >= self.trained + self.spare:
            raise ValueError(f"author rows {rows.tolist()} are not all spare: those are {self.trained} … "
                             f"{self.trained + self.spare - 1}")
        new = np.stack(list(embeddings.values())) * self.config.model.author_scale
        # Always as many rows as there are spare ones: one shape, compiled once.
        padded_rows = np.full(self.spare, params["author_table"].shape[0], np.int32)
        padded = np.zeros((self.spare, new.shape[1]), np.float32)
        padded_rows[:rows.size], padded[:rows.size] = rows, new
        table = _write_rows(params["author_table"], padded_rows, padded)
        return dataclasses.replace(version, params={**params, "author_table": table})


@jax.jit
def _write_rows(table_AxE: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return table_AxE.at[rows].set(values, mode="drop")


def everyone_alike(requests: int, capacity: int, num_features: int) -> Personal:
    """The shared catalogue as it is, for every request."""
    return Personal(np.ones((requests, capacity), bool), np.full((requests, OWN_ROOMS), capacity, np.int32),
                    np.zeros((requests, OWN_ROOMS, num_features), np.float32))
