"""Who exactly: copying codes and authors of the history, and the identity head that tells rooms apart beyond codes.

Ours, not the paper's. In live streaming most views go to an author the viewer already knows, and authors who share an
id must be told apart. Codes generalise (new authors); identity remembers (known ones). Both heads are mixtures of
*generating* and *copying*: logaddexp(generated, copied).

Axes: B batch, W beams, S positions, T history items, L levels, K codes, N rooms, D model width, E author width,
F habits.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from onelive_jax.batch import LiveRooms
from onelive_jax.config import ModelConfig
from onelive_jax.model.layers import (
    MLP,
    NEG_INF,
    Context,
    normal,
    rms_normalise,
    weight,
    zeros,
)
from onelive_jax.sharding.placement import Placement

Array = jax.Array
COPY_DIM = 32


class CopyScore(nn.Module):
    """How strongly each history item asks to be repeated: attention from the hidden state plus habit, [B, W, S, T]."""

    habits: bool

    @nn.compact
    def __call__(self, hidden_BxWxSxD: Array, context: Context) -> Array:
        D = hidden_BxWxSxD.shape[-1]
        query = weight(self, "query", (D, COPY_DIM), ("embed", "features"), normal(D**-0.5))
        key = weight(self, "key", (D, COPY_DIM), ("embed", "features"), normal(0.02))
        q = rms_normalise(hidden_BxWxSxD).astype(jnp.float32) @ query
        k = context.items.astype(jnp.float32) @ key
        score = jnp.einsum("bwsc,btc->bwst", q, k) + weight(self, "bias", (), (), zeros)
        if self.habits:
            score = score + MLP(COPY_DIM, 1, name="habits")(context.habits)[:, None, None, :, 0]
        return jnp.where(context.mask[:, None, None], score, NEG_INF)


def places(wanted_BxN: Array, named_BxM: Array) -> tuple[Array, Array]:
    """(int32 [B, N], the last place of each wanted author among those named, 0 where there is none; bool, whether)."""
    same = wanted_BxN[:, :, None] == named_BxM[:, None, :]
    place = jnp.max(jnp.where(same, jnp.arange(named_BxM.shape[1], dtype=jnp.int32), -1), 2, initial=-1)
    return jnp.maximum(place, 0), place >= 0


def slots_of_authors(rooms: LiveRooms, num_authors: int) -> Array:
    """int32 [A], the slot of each author's room in a catalogue [1, N]; N, which is no slot, of those off air."""
    slots = rooms.author.shape[1]
    author_N = jnp.where(rooms.mask[0], rooms.author[0], num_authors)
    return jnp.full(num_authors, slots, jnp.int32).at[author_N].set(jnp.arange(slots, dtype=jnp.int32), mode="drop")


def copied_codes(score_BxWxSxT: Array, context: Context, prefix_BxWxSxL: Array, level: int, num_codes: int) -> Array:
    """log Σ exp(score) over the items that carry code k at `level` and match the prefix before it.

    Args: prefix_BxWxSxL int32, of which columns 0 … level − 1 are read.
    Returns: float32 [B, W, S, K]; NEG_INF where no item matches.
    """
    match = context.mask[:, None, None]
    for l in range(level):
        match = match & (context.codes[:, None, None, :, l] == prefix_BxWxSxL[..., l, None])
    score = jnp.where(match, score_BxWxSxT, NEG_INF)
    top = jax.lax.stop_gradient(score.max(-1, keepdims=True))
    mass = jnp.where(match, jnp.exp(score - top), 0.0)
    onehot = jax.nn.one_hot(context.codes[..., level], num_codes, dtype=mass.dtype)
    total = jnp.einsum("bwst,btk->bwsk", mass, onehot)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)) + top, NEG_INF)


class IdentityHead(nn.Module):
    """s(room) = logaddexp(u · e_author + b_author, copied).

    `u` is read from the main decoder's first hidden state; `copied` is the copy score of that very author.
    """

    config: ModelConfig
    num_authors: int
    placement: Placement = Placement()

    def setup(self):
        # Read by `user`, `rooms` and `everyone`, so declared once here.
        self.copy_score = CopyScore(self.config.habits)
        self.bias = weight(self, "bias", (self.num_authors,), ("authors",), zeros)

    @nn.compact
    def user(self, hidden_BxD: Array, width: int) -> Array:
        """The user's side u, float32 [B, E]."""
        D = hidden_BxD.shape[-1]
        w = weight(self, "user", (D, width), ("embed", "features"), normal(0.1 * D**-0.5))
        return rms_normalise(hidden_BxD).astype(jnp.float32) @ w

    def everyone(self, user_BxE: Array, author_table_AxE: Array) -> Array:
        """Generated scores of all authors, float32 [B, A]."""
        return user_BxE @ author_table_AxE.T + self.bias

    def sampled(self, user_BxE: Array, author_table_AxE: Array, target_B: Array, key: Array) -> Array:
        """Generated scores that stand for those of all authors in a softmax, float32 [B, 1 + S]: the target's own, then
        those of S authors drawn uniformly, each with log(A / S) added, so that Σ exp has the right expectation.

        A draw that is the target counts as none (NEG_INF).
        """
        A, S = author_table_AxE.shape[0], self.config.author_negatives
        drawn_S = jax.random.randint(key, (S,), 0, A, jnp.int32)
        own_B = jnp.einsum("be,be->b", user_BxE, self._embedding(author_table_AxE, target_B)) + self._bias(target_B)
        drawn_BxS = user_BxE @ self._embedding(author_table_AxE, drawn_S).T + self._bias(drawn_S) + jnp.log(A / S)
        drawn_BxS = jnp.where(drawn_S == target_B[:, None], NEG_INF, drawn_BxS)
        return jnp.concatenate([own_B[:, None], drawn_BxS], 1)

    def _embedding(self, author_table_AxE: Array, author: Array) -> Array:
        return self.placement.take(author_table_AxE, ("authors", "features"), author)

    def _bias(self, author: Array) -> Array:
        return self.placement.take(self.bias[:, None], ("authors", None), author)[..., 0]

    def rooms(self, hidden_BxD: Array, user_BxE: Array, context: Context, rooms: LiveRooms,
              author_table_AxE: Array, everyone_BxA: Array | None = None) -> Array:
        """Scores of rooms on air, float32 [B, N]; NEG_INF where there is no room.

        `rooms` has a leading axis B, or 1 when the batch shares one catalogue. `everyone_BxA`, where it is known
        already, is read instead of fetching E numbers a room.
        """
        if everyone_BxA is not None:
            rows = jnp.broadcast_to(rooms.author, (everyone_BxA.shape[0], rooms.author.shape[1]))
            generated = jnp.take_along_axis(everyone_BxA, rows, 1)
        else:
            embedding = self._embedding(author_table_AxE, rooms.author)
            if embedding.shape[0] == 1:
                generated = user_BxE @ embedding[0].T
            else:
                generated = jnp.einsum("be,bne->bn", user_BxE, embedding)
            generated = generated + self._bias(rooms.author)
        score = generated
        if self.config.copy:
            copy_BxT = self.copy_score(hidden_BxD[:, None, None], context)[:, 0, 0]
            # What the history says of an author is worked out among its T items first.
            same = (context.author[:, :, None] == context.author[:, None, :]) & context.mask[:, None, :]
            total_BxT = jax.nn.logsumexp(jnp.where(same, copy_BxT[:, None, :], NEG_INF), 2)
            score = jnp.logaddexp(generated, self._on_rooms(total_BxT, context, rooms))
        return jnp.where(rooms.mask, score, NEG_INF)

    def _on_rooms(self, total_BxT: Array, context: Context, rooms: LiveRooms) -> Array:
        """What the history says of each room's author, float32 [B, N]; NEG_INF where it does not name them.

        In a catalogue that the batch shares, an author shows one room, and each item looks for it: O(N + B · T).
        """
        if rooms.author.shape[0] > 1:
            item_BxN, known = places(rooms.author, jnp.where(context.mask, context.author, -1))
            return jnp.where(known, jnp.take_along_axis(total_BxT, item_BxN, 1), NEG_INF)
        slot_BxT = jnp.where(context.mask, slots_of_authors(rooms, self.num_authors)[context.author],
                             rooms.author.shape[1])
        copied = jnp.full((total_BxT.shape[0], rooms.author.shape[1]), NEG_INF)
        return copied.at[jnp.arange(total_BxT.shape[0])[:, None], slot_BxT].set(total_BxT, mode="drop")
