"""Requests from a live state: the arrays that batches/ makes of a log, for people who ask now.

Axes: R requests (of rooms: features), C slots of a catalogue.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from data_pipelines.batches import features
from data_pipelines.live.people import Buffers
from data_pipelines.live.state import LiveState
from onelive_jax.batch import Request

Context = Sequence[tuple[str, int, int]]  # recent views: author, start, watched milliseconds


def shared_features(state: LiveState, author: np.ndarray, time_ms: int) -> np.ndarray:
    """float32 [C, R], `batch.ROOM_FEATURES` of the rooms of authors int [C] at a moment, with everybody who watches."""
    return features.room_features(state.watching[author], state.since_ms[author], author, np.array([time_ms], np.int64),
                                  state.audiences)


def own_features(state: LiveState, author: int, others: int, since_ms: int, time_ms: int) -> np.ndarray:
    """float32 [R], of a room that the one who asks watches, without their view (`LiveState.own_rooms`)."""
    return features.room_features(np.array([others]), np.array([since_ms]), np.array([author]),
                                  np.array([time_ms], np.int64), state.audiences)[0]


def make_requests(state: LiveState, users: Sequence[int], time_ms: int,
                  contexts: Mapping[int, Context] | None = None) -> Request:
    """Requests of people [R] (rows; −1: nobody knows them), all at one moment.

    contexts: request → recent views that stand for the live history that is known of the person; views of an unknown
      author are passed over.
    """
    times = np.full(len(users), time_ms, np.int64)
    settings = {name: features.history_settings(state.data, name) for name in state.data.sequences}
    made = {name: features.histories(buffers.views, *buffers.rows_of(users), times, settings[name])
            for name, buffers in state.buffers.items()}
    for row, views in (contexts or {}).items():
        if "live" in made:
            own = Buffers(state.data.history_window, state.codes.codes.shape[1])
            for author, start, watched in views:
                who = state.authors.row(author)
                if who >= 0:
                    own.add(0, who, start, start + watched, state.codes.at(who, start))
            one = features.histories(own.views, *own.rows_of([0]), times[:1], settings["live"])
            jax.tree.map(lambda rows, new, row=row: rows.__setitem__(row, new[0]), made["live"], one)
    return features.request(made, times, state.audiences, state.data)
