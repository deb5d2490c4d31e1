"""Offline against live: the same requests, once from the log's batches and once from the service that its events feed.

Axes: R requests, C candidates of all requests (flat), k ranks.
"""

import dataclasses
import time

import numpy as np

from data_pipelines.live.replay import events_after, room_names
from data_pipelines.log.tasks import Task
from data_pipelines.tables import moment
from experiments.common import scoring
from experiments.common.log import Log
from experiments.server.service import Answer, Query, from_log
from experiments.stages.tokenizer import Tokenizer
from onelive_jax.config import Config
from onelive_jax.model.onelive import OneLive

TOLERANCE = 1e-4


@dataclasses.dataclass
class Replayed:
    """What a replay found.

    Attributes:
      requests: asked. events: played. seconds: of the live side. largest: greatest difference of two scores.
      differing: one sentence a request whose answers differ. counts: what became of the events.
    """

    requests: int
    events: int
    seconds: float
    largest: float
    differing: list[str]
    counts: dict[str, int]


def replay(config: Config, log: Log, tokenizer: Tokenizer, model: OneLive, params, split: str,
           limit: int | None = None) -> Replayed:
    """Asks at every strict target of a split (or the first `limit` of them in time)."""
    task, maker = scoring.targets(log, config, split, "strict"), log.batch_maker(tokenizer.ids, config)
    order = np.lexsort((task.user, task.time_ms))[:limit]
    offline = scoring.score(scoring.make_ranker(model, config, tokenizer, log), params, maker, task)
    # No answer of the service may be cut where the evaluation's is not, and no view may be closed for its length.
    busiest, longest = int(np.diff(task.offsets).max()), int((log.views.stop_ms - log.views.start_ms).max())
    serving = dataclasses.replace(config.serving, max_k=max(config.decoding.beams, busiest),
                                  view_hours=longest / 3.6e6 + 1, room_hours=24.0 * 365)
    config = dataclasses.replace(config, serving=serving, decoding=dataclasses.replace(
        config.decoding, capacity=max(config.decoding.capacity, log.num_authors)))
    start, until = int(task.time_ms[order[0]]) - 1, int(task.time_ms[order[-1]])
    began = time.perf_counter()
    service = from_log(config, log, tokenizer, model, params, "replayed", start)
    names, people = log.tables.authors["source_id"].to_list(), log.tables.users["source_id"].to_list()
    rooms, differing, largest, played = room_names(log.tables), [], 0.0, 0
    coming = events_after(start, log.tables, log.split.end_ms, maker, until, segments=service.state.codes.width > 0)
    event = next(coming, None)
    for r in order.tolist():
        while event is not None and event.at <= task.time_ms[r]:
            service.apply(event, event.at)
            played += 1
            event = next(coming, None)
        candidates = slice(task.offsets[r], task.offsets[r + 1])
        query = Query(people[task.user[r]], k=serving.max_k)
        answer, = service.recommend([query], int(task.time_ms[r]))
        apart, what = _compare(answer, offline[candidates], task, candidates, names, rooms)
        largest = max(largest, apart)
        if what:
            at = int(task.time_ms[r])
            differing.append(f"request {r} ({query.user} at {at}, {moment(at)}): {what}")
    return Replayed(order.size, played, time.perf_counter() - began, largest, differing, dict(service.state.counts))


def _compare(answer: Answer, score: np.ndarray, task: Task, candidates: slice, names: list[str],
             rooms: list[str]) -> tuple[float, str]:
    """(greatest difference of two scores, what differs or "") of one request."""
    live = {room.author: room for room in answer.rooms}
    wanted = {names[author]: (rooms[room], value, int(viewers)) for author, room, value, viewers in zip(
        task.candidates[candidates], task.rooms[candidates], score.tolist(), task.viewers[candidates].tolist(),
        strict=True) if value > -np.inf}
    if wanted.keys() != live.keys():
        return np.inf, (f"only offline {sorted(wanted.keys() - live.keys())[:3]}, only live "
                        f"{sorted(live.keys() - wanted.keys())[:3]}")
    apart = max((abs(live[author].score - value) for author, (_, value, _) in wanted.items()), default=0.0)
    wrong = [author for author, (room, _, viewers) in wanted.items()
             if (live[author].room, live[author].viewers) != (room, viewers)]
    if apart > TOLERANCE:
        return apart, f"scores differ by {apart:.2g}"
    if wrong:
        author = wrong[0]
        return apart, (f"author {author} is in room {wanted[author][0]} with {wanted[author][2]} viewers offline, in "
                       f"{live[author].room} with {live[author].viewers} live")
    ranked = [wanted[room.author][1] for room in answer.rooms]
    if any(after > before + TOLERANCE for before, after in zip(ranked, ranked[1:], strict=False)):
        return apart, "the order differs"
    return apart, ""


def format_replay(found: Replayed) -> str:
    """What was compared, and every difference."""
    lines = [f"{found.requests:,} requests among {found.events:,} events in {found.seconds:.1f} s: "
             f"{len(found.differing):,} differ; scores lie within {found.largest:.2g} of each other"]
    lines += [f"  {name}: {count:,}" for name, count in sorted(found.counts.items())]
    return "\n".join([*lines, *found.differing[:20]])
