"""What is served is what was trained and evaluated on."""

import dataclasses

import pytest

from experiments.server.service import Query, from_log
from experiments.stages.recommend import everybody
from experiments.stages.replay import replay


def test_a_replayed_log_gets_the_answers_of_the_evaluation(finished):
    trained = finished.trained
    found = replay(finished.config, trained.log, trained.tokenizer, trained.model, trained.params, "test", 40)
    assert found.differing == []
    assert found.requests == 40
    assert found.counts["segment"] > 100


def test_a_model_that_the_evaluation_ranks_by_towers_is_refused(finished):
    config, trained = finished.config, finished.trained
    config = dataclasses.replace(config, decoding=dataclasses.replace(config.decoding, identity_weight=0.0))
    with pytest.raises(ValueError, match="towers tell rooms of one id apart .*tie_break=fixed"):
        from_log(config, trained.log, trained.tokenizer, trained.model, trained.params, "codes alone")


def test_the_table_of_everybody_holds_the_answers_that_each_would_get(make_service):
    service = make_service()
    now = service.state.now_ms
    frame, _ = everybody(service, now, 3)
    assert frame["user"].unique(maintain_order=True).to_list() == service.state.users.names
    for user in service.state.users.names[::7]:
        rooms = service.recommend([Query(user, 3)], now)[0].rooms
        mine = frame.filter(frame["user"] == user)
        assert mine["rank"].to_list() == list(range(1, len(rooms) + 1))
        assert mine["room"].to_list() == [room.room for room in rooms]
        assert mine["author"].to_list() == [room.author for room in rooms]
