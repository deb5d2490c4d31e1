"""Answers to a questionnaire are a ninth objective, from the tables to the reward model's report."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from data_pipelines.simulator.simulation import simulate
from experiments.common import log as log_lib
from experiments.stages import reward
from experiments.stages.tokenizer import Tokenizer
from onelive_jax.batch import ACTIONS
from onelive_jax.config import RewardConfig
from onelive_jax.tokenizer.semantic_ids import IdTable


@pytest.fixture(scope="module")
def plain(make_config):
    """Tables without answers."""
    return simulate(make_config().simulator)


def answered(tables, share):
    """The tables with answers of 1 … 5 to a share of the views, in favour of authors with even numbers."""
    log, rng = tables.interactions, np.random.default_rng(0)
    asked = log["click"].to_numpy() & (rng.random(len(log)) < share)
    answer = np.where(log["author_id"].to_numpy() % 2 == 0, rng.integers(3, 6, len(log)), rng.integers(1, 4, len(log)))
    column = pl.Series("satisfaction", np.where(asked, answer, np.nan), pl.Float32).fill_nan(None)
    return dataclasses.replace(tables, interactions=log.with_columns(column))


def prepared(tables, folder, make_config, **changes):
    """(config, log) of the tables in a workdir."""
    tables_lib.save(tables, folder / "tables")
    config = make_config(data__source="canonical", data__path=str(folder / "tables"), **changes)
    return config, log_lib.prepare(config, folder)


def test_answers_are_the_ninth_objective_of_the_report(plain, make_config, tmp_path):
    config, log = prepared(answered(plain, 0.5), tmp_path, make_config, reward=RewardConfig(
        dim=16, mlp_dim=16, tower_dim=8, num_heads=2, candidates=4, steps=60, batch_size=32, warmup_steps=2,
        ippo_every=60, learning_rate=2e-2, dropout=0.0, log_every=60, checkpoint_every=60))
    rng = np.random.default_rng(0)
    codes = rng.integers(4, size=(log.num_authors, 2))
    tokenizer = Tokenizer(IdTable.static(codes), rng.normal(size=(log.num_authors, 8)).astype(np.float32), None, {})
    assert log.satisfaction == (1.0, 5.0)
    model, _, report = reward.train_reward(config, tmp_path, log, tokenizer)
    assert model.objectives[-1] == "satisfaction"
    assert model.objectives[:-1] == tuple(name for name in ACTIONS if name in report["objectives"])
    figures = report["objectives"]["satisfaction"]
    views = log.tables.interactions.filter(pl.col("start_ms").is_between(log.split.p1_ms, log.split.p2_ms, "left"))
    assert 0 < figures["rows"] <= len(views) - views["satisfaction"].null_count()
    assert 0.2 < figures["mean"] < 0.8
    assert figures["auc"] > 0.55  # of one that knows nothing: 0.5
    assert "satisfaction" in reward.format_report(report)


def test_evaluation_knows_the_views_that_people_were_pleased_with(plain, make_config, tmp_path):
    _, log = prepared(answered(plain, 0.5), tmp_path, make_config)
    pleased = log.outcomes["satisfaction"]
    watched = log.tables.interactions.filter(pl.col("watch_ms") > 0)["satisfaction"].to_numpy()
    np.testing.assert_array_equal(pleased, watched > 3)
    assert log.training_part().outcomes["satisfaction"].size == len(log.training_views)


def test_without_answers_nothing_changes(plain, make_config, tmp_path):
    _, log = prepared(plain, tmp_path / "plain", make_config)
    assert "satisfaction" not in log.outcomes
    for name, answer in (("nobody", None), ("alike", 3.0)):
        column = pl.lit(answer, pl.Float32).alias("satisfaction")
        tables = dataclasses.replace(plain, interactions=plain.interactions.with_columns(column))
        config, other = prepared(tables, tmp_path / name, make_config)
        assert other.satisfaction is None
        assert reward.make_reward_model(config, other).objectives == reward.make_reward_model(config, log).objectives
