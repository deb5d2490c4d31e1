"""Rows of the author table for streamers whom the training log did not know: reserved, given away, trained on.

Axes: A authors and spare rows, E author width, n rows that change.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onelive_jax.training.train_state import TrainState

Array = jax.Array


def with_spare_authors(params: Any, trained: int, spare: int) -> Any:
    """Parameters with `spare` more rows in everything that is indexed by author: embeddings of 0, and the mean bias."""
    made = dict(params)
    if "author_table" in made:
        made["author_table"] = jnp.pad(made["author_table"], ((0, spare), (0, 0)))
    if "identity" in made:
        bias = jnp.asarray(made["identity"]["bias"])
        made["identity"] = {**made["identity"], "bias": jnp.pad(bias, (0, spare), constant_values=bias.mean())}
    for name, values in made.items():
        if name == "author_table" and values.shape[0] != trained + spare:
            raise ValueError(f"the author table has {values.shape[0] - spare} rows, the log {trained} authors")
    return made


def with_rows_of(params: Any, trained: int, spare: int, rows: Mapping[int, int]) -> Any:
    """Parameters with our spare rows, of parameters that may have their own, learned from a stream: those that `rows`
    names, our row → theirs, are as learned, our others as in `with_spare_authors`."""
    own = jax.tree_util.tree_map_with_path(lambda path, x: x[:trained] if is_by_author(path) else x, params)
    made = jax.tree.map(np.array, with_spare_authors(own, trained, spare))
    ours, theirs = list(rows), list(rows.values())

    def put(path, ours_A, theirs_A):
        if rows and is_by_author(path):
            ours_A[ours] = theirs_A[np.array(theirs)]
        return ours_A

    return jax.tree_util.tree_map_with_path(put, made, params)


def is_by_author(path: tuple) -> bool:
    """Whether a leaf (of parameters, or of the optimizer's moments) has a row an author, by its path."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return name.endswith("author_table") or name.endswith("identity/bias")


@functools.partial(jax.jit, static_argnames="trained", donate_argnums=0)
def _changed(state: TrainState, rows: Array, change: Array, fresh: Array, trained: int) -> TrainState:
    def scaled(path, values):
        if not is_by_author(path):
            return values
        keep = jnp.where(fresh, 0.0, 1.0).reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
        return values.at[rows].multiply(keep, mode="drop")

    params = jax.tree_util.tree_map_with_path(scaled, state.params)
    params["author_table"] = params["author_table"].at[rows].add(change, mode="drop")
    if "identity" in params:
        bias = params["identity"]["bias"]
        everybody = state.params["identity"]["bias"][:trained].mean()
        nowhere = bias.shape[0]
        params["identity"]["bias"] = bias.at[jnp.where(fresh, rows, nowhere)].set(everybody, mode="drop")
    return state.replace(params=params, opt_state=jax.tree_util.tree_map_with_path(scaled, state.opt_state))


class AuthorRows:
    """What new authors' content says of them, brought into a state between two steps.

    A row that goes to a new author begins with their embedding, the mean bias of those of training, and an optimizer
    that knows nothing of it. Where later content says otherwise, the row moves by the difference, so that what was
    learned of the author stays.
    """

    def __init__(self, trained: int, spare: int, scale: float):
        """trained, spare: rows. scale: of an embedding in the table (config.model.author_scale)."""
        self.trained, self.spare, self.scale = trained, spare, scale
        self.said: dict[int, np.ndarray] = {}  # row → the embedding that is in the table

    def change(self, state: TrainState, embeddings: dict[int, np.ndarray], fresh: set[int]) -> TrainState:
        """The state (donated) with the embeddings float32 [E] of rows; those in `fresh` are somebody else's now.

        Raises: ValueError for a row that is not spare.
        """
        if not embeddings or "author_table" not in state.params:
            return state
        rows = np.array(list(embeddings))
        if rows.min() < self.trained or rows.max() >= self.trained + self.spare:
            raise ValueError(f"author rows {rows.tolist()} are not all spare: those are {self.trained} … "
                             f"{self.trained + self.spare - 1}")
        # Always as many rows as there are spare ones: one shape, compiled once.
        padded_rows = np.full(self.spare, self.trained + self.spare, np.int32)
        change = np.zeros((self.spare, state.params["author_table"].shape[1]), np.float32)
        is_fresh = np.zeros(self.spare, bool)
        for i, (row, embedding) in enumerate(embeddings.items()):
            new = row in fresh or row not in self.said
            padded_rows[i], is_fresh[i] = row, new
            change[i] = self.scale * (embedding if new else embedding - self.said[row])
            self.said[row] = embedding
        return _changed(state, padded_rows, change, is_fresh, self.trained)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For a snapshot."""
        return {"rows": np.array(list(self.said), np.int64), "said": np.array(list(self.said.values()), np.float32)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `to_arrays`."""
        self.said = dict(zip(arrays["rows"].tolist(), arrays["said"], strict=True))
