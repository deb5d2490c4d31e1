"""The rooms on air as arrays of fixed size, and the trie of their semantic ids.

Axes: C capacity (slots), L code levels, K codes, R room features, n nodes of a trie level, B batch (only where
every request has a catalogue of its own).

Rooms go on and off air in slots of a fixed number: shapes never change, so nothing is ever recompiled. The trie is
nothing but the sorted slots: a node of level t is a run of slots that share their first t + 1 codes, and the nodes of a
level are numbered in that order. Memory is O(C · L) whatever K is: there is no table over code pairs. A server keeps
its rooms sorted as they come and go (onelive_jax/serving/catalogue.py); here they are sorted at once.
"""

import jax
import jax.numpy as jnp
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
