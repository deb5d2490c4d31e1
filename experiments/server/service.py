"""The service without its wires: what happens on the platform in, the rooms to show out.

One thread calls it. State (data_pipelines/live), catalogue and engine (onelive_jax/serving) change together between two
batches, so that an answer is of one moment, one catalogue and one model.

Axes: R requests, C slots, M rooms of one's own, D embedding width.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.live import events
from data_pipelines.live.codes import Encode, Profile
from data_pipelines.live.people import OPEN
from data_pipelines.live.replay import state_at
from data_pipelines.live.requests import make_requests, own_features, shared_features
from data_pipelines.live.state import LiveState
from data_pipelines.log.content import author_content
from data_pipelines.log.side_features import SideFeatures
from experiments.common.log import Log
from experiments.stages.tokenizer import Tokenizer, side_features_of
from onelive_jax.batch import ROOM_FEATURES
from onelive_jax.config import Config
from onelive_jax.decoding.recommend import Personal, codes_alone
from onelive_jax.model.onelive import OneLive
from onelive_jax.serving.catalogue import LiveCatalogue, Snapshot
from onelive_jax.serving.engine import OWN_ROOMS, Answers, Engine, Version, everyone_alike
from onelive_jax.tokenizer import residual_kmeans

logger = logging.getLogger(__name__)
STAGES = ("catalogue", "requests", "device", "names")  # of a batch
ENCODED = (1, 8, 64, 512)  # rows of content that are encoded together: each is one compiled program


class Unanswerable(ValueError):
    """A query that nobody can answer: whoever asked has to ask otherwise."""


@dataclass(frozen=True)
class Query:
    """Who asks for how many rooms.

    Attributes:
      exclude: rooms that are not to be named. at_ms: as of when clocks, ages and histories are read (None: now); rooms
        are those on air now. context: recent views (author, start, watched ms) that stand for the history that is known
        of the person, e.g. of somebody who is not signed in; None: what is known.
    """

    user: str
    k: int = 10
    exclude: tuple[str, ...] = ()
    at_ms: int | None = None
    context: tuple[tuple[str, int, int], ...] | None = None


@dataclass(frozen=True)
class Recommended:
    """A room of an answer; ids are the platform's. viewers: without the one who asks."""

    room: str
    author: str
    score: float
    codes: tuple[int, ...]
    viewers: int


@dataclass(frozen=True)
class Answer:
    """rooms: best first. model: name of the parameters, or "fallback". catalogue: version of the rooms on air. at_ms:
    the moment of the answer."""

    rooms: tuple[Recommended, ...]
    model: str
    catalogue: int
    at_ms: int


class Service:
    """Attributes: config; state; catalogue; engine; shown: author row → number of its room in the catalogue; observe:
    told (stage, seconds) of every batch."""

    def __init__(self, config: Config, state: LiveState, engine: Engine):
        self.config, self.state, self.engine = config, state, engine
        self.catalogue = LiveCatalogue(config.decoding.capacity, config.tokenizer.levels, config.tokenizer.codes,
                                       len(state.authors))
        self.shown: dict[int, int] = {}
        self.observe: Callable[[str, float], None] = lambda stage, seconds: None
        self._slot: dict[int, int] = {}  # author → slot
        self._no_slot: dict[int, None] = {}  # authors on air who wait for a slot
        self.recovered()

    def apply(self, event: events.Event, received_ms: int) -> bool:
        """One event that arrived at `received_ms`; False where it was known. Answers know of it after `sync`."""
        return self.state.apply(event, received_ms)

    def sync(self) -> Snapshot:
        """Brings catalogue and author table to where the state is."""
        state = self.state
        if late := state.codes.flush():
            state.counts["segment older than its author's last"] += late
        moved, embeddings = state.codes.take_news()
        self.engine.set_newcomers(embeddings, state.authors.names)
        changed, state.changed = state.changed, set()
        for author in changed | moved:
            room, shown = state.shown(author), self.shown.get(author)
            if shown is not None and (room is None or room.number != shown):
                self.catalogue.take_off_air(shown)
                del self.shown[author], self._slot[author]
                shown = None
            if room is None:
                self._no_slot.pop(author, None)
            elif shown is not None:
                self.catalogue.change_codes(shown, state.codes.codes[author])
            else:
                self._no_slot.setdefault(author)
        while self._no_slot and len(self.catalogue) < self.catalogue.capacity:
            author = next(iter(self._no_slot))  # who waits longest; others wait until a room ends
            del self._no_slot[author]
            number = self.shown[author] = state.shown(author).number
            self._slot[author] = self.catalogue.put_on_air(number, author, state.codes.codes[author])
        return self.catalogue.snapshot()

    def recovered(self) -> None:
        """The state was changed behind the service's back, before its first answer: a snapshot was put into it."""
        self.state.changed |= set(range(len(self.state.authors)))
        self.engine.set_newcomers(self.state.codes.embeddings, self.state.authors.names)
        self.sync()

    @property
    def without_slot(self) -> int:
        """Rooms on air that the catalogue had no slot for (config.decoding.capacity)."""
        return len(self._no_slot)

    def recommend(self, queries: Sequence[Query], now_ms: int, narrow: bool = False,
                  version: Version | None = None, at_ms: int | None = None) -> list[Answer]:
        """Answers at most config.serving.max_batch queries, all as of one moment `at_ms` (now where it is None).

        Raises: Unanswerable for k outside 1 … config.serving.max_k.
        """
        if wrong := [query.k for query in queries if not 1 <= query.k <= self.config.serving.max_k]:
            raise Unanswerable(f"k={wrong[0]} must be 1 … {self.config.serving.max_k} (config.serving.max_k)")
        clock = [time.perf_counter()]
        self.state.advance(now_ms)
        snapshot = self.sync()
        clock.append(time.perf_counter())
        users, at_ms = [self.state.users.row(query.user) for query in queries], now_ms if at_ms is None else at_ms
        request = make_requests(self.state, users, at_ms, {
            row: query.context for row, query in enumerate(queries) if query.context is not None})
        personal, watched = self._personal(queries, users, at_ms)
        features = shared_features(self.state, snapshot.author, at_ms)
        clock.append(time.perf_counter())
        answers = self.engine.answer(request, snapshot, features, personal, narrow, version)
        clock.append(time.perf_counter())
        named = [self._named(answers, row, query, watched[row], snapshot, at_ms) for row, query in enumerate(queries)]
        clock.append(time.perf_counter())
        for stage, before, after in zip(STAGES, clock[:-1], clock[1:], strict=True):
            self.observe(stage, after - before)
        return named

    def fallback(self, query: Query, now_ms: int) -> Answer:
        """An answer without the model, in well under a millisecond: authors watched most, then rooms with most viewers.
        """
        self.state.advance(now_ms)
        snapshot, state = self.sync(), self.state
        user = state.users.row(query.user)
        own = dict((author, others) for author, others, _ in state.own_rooms(user))
        score = np.log(np.maximum(state.watching[snapshot.author], 1)).astype(np.float32)
        if "live" in state.buffers:
            views = state.buffers["live"]
            seen = np.bincount(views.author[views.place(user)], minlength=len(state.authors))
            score += 100.0 * seen[snapshot.author]
        score[snapshot.room < 0] = -np.inf
        for author in [author for author, others in own.items() if others < 0] + self._excluded(query):
            if author in self._slot:
                score[self._slot[author]] = -np.inf
        slot = np.argsort(-score, kind="stable")[:query.k]
        slot = slot[score[slot] > -np.inf]
        codes = np.array([state.codes.codes[snapshot.author[s]] for s in slot]).reshape(slot.size, -1)
        return self._named(Answers(slot[None], score[slot][None], codes[None], "fallback"), 0, query, own, snapshot,
                           now_ms)

    def rooms_on_air(self, limit: int, offset: int, now_ms: int) -> dict[str, Any]:
        """Rooms of the catalogue, those with most viewers first."""
        state = self.state
        on_air = np.fromiter(self.shown, np.int64)
        authors = on_air[np.lexsort((on_air, -state.watching[on_air]))].tolist()
        rooms = [{"room": state.room_of[self.shown[author]].name, "author": state.authors.names[author],
                  "viewers": int(state.watching[author]), "codes": state.codes.codes[author].tolist(),
                  "age_minutes": round(max(0, now_ms - int(state.since_ms[author])) / 60_000, 1)}
                 for author in authors[offset:offset + limit]]
        return {"on_air": len(authors), "without_slot": self.without_slot, "catalogue": self.catalogue.version,
                "rooms": rooms}

    def person(self, name: str) -> dict[str, Any] | None:
        """What is known of somebody, newest view last; None where nothing is."""
        state = self.state
        user = state.users.row(name)
        if user < 0:
            return None
        views = []
        if "live" in state.buffers:
            buffers, place = state.buffers["live"], state.buffers["live"].place(user)
            for at in range(max(place.start, place.stop - 20), place.stop):
                start, stop = int(buffers.start_ms[at]), int(buffers.stop_ms[at])
                if stop >= start:
                    views.append({"author": state.authors.names[buffers.author[at]], "at": start,
                                  "watch_ms": None if stop == OPEN else stop - start,
                                  "codes": buffers.codes[at].tolist()})
        return {"user": name, "watching": [state.room_of[number].name for _, number in state.watched.get(user, ())],
                "views": views}

    def warm_up(self) -> int:
        """Compiles every program, those that place new content too; returns how many there are."""
        codes = self.state.codes
        for size in ENCODED if codes.width else ():
            codes.encode(np.zeros(size, np.int64), np.zeros((size, 2 * codes.width), np.float32), None)
        codes.encode(np.array([len(self.state.authors) - 1]), None, {"": 0.0})
        return self.engine.warm_up(make_requests(self.state, [-1], self.state.now_ms), self.catalogue.snapshot())

    def _excluded(self, query: Query) -> list[int]:
        rooms = (self.state.rooms.get(name) for name in query.exclude)
        return [room.author for room in rooms if room is not None]

    def _personal(self, queries: Sequence[Query], users: Sequence[int], now_ms: int
                  ) -> tuple[Personal, list[dict[int, int]]]:
        """What each request may not be told, or is told otherwise; and author → other viewers of what each watches."""
        personal = everyone_alike(len(queries), self.catalogue.capacity, len(ROOM_FEATURES))
        watched = []
        for row, (query, user) in enumerate(zip(queries, users, strict=True)):
            own = self.state.own_rooms(user)
            watched.append({author: others for author, others, _ in own})
            there = [each for each in own if each[0] in self._slot]
            for place, (author, others, since) in enumerate(there[-OWN_ROOMS:]):
                slot = self._slot[author]
                if others < 0:
                    personal.allowed[row, slot] = False
                else:
                    personal.slot[row, place] = slot
                    personal.features[row, place] = own_features(self.state, author, others, since, now_ms)
            for author in self._excluded(query):
                if author in self._slot:
                    personal.allowed[row, self._slot[author]] = False
        return personal, watched

    def _named(self, answers: Answers, row: int, query: Query, watched: dict[int, int], snapshot: Snapshot,
               now_ms: int) -> Answer:
        rooms = []
        for slot, score, codes in zip(answers.slot[row][:query.k].tolist(), answers.score[row].tolist(),
                                      answers.codes[row].tolist(), strict=False):
            if slot < 0:
                break
            author = int(snapshot.author[slot])
            room = self.state.room_of[int(snapshot.room[slot])]
            viewers = watched.get(author, int(self.state.watching[author]))
            rooms.append(Recommended(room.name, self.state.authors.names[author], score, tuple(codes), viewers))
        return Answer(tuple(rooms), answers.model, snapshot.version, now_ms)


def encoder(tokenizer: Tokenizer, features: SideFeatures | None = None) -> Encode:
    """Codes and embeddings of authors from their content; of one without, from their profile, and where the towers read
    none, those of the mean author.

    features: of the authors the towers were trained with.
    """
    towers, books = tokenizer.encoder.towers, tokenizer.encoder.books
    mean, of_content = tokenizer.embedding_AxD.mean(0), towers.config.embedding == "mllm"
    mean = (mean / max(float(np.linalg.norm(mean)), 1e-6)).astype(np.float32)
    # Where ids are of content, somebody without any has the id in the middle.
    middle = np.asarray(books.centroids[0]).mean(0) if of_content else mean

    def encode(author: np.ndarray, values: np.ndarray | None, profile: Profile | None
               ) -> tuple[np.ndarray, np.ndarray]:
        if values is None:
            embedding = np.broadcast_to(mean, (author.size, mean.size))
            if profile and features is not None and towers.attributes_AxS is not None:
                width = towers.content_width
                embedding = towers.authors(author, np.zeros((author.size, width), np.float32) if width else None,
                                           np.zeros(author.size, bool),
                                           attributes=np.tile(features.row(profile), (author.size, 1)))
            points = np.broadcast_to(middle, (author.size, middle.size)) if of_content else embedding
            return np.asarray(residual_kmeans.encode(books, points)), embedding
        codes, embeddings = [], []
        for low in range(0, author.size, ENCODED[-1]):
            rows = author[low:low + ENCODED[-1]]
            more = next(size for size in ENCODED if size >= rows.size) - rows.size
            content = np.pad(values[low:low + ENCODED[-1]], ((0, more), (0, 0)))
            embedding = towers.authors(np.pad(rows, (0, more), mode="edge"), content)
            codes.append(np.asarray(residual_kmeans.encode(books, content if of_content else embedding))[:rows.size])
            embeddings.append(embedding[:rows.size])
        return np.concatenate(codes), np.concatenate(embeddings)

    return encode


def from_log(config: Config, log: Log, tokenizer: Tokenizer, model: OneLive, params, name: str,
             time_ms: int | None = None) -> Service:
    """The service as of a moment of the log (its end when None) that a model was trained on.

    Raises: ValueError for a model that evaluation ranks with the towers' help: there is one ranking for one model.
    """
    if config.decoding.tie_break == "towers" and codes_alone(model, config.decoding):
        raise ValueError("codes alone decide in this model, and the towers tell rooms of one id apart "
                         "(config.decoding.tie_break), which the service does not do: train with an identity head and "
                         "a positive identity_weight, or serve and evaluate with --config.decoding.tie_break=fixed")
    state = live_state(config, log, tokenizer, log.split.end_ms if time_ms is None else time_ms)
    return Service(config, state, Engine(model, config, params, name))


def live_state(config: Config, log: Log, tokenizer: Tokenizer, time_ms: int) -> LiveState:
    """What was known at a moment of the log that a tokenizer was made of."""
    content = author_content(log.tables, log.split.p1_ms) if config.tokenizer.follow_content else None
    of_authors = None if tokenizer.encoder.towers.attributes_AxS is None else side_features_of(log)[1]
    state = state_at(time_ms, config, log.tables, log.split.end_ms, log.batch_maker(tokenizer.ids, config), content,
                     encoder(tokenizer, of_authors))
    made_of = hashlib.blake2b(np.asarray(tokenizer.encoder.books.centroids).tobytes(), digest_size=4)
    made_of.update(np.ascontiguousarray(tokenizer.embedding_AxD).tobytes())
    state.ids = made_of.hexdigest()
    return state
