"""Small random batches that keep every promise of onelive_jax/batch.py, and tiny models to read them.

Axes: B batch, T history items, L levels, K codes, N rooms on air, A authors. All dimensions differ, so that a
mixed-up axis cannot go unseen.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from onelive_jax.batch import HABIT_FEATURES, ROOM_FEATURES, SIMILARITIES, Batch, History, LiveRooms, Request
from onelive_jax.config import ModelConfig
from onelive_jax.model.evidence import RATE
from onelive_jax.model.layers import Context
from onelive_jax.model.onelive import OneLive

BATCH, ITEMS, LEVELS, CODES, ROOMS, AUTHORS, AUTHOR_DIM = 4, 5, 3, 6, 7, 11, 8
RELATED = 9
SWITCHES = ("mtp", "gate", "qk_norm", "copy", "habits", "identity", "author_items", "item_time", "request_time",
            "seen", "room_features", "similar")


def codes_of_authors(levels: int = LEVELS, codes: int = CODES, authors: int = AUTHORS) -> np.ndarray:
    """int32 [A, L]: authors 2i and 2i + 1 share an id, and first codes are few, so that prefixes are shared too."""
    table = np.random.default_rng(7).integers(0, codes, (authors, levels))
    table[:, 0] %= 3
    return np.repeat(table, 2, axis=0)[:authors].astype(np.int32)


def random_history(rng: np.random.Generator, batch: int, items: int, levels: int, codes: int, authors: int) -> History:
    """A history whose first row is full and whose other rows are padded on the left, none of them empty."""
    length = rng.integers(1, items + 1, batch)
    length[0] = items
    mask = np.arange(items) >= items - length[:, None]
    author = rng.integers(0, authors, (batch, items))
    seen = codes_of_authors(levels, codes, authors)[author]
    drifted = rng.random((batch, items)) < 0.3  # the content of a room moves on
    seen[drifted] = rng.integers(0, codes, (drifted.sum(), levels))
    habits = rng.normal(size=(batch, items, len(HABIT_FEATURES))).astype(np.float32)

    def whole(values):
        return np.where(mask, values, 0).astype(np.int32)

    return History(author=whole(author), codes=np.where(mask[..., None], seen, 0).astype(np.int32),
                   hour=whole(rng.integers(0, 24, mask.shape)), day=whole(rng.integers(0, 7, mask.shape)),
                   week=whole(rng.integers(0, 16, mask.shape)),
                   habits=np.where(mask[..., None], habits, 0).astype(np.float32), mask=mask)


def random_related(rng: np.random.Generator, batch: int, authors: int) -> dict[str, np.ndarray]:
    """Fields of a request: up to RELATED distinct authors, ascending, −1 in front, and similarities."""
    author = np.sort([rng.permutation(authors)[:RELATED] for _ in range(batch)], 1).astype(np.int32)
    none = np.arange(author.shape[1]) < rng.integers(0, author.shape[1], batch)[:, None]
    similarity = rng.random((*author.shape, len(SIMILARITIES))).astype(np.float32)
    return {"related": np.where(none, -1, author).astype(np.int32),
            "similarity": np.where(none[..., None], 0, similarity).astype(np.float32)}


def random_batch(seed: int = 0, batch: int = BATCH, items: int = ITEMS, levels: int = LEVELS, codes: int = CODES,
                 rooms: int = ROOMS, authors: int = AUTHORS, sequences: tuple[str, ...] = ("live",)) -> Batch:
    """NumPy batch; every row has other rooms on air (at least two), and its target is one of them."""
    rng = np.random.default_rng(seed)
    histories = {name: random_history(rng, batch, items + i, levels, codes, authors)
                 for i, name in enumerate(sequences)}
    request = Request(histories=histories, hour=rng.integers(0, 24, batch).astype(np.int32),
                      day=rng.integers(0, 7, batch).astype(np.int32), week=np.zeros(batch, np.int32),
                      **random_related(rng, batch, authors))
    author = np.stack([rng.permutation(authors)[:rooms] for _ in range(batch)]).astype(np.int32)
    mask = np.arange(rooms) < rng.integers(2, rooms + 1, batch)[:, None]
    mask[0] = True
    mask = rng.permuted(mask, axis=1)
    author = np.where(mask, author, 0).astype(np.int32)
    on_air = np.where(mask[..., None], codes_of_authors(levels, codes, authors)[author], 0).astype(np.int32)
    features = np.where(mask[..., None], rng.random((batch, rooms, len(ROOM_FEATURES))), 0).astype(np.float32)
    slot = np.array([rng.choice(np.flatnonzero(row)) for row in mask]).astype(np.int32)
    row = np.arange(batch)
    return Batch(request=request, live=LiveRooms(author=author, codes=on_air, features=features, mask=mask),
                 target_author=author[row, slot], target_codes=on_air[row, slot], target_slot=slot,
                 weight=np.ones(batch, np.float32))


def with_history(batch: Batch, name: str = "live", **fields) -> Batch:
    """The batch with some fields of one history replaced."""
    histories = {**batch.request.histories, name: batch.request.histories[name].replace(**fields)}
    return batch.replace(request=batch.request.replace(histories=histories))


def random_context(sets: int = 1, groups: int = 2, batch: int = 2, items: int = ITEMS, dim: int = 16,
                   head_dim: int = 4) -> Context:
    """Keys and values of no request in particular; the last row has two masked items."""
    rng = np.random.default_rng(0)
    keys, values = rng.normal(size=(2, sets, batch, items, groups, head_dim)).astype(np.float32)
    mask = np.ones((batch, items), bool)
    mask[-1, :2] = False
    return Context(keys=keys, values=values, items=rng.normal(size=(batch, items, dim)).astype(np.float32),
                   author=np.zeros((batch, items), np.int32), codes=np.zeros((batch, items, LEVELS), np.int32),
                   habits=np.zeros((batch, items, len(HABIT_FEATURES)), np.float32), mask=mask)


def small_config(**changes) -> ModelConfig:
    """One tiny block, every switch on, no dropout; `changes` are fields of ModelConfig."""
    return ModelConfig(**{"dim": 16, "num_layers": 1, "num_heads": 4, "num_groups": 2, "mlp_dim": 24, "dropout": 0.0,
                          **changes})


def small_model(levels: int = LEVELS, codes: int = CODES, authors: int = AUTHORS,
                sequences: tuple[str, ...] = ("live",), **changes) -> OneLive:
    return OneLive(small_config(**changes), levels, codes, authors, AUTHOR_DIM, sequences)


def random_params(module, *args, seed: int = 0, **kwargs):
    """Float32 parameters of a module, drawn without running it.

    Not the module's own start: there, heads are near zero, and much that is wrong would be too small to see.
    """
    shapes = meta.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs)))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "combine":
            return jnp.asarray(0.5 + 0.2 * np.abs(noise), leaf.dtype)
        if path[0].key == "evidence":
            noise = noise / RATE
        is_scale = path[-1].key == "scale"
        return jnp.asarray(1 + 0.2 * noise if is_scale else 0.4 * noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def paths(params) -> dict[str, jax.Array]:
    """Parameters by name, e.g. "decoder/block_0/cross/query/w"."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def changed(params, change):
    """The tree with `change(name, leaf)` at every leaf."""
    def at(path, leaf):
        return change(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

    return jax.tree_util.tree_map_with_path(at, params)
