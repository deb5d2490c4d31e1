"""A small simulated log for tests of the Kuaishou readers, and folders of a few rows by hand."""

import functools

import numpy as np
import polars as pl

from data_pipelines.simulator import simulation
from data_pipelines.tables import Tables
from onelive_jax.config import SimulatorConfig

ROOMS = ["p_date,live_id,streamer_id,live_type,start_timestamp,end_timestamp,live_content_category,live_name_id",
         "20250504,70,5,1,1000,9000,shop,0", "20250504,71,6,1,2000,,song,1"]
CLICKS = ["user_id,live_id,streamer_id,timestamp,watch_live_time", "10,70,5,1500,400", "10,70,5,3000,100",
          "9,71,6,2500,0"]
HAND_MADE = {"room.csv": ROOMS, "click.csv": CLICKS}


@functools.cache
def simulated() -> Tables:
    """A simulated log in which some rooms have not ended yet, every room has a title, and there are follows."""
    tables = simulation.simulate(SimulatorConfig(users=25, authors=12, days=3))
    rng = np.random.default_rng(0)
    late = tables.rooms["end_ms"] > tables.rooms["end_ms"].quantile(0.9)
    title = pl.int_range(pl.len(), dtype=pl.Int32).mod(7).alias("title_embedding")
    rooms = tables.rooms.with_columns(pl.when(~late).then("end_ms").alias("end_ms"), title)
    titles = pl.DataFrame({"title_id": np.arange(7, dtype=np.int32), "embedding": pl.Series(
        rng.normal(size=(7, 128)).astype(np.float32), dtype=pl.Array(pl.Float32, 128))})
    tables.rooms, tables.titles = rooms, titles
    # So few views need not hold a follow: every tenth click is one.
    follows = (pl.col("click") & (pl.int_range(pl.len()) % 10 == 0)).cast(pl.Int32)
    tables.interactions = tables.interactions.with_columns(follow=follows)
    return tables


def write(folder, files: dict[str, list[str]] | None = None, **changes):
    """Writes lines as files; the rows of HAND_MADE, unless told otherwise. `click=[...]` replaces click.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in ((files or HAND_MADE) | {f"{name}.csv": lines for name, lines in changes.items()}).items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder
