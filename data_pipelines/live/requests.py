"""Requests from a live state: the arrays that batches/ makes of a log, for people who ask now.

Axes: R requests.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from data_pipelines.live.people import Buffers
from data_pipelines.live.state import LiveState
from data_pipelines.log.timelines import clock
from onelive_jax.batch import Request

Context = Sequence[tuple[str, int, int]]  # recent views: author, start, watched milliseconds


def make_requests(state: LiveState, users: Sequence[int], time_ms: int,
                  contexts: Mapping[int, Context] | None = None) -> Request:
    """Requests of people [R] (rows; −1: nobody knows them), all at one moment.

    contexts: request → recent views that stand for the live history that is known of the person; views of an unknown
      author are passed over.
    """
    c, times = state.data, np.full(len(users), time_ms, np.int64)
    hour, day = clock(times, c.utc_offset_hours)
    how = {name: dict(items=c.history_items, unit=c.history_unit, utc_offset_hours=c.utc_offset_hours,
                      effective_ms=0 if name == "gift" else round(1000 * c.effective_view_seconds))
           for name in c.sequences}
    made = {name: state.buffers[name].histories(np.asarray(users), times, **how[name]) for name in c.sequences}
    for row, views in (contexts or {}).items():
        if "live" in made:
            own = Buffers(c.history_window, state.codes.codes.shape[1])
            for author, start, watched in views:
                who = state.authors.row(author)
                if who >= 0:
                    own.add(0, who, start, start + watched, state.codes.at(who, start))
            one = own.histories(np.zeros(1, int), times[:1], **how["live"])
            jax.tree.map(lambda rows, new, row=row: rows.__setitem__(row, new[0]), made["live"], one)
    return Request(made, hour, day, np.zeros_like(hour))
