"""What is served is what was trained and evaluated on."""

from experiments.stages.replay import replay


def test_a_replayed_log_gets_the_answers_of_the_evaluation(finished):
    trained = finished.trained
    found = replay(finished.config, trained.log, trained.tokenizer, trained.model, trained.params, "test", 40)
    assert found.differing == []
    assert found.requests == 40
    assert found.counts["segment"] > 100
