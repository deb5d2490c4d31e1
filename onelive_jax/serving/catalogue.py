"""The rooms on air, kept on the host: a few of them change, and the next snapshot costs little more than they do.

Axes: C capacity (slots), L code levels, R room features, n nodes of a trie level.

A trie is the sorted slots (onelive_jax/decoding/live_index.py), so the catalogue keeps them sorted: a change takes one
key out and puts one in, and no sort is ever done anew. `live_index.build_trie` makes the same trie from nothing.
"""

import operator
import threading
from typing import NamedTuple, Sequence

import jax
import numpy as np

from onelive_jax.batch import ROOM_FEATURES
from onelive_jax.decoding.live_index import LiveIndex, Trie, TrieLevel, empty

CODE_BYTES, REST_BYTES = 2, 8  # of a sort key: each code, then the author's tie rank and the slot, all big-endian


class Snapshot(NamedTuple):
    """What is on air at one moment. Slots are used again later: read room ids from the snapshot that was searched.

    Attributes:
      index: the index to search.
      room: int64 [C] on the host, room id of every slot; -1 where a slot is off air.
      author: int32 [C] on the host, author of every slot.
      version: how many snapshots with a change came before it.
    """

    index: LiveIndex
    room: np.ndarray
    author: np.ndarray
    version: int

    def room_ids(self, slots: np.ndarray) -> np.ndarray:
        """int64, same shape as `slots`: the room of each slot; -1 where the slot is -1 (no such rank)."""
        slots = np.asarray(slots)
        return np.where(slots < 0, -1, self.room[np.maximum(slots, 0)])


class LiveCatalogue:
    """Room ids to slots. Any thread may change it or take a snapshot; a snapshot never changes.

    A refused change raises ValueError (TypeError where a whole number is needed) and changes nothing.
    """

    def __init__(self, capacity: int, num_levels: int, num_codes: int, num_authors: int,
                 num_features: int = len(ROOM_FEATURES)):
        """Raises ValueError where a size is below 1, or for more than 65536 codes."""
        if num_authors < 1 or num_codes > 256**CODE_BYTES:
            raise ValueError(f"a catalogue needs an author or more, not {num_authors}, and at most {256**CODE_BYTES} "
                             f"codes a level (config.tokenizer.codes), not {num_codes}")
        index = empty(capacity, num_levels, num_codes, num_features)
        self._num_codes, self._num_authors = num_codes, num_authors
        self._author = np.zeros(capacity, np.int32)
        self._codes = np.zeros((capacity, num_levels), np.int32)
        self._features = np.zeros((capacity, num_features), np.float32)
        self._room = np.full(capacity, -1, np.int64)
        self._slot_of_room: dict[int, int] = {}
        self._free = list(range(capacity))[::-1]
        self._sorted = np.zeros(0, f"S{num_levels * CODE_BYTES + REST_BYTES}")  # keys of the slots on air
        self._changed: dict[int, bytes | None] = {}  # slot → its key in `_sorted`, None where it has none
        self._new_features = False
        self._lock = threading.RLock()
        self._snapshot = Snapshot(index, self._room.copy(), self._author.copy(), 0)

    def __len__(self) -> int:
        """Rooms on air."""
        return len(self._slot_of_room)

    @property
    def capacity(self) -> int:
        """Rooms that can be on air at once."""
        return len(self._room)

    @property
    def version(self) -> int:
        """Of the last snapshot."""
        return self._snapshot.version

    def __contains__(self, room: int) -> bool:
        return room in self._slot_of_room

    def put_on_air(self, room: int, author: int, codes: Sequence[int], features: Sequence[float] | None = None) -> int:
        """A room opens; returns its slot. Refused where it is on air already, a value is out of range or no slot is
        free. `features` are 0 where they are not given (a server works them out when it answers)."""
        room, author = operator.index(room), operator.index(author)
        if not 0 <= room < 2**63:
            raise ValueError(f"room {room}: a room id must be 0 … {2**63 - 1} (-1 means no room)")
        if not 0 <= author < self._num_authors:
            raise ValueError(f"room {room}: author {author} is outside 0 … {self._num_authors - 1}, the rows of the "
                             "author table")
        codes = self._checked_codes(room, codes)
        features = self._checked_features(room, [0.0] * self._features.shape[1] if features is None else features)
        with self._lock:
            if room in self._slot_of_room:
                raise ValueError(f"room {room} is on air already: change_codes moves it, take_off_air closes it")
            if not self._free:
                raise ValueError(f"room {room} found no free slot: the live index holds {self.capacity} rooms, all on "
                                 "air; close rooms with take_off_air or raise config.decoding.capacity")
            slot = self._free.pop()
            self._touch(slot)
            self._slot_of_room[room], self._room[slot] = slot, room
            self._author[slot], self._codes[slot] = author, codes
            self._set_features(slot, features)
            return slot

    def take_off_air(self, room: int) -> None:
        """A room closes and its slot is free again. Refused where it is not on air."""
        with self._lock:
            slot = self._slot(room)
            self._touch(slot)
            del self._slot_of_room[room]
            self._room[slot] = -1
            self._free.append(slot)

    def change_codes(self, room: int, codes: Sequence[int]) -> None:
        """The content of a room moved on. Refused where it is not on air or a code is out of range."""
        codes = self._checked_codes(room, codes)
        with self._lock:
            slot = self._slot(room)
            if (codes != self._codes[slot]).any():
                self._touch(slot)
                self._codes[slot] = codes

    def change_features(self, room: int, features: Sequence[float]) -> None:
        """Viewers came or went. Refused where the room is not on air or a feature is not finite."""
        features = self._checked_features(room, features)
        with self._lock:
            self._set_features(self._slot(room), features)

    def snapshot(self) -> Snapshot:
        """What is on air, with every change so far; the same object again where nothing changed."""
        with self._lock:
            if not self._changed and not self._new_features:
                return self._snapshot
            before = self._snapshot.index
            features = self._features.copy() if self._new_features else before.features
            if self._changed:
                self._sort()
                author, on_air = self._author.copy(), self._room >= 0
                index = LiveIndex(author, self._codes.copy(), features, on_air, self._trie(on_air), self._num_codes)
                rooms = self._room.copy(), author
            else:
                index, rooms = before.replace(features=features), self._snapshot[1:3]
            # (Only copies that nobody writes to: on a CPU the device may read the host's own memory.)
            self._snapshot = Snapshot(jax.device_put(index), *rooms, self._snapshot.version + 1)
            self._changed, self._new_features = {}, False
            return self._snapshot

    def _slot(self, room: int) -> int:
        if room not in self._slot_of_room:
            raise ValueError(f"room {room} is not on air: put_on_air opens it")
        return self._slot_of_room[room]

    def _touch(self, slot: int) -> None:
        """Before a slot's room, author or codes change: its key of the last snapshot has to be found again."""
        if slot not in self._changed:
            on_air = self._room[slot] >= 0
            self._changed[slot] = self._keys(np.array([slot]))[0] if on_air else None

    def _set_features(self, slot: int, features: np.ndarray) -> None:
        if (features != self._features[slot]).any():
            self._features[slot], self._new_features = features, True

    def _keys(self, slots: np.ndarray) -> np.ndarray:
        """Sort keys of slots int [U]: bytes that compare as (codes, tie rank of the author, slot) do."""
        rest = np.stack([_tie_rank(self._author[slots]), slots.astype(np.uint32)], 1)
        parts = [self._codes[slots].astype(f">u{CODE_BYTES}"), rest.astype(">u4")]
        packed = np.concatenate([part.view(np.uint8).reshape(len(slots), part.shape[1] * part.itemsize)
                                 for part in parts], axis=1)
        return np.ascontiguousarray(packed).view(self._sorted.dtype)[:, 0]

    def _sort(self) -> None:
        """Takes the old keys of the changed slots out of the sorted ones and puts the new ones in."""
        old = np.array([key for key in self._changed.values() if key is not None], self._sorted.dtype)
        kept = np.delete(self._sorted, np.searchsorted(self._sorted, old)) if old.size else self._sorted
        slots = np.fromiter(self._changed, np.int64)
        new = np.sort(self._keys(slots[self._room[slots] >= 0]))
        self._sorted = np.insert(kept, np.searchsorted(kept, new), new) if new.size else kept

    def _trie(self, on_air: np.ndarray) -> Trie:
        (capacity, num_levels), rooms = self._codes.shape, self._sorted.size
        raw = self._sorted.view(np.uint8).reshape(rooms, -1)
        order = np.concatenate([raw[:, -4:].copy().view(">u4")[:, 0].astype(np.int32),
                                np.flatnonzero(~on_air).astype(np.int32)])
        codes = raw[:, :num_levels * CODE_BYTES].copy().view(f">u{CODE_BYTES}").astype(np.int32)
        starts = np.zeros(rooms, bool)
        starts[:1] = True
        levels, node = [], np.zeros(rooms, np.int32)
        for level in range(num_levels):
            starts[1:] |= codes[1:, level] != codes[:-1, level]
            first = np.flatnonzero(starts)
            size = min(capacity, self._num_codes ** (level + 1))
            levels.append(TrieLevel(code=_padded(codes[first, level], size), parent=_padded(node[first], size),
                                    size=np.int32(first.size)))
            node = np.cumsum(starts, dtype=np.int32) - 1
        return Trie(order, _padded(node, capacity), np.int32(rooms), tuple(levels))

    def _checked_codes(self, room: int, codes: Sequence[int]) -> np.ndarray:
        array, num_levels = np.asarray(codes), self._codes.shape[1]
        if array.shape != (num_levels,) or array.dtype.kind not in "iu":
            raise ValueError(f"room {room}: codes must be {num_levels} whole numbers (config.tokenizer.levels), not "
                             f"{codes!r}")
        if array.min() < 0 or array.max() >= self._num_codes:
            raise ValueError(f"room {room}: codes {array.tolist()} are outside 0 … {self._num_codes - 1} "
                             "(config.tokenizer.codes)")
        return array

    def _checked_features(self, room: int, features: Sequence[float]) -> np.ndarray:
        array, num_features = np.asarray(features, np.float32), self._features.shape[1]
        if array.shape != (num_features,) or not np.isfinite(array).all():
            raise ValueError(f"room {room}: features must be {num_features} finite numbers "
                             f"(onelive_jax.batch.ROOM_FEATURES), not {features!r}")
        return array


def _tie_rank(author: np.ndarray) -> np.ndarray:
    """`live_index.tie_rank` on the host."""
    x = author.astype(np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """int32 [size], zeros behind the values."""
    out = np.zeros(size, np.int32)
    out[:values.size] = values
    return out
