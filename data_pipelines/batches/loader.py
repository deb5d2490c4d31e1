"""Training batches in a reproducible order, resumable at any step, shared out among processes (Grain)."""

from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines.batches.training import BatchMaker
from data_pipelines.log import draws
from onelive_jax.batch import Batch

ENDLESS = 2**60  # examples


def training_batches(maker: BatchMaker, groups: Sequence[np.ndarray], shares: Sequence[float], batch_size: int,
                     seed: int, rows: np.ndarray | None = None, workers: int = 1) -> grain.DatasetIterator[Batch]:
    """An endless iterator of training batches; `get_state()` / `set_state()` resume it exactly.

    There is one order of examples, whatever the number of processes: batch b holds examples b·B … (b + 1)·B − 1 of it,
    and a process makes some of its rows. So the state, which says how many batches were taken, is the same on every
    process and goes on under any other number of them.

    Args:
      maker: makes arrays from views.
      groups: int64 arrays of views, e.g. those that the live loss can use and the others. Each is shuffled on its own,
        passed through once before any of it comes again, and shuffled anew then.
      shares: how much of a batch each group fills; an empty group gets nothing.
      batch_size: B, examples of a batch, over all processes.
      seed: of every random choice. What an example is depends on it, on the groups and on its place in the order only.
      rows: int64, the rows of each batch that this process makes (`partitioning.local_rows`); all of them when None.
      workers: threads that make batches ahead; 0 makes them when they are asked for.

    Raises:
      ValueError: no example at all, a row outside the batch, or a share that is not positive.
    """
    filled = [(group, share) for group, share in zip(groups, shares, strict=True) if len(group)]
    if not filled:
        raise ValueError("there is no example to train on: no view ends before the validation period")
    if any(share <= 0 for _, share in filled):
        raise ValueError(f"shares must be positive, not {list(shares)}")
    rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if rows.size == 0 or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"rows {rows.tolist()} are not rows of a batch of {batch_size}")
    sources = [grain.MapDataset.source(np.asarray(group, np.int64)).seed(seed + number).shuffle().repeat()
               for number, (group, _) in enumerate(filled)]
    examples = grain.MapDataset.mix(sources, [share for _, share in filled]) if len(sources) > 1 else sources[0]

    def make(number: int) -> Batch:
        positions = number * batch_size + rows
        views = np.asarray([examples[int(position)] for position in positions], np.int64)
        return maker.batch(views, draws.keys_of(seed, positions))

    # The length bounds an iterator that nobody exhausts; Grain's own batching would hand every process all rows.
    batches = grain.MapDataset.range(ENDLESS // batch_size).map(make)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
    return iter(batches.to_iter_dataset(options))
