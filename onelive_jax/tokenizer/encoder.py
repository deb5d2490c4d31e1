"""Trained towers and codebooks at work: new content → embeddings and semantic ids, on plain arrays.

The stage that makes a tokenizer and a live server call the same functions: `Encoder.codes` for the segments of rooms as
they come, known authors or new ones; `Towers.users` for what somebody watched lately. No log is needed.

Axes: M (author, moment) rows, B users, T history views, A authors that the towers were trained with, C content width,
S width of an author's attributes, F width of a user's features, D embedding width, L levels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from onelive_jax.config import TokenizerConfig
from onelive_jax.tokenizer import residual_kmeans
from onelive_jax.tokenizer.kmeans import pad_rows, power_of_two
from onelive_jax.tokenizer.refresh import encode_sticky
from onelive_jax.tokenizer.towers import AuthorTower, UserTower, normalise

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Towers:
    """Trained towers with what they read of authors.

    Attributes:
      params: nested dict of float32 arrays, put on the device once.
      config: the config that trained them.
      author_views: int [A], training views of every author: the evidence that the gate reads.
      attributes_AxS: float32, side features of every author; None where the towers were trained without.
    """

    params: dict
    config: TokenizerConfig
    author_views: np.ndarray
    attributes_AxS: np.ndarray | None = None

    def __post_init__(self):
        # As NumPy arrays the whole table of authors would travel to the device at every call.
        object.__setattr__(self, "params", jax.tree.map(jnp.asarray, self.params))

    @property
    def num_authors(self) -> int:
        return len(self.params["author_tower"]["author_id"])

    @property
    def content_width(self) -> int:
        """Width of the content that places authors; 0 where the towers were trained without."""
        return self._width("author_tower", "content")

    @property
    def _sizes(self) -> tuple:
        """What the compiled functions depend on: width, hidden width, limit of the gate, longest history."""
        return self.config.dim, self.config.hidden, self.config.gate_limit, self.config.history_items

    def authors(self, author: np.ndarray | None = None, content: np.ndarray | None = None,
                has_content: np.ndarray | None = None, chunk: int = 65536,
                attributes: np.ndarray | None = None) -> np.ndarray:
        """IA embeddings of authors, or of (author, moment) rows.

        Args:
          author: int [M], dense indices; all A in order if None. One of A or above, whom the towers were not trained
            with, is placed by its content, and by its attributes where it has none.
          content: float32 [M, C], the content of each row, or None where the towers were trained without.
          has_content: bool [M]; all True if None.
          chunk: rows computed at once.
          attributes: float32 [M, S], of rows whose author the towers were not trained with (of others they are known);
            None: those have content.

        Returns:
          float32 [M, D], unit length.

        Raises:
          ValueError: an author that is neither known nor has content or attributes; content given to towers trained
            without it, or the other way round, of another width, or NaN or infinite in a row that is read. Attributes
            given to towers trained without, of another width, or not finite.
        """
        author = np.arange(self.num_authors) if author is None else np.asarray(author)
        content, has_content = self._content(content, has_content, author.shape)
        new = author >= self.num_authors
        self._check_authors(author, (author < 0) | (new & ~has_content & (attributes is None)))
        # Without a training view the gate reads nothing but content (attributes where there is none), whoever's row of
        # the table stands in.
        row = np.where(new, 0, author).astype(np.int32)
        views = np.where(new, 0, np.asarray(self.author_views)[row]).astype(np.float32)
        own = self._attributes(row)
        if attributes is not None:
            attributes = _checked("attributes", attributes, self._width("author_tower", "attributes"), author.shape)
            check_finite("attributes", attributes, new)
            own = np.where(new[:, None], attributes, own)
        described = row, views, content, has_content, own
        parts = []
        for first in range(0, len(row), chunk):
            part = _padded([None if values is None else values[first:first + chunk] for values in described])
            parts.append(np.asarray(_authors(self.params, self._sizes, part))[:len(row) - first])
        return np.concatenate(parts) if parts else np.zeros((0, self.config.dim), np.float32)

    def users(self, history_BxT: np.ndarray, mask_BxT: np.ndarray, content_BxTxC: np.ndarray | None = None,
              has_content_BxT: np.ndarray | None = None, features_BxF: np.ndarray | None = None) -> np.ndarray:
        """User embeddings, unit length, float32 [B, D], from the authors of recent views int [B, T], oldest first.

        Content of those views and features of the users float32: as the towers were trained.

        Raises:
          ValueError: as `authors`; also for features of another width or number of rows, or NaN or infinite. Where the
            mask is False `history_BxT` must name some author all the same, and its attributes count as read.
        """
        history_BxT = np.asarray(history_BxT)
        self._check_authors(history_BxT, (history_BxT < 0) | (history_BxT >= self.num_authors))
        content, has_content = self._content(content_BxTxC, has_content_BxT, history_BxT.shape)
        history_BxT = history_BxT.astype(np.int32)
        width = self._width("user_tower", "features")
        features_BxF = _checked("user features", features_BxF, width, history_BxT.shape[:1])
        if features_BxF is not None:
            check_finite("user features", features_BxF)
        views = np.asarray(self.author_views)[history_BxT].astype(np.float32)
        *described, mask_BxT, features_BxF = _padded([history_BxT, views, content, has_content,
                                                      self._attributes(history_BxT), mask_BxT, features_BxF])
        users = _users(self.params, self._sizes, described, mask_BxT, features_BxF)
        return np.asarray(users)[:len(history_BxT)]

    def quantized(self, author: np.ndarray, content: np.ndarray | None = None,
                  has_content: np.ndarray | None = None) -> np.ndarray:
        """float32 [M, D], what ids are made of: `authors`, or the content itself (config.embedding="mllm")."""
        return content if self.config.embedding == "mllm" else self.authors(author, content, has_content)

    def _width(self, tower: str, of: str) -> int:
        """Width of an input of the towers, 0 where they were trained without."""
        return self.params[tower][of]["w_in"].shape[0] if of in self.params[tower] else 0

    def _check_authors(self, author: np.ndarray, wrong: np.ndarray) -> None:
        """Unchecked, -1 would read the last author's row."""
        if wrong.any():
            raise ValueError(f"author {author[wrong][0]} at {np.argwhere(wrong)[0].tolist()} is none of the "
                             f"{self.num_authors} that the towers were trained with (0 … {self.num_authors - 1}), and "
                             "no content says who it is (where a view is masked, name any author)")

    def _content(self, content: np.ndarray | None, has_content: np.ndarray | None,
                 shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [..., C], bool [...]); C is 0 where the towers were trained without content."""
        width = self._width("author_tower", "content")
        content = _checked("content", content, width, shape)
        content = np.zeros((*shape, 0), np.float32) if content is None else content
        has_content = np.full(shape, width > 0) if has_content is None else np.asarray(has_content, bool)
        check_finite("content", content, has_content)
        return content, has_content

    def _attributes(self, author: np.ndarray) -> np.ndarray | None:
        """float32 [..., S], the attributes of authors. Only their rows are looked at for NaN and infinity."""
        attributes_AxS = _checked("attributes", self.attributes_AxS, self._width("author_tower", "attributes"))
        if attributes_AxS is None:
            return None
        check_finite("attributes", attributes_AxS[author])
        return attributes_AxS[author]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Towers and codebooks: all that new content needs to become a semantic id."""

    towers: Towers
    books: residual_kmeans.Codebooks

    def codes(self, author: np.ndarray, content: np.ndarray | None, has_content: np.ndarray | None = None,
              previous_MxL: np.ndarray | None = None) -> np.ndarray:
        """Semantic ids int32 [M, L] of authors with content; arguments and errors as of `Towers.authors`.

        previous_MxL: int [M, L], what the authors were called when the codebooks were refreshed last. A code then stays
        unless another is nearer by config.refresh_margin, as in the refresh itself: content that comes again keeps its
        name. None: the nearest codes.
        """
        points = self.towers.quantized(author, content, has_content)
        if previous_MxL is None:
            return np.asarray(residual_kmeans.encode(self.books, points))
        return np.asarray(encode_sticky(self.books, points, previous_MxL, self.towers.config.refresh_margin))


# Compiled once for a shape, not once a call: segments and requests come all day long.


# `described`: author, views, content, has_content and attributes, as `AuthorTower` takes them. `sizes`: see
# `Towers._sizes`.


@functools.partial(jax.jit, static_argnames="sizes")
def _authors(params: dict, sizes: tuple, described: list[Array | None]) -> Array:
    return normalise(_author_tower(params, sizes, described))


@functools.partial(jax.jit, static_argnames="sizes")
def _users(params: dict, sizes: tuple, described: list[Array | None], mask: Array, features: Array | None) -> Array:
    dim, hidden, _, history = sizes
    items_BxTxD = _author_tower(params, sizes, described)
    user = UserTower(history, dim, hidden)
    return normalise(user.apply({"params": params["user_tower"]}, items_BxTxD, mask, features))


def _author_tower(params: dict, sizes: tuple, described: list[Array | None]) -> Array:
    dim, hidden, gate_limit, _ = sizes
    tower = AuthorTower(params["author_tower"]["author_id"].shape[0], dim, hidden, gate_limit)
    return tower.apply({"params": params["author_tower"]}, *described)


def _padded(rows: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """Rows of zeros up to the next power of two: any number of segments runs in one of few compiled programs."""
    size = power_of_two(len(rows[0]))
    return [None if values is None else pad_rows(values, size) for values in rows]


def _checked(name: str, values: np.ndarray | None, width: int, rows: tuple[int, ...] | None = None):
    """Values as float32 [..., width]; None where `width`, that the towers were trained on, is 0."""
    if (values is not None) != (width > 0):
        raise ValueError("the towers were trained " + (f"with {name}: give it too" if width else
                                                       f"without {name}: give none"))
    if values is None:
        return None
    values = np.asarray(values, np.float32)
    if values.shape[-1:] != (width,) or (rows is not None and values.shape[:-1] != rows):
        need = "" if rows is None else f" and need {(*rows, width)}"
        raise ValueError(f"{name} has shape {values.shape}, the towers were trained on width {width}{need}: give what "
                         "they were trained on, or train them anew")
    return values


def check_finite(name: str, values: np.ndarray, read: np.ndarray | bool = True) -> None:
    """Raises ValueError naming the first of the rows [..., width] that are read (bool [...]) with NaN or infinity."""
    bad = read & ~np.isfinite(values.sum(axis=-1))
    if bad.any():
        raise ValueError(f"{int(bad.sum())} rows of {name} hold NaN or infinity, the first is row "
                         f"{int(np.argmax(bad.reshape(-1)))}: give 0 where a value is missing (of content: say so in "
                         "has_content)")
