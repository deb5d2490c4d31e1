"""What the processes of one run do together: meet, share a value, and leave the writing to process 0.

With one process every function here costs nothing.
"""

from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec


def is_main() -> bool:
    """Whether this is process 0, which writes, logs and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast(value: Any) -> Any:
    """The value that process 0 has. Every process calls it, with a value of the same shape and type."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def on_this_process(tree: Any) -> Any:
    """The tree whole on the first device of this process, to be used without the others. Every process calls it.

    With one process, the tree as it is.
    """
    if jax.process_count() == 1:
        return tree

    def everywhere(x):
        return NamedSharding(x.sharding.mesh, PartitionSpec())

    whole = jax.jit(lambda x: x, out_shardings=jax.tree.map(everywhere, tree))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)
