"""Models of a size (paper, Figure 4: 0.04 B, 0.08 B, 0.2 B and 0.8 B parameters) and the smallest that runs.

What a name counts: every parameter with ids of 3 x 8192 codes (decoder, multi-token prediction, context projector,
heads, code table: 49,152 x D of the last two) except the rows that a platform has one of for each author (author table
and the identity head's bias): these grow with the platform, not with the model. tests/onelive_jax/test_presets.py holds
every preset within 5 % of its name.
"""

import dataclasses
import math
from typing import Any

import jax

from onelive_jax.config import Config, ModelConfig

LEVELS, CODES = 3, 8192
AUTHOR_NEGATIVES = 8192  # of platforms with more authors; docs/scaling.md says what all of 4 million would take
# Rows of these have one row for each author.
AUTHOR_ROWS = ("author_table", "identity/bias")

PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(),
    "0.04b": ModelConfig(dim=384, num_layers=6, num_heads=6, num_groups=2, mlp_dim=1152),
    "0.08b": ModelConfig(dim=512, num_layers=10, num_heads=8, num_groups=2, mlp_dim=1728),
    "0.2b": ModelConfig(dim=768, num_layers=14, num_heads=12, num_groups=4, mlp_dim=2560),
    "0.8b": ModelConfig(dim=1280, num_layers=25, num_heads=20, num_groups=4, mlp_dim=4096),
}


def preset(name: str) -> Config:
    """Settings of a preset: the tiny one as they are by default, the others in bfloat16 with scanned layers and
    a sampled loss over authors.

    Raises: ValueError for an unknown name, with those that there are.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is not known; there are {', '.join(PRESETS)}")
    config = Config(name=name, model=dataclasses.replace(PRESETS[name]))
    if name != "tiny":
        config.tokenizer.codes = CODES
        config.model = dataclasses.replace(config.model, scan_layers=True, remat="dots", activation_dtype="bfloat16",
                                           author_negatives=AUTHOR_NEGATIVES)
        config.training.batch_size = 1024
        config.training.learning_rate = 3e-4
        config.training.warmup_steps = 1000
        config.training.steps = 30_000
    return config


def named(params: Any) -> dict[str, Any]:
    """Parameters by path, e.g. "decoder/blocks/cross/query/w"."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def count(params: Any, author_rows: bool = False) -> int:
    """Parameters, without (or with) the rows of authors."""
    return sum(math.prod(leaf.shape) for name, leaf in named(params).items() if author_rows or name not in AUTHOR_ROWS)


def by_module(params: Any) -> dict[str, int]:
    """Module (the first part of a path) → its parameters."""
    sizes: dict[str, int] = {}
    for name, leaf in named(params).items():
        module = name.split("/")[0]
        sizes[module] = sizes.get(module, 0) + math.prod(leaf.shape)
    return sizes


def summary(params: Any) -> str:
    """All parameters, and those of every module, in one line."""
    parts = ", ".join(f"{name} {size:,}" for name, size in by_module(params).items())
    return f"{count(params, author_rows=True):,} parameters: {parts}"
