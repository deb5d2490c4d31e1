"""What the towers alone say of the rooms on air: by it decoding tells authors of one semantic id apart (paper, a).

Axes: R requests, N authors on air (padded), T history views, P rows, D embedding width.
"""

import numpy as np

from data_pipelines.log.content import Content, author_content
from experiments.common.log import Log
from experiments.stages.tokenizer import Tokenizer, side_features_of
from onelive_jax.config import Config
from onelive_jax.decoding.recommend import codes_alone
from onelive_jax.model.onelive import OneLive


class TowerScores:
    """The user tower's embedding of a request · the author tower's of every room, both as of the request's moment."""

    def __init__(self, tokenizer: Tokenizer, config: Config, log: Log, content: Content | None = None):
        """`content`: of a log that goes on after `log` (the played period); that of `log` itself when None."""
        self.towers, self.config, self.views = tokenizer.encoder.towers, config, log.views
        self.content = author_content(log.tables, log.split.p1_ms) if content is None else content
        of_users = side_features_of(log)[0] if config.tokenizer.side_features else None
        self.features_UxF = None if of_users is None else of_users.values

    def users(self, user_R: np.ndarray, time_ms_R: np.ndarray) -> np.ndarray:
        """float32 [R, D], unit length: user embeddings from the last views that began before the request."""
        views, content = self.views, self.content
        end_R = views.seen_before(user_R, time_ms_R)
        rows_RxT = end_R[:, None] + np.arange(-self.config.tokenizer.history_items, 0)
        mask_RxT = rows_RxT >= views.user_ptr[user_R][:, None]
        rows_RxT = np.where(mask_RxT, rows_RxT, 0)
        values = known = None
        if content is not None:
            at = content.row_at(views.author[rows_RxT].reshape(-1), views.start_ms[rows_RxT].reshape(-1))
            values, known = content.values(at).reshape(*rows_RxT.shape, -1), (at >= 0).reshape(rows_RxT.shape)
        features = None if self.features_UxF is None else self.features_UxF[user_R]
        return self.towers.users(views.author[rows_RxT], mask_RxT, values, known, features)

    def rooms(self, user_R: np.ndarray, time_ms_R: np.ndarray, author_RxN: np.ndarray) -> np.ndarray:
        """float32 [R, N] in −1 … 1, the cosine of each request's user and each of its authors (latest content)."""
        author_P, row_P = author_RxN.reshape(-1), np.full(author_RxN.size, -1)
        if self.content is not None:
            row_P = self.content.row_at(author_P, np.repeat(time_ms_R, author_RxN.shape[1]))
        # The same room is on air in many requests of a moment.
        pair, which_P = np.unique(np.stack([author_P, row_P]), axis=1, return_inverse=True)
        author, row = pair
        known = (None, None) if self.content is None else (self.content.values(row), row >= 0)
        author_RxNxD = self.towers.authors(author, *known)[which_P.reshape(author_RxN.shape)]
        return np.einsum("rd,rnd->rn", self.users(user_R, time_ms_R), author_RxNxD)


def tie_breaker(model: OneLive, tokenizer: Tokenizer, config: Config, log: Log,
                content: Content | None = None) -> TowerScores | None:
    """The towers where config.decoding.tie_break asks for them; None where rooms have scores of their own (the identity
    head), or a fixed order is asked for."""
    if config.decoding.tie_break != "towers" or not codes_alone(model, config.decoding):
        return None
    return TowerScores(tokenizer, config, log, content)
