"""A large batch in several passes: microbatches whose sums make the step of the whole.

A loss that is a sum over examples divided by a number known beforehand (the weight of the whole batch) is the sum of
what its microbatches give, gradients and metrics alike. Means taken within microbatches would not be: microbatches do
not weigh the same, and each part of the supervised loss has weights of its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def microbatches(batch: Any, parts: int) -> Any:
    """Arrays [B, …] → [parts, B / parts, …]; microbatch j holds the rows j, j + parts, j + 2 · parts, …

    Rows that lie on one device stay there: neighbouring rows go into different microbatches, so that each microbatch
    is spread over the devices as the batch was.
    """
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def sum_over_parts(function: Callable[[Any, Array], tuple[Any, Any]], batch: Any, parts: int) -> tuple[Any, Any]:
    """Σ_j and max_j of function(microbatch j, j).

    Args:
      function: (microbatch, int32 index) → (tree that is summed, tree of which the largest entries are kept).
      batch: arrays [B, …]; B is a multiple of `parts`.

    Returns: the two trees. One microbatch after the other is computed; only one is in memory.
    """
    if parts == 1:
        return function(batch, jnp.zeros((), jnp.int32))
    split = microbatches(batch, parts), jnp.arange(parts, dtype=jnp.int32)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], split))
    start = (jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0]),
             jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf, x.dtype), shapes[1]))

    def body(carry, part):
        summed, largest = function(*part)
        return (jax.tree.map(jnp.add, carry[0], summed), jax.tree.map(jnp.maximum, carry[1], largest)), None

    return jax.lax.scan(body, start, split)[0]
