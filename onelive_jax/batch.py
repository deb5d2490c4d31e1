"""The arrays of a request and of a training batch: names, shapes and dtypes, in this one place.

Axes: B batch, T history items, L code levels, N rooms on air (padded), F habit features, R room features,
K related authors, S similarities.

Everything is a plain pytree of arrays, so a batch can be sharded, donated and traced. The data pipelines make
NumPy batches with exactly these fields; the model reads nothing else.
"""

from typing import Mapping

import jax
from flax import struct

Array = jax.Array

# What a request knows about the viewer's habit with each author of the history, in this order. All are
# dimensionless and of order one; a view is known only as far as it had been watched when the request came.
HABIT_FEATURES = (
    "log_views",          # log(1 + views of this author so far)
    "log_watch",          # log(1 + hours watched so far)
    "log_gap",            # log(1 + hours since the last view of this author began)
    "recent_day",         # log(1 + views, each halved per day of age)
    "recent_week",        # log(1 + views, each halved per week of age)
    "recent_month",       # log(1 + views, each halved per 28 days of age)
    "same_hour",          # log(1 + views near this hour of the day)
    "same_weekday_hour",  # log(1 + views near this hour of the week)
    "share",              # share of the viewer's views so far that went to this author, too short ones left out
    "log_position",       # log(1 + newer items of the sequence)
)

# What a viewer can do in a room, in this order everywhere; a log has some of them. "watch" is in minutes, all others
# are 0 or 1.
ACTIONS = ("click", "long_view", "watch", "like", "comment", "follow", "share", "gift")
# And what a viewer says: an answer between the worst (0) and the best (1), known only of those who were asked.
OBJECTIVES = (*ACTIONS, "satisfaction")

# What a live index knows about a room at the moment of the request. `viewers` never counts the person who asks.
ROOM_FEATURES = (
    "log_viewers",  # log(max(1, other people watching now))
    "log_age",      # log(1 + hours since the room was first seen on air)
    # Of its author, as counted so far (data_pipelines/log/audiences.py):
    "log_recent",   # log(1 + views, each halved per week of age)
    "log_popular",  # log(1 + views)
    "log_usual",    # log(1 + mean number of people watching while anybody was)
    "log_length",   # log(1 + mean hours of a room)
    "log_hour",     # log(1 + views near this hour of the day, each halved per four weeks)
)

# How alike an author is to what a person watched, over the items of the history: log(1 + 10 · Σ weight · cosine), the
# cosine being that of the two authors' audiences.
SIMILARITIES = (
    "recent",   # weight 1 / (1 + newer items)
    "habit",    # weight log(1 + views)
    "any",      # weight 1
    "today",    # weight exp(−days since the last view)
    "nearest",  # the largest cosine, not the sum
)


@struct.dataclass
class History:
    """One history sequence (live views, gifts or videos), oldest first, padded on the left.

    Attributes:
      author: int32 [B, T], dense author index; 0 where `mask` is False.
      codes: int32 [B, T, L], semantic id of the author at the moment of the (last) view.
      hour: int32 [B, T], hour of day 0..23 of the (last) view.
      day: int32 [B, T], day of week 0..6.
      week: int32 [B, T], whole weeks between the view and the request, clipped to 0..15.
      habits: float32 [B, T, F], see `HABIT_FEATURES`.
      mask: bool [B, T], True where there is an item.
    """

    author: Array
    codes: Array
    hour: Array
    day: Array
    week: Array
    habits: Array
    mask: Array


@struct.dataclass
class Request:
    """Who asks, and when.

    Attributes:
      histories: named sequences, in the order in which the context projector concatenates them.
      hour: int32 [B], hour of day 0..23 of the request.
      day: int32 [B], day of week 0..6.
      week: int32 [B], 0 (weeks are counted backwards from the request, so that no week is unseen).
      related: int32 [B, K], authors who share an audience with what is watched in the history; −1 where there are
        fewer.
      similarity: float32 [B, K, S], see `SIMILARITIES`; 0 where `related` is −1.
    """

    histories: Mapping[str, History]
    hour: Array
    day: Array
    week: Array
    related: Array
    similarity: Array


@struct.dataclass
class LiveRooms:
    """The rooms on air when a request comes, one slot a room, in any order.

    Attributes:
      author: int32 [B, N], dense author index; 0 where `mask` is False.
      codes: int32 [B, N, L], semantic ids at that moment.
      features: float32 [B, N, R], see `ROOM_FEATURES`.
      mask: bool [B, N], True where a slot holds a room.
    """

    author: Array
    codes: Array
    features: Array
    mask: Array


@struct.dataclass
class Batch:
    """A training batch: requests, the rooms on air, and what was watched.

    Attributes:
      request: the requests.
      live: rooms that *other* people show to be on air (or whose true lifetime says so).
      target_author: int32 [B], the author watched.
      target_codes: int32 [B, L], that author's codes at that moment.
      target_slot: int32 [B], slot of the target in `live`; -1 where nothing but the answer's own footprint
        says that it was on air: such an example has no part in any loss over the rooms on air.
      weight: float32 [B], 0 for padding.
    """

    request: Request
    live: LiveRooms
    target_author: Array
    target_codes: Array
    target_slot: Array
    weight: Array


@struct.dataclass
class Feedback:
    """What came of rooms that were shown (or clicked, beside others on air): C rooms a request, O objectives.

    Attributes:
      request: the requests.
      rooms: the candidate rooms, [B, C].
      outcomes: float32 [B, C, O], in the order of the log's objectives (a part of `OBJECTIVES`, in that order);
        "watch" in minutes, "satisfaction" 0 … 1, others 0 or 1; 0 where not known.
      known: bool [B, C, O], False where the log does not say.
      reward: float32 [B, C], the logged reward (alignment.rewards.shape_feedback); 0 where not known.
      rewarded: bool [B, C], True where `reward` is known.
      propensity: float32 [B, C], probability with which the room was shown; 0 where the log does not say.
      weight: float32 [B], 0 for padding.
    """

    request: Request
    rooms: LiveRooms
    outcomes: Array
    known: Array
    reward: Array
    rewarded: Array
    propensity: Array
    weight: Array
