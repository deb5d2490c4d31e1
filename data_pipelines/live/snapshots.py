"""A state as arrays and JSON, and back: what a restart begins with.

A state goes on from its snapshot exactly as it would have gone on; no pickle, so a snapshot is data and nothing else.
"""

import json
from collections import Counter
from typing import Any

import numpy as np

from data_pipelines.live import events
from data_pipelines.live.names import KnownIds, Names, Room
from data_pipelines.live.people import Buffers
from data_pipelines.live.state import LiveState

VERSION = 1
META = "meta"  # the JSON among the arrays, as UTF-8 bytes


def to_arrays(state: LiveState) -> dict[str, np.ndarray]:
    """Copies of all that a state holds, flat, ready for `numpy.savez`; the state may change at once."""
    arrays = {f"codes/{name}": values for name, values in state.codes.to_arrays().items()}
    for sequence, buffers in state.buffers.items():
        arrays |= {f"buffers/{sequence}/{name}": values for name, values in buffers.to_arrays().items()}
    arrays["used"] = state.authors.used.copy()
    arrays["known"] = state.known.to_array()
    open_views = [(user, number, start) for views in state.views.values() for (user, number), starts in views.items()
                  for start in starts]
    meta = {
        "version": VERSION, "ids": state.ids, "true_lifetimes": state.true_lifetimes, "now_ms": state.now_ms,
        "counts": state.counts,
        "authors": {str(row): name for row, name in enumerate(state.authors.names) if row >= state.authors.trained
                    and name}, "trained": state.authors.trained, "users": state.users.names,
        "rooms": [[r.number, r.name, r.author, r.start_ms, r.since_ms, r.end_ms, r.segment_ms]
                  for r in state.rooms.values()],
        "on_air": [number for rooms in state.on_air.values() for number in rooms], "ended": list(state.ended),
        "views": open_views, "gifted": sorted(state.gifted), "deadlines": list(state.deadlines),
        "number": state.number,
        "waiting": [[events.to_json(event), at] for event, at in state.waiting],
        "early_ends": [[*key, at] for key, at in state.early_ends.items()], "profiles": state.profiles}
    arrays[META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return arrays


def restore(state: LiveState, arrays: dict[str, np.ndarray]) -> None:
    """Puts a snapshot into a state of the same log and tokenizer, made anew.

    Raises: ValueError where the snapshot is of another version, log or model.
    """
    meta: dict[str, Any] = json.loads(arrays[META].tobytes().decode())
    wrong = [name for name, ours in (("version", VERSION), ("ids", state.ids), ("trained", state.authors.trained),
                                     ("true_lifetimes", state.true_lifetimes)) if meta.get(name) != ours]
    names = {f"buffers/{name}/author" for name in state.buffers}
    if wrong or arrays["codes/codes"].shape != state.codes.codes.shape or not names <= set(arrays):
        raise ValueError(f"the snapshot is of another {', '.join(wrong) or 'model'} than the one that is served: "
                         "delete it to begin from the log")
    part = lambda prefix: {name.removeprefix(prefix): values for name, values in arrays.items()  # noqa: E731
                           if name.startswith(prefix)}
    state.codes.restore(part("codes/"))
    for sequence in state.buffers:
        state.buffers[sequence] = Buffers.from_arrays(part(f"buffers/{sequence}/"), state.data.history_window)
    for row, name in sorted(meta["authors"].items(), key=lambda item: int(item[0])):
        state.authors.put(int(row), name)
    state.authors.used = arrays["used"]
    state.users, state.now_ms, state.counts = Names(meta["users"]), meta["now_ms"], Counter(meta["counts"])
    state.known = KnownIds(state.config.known_events, arrays["known"])
    state.number = meta["number"]
    state.rooms = {name: Room(number, name, *rest) for number, name, *rest in meta["rooms"]}
    state.room_of = {room.number: room for room in state.rooms.values()}
    state.on_air, state.views, state.watched = {}, {}, {}
    state.watching[:] = 0
    for number in meta["on_air"]:
        room = state.room_of[number]
        state.on_air.setdefault(room.author, {})[number] = room
    for user, number, start in meta["views"]:
        room = state.room_of[number]
        state.views.setdefault(room.author, {}).setdefault((user, number), []).append(start)
        state.watched.setdefault(user, []).append((room.author, number))
        state.watching[room.author] += 1
    state.deadlines.fill(meta["deadlines"])
    state.gifted = {tuple(entry) for entry in meta["gifted"]}
    state.ended = dict.fromkeys(meta["ended"])
    state.early_ends = {(user, room): at for user, room, at in meta["early_ends"]}
    state.profiles = meta.get("profiles", {})
    for value, at in meta["waiting"]:
        state.waiting.add(events.from_json(value), at)
    for author in range(len(state.authors)):
        state.show(author)
