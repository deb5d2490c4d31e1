"""A model of a size (onelive_jax/presets.py): --config=experiments/configs/preset.py:0.04b"""

from onelive_jax import presets
from onelive_jax.config import Config


def get_config(name: str = "tiny") -> Config:
    return presets.preset(name)
