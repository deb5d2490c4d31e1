"""Random numbers of examples: each its own, whatever is made beside it, and random."""

import numpy as np

from data_pipelines.log import draws

KEYS = draws.keys_of(7, np.arange(5000))


def test_what_an_example_draws_does_not_depend_on_the_others():
    owner = np.repeat(np.arange(5000), np.arange(5000) % 4)
    everything = draws.uniform(KEYS, owner, 5000, purpose=1)
    some = np.array([3, 7, 4090, 4999])
    part = draws.uniform(KEYS[some], np.repeat(np.arange(4), some % 4), 4, purpose=1)
    np.testing.assert_array_equal(part, everything[np.isin(owner, some)])


def test_numbers_are_uniform_and_differ_by_seed_place_owner_and_purpose():
    owner = np.repeat(np.arange(5000), 4)
    first = draws.uniform(KEYS, owner, 5000, purpose=1)
    assert first.min() >= 0
    assert first.max() < 1
    # 20,000 numbers in ten bins: a standard deviation of 42 each.
    assert np.abs(np.bincount((first * 10).astype(int), minlength=10) - 2000).max() < 200
    assert np.unique(first).size == first.size
    for other in (draws.uniform(KEYS, owner, 5000, purpose=2),
                  draws.uniform(draws.keys_of(8, np.arange(5000)), owner, 5000, purpose=1), np.roll(first, 1),
                  np.roll(first, 4)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.04


def test_a_generator_stands_for_keys():
    one, again = (draws.seeds(np.random.default_rng(3), 6, purpose=1) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert np.unique(one).size == 6
