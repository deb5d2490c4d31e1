"""The power law of the ladder, QK-norm runs from their metrics to the plot (no run is trained here), and the clock and
profiler of a run."""

import json

import numpy as np
import pytest

from experiments.studies import qk_norm, scaling
from onelive_jax.training.pace import Profiler, Stopwatch


def test_a_power_law_is_found_again():
    sizes = np.array([1e6, 3e6, 1e7, 3e7, 1e8])
    law = scaling.fit(sizes, 2.0 + 30.0 * sizes**-0.2)
    assert law["floor"] == pytest.approx(2.0, abs=0.05)
    assert law["b"] == pytest.approx(0.2, abs=0.01)
    assert law["largest_error"] < 1e-3
    two = scaling.fit(sizes[:2], 30.0 * sizes[:2]**-0.2)  # two points bear two numbers
    assert two["floor"] == 0.0
    assert two["a"] == pytest.approx(30.0)
    paper = scaling.fit(list(scaling.PAPER), list(scaling.PAPER.values()))
    assert paper["largest_error"] < 0.01


def test_the_last_loss_is_the_mean_of_the_last_tenth_of_the_logged_lines():
    lines = [{"step": i, scaling.LOSS: float(i)} for i in range(20)] + [{"step": 20, "validation/x": 1.0}]
    assert scaling.last_loss(lines) == 18.5


def test_qk_norm_runs_are_compared_and_plotted_and_one_that_diverges_is_told(make_config, tmp_path, monkeypatch):
    """Without training: a variant's metrics are those on disk, and a NaN ends it there."""
    def train(config, folder, base_config, base):
        assert (base, base_config.seed) == (tmp_path / "3" / "data", 3)
        lines = [{"step": i, "train/largest_logit": 2.0 + i, "train/loss": 5.0 - i} for i in range(1, 4)]
        (folder / "supervised").mkdir(parents=True)
        (folder / "supervised" / "metrics.jsonl").write_text("".join(
            json.dumps(line) + "\n" for line in lines[:3 if config.model.qk_norm else 2]))
        if not config.model.qk_norm:
            raise FloatingPointError("step 3: loss = nan")

    monkeypatch.setattr(qk_norm.study, "train", train)
    runs = [qk_norm.run_variant(make_config(), norm, 0.1, 3, tmp_path) for norm in (True, False)]
    assert [run["diverged"] for run in runs] == [None, "step 3"]
    assert [run["top_logit"] for run in runs] == [5.0, 4.0]
    monkeypatch.setattr(qk_norm.study, "train", None)  # a run that is done, diverged or not, is not trained again
    assert [qk_norm.run_variant(make_config(), norm, 0.1, 3, tmp_path) for norm in (True, False)] == runs
    row = qk_norm.draw(runs).axes
    assert [line.get_xydata()[-1].tolist() for line in row[0].lines] == [[3, 5], [2, 4]]
    assert "without QK-norm" in (said := qk_norm.format_study(runs).splitlines()[3])
    assert said.endswith("1 of 1")
    np.testing.assert_allclose(qk_norm.smooth([1.0, 3.0, 5.0], 2), [1.0, 2.0, 4.0])


def test_a_stopwatch_splits_its_steps():
    clock = Stopwatch()
    clock.start()
    clock.steps += 3
    steps, seconds = clock.split()
    assert steps == 3
    assert seconds > 0
    clock.stop()
    clock.split()
    assert clock.split() == (0, 0.0)


def test_a_profiler_traces_its_window_alone(tmp_path):
    profiler = Profiler(tmp_path / "profile", 2, 1)
    for step in range(1, 5):
        profiler.before(step, np.zeros(2))
        assert profiler._running == (step == 2)
    assert list((tmp_path / "profile").rglob("*.pb"))
    never = Profiler(tmp_path / "none", 0, 5)
    for step in range(7):
        never.before(step, np.zeros(2))
    never.close(np.zeros(2))
    assert not (tmp_path / "none").exists()
