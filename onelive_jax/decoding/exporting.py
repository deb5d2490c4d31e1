"""The recommender as a StableHLO artefact, which a program loads and calls without this project (jax.export)."""

from typing import Any

import jax
import numpy as np
from jax import export

from onelive_jax.batch import LiveRooms, Request
from onelive_jax.decoding.live_index import from_rooms
from onelive_jax.decoding.recommend import Recommender

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = ("slot", "score", "author", "codes")


def export_recommender(recommend: Recommender, params: Any, request: Request, rooms: LiveRooms, num_codes: int,
                       platforms: tuple[str, ...] = PLATFORMS) -> tuple[bytes, list[tuple[str, np.ndarray]]]:
    """Lowers (params, request, rooms) → (slot, score, author, codes) for platforms that need not be there.

    The artefact takes the arrays one by one, so that its caller needs no class of this project, and makes the index of
    the rooms itself (LiveRooms [N], one catalogue for the batch, or [B, N]). num_codes: K.

    Returns: (the artefact; the name of each input, in order, with the array that was given here).
    """
    named, tree = jax.tree_util.tree_flatten_with_path((params, request, rooms))
    kinds = ("params", "request", "rooms")
    inputs = [("/".join((kinds[path[0].idx], jax.tree_util.keystr(path[1:], simple=True, separator="/"))),
               np.asarray(value)) for path, value in named]

    def call(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        params, request, rooms = jax.tree.unflatten(tree, arrays)
        ranking = recommend(params, request, from_rooms(rooms, num_codes))
        return tuple(getattr(ranking, name) for name in OUTPUTS)

    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for _, value in inputs]
    return export.export(jax.jit(call), platforms=platforms)(*shapes).serialize(), inputs
