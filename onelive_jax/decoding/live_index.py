"""The rooms on air as arrays of fixed size, and the trie of their semantic ids.

Axes: C capacity (slots), L code levels, K codes, R room features, n nodes of a trie level, U rows of an update,
B batch (only where every request has a catalogue of its own).

Rooms go on and off air by writing slots and sorting again: shapes never change, so nothing is ever recompiled. The
trie is nothing but the sorted slots: a node of level t is a run of slots that share their first t + 1 codes, and the
nodes of a level are numbered in that order. Memory is O(C · L) whatever K is: there is no table over code pairs.
"""

from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from onelive_jax.batch import ROOM_FEATURES, LiveRooms

Array = jax.Array


@struct.dataclass
class TrieLevel:
    """The distinct prefixes of one length among the rooms on air, in lexicographic order, n = min(C, K^(level+1)).

    Attributes:
      code: int32 [n], last code of the prefix; 0 where a node is unused.
      parent: int32 [n], node of the level above (0 at level 0: the root); 0 where a node is unused.
      size: int32 [], nodes in use: 0 … size-1.
    """

    code: Array
    parent: Array
    size: Array


@struct.dataclass
class Trie:
    """The semantic ids on air.

    Attributes:
      order: int32 [C], slots sorted by code path, then by `tie_rank` of the author; slots off air come last.
      leaf: int32 [C], node of the last level of every *sorted* room; 0 where a slot is off air.
      num_rooms: int32 [], rooms on air.
      levels: L trie levels, from the first code to the last.
    """

    order: Array
    leaf: Array
    num_rooms: Array
    levels: tuple[TrieLevel, ...]


@struct.dataclass
class LiveIndex:
    """The rooms on air, one slot a room. A leading B axis on every array means one catalogue a request.

    Attributes:
      author: int32 [C], dense author index.
      codes: int32 [C, L], semantic ids now, each in 0 … num_codes-1.
      features: float32 [C, R], see `onelive_jax.batch.ROOM_FEATURES`.
      on_air: bool [C], True where a slot holds a room on air.
      trie: derived from the four above by `build_trie`.
      num_codes: K (static).
    """

    author: Array
    codes: Array
    features: Array
    on_air: Array
    trie: Trie
    num_codes: int = struct.field(pytree_node=False)

    @property
    def capacity(self) -> int:
        return self.author.shape[-1]

    @property
    def num_levels(self) -> int:
        return self.codes.shape[-1]

    @property
    def batched(self) -> bool:
        """True where every request has a catalogue of its own."""
        return self.author.ndim == 2

    def as_rooms(self) -> LiveRooms:
        """The same rooms, in slot order, as the model reads them."""
        return LiveRooms(author=self.author, codes=self.codes, features=self.features, mask=self.on_air)


def tie_rank(author: Array) -> Array:
    """A fixed permutation of the 32-bit integers: uint32, same shape as `author`.

    Rooms that no score tells apart are ranked by it. It knows nothing of popularity, age or any answer, and it is
    the same on every machine. (Multiply and xor-shift are each invertible, so two authors never collide.)
    """
    x = author.astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def build_trie(codes: Array, author: Array, on_air: Array, num_codes: int) -> Trie:
    """Sorts the rooms on air and numbers their prefixes; pure, and safe under `jax.vmap`. O(C log C).

    Args:
      codes: int32 [C, L], each in 0 … num_codes-1 where `on_air`.
      author: int32 [C], only breaks ties.
      on_air: bool [C].
      num_codes: K.
    """
    capacity, num_levels = codes.shape
    slots_C = jnp.arange(capacity, dtype=jnp.int32)
    # A first code of K sends a slot behind every room on air without a sort key of its own.
    keys = [jnp.where(on_air, codes[:, 0], num_codes)] + [codes[:, level] for level in range(1, num_levels)]
    *paths, _, order_C = lax.sort((*keys, tie_rank(author), slots_C), num_keys=num_levels + 1, is_stable=True)
    num_rooms = on_air.sum(dtype=jnp.int32)
    live_C = slots_C < num_rooms

    levels, starts_C, parent_C = [], slots_C == 0, jnp.zeros(capacity, jnp.int32)
    for level, code_C in enumerate(paths):
        starts_C = starts_C | (code_C != jnp.roll(code_C, 1))
        node_C = jnp.where(live_C, jnp.cumsum(starts_C & live_C, dtype=jnp.int32) - 1, 0)
        size = min(capacity, num_codes ** (level + 1))
        first_C = jnp.where(starts_C & live_C, node_C, size)  # past the end: dropped
        blank_n = jnp.zeros(size, jnp.int32)
        levels.append(TrieLevel(code=blank_n.at[first_C].set(code_C, mode="drop"),
                                parent=blank_n.at[first_C].set(parent_C, mode="drop"),
                                size=(starts_C & live_C).sum(dtype=jnp.int32)))
        parent_C = node_C
    return Trie(order=order_C, leaf=parent_C, num_rooms=num_rooms, levels=tuple(levels))


def from_rooms(rooms: LiveRooms, num_codes: int) -> LiveIndex:
    """The index of given rooms; pure. LiveRooms [N] gives one catalogue, LiveRooms [B, N] one a request.

    Codes are not checked here (they may be traced): they must lie in 0 … num_codes-1 wherever `mask` is True.
    """
    def build(codes, author, mask):
        return build_trie(codes, author, mask, num_codes)

    build = jax.vmap(build) if rooms.author.ndim == 2 else build
    return LiveIndex(author=rooms.author, codes=rooms.codes, features=rooms.features, on_air=rooms.mask,
                     trie=build(rooms.codes, rooms.author, rooms.mask), num_codes=num_codes)


_compiled_from_rooms = jax.jit(from_rooms, static_argnums=1)


def empty(capacity: int, num_levels: int, num_codes: int, num_features: int = len(ROOM_FEATURES)) -> LiveIndex:
    """An index of `capacity` slots, all off air."""
    if min(capacity, num_levels, num_codes) < 1:
        raise ValueError("a live index needs capacity, levels and codes of at least 1, not "
                         f"config.decoding.capacity={capacity}, config.tokenizer.levels={num_levels}, "
                         f"config.tokenizer.codes={num_codes}")
    return _compiled_from_rooms(LiveRooms(
        author=jnp.zeros(capacity, jnp.int32), codes=jnp.zeros((capacity, num_levels), jnp.int32),
        features=jnp.zeros((capacity, num_features), jnp.float32), mask=jnp.zeros(capacity, bool)), num_codes)


def rebuild(index: LiveIndex) -> LiveIndex:
    """The same rooms with a fresh trie. Compiled once for each capacity."""
    return _compiled_from_rooms(index.as_rooms(), index.num_codes)


@jax.jit
def write(index: LiveIndex, slots: Array, author: Array, codes: Array, features: Array, on_air: Array) -> LiveIndex:
    """Writes U slots and leaves the trie as it was: call `rebuild` before the index is searched.

    Args:
      index: not donated, so that a request that still reads it may finish.
      slots: int32 [U], distinct; a row whose slot is `capacity` or more is padding and is dropped.
      author, codes, features, on_air: [U], [U, L], [U, R], [U], as in `LiveIndex`.
    """
    return index.replace(author=index.author.at[slots].set(author, mode="drop"),
                         codes=index.codes.at[slots].set(codes, mode="drop"),
                         features=index.features.at[slots].set(features, mode="drop"),
                         on_air=index.on_air.at[slots].set(on_air, mode="drop"))


@jax.jit
def update(index: LiveIndex, slots: Array, author: Array, codes: Array, features: Array, on_air: Array) -> LiveIndex:
    """`write` and `rebuild` in one step: rooms go on air, off air or change codes. Compiled once for each U."""
    return rebuild(write(index, slots, author, codes, features, on_air))


class Snapshot(NamedTuple):
    """What is on air at one moment. Slots are used again later: read room ids from the snapshot that was searched.

    Attributes:
      index: the index to search.
      room: int64 [C] on the host, room id of every slot; -1 where a slot is off air.
    """

    index: LiveIndex
    room: np.ndarray

    def room_ids(self, slots: np.ndarray) -> np.ndarray:
        """int64, same shape as `slots`: the room of each slot; -1 where the slot is -1 (no such rank)."""
        slots = np.asarray(slots)
        return np.where(slots < 0, -1, self.room[np.maximum(slots, 0)])


class LiveCatalogue:
    """Room ids to slots, on the host. One writer; any number of readers of its snapshots.

    Changes are collected and reach the device when a snapshot is asked for, `update_size` slots at a time.
    """

    def __init__(self, capacity: int, num_levels: int, num_codes: int, num_features: int = len(ROOM_FEATURES),
                 update_size: int = 256):
        """Raises ValueError where a size is below 1."""
        if update_size < 1:
            raise ValueError(f"update_size={update_size} must be at least 1")
        self._index = empty(capacity, num_levels, num_codes, num_features)
        self._author = np.zeros(capacity, np.int32)
        self._codes = np.zeros((capacity, num_levels), np.int32)
        self._features = np.zeros((capacity, num_features), np.float32)
        self._room = np.full(capacity, -1, np.int64)
        self._slot_of_room: dict[int, int] = {}
        self._free = list(range(capacity))[::-1]
        self._changed: dict[int, None] = {}
        self._snapshot = Snapshot(self._index, self._room.copy())
        self._update_size = update_size

    def __len__(self) -> int:
        """Rooms on air."""
        return len(self._slot_of_room)

    @property
    def capacity(self) -> int:
        """Rooms that can be on air at once."""
        return len(self._room)

    def __contains__(self, room: int) -> bool:
        return room in self._slot_of_room

    def put_on_air(self, room: int, author: int, codes: Sequence[int], features: Sequence[float]) -> None:
        """A room opens. Raises ValueError where it is on air already, a value is out of range or no slot is free."""
        if room < 0:
            raise ValueError(f"room {room}: a room id must be 0 or more (-1 means no room)")
        if room in self._slot_of_room:
            raise ValueError(f"room {room} is on air already: change_codes moves it, take_off_air closes it")
        if not 0 <= author < 2**31:
            raise ValueError(f"room {room}: author {author} is outside 0 … {2**31 - 1}")
        codes, features = self._checked_codes(room, codes), self._checked_features(room, features)
        if not self._free:
            raise ValueError(f"room {room} found no free slot: the live index holds {self.capacity} rooms, all on "
                             "air; close rooms with take_off_air or raise config.decoding.capacity")
        slot = self._free.pop()
        self._slot_of_room[room], self._room[slot] = slot, room
        self._author[slot], self._codes[slot], self._features[slot] = author, codes, features
        self._changed[slot] = None

    def take_off_air(self, room: int) -> None:
        """A room closes and its slot is free again. Raises ValueError where it is not on air."""
        slot = self._slot(room)
        del self._slot_of_room[room]
        self._room[slot] = -1
        self._free.append(slot)
        self._changed[slot] = None

    def change_codes(self, room: int, codes: Sequence[int]) -> None:
        """The content of a room moved on. Raises ValueError where it is not on air or a code is out of range."""
        slot = self._slot(room)
        self._codes[slot] = self._checked_codes(room, codes)
        self._changed[slot] = None

    def change_features(self, room: int, features: Sequence[float]) -> None:
        """Viewers came or went. Raises ValueError where the room is not on air or a feature is not finite."""
        slot = self._slot(room)
        self._features[slot] = self._checked_features(room, features)
        self._changed[slot] = None

    def snapshot(self) -> Snapshot:
        """What is on air, with every change so far; the same object again where nothing changed."""
        if not self._changed:
            return self._snapshot
        changed = np.fromiter(self._changed, np.int32)
        for start in range(0, len(changed), self._update_size):
            slots = changed[start:start + self._update_size]
            rows = np.pad(slots, (0, self._update_size - len(slots)))  # slot 0 stands in: its row is dropped
            padded = np.pad(slots, (0, len(rows) - len(slots)), constant_values=self.capacity)
            self._index = write(self._index, padded, self._author[rows], self._codes[rows], self._features[rows],
                                self._room[rows] >= 0)
        self._index = rebuild(self._index)
        self._changed = {}
        self._snapshot = Snapshot(self._index, self._room.copy())
        return self._snapshot

    def _slot(self, room: int) -> int:
        if room not in self._slot_of_room:
            raise ValueError(f"room {room} is not on air: put_on_air opens it")
        return self._slot_of_room[room]

    def _checked_codes(self, room: int, codes: Sequence[int]) -> np.ndarray:
        array, (_, num_levels), num_codes = np.asarray(codes), self._codes.shape, self._index.num_codes
        if array.shape != (num_levels,) or array.dtype.kind not in "iu":
            raise ValueError(f"room {room}: codes must be {num_levels} whole numbers (config.tokenizer.levels), not "
                             f"{codes!r}")
        if array.min() < 0 or array.max() >= num_codes:
            raise ValueError(f"room {room}: codes {array.tolist()} are outside 0 … {num_codes - 1} "
                             "(config.tokenizer.codes)")
        return array

    def _checked_features(self, room: int, features: Sequence[float]) -> np.ndarray:
        array, num_features = np.asarray(features, np.float32), self._features.shape[1]
        if array.shape != (num_features,) or not np.isfinite(array).all():
            raise ValueError(f"room {room}: features must be {num_features} finite numbers "
                             f"(onelive_jax.batch.ROOM_FEATURES), not {features!r}")
        return array
