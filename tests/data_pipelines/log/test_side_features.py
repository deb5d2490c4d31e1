"""Side features as columns: what is learned from training rows, what is shared, missing, cut and left out."""

import numpy as np
import polars as pl
import pytest

from data_pipelines.log import side_features


def test_categories_and_numbers_by_hand():
    frame = pl.DataFrame({"author_id": [0, 1, 2, 3], "source_id": ["a", "b", "c", "d"], "gender": [0, 1, -1, 7],
                          "fans": [0.0, np.expm1(2.0), None, np.expm1(1e3 ** 0.5)],
                          "partner": [True, False, None, True], "name": ["x", "y", "z", "w"], "level": [5, 5, 5, 6]})
    made = side_features.side_features(frame, np.array([True, True, True, False]))
    assert made.names == ["gender missing", "gender=0", "gender=1", "fans", "fans missing",
                          "partner missing", "partner=0", "partner=1"]
    np.testing.assert_allclose(made.values, [
        [0, 1, 0, -1, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, side_features.LONGEST, 0, 0, 0, 1]], atol=1e-6)  # 7: unknown to training; log(1 + fans) is cut
    assert made.left_out == {"name": "holds String, not numbers", "level": "is the same in every training row"}
    assert made.counts == {"categories": 2, "numbers": 1, "rare values": 1, "missing cells": 3, "cut numbers": 1}


def test_rare_values_share_buckets_and_training_decides_which_are_rare():
    country = np.concatenate([np.repeat(np.arange(32), 3), 100 + np.arange(40)])
    training = np.ones(len(country), bool)
    made = side_features.side_features(pl.DataFrame({"user_id": np.arange(len(country)), "country": country}), training)
    assert len(made.names) == side_features.FREQUENT + side_features.BUCKETS
    np.testing.assert_array_equal(made.values.sum(axis=1), 1)
    assert made.values[96:, side_features.FREQUENT:].sum() == 40
    assert (made.values[96:, side_features.FREQUENT:].sum(axis=0) > 0).sum() > 4  # the hash spreads them
    assert made.counts["rare values"] == 40
    # What rows without a training view hold changes nothing about the columns.
    training[96:] = False
    first = side_features.side_features(pl.DataFrame({"country": country}), training)
    second = side_features.side_features(pl.DataFrame({"country": np.where(training, country, 0)}), training)
    assert first.names == second.names
    np.testing.assert_array_equal(first.values[:96], second.values[:96])
    assert first.values[96:].sum() == 0  # no bucket where training saw no rare value


def test_a_table_that_says_nothing_has_no_features():
    frame = pl.DataFrame({"user_id": [0, 1], "source_id": ["a", "b"], "age": [-1, -1]})
    assert side_features.side_features(frame, np.ones(2, bool)) is None
    with pytest.raises(ValueError, match=r"bool \[2\]"):
        side_features.side_features(frame, np.ones(3, bool))


def test_somebody_new_gets_the_columns_that_the_table_would_give():
    country = np.concatenate([np.repeat(np.arange(32), 3), 100 + np.arange(40)])
    frame = pl.DataFrame({"country": country, "gender": country % 3 - 1,
                          "fans": np.where(country % 5, country * 1e3, np.nan)})
    made = side_features.side_features(frame, country % 2 == 0)
    for i in range(0, len(country), 7):
        told = frame.row(i, named=True) | {"unheard of": 1.0}
        np.testing.assert_array_equal(made.row(told), made.values[i])
    assert {name for name, value in zip(made.names, made.row({}), strict=True) if value} > {"gender missing",
                                                                                           "fans missing"}
    np.testing.assert_array_equal(made.row({"country": 1.5, "gender": -7, "fans": 1e299}),
                                  made.row({"country": None, "gender": None, "fans": 1e299}))
