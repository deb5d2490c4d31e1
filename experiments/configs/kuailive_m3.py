"""KuaiLive-M3, an unpacked folder: as KuaiLive, and 30-second segments of the rooms and a short-video history.

    python -m experiments.run --config=experiments/configs/kuailive_m3.py --config.data.path=DIR --workdir=W

Sized for one accelerator. It has been run, made small, on folders of this form that the simulator writes, not on
KuaiLive-M3 itself: no run time and no figure is claimed here. Leave "video" out of the sequences where the folder has
no photo_play.parquet: --config.data.sequences="('live', 'gift')".
"""

from experiments.configs import kuailive
from onelive_jax.config import Config


def get_config() -> Config:
    config = kuailive.get_config()
    config.name = config.data.source = "kuailive_m3"
    config.data.sequences = ("live", "gift", "video")
    return config
