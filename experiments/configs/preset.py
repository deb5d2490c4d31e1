"""A model of a size (onelive_jax/presets.py), for a log of your own and an accelerator.

    python -m experiments.run --config=experiments/configs/preset.py:0.04b --workdir=W --config.data.source=log \
        --config.data.path=views.csv

No accelerator has run it: there is no time and no figure to reach (docs/scaling.md says what a pod would hold).
"""

from onelive_jax import presets
from onelive_jax.config import Config


def get_config(name: str = "tiny") -> Config:
    return presets.preset(name)
