"""Batches of feedback: the rooms that a request was shown, and what came of each.

Two kinds of requests, told apart one by one. Where rows of a person at a moment hold a room that was not clicked, the
request is that *slate*. Where all of them were clicked, each is a request of its own, a *view*: its candidates are the
room watched and others drawn from those on air, which were there to be chosen and were not.

In both, an outcome is what came of a room *given that it was there*: a room that was not clicked has 0 for every
objective. So heads learn P(click) · E[objective | click], which is what a policy wants to rank by. What nobody looked
at says nothing: where the positions of a slate are logged, rooms below its last click are left unknown. Satisfaction is
known only of views whose people were asked, so that its head learns E[satisfaction | watched]: if all rooms that were
not clicked counted as 0 beside the few answers, it would learn who is asked.

Axes: R requests, S rooms shown to all requests (flat), B batch, C candidates, O objectives.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from data_pipelines.batches import features
from data_pipelines.batches.training import BatchMaker
from data_pipelines.log import draws
from data_pipelines.log.presence import OnAir, Presence, room_ends
from data_pipelines.tables import Tables
from onelive_jax.batch import OBJECTIVES, Batch, Feedback
from onelive_jax.reward.rewards import shape_feedback

MINUTE_MS = 60_000
NEVER_MS = 2**62
LEFT_AT_ONCE_MS = 5_000  # a click that was over so soon is negative feedback, as a dislike is
NOT_SHOWN = -1  # stands for the row of a room that is no row of the log


@dataclass
class Shown:
    """What a part of a log showed to whom, and what came of it.

    Attributes:
      user: int32 [R]. time_ms: int64 [R]. ptr: int64 [R + 1], rooms of request r are ptr[r] … ptr[r + 1] − 1.
      slate: bool [R], the request is a slate; else a view.
      author, room: int32 [S]. click: bool [S]. outcomes: float32 [S, O], in the order of `objectives`; known: bool [S],
        False for what lay below the last click.
      reward: float32 [S], −1, 0 or 1 (alignment.rewards.shape_feedback), 0 without a click or dislike.
      propensity: float32 [S], 0 where the log does not say.
      answered: bool [S], where satisfaction is known; None where it is no objective.
      objectives: those of the log.
      counts: what to report: requests, rooms, requests left out, rewards by kind.
    """

    user: np.ndarray
    time_ms: np.ndarray
    ptr: np.ndarray
    slate: np.ndarray
    author: np.ndarray
    room: np.ndarray
    click: np.ndarray
    outcomes: np.ndarray
    known: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    objectives: tuple[str, ...]
    counts: dict[str, int]
    answered: np.ndarray | None = None

    @property
    def clicked_row(self) -> np.ndarray:
        """int64 [R], the (first) clicked row of each request; −1 without."""
        at = np.flatnonzero(self.click)
        request = np.searchsorted(self.ptr, at, side="right") - 1
        first = np.full(self.user.size, -1, np.int64)
        first[request[::-1]] = at[::-1]
        return first


def objectives_of(outcomes: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The objectives of a log, in the order of `OBJECTIVES`: click and watch, which every log has, and those that
    `outcomes` (experiments.common.log.Log) names."""
    return tuple(name for name in OBJECTIVES if name in ("click", "watch") or name in outcomes)


def satisfaction_scale(tables: Tables, until_ms: int) -> tuple[float, float] | None:
    """(worst, best) answer of views that are over by `until_ms`; None where nobody answers, or all answer the same."""
    log = tables.interactions
    if "satisfaction" not in log.columns:
        return None
    answers = log.filter(pl.col("start_ms") + pl.col("watch_ms") <= until_ms)["satisfaction"].drop_nulls()
    return (answers.min(), answers.max()) if answers.n_unique() > 1 else None


def satisfaction_of(log: pl.DataFrame, scale: tuple[float, float]) -> np.ndarray:
    """float32, the answers of rows of the interactions table from the worst (0) to the best (1); NaN without one."""
    answers = log["satisfaction"].cast(pl.Float32).fill_null(np.nan).to_numpy()
    return np.clip((answers - scale[0]) / (scale[1] - scale[0]), 0.0, 1.0)


def read_shown(tables: Tables, presence: Presence, objectives: tuple[str, ...], long_view_seconds: float,
               from_ms: int | None = None, to_ms: int | None = None, over_by_ms: int | None = None,
               scale: tuple[float, float] | None = None) -> Shown:
    """The requests of a period.

    A view that only its own person (and no true lifetime) shows to be on air is no request: its room stands among
    rooms that others show, and its age or its viewers would give the answer away. It is counted.

    Args:
      presence: who is on air when, for those who make these requests: of the training period, or of the whole log.
      from_ms, to_ms: requests that come in [from_ms, to_ms). over_by_ms: and whose views are all over by then; what was
        shown is 'known' no later than that, the length of a room included.
      scale: of satisfaction, where it is one of the objectives (`satisfaction_scale` of the training period).

    Raises:
      ValueError: the period has no request.
    """
    log = tables.interactions.filter((pl.col("start_ms") >= (-NEVER_MS if from_ms is None else from_ms))
                                     & (pl.col("start_ms") < (NEVER_MS if to_ms is None else to_ms)))
    if "position" in log.columns:
        log = log.sort("user_id", "start_ms", "position", maintain_order=True)
    first, slate, request = _requests(log)
    stop = (log["start_ms"] + log["watch_ms"]).to_numpy()
    late = np.bincount(request, stop > (NEVER_MS if over_by_ms is None else over_by_ms), first.size) > 0
    shown = presence.shows(*(log[name].to_numpy() for name in ("author_id", "start_ms", "user_id")))
    alone = ~slate & ~shown[first] & ~late
    log = log.filter(pl.Series(~(late | alone)[request], dtype=pl.Boolean))
    first, slate, request = _requests(log)
    if not first.size:
        raise ValueError("the period has no request: make config.data.valid_hours or the log longer")
    user, time, watch = (log[name].to_numpy() for name in ("user_id", "start_ms", "watch_ms"))
    click = log["click"].to_numpy()
    columns = {"click": click, "watch": watch / MINUTE_MS, "long_view": watch >= 1000 * long_view_seconds}
    columns |= {name: log[name].to_numpy() > 0 for name in ("like", "comment", "follow", "share")}
    columns["gift"] = log["gift_value"].to_numpy() > 0
    answered = None
    if "satisfaction" in objectives:
        answer = satisfaction_of(log, scale)
        answered = click & ~np.isnan(answer)
        columns["satisfaction"] = np.where(answered, answer, 0.0)
    outcomes = np.column_stack([columns[name] * click for name in objectives]).astype(np.float32)
    known, unordered = _looked_at(log, request, slate)
    negative = log["negative"].to_numpy() | (click & (watch < LEFT_AT_ONCE_MS))
    reward, kinds = _rewards(tables, user, time, log["room_id"].to_numpy(), watch, click, negative, over_by_ms)
    propensity = log["propensity"].to_numpy() if "propensity" in log.columns else np.zeros(click.size, np.float32)
    counts = {"requests": int(first.size), "slates": int(slate.sum()), "rooms": int(click.size),
              "clicks": int(click.sum()), "requests not over by then": int(late.sum()),
              "views of a room that nobody else shows": int(alone.sum()), "rooms below a click": int((~known).sum()),
              "slates without all their positions": unordered, **kinds}
    return Shown(user[first].astype(np.int32), time[first], np.append(first, request.size), slate,
                 log["author_id"].to_numpy(), log["room_id"].to_numpy(), click, outcomes, known, reward,
                 propensity.astype(np.float32), objectives, counts, answered)


@dataclass
class FeedbackMaker:
    """Makes arrays of requests `row` int64 [B] of `shown`; what `loader.training_batches` asks for.

    Attributes:
      maker: of the log that requests may see. shown: from `read_shown`. candidates: C; of larger slates what was
        clicked and others at random are kept.
    """

    maker: BatchMaker
    shown: Shown
    candidates: int

    def batch(self, row: np.ndarray, rng: np.random.Generator | np.ndarray) -> Feedback:
        """Feedback [B, C]. rng: a generator, or a key for each request (data_pipelines/log/draws.py)."""
        shown, users, times = self.shown, self.shown.user[row], self.shown.time_ms[row]
        number = np.diff(shown.ptr)[row]
        owner = np.repeat(np.arange(row.size), number)
        at = np.repeat(shown.ptr[row] - (np.cumsum(number) - number), number) + np.arange(owner.size)
        # Within a request: what was clicked, then what is known, then a random order, of which the first C stay.
        order = np.lexsort((draws.uniform(rng, owner, row.size, purpose=3), ~shown.known[at], ~shown.click[at], owner))
        owner, at = owner[order], at[order]
        place = np.arange(owner.size) - np.searchsorted(owner, owner)
        kept = place < self.candidates
        owner, at, place = owner[kept], at[kept], place[kept]
        author, room = shown.author[at], shown.room[at]
        view = np.flatnonzero(~shown.slate[row])
        if view.size:  # beside a view, rooms that were on air and were not chosen
            keys = rng if isinstance(rng, np.random.Generator) else rng[view]
            watched = shown.author[shown.ptr[row[view]]]
            more, more_author, more_room = self._others(users[view], times[view], watched, keys)
            more = view[more]
            owner, at = np.concatenate([owner, more]), np.concatenate([at, np.full(more.size, NOT_SHOWN)])
            author, room = np.concatenate([author, more_author]), np.concatenate([room, more_room])
            order = np.argsort(owner, kind="stable")
            owner, at, author, room = owner[order], at[order], author[order], room[order]
        offsets = np.searchsorted(owner, np.arange(row.size + 1))
        on_air = OnAir(offsets, author, room, *self.maker.presence.describe(author, room, times[owner], users[owner]))
        rooms = features.live_rooms(on_air, self.maker.ids.codes_at(author, times[owner]), times, self.candidates,
                                    self.maker.audiences)
        logged = at != NOT_SHOWN

        def pad(column_S, value):  # `value` where the room was not shown
            column = np.where(logged.reshape(-1, *[1] * (column_S.ndim - 1)), column_S[at], column_S.dtype.type(value))
            return features.padded(column, offsets, self.candidates)

        known = pad(np.broadcast_to(shown.known[:, None], shown.outcomes.shape), True)
        if shown.answered is not None:
            known[..., shown.objectives.index("satisfaction")] = pad(shown.answered, False)
        return Feedback(self.maker.request(users, times), rooms, pad(shown.outcomes, 0), known,
                        pad(shown.reward, 0), features.padded(logged, offsets, self.candidates),
                        pad(shown.propensity, 0), np.ones(row.size, np.float32))

    def _others(self, users, times, target, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(request ascending, author, room) of at most C − 1 other rooms on air each; the target is one of C."""
        on_air = self.maker.presence.draw(times, users, self.candidates, target, rng)
        owner = on_air.moment
        other = on_air.author != target[owner]
        return owner[other], on_air.author[other], on_air.room[other]


@dataclass
class PairMaker:
    """Training batches and the feedback of the same requests, row by row; for rewards that read logged feedback.

    Attributes: feedback: whose requests `row` are; only those with a click have a target (`with_target`).
    """

    feedback: FeedbackMaker

    @property
    def with_target(self) -> np.ndarray:
        """int64, requests with a click. Those without have no part in alignment, their dislikes neither."""
        return np.flatnonzero(self.feedback.shown.clicked_row >= 0)

    def batch(self, row: np.ndarray, rng: np.random.Generator | np.ndarray) -> tuple[Batch, Feedback]:
        shown, maker = self.feedback.shown, self.feedback.maker
        times, target = shown.time_ms[row], shown.author[shown.clicked_row[row]]
        feedback = self.feedback.batch(row, rng)
        return maker.batch_of(feedback.request, maker.on_air(shown.user[row], times), times, target, rng), feedback


def _requests(log: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first row int64 [R] and slate bool [R] of each request; request int64 [S] of each row).

    `log` is sorted by person and moment. The rows of a person at a moment are one slate if one of them was not clicked,
    else each is a view of its own.
    """
    user, time, click = (log[name].to_numpy() for name in ("user_id", "start_ms", "click"))
    new = np.ones(user.size, bool)
    new[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    moment = np.cumsum(new) - 1
    is_slate = (np.bincount(moment, ~click) > 0)[moment]
    new |= ~is_slate
    return np.flatnonzero(new), is_slate[new], np.cumsum(new) - 1


def _looked_at(log: pl.DataFrame, request: np.ndarray, slate: np.ndarray) -> tuple[np.ndarray, int]:
    """(bool [S], False for rooms below the last click of their slate; slates in which some position is not logged).

    Without all positions nothing says what lay below what, and every room counts as looked at.
    """
    click = log["click"].to_numpy()
    if "position" not in log.columns:
        return np.ones(click.size, bool), 0
    unordered = np.bincount(request, log["position"].to_numpy() < 0, slate.size) > 0
    clicks = np.bincount(request, click, slate.size)
    above = np.cumsum(click) - click  # clicks of all rows above, those of earlier requests too
    left = np.cumsum(clicks)[request] - above  # clicks of this row and those below it
    return (left > 0) | (clicks == 0)[request] | unordered[request], int((unordered & slate).sum())


def _rewards(tables: Tables, user, time, room, watch, click, negative, until_ms) -> tuple[np.ndarray, dict[str, int]]:
    """`shape_feedback` of what was clicked or disliked; 0 for all else. A room's length counts as far as known."""
    end, _ = room_ends(tables, int((time + watch).max()))
    start = tables.rooms["start_ms"].to_numpy()
    if until_ms is not None:
        end = np.minimum(end, until_ms)
    judged = np.flatnonzero(click | negative)
    length = np.maximum(end[room[judged]] - start[room[judged]], 0) / MINUTE_MS
    reward = np.zeros(click.size, np.float32)
    reward[judged], kinds = shape_feedback(user[judged], length, watch[judged] / MINUTE_MS, negative[judged])
    return reward, {f"reward {name}": count for name, count in kinds.items()}
