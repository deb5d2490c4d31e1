"""What is measured of a room and a person, as a score: habit, shared audience, trend.

Ours, not the paper's. Codes and identity are learned from the log; a count needs no learning, and on a log of a few
thousand people it knows more. The head reads the counts of a room (how many watch, how many usually do), of the person
with its author (habits), and of its author with what the person watched (shared audiences), and is trained with a
likelihood of its own over the rooms on air.

Axes: B batch, T history items, K related authors, N rooms, F habits, R room features, S similarities, M items looked
for, X inputs.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from onelive_jax.batch import HABIT_FEATURES, ROOM_FEATURES, SIMILARITIES, LiveRooms, Request
from onelive_jax.config import ModelConfig
from onelive_jax.model.identity import places, slots_of_authors
from onelive_jax.model.layers import NEG_INF, Context, normal, weight, zeros

Array = jax.Array
HIDDEN = 32
# The head has few parameters and learns faster than the tables beside it: Adam moves all by one rate, so its weights
# are kept divided by this.
RATE = 5.0


class EvidenceHead(nn.Module):
    """score(room) = MLP(room features, habit with its author, whether this broadcast was seen, similarities).

    A catalogue that the batch shares is scored once, as for somebody of whom nothing is known; then, for each request,
    the rooms of authors whom its history or its related authors name: O(N + B · (T + K)), which is what a catalogue of
    many thousand rooms needs.
    """

    config: ModelConfig
    num_authors: int

    def setup(self):
        c, width = self.config, {}
        if c.room_features:
            width["room"] = len(ROOM_FEATURES)
        if c.habits:
            width["habits"] = 1 + len(HABIT_FEATURES)
            if c.seen:
                width["seen"] = 1
        if c.similar:
            width["similar"] = len(SIMILARITIES)
        matrix = lambda name, inputs, outputs, scale: weight(  # noqa: E731
            self, name, (inputs, outputs), ("features", None), normal(scale * inputs**-0.5 / RATE))
        self.inputs = {name: matrix(name, inputs, HIDDEN, len(width)**-0.5) for name, inputs in width.items()}
        self.hidden, self.out = matrix("hidden", HIDDEN, HIDDEN, 1.0), matrix("out", HIDDEN, 1, 0.1)
        self.bias, self.hidden_bias = (weight(self, name, (HIDDEN,), (None,), zeros)
                                       for name in ("bias", "hidden_bias"))

    def __call__(self, request: Request, context: Context, rooms: LiveRooms) -> Array:
        """Scores of rooms on air, float32 [B, N], NEG_INF where there is none. `rooms` has a leading axis B, or 1 where
        the batch shares one catalogue, in which an author shows one room."""
        batch, shared = request.hour.shape[0], rooms.author.shape[0] == 1
        if shared:
            base_1xN = self._score({"room": rooms.features})
            slot_BxM, author_BxM = self._named_rooms(request, context, rooms)
            at = jnp.minimum(slot_BxM, rooms.author.shape[1] - 1)
            value_BxM = self._of_pairs(request, context, author_BxM, jnp.take(rooms.features[0], at, 0))
            row = jnp.arange(batch)[:, None]
            score = jnp.broadcast_to(base_1xN, (batch, base_1xN.shape[1])).at[row, slot_BxM].set(value_BxM, mode="drop")
        else:
            score = self._of_pairs(request, context, rooms.author, rooms.features)
        return jnp.where(rooms.mask, score, NEG_INF)

    def _named_rooms(self, request: Request, context: Context, rooms: LiveRooms) -> tuple[Array, Array]:
        """(slot, author), int32 [B, T + K] of the items and related authors; slots of those off air lie behind all."""
        slot_of_A, N = slots_of_authors(rooms, self.num_authors), rooms.author.shape[1]
        named = jnp.concatenate([jnp.where(context.mask, context.author, -1), request.related], 1)
        slot = jnp.where(named >= 0, slot_of_A[jnp.maximum(named, 0)], N)
        return slot, jnp.maximum(named, 0)

    def _of_pairs(self, request: Request, context: Context, author_BxN: Array, features_BxNxR: Array) -> Array:
        """Scores of rooms of authors int32 [B, N], float32 [B, N]."""
        item, known = places(author_BxN, jnp.where(context.mask, context.author, -1))
        habits = jnp.take_along_axis(context.habits, item[..., None], 1) * known[..., None]
        place, alike = places(author_BxN, request.related)
        similarity = jnp.take_along_axis(request.similarity, place[..., None], 1) * alike[..., None]
        # The viewer has been in this very broadcast: it began before their last view of its author.
        gap, age = habits[..., HABIT_FEATURES.index("log_gap")], features_BxNxR[..., ROOM_FEATURES.index("log_age")]
        return self._score({"room": features_BxNxR, "habits": jnp.concatenate([known[..., None], habits], -1),
                            "seen": (known & (gap <= age + 1e-5))[..., None], "similar": similarity})

    def _score(self, parts: dict[str, Array]) -> Array:
        """Of rooms [B, N] from their parts [B, N, X]; a part that is left out is 0, as of somebody who has nothing to
        do with the room."""
        x = sum(part.astype(jnp.float32) @ self.inputs[name] for name, part in parts.items() if name in self.inputs)
        x = nn.silu(RATE * (x + self.bias))
        x = nn.silu(RATE * (x @ self.hidden + self.hidden_bias))
        return jnp.broadcast_to(RATE * (x @ self.out)[..., 0], next(iter(parts.values())).shape[:2])
