"""Random numbers that belong to one example each.

What is drawn for an example must not depend on which examples are made beside it: then a batch is the same whether one
process makes all of it or every process its own rows.

Axes: R examples.
"""

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
WHOLE = 2**64


def keys_of(seed: int, positions: np.ndarray) -> np.ndarray:
    """uint64 [R]: a key of its own for the example at each position (int64 [R]) of a run's endless order."""
    return _mixed(_mixed(np.asarray(positions, np.uint64)) + np.uint64(seed * GOLDEN % WHOLE))


def seeds(rng: np.random.Generator | np.ndarray, examples: int, purpose: int) -> np.ndarray:
    """uint64 [R]: a seed for each example, another for every purpose.

    Args:
      rng: keys of the examples, uint64 [R] (`keys_of`), or a generator, from which keys are drawn.
      purpose: tells apart what is drawn from one key.
    """
    keys = rng.integers(2**63, size=examples).astype(np.uint64) if isinstance(rng, np.random.Generator) else rng
    return _mixed(keys + np.uint64(purpose * GOLDEN % WHOLE))


def uniform(rng: np.random.Generator | np.ndarray, owner: np.ndarray, examples: int, purpose: int) -> np.ndarray:
    """float64 [n] in 0 … 1, for n things of R examples.

    Args: owner: int [n], whose each thing is, ascending: numbers depend on the place of a thing among its owner's.
    """
    place = np.arange(owner.size) - np.searchsorted(owner, owner)
    drawn = _mixed(seeds(rng, examples, purpose)[owner] + place.astype(np.uint64) * np.uint64(GOLDEN))
    return (drawn >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, a bijection of uint64 after which neighbours have nothing in common."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
