"""Answers to a questionnaire are a ninth objective, from the tables to the reward model's report."""

import dataclasses

import jax
import numpy as np
import polars as pl
import pytest

from data_pipelines import tables as tables_lib
from experiments.common import log as log_lib
from experiments.stages import reward
from onelive_jax.batch import ACTIONS
from onelive_jax.config import RewardConfig


def answered(tables, share, seed=0):
    """The tables with answers of 1 … 5 to a share of the views, in favour of authors with even numbers."""
    log, rng = tables.interactions, np.random.default_rng(seed)
    asked = log["click"].to_numpy() & (rng.random(len(log)) < share)
    answer = np.where(log["author_id"].to_numpy() % 2 == 0, rng.integers(3, 6, len(log)), rng.integers(1, 4, len(log)))
    column = pl.Series("satisfaction", np.where(asked, answer, np.nan), pl.Float32).fill_nan(None)
    return dataclasses.replace(tables, interactions=log.with_columns(column))


@pytest.fixture(scope="module")
def asked(finished, tmp_path_factory):
    """(config, log with answers, reward model, its parameters, its report, workdir) of a tiny run on such tables."""
    workdir = tmp_path_factory.mktemp("asked")
    tables_lib.save(answered(finished.trained.log.tables, 0.5), workdir / "tables")
    config = dataclasses.replace(finished.config, reward=RewardConfig(
        dim=16, mlp_dim=16, tower_dim=8, num_heads=2, candidates=6, steps=60, batch_size=32, warmup_steps=2,
        ippo_every=60, learning_rate=2e-2, dropout=0.0, log_every=60, checkpoint_every=60))
    config.data = dataclasses.replace(config.data, source="canonical", path=str(workdir / "tables"))
    log = log_lib.prepare(config.validate(), workdir)
    return (config, log, *reward.train_reward(config, workdir, log, finished.trained.tokenizer), workdir)


def test_answers_are_the_ninth_objective_of_the_report(asked, finished):
    config, log, model, _, report, workdir = asked
    assert log.satisfaction == (1.0, 5.0)
    assert model.objectives[-1] == "satisfaction"
    assert model.objectives[:-1] == tuple(name for name in ACTIONS if name in report["objectives"])
    figures = report["objectives"]["satisfaction"]
    views = log.tables.interactions.filter(pl.col("start_ms").is_between(log.split.p1_ms, log.split.p2_ms, "left"))
    assert 0 < figures["rows"] <= len(views) - views["satisfaction"].null_count()
    assert 0.2 < figures["mean"] < 0.8
    assert figures["auc"] > 0.55  # of one that knows nothing: 0.5
    assert "satisfaction" in reward.format_report(report)
    again = reward.load_reward(config, workdir, log)
    assert again[0].objectives == model.objectives
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again[1], asked[3]))


def test_evaluation_reports_views_that_people_were_pleased_with(asked, finished):
    log = asked[1]
    above = log.outcomes["satisfaction"]
    assert above.shape == log.outcomes["like"].shape == (len(log.views.author),)
    watched = log.tables.interactions.filter(pl.col("watch_ms") > 0)["satisfaction"].to_numpy()
    np.testing.assert_array_equal(above, watched > 3)
    assert log.training_part().outcomes["satisfaction"].size == len(log.training_views)


def test_without_answers_nothing_changes(finished, make_config, tmp_path):
    log = finished.trained.log
    assert "satisfaction" not in log.outcomes
    nobody = log.tables.interactions.with_columns(satisfaction=pl.lit(None, pl.Float32))
    alike = nobody.with_columns(satisfaction=pl.lit(3.0, pl.Float32))
    for i, interactions in enumerate((nobody, alike)):
        tables_lib.save(dataclasses.replace(log.tables, interactions=interactions), tmp_path / f"tables{i}")
        config = make_config(data__source="canonical", data__path=str(tmp_path / f"tables{i}"))
        made = log_lib.prepare(config, tmp_path / f"w{i}")
        assert made.satisfaction is None
        assert reward.make_reward_model(config, made).objectives == reward.make_reward_model(config, log).objectives
