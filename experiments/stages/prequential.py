"""Prequential evaluation: every target is ranked by parameters published before it, and learned from afterwards, once.

A target is a view whose author others (or a true lifetime) show to be on air as it begins, and not a person's first:
the strict protocol, in the order in which things happen. All arms read the same requests, with histories, rooms on air
and codes of the moment; they differ in when their parameters were published, and by nothing else. Authors whom a
published model did not know are in its table by their content, as in the live service.

Axes: R targets, N slots, C candidates (flat), A authors and spare rows, E author width.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.batches import features
from data_pipelines.live.examples import Look
from data_pipelines.live.state import LiveState
from data_pipelines.log.presence import OnAir
from data_pipelines.log.tasks import REPEAT_VIEWS
from experiments.common import scoring
from experiments.stages.stream import MINUTE_MS
from onelive_jax.evaluation import ranking_metrics

NEVER_MS = 2**62
CHUNK = 32
COLUMNS = ("time_ms", "user", "author", "repeat", "unseen")  # of a target; user and author are rows of the state


@dataclass
class Arm:
    """Parameters that are renewed every `period_ms`, and how they came to be.

    Attributes: since_ms: when they were published. born: spare row → how many authors it had had by then.
    """

    period_ms: int
    params: Any
    since_ms: int
    born: dict[int, int]


class Judge:
    """Ranks targets as they come: `look` is `Examples.on_look`, `due` is called at every publication.

    Attributes:
      arms: by name. found: name of a column → its parts; besides `COLUMNS`, "rank_ARM" float64 [R, 2] (ranks) and
        "age_ARM" int64 [R], how old the parameters were.
    """

    def __init__(self, rank: scoring.Ranker, state: LiveState, trained: int, scale: float, slots: int, params: Any,
                 now_ms: int, periods: dict[str, int]):
        """rank: of a model with spare rows. trained: authors of the training log. slots: N, most rooms of a moment.
        periods: arm → minutes between two publications; 0 for never."""
        self._rank, self._state, self._trained, self._scale, self._slots = rank, state, trained, scale, slots
        self._looks: list[Look] = []
        self._repeat: list[np.ndarray] = []
        self._births: dict[int, int] = {}
        self._before = Arm(0, jax.tree.map(jnp.copy, params), now_ms, {})
        self.arms = {name: Arm(minutes * MINUTE_MS, self._before.params, now_ms, {})
                     for name, minutes in periods.items()}
        self.found: dict[str, list[np.ndarray]] = {}

    def look(self, look: Look) -> None:
        """Keeps what was known, until the next `due`."""
        self._looks.append(look)
        self._repeat.append(np.array([self._is_repeat(user, author, look.time_ms) for user, author in
                                      zip(look.user.tolist(), look.author.tolist(), strict=True)]))

    def due(self, params: Any, now_ms: int, newcomers: list[int]) -> None:
        """Ranks what was looked at since the last publication, then makes the one before this the arms' own, where
        their time has come: no target is ranked by parameters younger than one interval.

        newcomers: rows that went to new authors since the last step, whose embeddings `params` lack.
        """
        if self._looks:
            self._judge()
        for arm in self.arms.values():
            if arm.period_ms and self._before.since_ms // arm.period_ms > arm.since_ms // arm.period_ms:
                arm.params, arm.since_ms, arm.born = self._before.params, self._before.since_ms, self._before.born
        known = {row: births for row, births in self._births.items() if row not in newcomers}
        self._before = Arm(0, jax.tree.map(jnp.copy, params), now_ms, known)

    def new_author(self, row: int) -> None:
        """A spare row goes to another author."""
        self._births[row] = self._births.get(row, 0) + 1

    def columns(self) -> dict[str, np.ndarray]:
        """Everything found, in the order of time."""
        return {name: np.concatenate(parts) for name, parts in self.found.items()}

    def _is_repeat(self, user: int, author: int, time_ms: int) -> bool:
        buffers = self._state.buffers["live"]
        place = buffers.place(user)
        end = place.start + int(np.searchsorted(buffers.start_ms[place], time_ms))
        return author in buffers.author[max(place.start, end - REPEAT_VIEWS):end]

    def _judge(self) -> None:
        looks, self._looks = self._looks, []
        repeat, self._repeat = np.concatenate(self._repeat), []
        join = lambda name: np.concatenate([getattr(look, name) for look in looks])  # noqa: E731
        counts = np.concatenate([np.diff(look.on_air.offsets) for look in looks])
        offsets = np.append(0, np.cumsum(counts))
        air = [np.concatenate([getattr(look.on_air, name) for look in looks])
               for name in ("author", "room", "viewers", "since_ms")]
        codes, author = join("codes"), join("author")
        time_ms = np.concatenate([np.full(look.user.size, look.time_ms) for look in looks])
        request = jax.tree.map(lambda *rows: np.concatenate(rows), *(look.request for look in looks))
        is_target = air[0] == np.repeat(author, counts)
        kept = np.flatnonzero((np.bincount(np.repeat(np.arange(author.size), counts), is_target, author.size) > 0)
                              & ~join("first"))
        if not kept.size:
            return
        moment_of = np.repeat(np.arange(author.size), counts)
        position = np.full(author.size, -1)
        position[moment_of[is_target]] = np.flatnonzero(is_target) - offsets[moment_of[is_target]]
        made = {"time_ms": time_ms[kept], "user": join("user")[kept], "author": author[kept], "repeat": repeat[kept],
                "unseen": author[kept] >= self._trained}
        params = {name: self._with_newcomers(arm) for name, arm in self.arms.items()}
        ranks: dict[str, list[np.ndarray]] = {name: [] for name in self.arms}
        for low in range(0, kept.size, CHUNK):
            row = kept[np.minimum(np.arange(low, low + CHUNK), kept.size - 1)]
            flat = np.concatenate([np.arange(offsets[r], offsets[r + 1]) for r in row])
            part = OnAir(np.append(0, np.cumsum(counts[row])), *(column[flat] for column in air))
            rooms = features.live_rooms(part, codes[flat], time_ms[row], self._slots,
                                        self._state.audiences)
            asked = jax.tree.map(lambda values, row=row: values[row], request)
            for name in self.arms:
                slot, value, valid = map(np.asarray, self._rank(params[name], asked, rooms, row, time_ms[row]))
                scores = np.full(flat.size, -np.inf, np.float32)
                where, _ = np.nonzero(valid)
                scores[part.offsets[where] + slot[valid]] = value[valid]
                ranks[name].append(ranking_metrics.ranks(scores, part.offsets, position[row])[:kept.size - low])
        for name, arm in self.arms.items():
            made[f"rank_{name}"] = np.concatenate(ranks[name])
            made[f"age_{name}"] = made["time_ms"] - arm.since_ms
        for name, values in made.items():
            self.found.setdefault(name, []).append(values)

    def _with_newcomers(self, arm: Arm) -> Any:
        """The arm's parameters, with authors it does not know by what their content says of them."""
        said = self._state.codes.embeddings
        rows = [row for row, births in self._births.items() if arm.born.get(row) != births and row in said]
        if not rows or "author_table" not in arm.params:
            return arm.params
        table = np.array(arm.params["author_table"])
        table[rows] = self._scale * np.stack([said[row] for row in rows])
        return {**arm.params, "author_table": jnp.asarray(table)}

    # For a position in the stream (`StreamBatches.extras`), which is taken right after `due`.

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arms, what was found, and who had which row; no look waits then."""
        arrays = {f"found/{name}": values for name, values in self.columns().items()}
        for name, arm in {"": self._before, **self.arms}.items():
            arrays |= {f"arm/{name}/{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(arm.params))}
            arrays[f"since/{name}"] = np.int64(arm.since_ms)
            arrays[f"born/{name}"] = np.array(list(arm.born.items()), np.int64).reshape(-1, 2)
        return arrays | {"births": np.array(list(self._births.items()), np.int64).reshape(-1, 2)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `to_arrays`."""
        self.found = {name.removeprefix("found/"): [values] for name, values in arrays.items()
                      if name.startswith("found/")}
        form = jax.tree.structure(self._before.params)
        for name, arm in {"": self._before, **self.arms}.items():
            leaves = [arrays[key] for key in sorted(arrays) if key.startswith(f"arm/{name}/")]
            arm.params = jax.tree.map(jnp.asarray, jax.tree.unflatten(form, leaves))
            arm.since_ms, arm.born = int(arrays[f"since/{name}"]), dict(arrays[f"born/{name}"].tolist())
        self._births = dict(arrays["births"].tolist())
        self._looks, self._repeat = [], []
