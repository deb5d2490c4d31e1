"""`residual_kmeans.fit` for tests that set one thing or two."""

from onelive_jax.config import TokenizerConfig
from onelive_jax.tokenizer import residual_kmeans


def fit(points_NxD, levels: int, codes: int, key, chunk=None, mesh=None, **kmeans) -> residual_kmeans.Codebooks:
    """With settings config.tokenizer.kmeans_NAME=value given as NAME=value."""
    config = TokenizerConfig(levels=levels, codes=codes, **{f"kmeans_{name}": value for name, value in kmeans.items()})
    return residual_kmeans.fit(points_NxD, config, key, chunk, mesh)
