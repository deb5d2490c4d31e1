import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.benchmarks import model as costs
from experiments.benchmarks import problem
from experiments.benchmarks import report as report_of
from experiments.benchmarks.problem import ModelSizes
from onelive_jax.config import ModelConfig
from onelive_jax.decoding import live_index

TINY = ModelSizes(model=ModelConfig(dim=16, num_layers=1, num_heads=2, num_groups=1, mlp_dim=24,
                                    loss_weights=(1.0, 1.0)),
                  history=4, levels=2, codes=8, authors=30, author_dim=8, batch=4, contrasted=6, rooms=20,
                  searches=((3, 2, 1e9),), gains=((1, 0.0),), gain_search=(4, 2), square=8)


def as_text(report):
    return report_of.as_text(report, costs.training_lines(report) if report["what"] == "train" else ())


def check_report(report, num_rows):
    assert json.loads(json.dumps(report)).keys() == report.keys()
    assert len(report["rows"]) == num_rows
    for row in report["rows"]:
        assert row["met"] == (row["measured"] >= row["target"] if row["sense"] == ">=" else
                              row["measured"] <= row["target"])
        assert row["name"] in as_text(report)
    assert report["after"]["versions"]["jax"] == jax.__version__
    assert report["before"]["date"] <= report["after"]["date"]


def test_report_of_training():
    report = report_of.make_report("train", lambda: costs.measure_training(TINY, repeats=3, steps=2))
    check_report(report, 3)
    examples, parameters, in_blocks = (row["measured"] for row in report["rows"])
    assert len(report["step_seconds"]) == 3
    assert examples == pytest.approx(TINY.batch / np.median(report["step_seconds"]))
    assert 0 < in_blocks < parameters
    assert not report["rows"][1]["met"]  # 4.4 M parameters: not these
    assert "missed" in as_text(report)
    assert report["share_of_matmul_rate"].keys() == report["matmul_gflops_per_second"].keys()
    assert all(0 < rate["median"] <= rate["best"] for rate in report["matmul_gflops_per_second"].values())


def test_report_of_decoding():
    report = report_of.make_report("decode", lambda: costs.measure_decoding(TINY, repeats=10))
    check_report(report, 4)
    assert [len(values) for values in report["milliseconds"].values()] == [10]
    assert {name: len(values) for name, values in report["gain_milliseconds"]["1 layers"].items()} == {
        "with": 1, "without": 1}
    assert report["rows"][1]["limit"] == costs.block_limit(1, 4, 2)


def test_a_caller_answers_one_request_after_the_other_without_tracing_again():
    rng = np.random.default_rng(0)
    index = live_index.from_rooms(problem.random_rooms(rng, TINY, TINY.rooms), TINY.codes)
    model = problem.make_model(TINY, TINY.model)
    params = problem.random_parameters(model, problem.random_batch(rng, TINY))
    requests = [problem.random_request(rng, TINY, 2) for _ in range(3)]
    call = problem.caller(model, params, index, 3, requests)
    call()
    jax.config.update("jax_no_tracing", True)
    try:
        answers = [call() for _ in range(3)]
    finally:
        jax.config.update("jax_no_tracing", False)
    assert all(slot.shape == (2, 3) and (slot >= 0).all() for slot, _ in answers)
    assert not np.array_equal(answers[0][1], answers[1][1])
    np.testing.assert_array_equal(call()[1], answers[0][1])


def test_without_multi_token_prediction_the_main_decoder_is_the_same():
    def shapes(mtp):
        model = problem.make_model(TINY, dataclasses.replace(TINY.model, mtp=mtp))
        example = problem.random_batch(np.random.default_rng(0), TINY)
        params = problem.random_parameters(model, example)
        return jax.tree.map(lambda x: x.shape, params)

    params, plain = shapes(True), shapes(False)
    assert params.pop("mtp_0")
    assert params == plain


def test_parameters_and_limits_of_the_targets():
    sizes = ModelSizes()
    model = problem.make_model(sizes, sizes.model)
    example = problem.random_batch(np.random.default_rng(0), sizes)
    parameters, in_blocks = costs.count_parameters(problem.random_parameters(model, example))
    assert 4_400_000 <= parameters < 4_700_000
    assert 3_000_000 <= in_blocks < 3_200_000
    assert costs.block_limit(6, 128, 3) == pytest.approx(5.9, abs=0.05)
    assert costs.block_limit(3, 128, 3) == pytest.approx(3.0, abs=0.05)
