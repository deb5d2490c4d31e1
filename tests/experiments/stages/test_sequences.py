"""Gift and video sequences, effective views and outcomes: from a log in KuaiLive's forms to batches."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.batches.training import BatchMaker
from data_pipelines.simulator import formats, simulation
from experiments.common.log import Log, prepare
from experiments.configs import kuailive, kuailive_m3
from experiments.stages.run import run
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import Config, SimulatorConfig
from onelive_jax.tokenizer.semantic_ids import IdTable

SIZE = SimulatorConfig(users=60, authors=20, days=4, segment_seconds=600)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> tuple[Config, Log]:
    folder = tmp_path_factory.mktemp("m3")
    formats.write_kuailive_m3(simulation.simulate(SIZE), folder / "log")
    config = Config()
    config.data.source, config.data.path = "kuailive_m3", str(folder / "log")
    config.data.valid_hours = config.data.test_hours = 12.0
    config.data.sequences = ("live", "gift", "video")
    config.data.history_items, config.data.live_slots = 8, 16
    return config, prepare(config.validate(), folder / "work")


def maker_of(config: Config, log: Log) -> BatchMaker:
    return log.batch_maker(IdTable.static(np.arange(log.num_authors)[:, None]), config)


def test_each_sequence_holds_what_its_name_says_and_nothing_later(log):
    config, log = log
    maker = maker_of(config, log)
    users, time = np.arange(log.views.num_users), log.split.p1_ms
    request = maker.request(users, np.full(users.size, time))
    assert list(request.histories) == ["live", "gift", "video"]
    tables = log.tables
    rows = tables.interactions.filter(tables.interactions["watch_ms"] > 0).to_dict(as_series=False)
    videos = tables.videos.to_dict(as_series=False)
    for user in users:
        gifts = {author for u, author, start, watch, gift in zip(
            rows["user_id"], rows["author_id"], rows["start_ms"], rows["watch_ms"], rows["gift_value"], strict=True)
            if u == user and gift > 0 and start + watch < time}
        seen = {author for u, author, start in zip(videos["user_id"], videos["author_id"], videos["start_ms"],
                                                   strict=True) if u == user and start < time}
        for name, expected in (("gift", gifts), ("video", seen)):
            history = request.histories[name]
            shown = history.author[user][history.mask[user]].tolist()
            assert set(shown) <= expected
            assert len(shown) == min(len(expected), 8)
            np.testing.assert_array_equal(history.codes[user, :, 0], np.where(history.mask[user],
                                                                              history.author[user], 0))
    assert request.histories["gift"].mask.any()
    assert not request.histories["gift"].mask.all()


def test_training_sees_no_gift_or_video_after_p1(log):
    part = log[1].training_part()
    for views in (part.views, *part.others.values()):
        assert views.stop_ms.max() <= log[1].split.p1_ms
    assert {name: values.size for name, values in part.outcomes.items()} == dict.fromkeys(
        part.outcomes, part.views.author.size)


def test_outcomes_are_those_of_the_views(log):
    _, log = log
    rows = log.tables.interactions.filter(log.tables.interactions["watch_ms"] > 0)
    assert set(log.outcomes) == {"long_view", "like", "comment", "follow", "share", "gift"}
    np.testing.assert_array_equal(log.outcomes["gift"], rows["gift_value"].to_numpy() > 0)
    np.testing.assert_array_equal(log.outcomes["long_view"], rows["watch_ms"].to_numpy() >= 600_000)
    assert 0 < log.outcomes["like"].mean() < 0.2


def test_a_sequence_that_the_log_lacks_is_named(log):
    config, log = log
    with pytest.raises(ValueError, match="config.data.sequences asks for 'video'.*live, gift"):
        maker_of(config, dataclasses.replace(log, others={"gift": log.others["gift"]}))


def tiny_of(source, folder, make_config) -> Config:
    """The config of a source, made small, and a folder in its form."""
    write = {"kuailive": formats.write_kuailive, "kuailive_m3": formats.write_kuailive_m3}[source]
    write(simulation.simulate(SIZE), folder / "log")
    config, tiny = {"kuailive": kuailive, "kuailive_m3": kuailive_m3}[source].get_config(), make_config()
    config.data.path = str(folder / "log")
    config.data.valid_hours = config.data.test_hours = 12.0
    for name in ("history_items", "history_window", "live_slots", "max_targets"):
        setattr(config.data, name, getattr(tiny.data, name))
    config.tokenizer, config.model, config.training = tiny.tokenizer, tiny.model, tiny.training
    config.decoding = tiny.decoding
    return config.validate()


def test_the_kuailive_m3_config_trains_on_a_folder_in_its_form(tmp_path, make_config):
    config = tiny_of("kuailive_m3", tmp_path, make_config)
    trained = run(config, tmp_path / "work")
    strict = trained.report["protocols"]["strict"]
    assert {"long_view", "like", "comment", "gift"} <= set(strict)
    assert strict["all"]["n"] > 10
    maker = trained.log.batch_maker(trained.tokenizer.ids, config)
    assert list(maker.requests.history_views) == ["live", "gift", "video"]


def test_the_kuailive_config_makes_ids_of_titles_and_batches_of_gifts(tmp_path, make_config):
    config = tiny_of("kuailive", tmp_path, make_config)
    log = prepare(config, tmp_path / "work")
    tokenizer = train_tokenizer(config, tmp_path / "work", log)
    assert tokenizer.ids.author.size > log.num_authors  # they move from room to room
    batch = log.batch_maker(tokenizer.ids, config).batch(log.training_views, np.random.default_rng(0))
    assert list(batch.request.histories) == ["live", "gift"]
    assert batch.request.histories["gift"].mask.any()
    assert (batch.target_slot >= 0).mean() > 0.9  # true lifetimes show nearly every target
