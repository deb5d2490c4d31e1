"""Which rooms now? The best rooms on air for a person at a moment, from a trained workdir."""

import time

import numpy as np
import polars as pl
from tqdm import tqdm

from data_pipelines.log.own_counts import own_counts
from data_pipelines.readers.twitch import ROUND_MS
from data_pipelines.tables import moment as date
from experiments.common.log import Log
from experiments.common.tables import table
from experiments.common.tower_scores import TowerScores
from experiments.server.service import Answer, Query, Service
from onelive_jax.config import Config
from onelive_jax.decoding.recommend import Recommender
from onelive_jax.serving.catalogue import LiveCatalogue


def recommend(config: Config, log: Log, ids, rank: Recommender, params, user: int, time_ms: int,
              ties: TowerScores | None = None) -> list[dict]:
    """The k best rooms on air, best first: rank, author, room, score, codes, views (by this person, so far), viewers.

    `rank` is a `make_recommender(model, config.decoding, k)`, made once and used for many requests; `ties` is from
    `tower_scores.tie_breaker`.
    Raises ValueError where more rooms are on air than config.decoding.capacity.
    """
    maker = log.batch_maker(ids, config)
    users, times = np.array([user], np.int32), np.array([time_ms], np.int64)
    on_air = maker.on_air(users, times)
    rooms, _ = maker.live_rooms(on_air, times, max(on_air.author.size, 1))
    catalogue = LiveCatalogue(config.decoding.capacity, config.tokenizer.levels, config.tokenizer.codes,
                              log.num_authors)
    for i, (author, room) in enumerate(zip(on_air.author.tolist(), on_air.room.tolist(), strict=True)):
        catalogue.put_on_air(room, author, rooms.codes[0, i], rooms.features[0, i])
    snapshot = catalogue.snapshot()
    tie_score = None
    if ties is not None:
        tie_score = ties.rooms(users, times, np.where(snapshot.index.on_air, snapshot.index.author, 0)[None])
    ranking = rank(params, maker.request(users, times), snapshot.index, tie_score)
    author, slot, score, codes = (np.asarray(x)[0][np.asarray(ranking.valid)[0]]
                                  for x in (ranking.author, ranking.slot, ranking.score, ranking.codes))
    room = snapshot.room_ids(slot)
    seen, = own_counts(log.views, users, times, np.array([0, author.size]), author, lambda age: np.ones((1, age.size)))
    viewers = dict(zip(on_air.author.tolist(), on_air.viewers.tolist(), strict=True))
    tables = log.tables
    # A source need not name its rooms; authors always have an id of their own.
    room_names = tables.rooms["source_id"] if "source_id" in tables.rooms.columns else tables.rooms["room_id"]
    return [{"rank": i + 1, "author": tables.authors["source_id"][int(a)], "room": str(room_names[int(r)]),
             "score": round(float(s), 4), "codes": c.tolist(), "views": int(seen[i]),
             "viewers": int(viewers[int(a)])}
            for i, (a, r, s, c) in enumerate(zip(author, room, score, codes, strict=True))]


def everybody(service: Service, time_ms: int, k: int) -> tuple[pl.DataFrame, float]:
    """(user, rank, room, author, score, viewers of everybody whom the service knows; seconds without compilation)."""
    people, parts = service.state.users.names, []
    size = service.config.serving.max_batch

    def ask(some: list[str]) -> list[Answer]:
        # Always a full batch: one program is compiled.
        return service.recommend([Query(user, k) for user in some + some[-1:] * (size - len(some))], time_ms)

    ask(people[:1])
    began = time.perf_counter()
    for low in tqdm(range(0, len(people), size), "people", unit="batch", disable=None):
        some = people[low:low + size]
        for user, answer in zip(some, ask(some), strict=False):
            parts += [(user, rank, room.room, room.author, room.score, room.viewers)
                      for rank, room in enumerate(answer.rooms, 1)]
    schema = {"user": pl.String, "rank": pl.Int32, "room": pl.String, "author": pl.String, "score": pl.Float32,
              "viewers": pl.Int32}
    return pl.DataFrame(parts, schema, orient="row"), time.perf_counter() - began


def format_rooms(rooms: list[dict]) -> str:
    """The rooms as a table."""
    return table(*room_rows(rooms))


def room_rows(rooms: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(headers, a row per room) of `recommend`."""
    return ["rank", "author", "room", "score", "codes", "own views", "viewers"], [
        [str(r["rank"]), r["author"], r["room"], f"{r['score']:.3f}", "-".join(map(str, r["codes"])), str(r["views"]),
         str(r["viewers"])] for r in rooms]


def find_user(log: Log, source_id: str) -> int:
    """Dense index of a user of the log. Raises ValueError for an id that the log does not have."""
    at = np.flatnonzero((log.tables.users["source_id"] == source_id).to_numpy())
    if not at.size:
        some = ", ".join(log.tables.users["source_id"].head(5).to_list())
        raise ValueError(f"--user={source_id}: the log has no such user; ids look like {some}, …")
    return int(at[0])


def moment(log: Log, config: Config, at: int | None) -> int:
    """Milliseconds of --at. Raises ValueError for a time outside the log."""
    first, last = int(log.views.start_ms.min()), log.split.end_ms
    if at is None:
        return last - 1
    rounds = config.data.source == "twitch" and at <= last // ROUND_MS
    time_ms = at * ROUND_MS if rounds else at
    # A log in rounds is days long: a number past its last round can only be milliseconds.
    if not first <= time_ms <= last:
        in_rounds = f", or {first // ROUND_MS} to {last // ROUND_MS} rounds" if config.data.source == "twitch" else ""
        dates = " to ".join(date(time, config.data.utc_offset_hours) for time in (first, last))
        raise ValueError(f"--at={at} is outside the log, which runs from {first} to {last} milliseconds ({dates})"
                         f"{in_rounds}")
    return time_ms
