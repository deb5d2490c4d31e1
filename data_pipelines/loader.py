"""Training batches in a reproducible order, resumable at any step, sharded over processes (Grain)."""

from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines.batches import BatchMaker
from onelive_jax.batch import Batch

ENDLESS = 2**60  # examples


def training_batches(maker: BatchMaker, groups: Sequence[np.ndarray], shares: Sequence[float], batch_size: int,
                     seed: int, process: int = 0, processes: int = 1, workers: int = 1) -> grain.DatasetIterator[Batch]:
    """An endless iterator of training batches; `get_state()` / `set_state()` resume it exactly.

    Args:
      maker: makes arrays from views.
      groups: int64 arrays of views, e.g. those that the live loss can use and the others. Each is shuffled on its own,
        passed through once before any of it comes again, and shuffled anew then.
      shares: how much of a batch each group fills; an empty group gets nothing.
      batch_size: examples of a batch on this process.
      seed: of every random choice. The order depends on it, on the groups and on the number of processes only.
      process, processes: this process reads every `processes`-th example, from the `process`-th on.
      workers: threads that make batches ahead; 0 makes them when they are asked for.

    Raises:
      ValueError: no example at all, fewer examples than processes, or a share that is not positive.
    """
    filled = [(group, share) for group, share in zip(groups, shares, strict=True) if len(group)]
    if not filled:
        raise ValueError("there is no example to train on: no view ends before the validation period")
    if any(share <= 0 for _, share in filled):
        raise ValueError(f"shares must be positive, not {list(shares)}")
    sources = []
    for number, (group, _) in enumerate(filled):
        if len(group) < processes:
            raise ValueError(f"{len(group)} examples cannot be split over {processes} processes")
        order = grain.MapDataset.source(np.asarray(group, np.int64)).seed(seed + number).shuffle()
        sources.append(order[process::processes].repeat())
    examples = grain.MapDataset.mix(sources, [share for _, share in filled]) if len(sources) > 1 else sources[0]
    # Grain counts batches in floating point: an endless set in batches of one would overflow.
    batches = examples[:ENDLESS].batch(batch_size, batch_fn=lambda views: np.asarray(views, np.int64))
    batches = batches.seed(seed).random_map(maker.batch)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
    return iter(batches.to_iter_dataset(options))
