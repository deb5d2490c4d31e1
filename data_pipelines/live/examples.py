"""Training examples from what happens: a request as of when a view began, learned from once the view is over.

History, rooms on air and codes are looked at when the view begins, by the functions that make the batches of a log.
That somebody watched is known when the view ends, or, for a long one, after a limit; until then the example waits. A
view whose start arrived too late to be looked at in time is counted and not learned from.

Axes: R views that began together, n rooms on air of all of them (flat), N slots, L code levels.
"""

import heapq
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from data_pipelines.batches.training import chosen_rooms
from data_pipelines.live import events
from data_pipelines.live.requests import make_requests
from data_pipelines.live.state import LiveState
from data_pipelines.log import draws
from data_pipelines.log.presence import OnAir
from onelive_jax.batch import Batch, Request

META = "meta"
MINUTE_MS = 60_000


@dataclass(frozen=True)
class Look:
    """Views that began at one moment, and what was known then.

    Attributes:
      time_ms: the moment. user, author: int64 [R], who watches whom. first: bool [R], nothing was known of the person.
      request: [R, …]. on_air: rooms on air for each, as others show them. codes: int32 [n, L], of those.
      codes_of_author: int32 [R, L].
    """

    time_ms: int
    user: np.ndarray
    author: np.ndarray
    first: np.ndarray
    request: Request
    on_air: OnAir
    codes: np.ndarray
    codes_of_author: np.ndarray


class Examples:
    """Attributes:
      state: takes in every event; nobody else applies events to it. counts: what became of views.
      ready: examples whose label is known, in that order; take them by `take`.
      newcomers: rows of authors who are new since the list was last emptied.
      on_look: called with every `Look`, for who judges a model before it learns. on_author: called with a spare row
        that goes to a new author.
    """

    def __init__(self, state: LiveState, seed: int, limit_minutes: float, late_seconds: float = 60.0,
                 on_look: Callable[[Look], None] | None = None,
                 on_author: Callable[[int], None] | None = None):
        """limit_minutes: a view that lasts longer is learned from after so much of it. late_seconds: of a view's start
        that arrives later after it, the rooms on air then are no longer known."""
        self.state, self.seed, self.on_look, self.on_author = state, seed, on_look, on_author
        self._limit_ms, self._late_ms = round(limit_minutes * MINUTE_MS), round(1000 * late_seconds)
        self.counts: Counter = Counter()
        self.ready: list[Batch] = []
        self.newcomers: list[int] = []
        self.number, self.moment_ms = 0, state.now_ms
        # (user, room number, start) → author, of views that are not looked at yet.
        self._begun: dict[tuple[int, int, int], int] = {}
        self._waiting: dict[tuple[int, int, int], Batch] = {}  # (user, room number, start) → example [1, …]
        self._limits: list[tuple[int, tuple[int, int, int]]] = []
        self._ended: dict[tuple[int, int, int], int] = {}  # ends of views that are not looked at yet
        self._on_air = np.zeros(len(state.authors), bool)
        self._room = np.full(len(state.authors), -1, np.int64)
        self._journal: list[tuple] = []
        state.tell = lambda *entry: self._journal.append(entry)
        state.changed = set(range(len(state.authors)))

    def take_in(self, event: events.Event, received_ms: int) -> None:
        """Applies an event to the state, after a look at the views that began before it arrived."""
        if received_ms > self.moment_ms:
            self.look()
            self.moment_ms = received_ms
            while self._limits and self._limits[0][0] <= received_ms:
                self._release(heapq.heappop(self._limits)[1], "learned from before its end")
        self.state.apply(event, received_ms)
        self._read_journal()

    def look(self) -> None:
        """Looks at the views that began since the last look."""
        begun, self._begun = self._begun, {}
        if not begun:
            return
        self.state.codes.flush()
        self._update_rooms()
        for time_ms in sorted({start for _, _, start in begun}):
            views = [(key, author) for key, author in begun.items() if key[2] == time_ms]
            if self.moment_ms - time_ms > self._late_ms:
                self.counts["began too long before its start arrived"] += len(views)
            else:
                self._look_at(views, time_ms)
        self._ended = {}

    def take(self, count: int) -> Batch:
        """The first `count` ready examples as one batch."""
        batch = jax.tree.map(lambda *rows: np.concatenate(rows), *self.ready[:count])
        del self.ready[:count]
        return batch

    @property
    def waiting(self) -> int:
        """Views that were looked at and whose label is not known yet."""
        return len(self._waiting)

    def _read_journal(self) -> None:
        journal, self._journal = self._journal, []
        for kind, *entry in journal:
            if kind == "author":
                self._forget_author(entry[0])
                self.newcomers.append(entry[0])
                if self.on_author is not None:
                    self.on_author(entry[0])
                continue
            user, author, room, start, stop = entry
            if kind == "began":
                self._begun[user, room, start] = author
            elif (key := (user, room, start)) in self._waiting:
                if stop > start:
                    self._release(key, "learned from")
                else:
                    del self._waiting[key]
                    self.counts["left at once"] += 1
            elif key in self._begun:
                self._ended[key] = stop
            # (Else it began before the stream, was learned from at the limit, or was too late.)

    def _release(self, key: tuple[int, int, int], what: str) -> None:
        example = self._waiting.pop(key, None)
        if example is not None:
            self.ready.append(example)
            self.counts[what] += 1

    def _update_rooms(self) -> None:
        changed, self.state.changed = self.state.changed, set()
        for author in changed:
            room = self.state.shown(author)
            self._on_air[author] = room is not None
            self._room[author] = -1 if room is None else room.number

    def _rooms_for(self, user: int, everybody: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(author, viewers, since_ms) of the rooms on air for one person: without what only they show."""
        authors, state = everybody, self.state
        viewers, since = state.watching[authors], state.since_ms[authors]
        for author, others, since_ms in state.own_rooms(user):
            at = np.searchsorted(authors, author)
            if at == authors.size or authors[at] != author:
                continue
            if others < 0:
                authors, viewers, since = (np.delete(values, at) for values in (authors, viewers, since))
            else:
                viewers[at], since[at] = others, since_ms
        return authors, viewers, since

    def _look_at(self, views: list[tuple[tuple[int, int, int], int]], time_ms: int) -> None:
        state = self.state
        user, author = np.array([(key[0], author) for key, author in views], np.int64).T
        everybody = np.flatnonzero(self._on_air)
        rooms = [self._rooms_for(who, everybody) for who in user.tolist()]
        offsets = np.cumsum([0, *(part[0].size for part in rooms)])
        air, viewers, since = (np.concatenate(column) for column in zip(*rooms, strict=True))
        on_air = OnAir(offsets, air.astype(np.int32), self._room[air], viewers.astype(np.int32),
                       np.minimum(since, time_ms))
        request = make_requests(state, user.tolist(), time_ms)
        codes = state.codes.codes
        numbers = self.number + np.arange(user.size)
        self.number += user.size
        if self.on_look is not None:
            first, stop = state.buffers["live"].rows_of(user)
            self.on_look(Look(time_ms, user, author, stop - first < 2, request, on_air, codes[air].copy(),
                              codes[author].copy()))
        times = np.full(user.size, time_ms, np.int64)
        live, slot = chosen_rooms(on_air, lambda who, _: codes[who], times, state.data.live_slots,
                                  state.audiences, author, draws.keys_of(self.seed, numbers))
        batch = Batch(request, live, author.astype(np.int32), codes[author], slot, np.ones(user.size, np.float32))
        for row, (key, _) in enumerate(views):
            stop = self._ended.get(key)
            if stop is not None and stop <= time_ms:
                self.counts["left at once"] += 1
                continue
            self._waiting[key] = jax.tree.map(lambda values, row=row: values[row:row + 1].copy(), batch)
            if stop is not None:
                self._release(key, "learned from")
            else:
                heapq.heappush(self._limits, (time_ms + self._limit_ms, key))

    def _forget_author(self, row: int) -> None:
        """A row goes to a new author: examples that wait name nobody by it."""
        for key, example in list(self._waiting.items()):
            self._waiting[key] = without_author(example, row)
            if example.target_author[0] == row:
                del self._waiting[key]
                self.counts["of an author whose row went to another"] += 1
        kept = [without_author(example, row) for example in self.ready if example.target_author[0] != row]
        self.counts["of an author whose row went to another"] += len(self.ready) - len(kept)
        self.ready = kept

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What waits, is ready or was not looked at, for a snapshot beside that of the state."""
        parts = [*self._waiting.values(), *self.ready]
        leaves = jax.tree.leaves(jax.tree.map(lambda *rows: np.concatenate(rows), *parts)) if parts else []
        meta: dict[str, Any] = {
            "counts": self.counts, "number": self.number, "moment_ms": self.moment_ms,
            "begun": [[*key, author] for key, author in self._begun.items()],
            "waiting": list(self._waiting), "limits": [[when, *key] for when, key in self._limits],
            "ended": [[*key, stop] for key, stop in self._ended.items()], "newcomers": self.newcomers}
        return {f"leaf{i:03d}": leaf for i, leaf in enumerate(leaves)} | {
            META: np.frombuffer(json.dumps(meta).encode(), np.uint8)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `to_arrays`, after the state was restored."""
        meta = json.loads(arrays[META].tobytes().decode())
        self.counts, self.number, self.moment_ms = Counter(meta["counts"]), meta["number"], meta["moment_ms"]
        self._begun = {tuple(key): author for *key, author in meta["begun"]}
        self._limits = [(when, tuple(key)) for when, *key in meta["limits"]]
        heapq.heapify(self._limits)
        self._ended = {tuple(key): stop for *key, stop in meta["ended"]}
        self.newcomers = meta["newcomers"]
        keys = [tuple(key) for key in meta["waiting"]]
        leaves = [arrays[name] for name in sorted(arrays) if name != META]
        rows = leaves[0].shape[0] if leaves else 0
        form = jax.tree.structure(self._form())
        parts = [jax.tree.unflatten(form, [leaf[row:row + 1] for leaf in leaves]) for row in range(rows)]
        self._waiting, self.ready = dict(zip(keys, parts[:len(keys)], strict=True)), parts[len(keys):]
        self._journal, self.state.changed = [], set(range(len(self.state.authors)))

    def _form(self) -> Batch:
        """An example of nobody, for its structure."""
        nobody, none = make_requests(self.state, [-1], self.state.now_ms), np.zeros(1, np.int64)
        live, slot = chosen_rooms(OnAir(np.zeros(2, np.int64), none[:0], none[:0], none[:0], none[:0]),
                                  lambda who, _: self.state.codes.codes[who], none, self.state.data.live_slots,
                                  self.state.audiences)
        return Batch(nobody, live, none, self.state.codes.codes[:1], slot, np.ones(1, np.float32))


def without_author(example: Batch, row: int) -> Batch:
    """The example [1, …] with an author's row in no history and not on air (its slot, where it is the target, −1)."""
    histories = {name: history.replace(mask=history.mask & (history.author != row))
                 for name, history in example.request.histories.items()}
    live = example.live.replace(mask=example.live.mask & (example.live.author != row))
    return example.replace(request=example.request.replace(histories=histories), live=live)
