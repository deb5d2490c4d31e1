"""What is served is what was trained and evaluated on."""

import dataclasses

import pytest

from experiments.server.service import from_log
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
