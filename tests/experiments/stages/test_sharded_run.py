"""The command of the supervised phase on eight fake devices: stopped, resumed, judged, and equal to one device."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.common import scoring
from onelive_jax.training import checkpoints, metrics, pace
from tests import eight_devices


@pytest.fixture(scope="module")
def folders(finished, tmp_path_factory) -> dict[str, Path]:
    """Workdirs by name: "one" device, eight "resumed" and "straight"; all from the same log and tokenizer."""
    base = tmp_path_factory.mktemp("sharded")
    for name in ("resumed", "straight"):
        shutil.copytree(finished.workdir, base / name, ignore=shutil.ignore_patterns("supervised*"))
    status, said = eight_devices.run(
        "-m", "tests.experiments.stages.sharded_run", f"--workdir={base / 'resumed'}",
        f"--config=experiments/configs/saved.py:{finished.workdir}", f"--straight={base / 'straight'}",
        "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2",
        f"--compile_cache_dir={base / 'compiled'}")
    assert status == 0, said
    assert {"stopped", "judged on eight devices"} <= set(said.splitlines())
    assert any((base / "compiled").iterdir())  # programs that the next start need not compile
    return {"one": finished.workdir, "resumed": base / "resumed", "straight": base / "straight"}


def lines(folder: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in pace.CLOCKED}
            for line in metrics.read(folder / "supervised")]


def test_a_sharded_run_resumes_bit_for_bit(folders):
    for step in (6, 12):
        one, two = (checkpoints.read(folders[name] / "supervised", step) for name in ("straight", "resumed"))
        jax.tree.map(np.testing.assert_array_equal, one, two)
    assert lines(folders["straight"]) == lines(folders["resumed"])
    chosen = [json.loads((folders[name] / "supervised.json").read_text())["chosen_step"]
              for name in ("straight", "resumed")]
    assert chosen[0] == chosen[1]


def test_a_sharded_run_learns_and_is_judged_as_on_one_device(finished, folders):
    one, eight = lines(folders["one"]), lines(folders["straight"])
    assert [(line["step"], *line) for line in one] == [(line["step"], *line) for line in eight]
    for a, b in zip(one, eight, strict=True):
        for name, value in a.items():
            # A ranking turns over where two scores are equal but for rounding.
            close = 0.02 if name.startswith("validation/") else 1e-4
            assert b[name] == pytest.approx(value, rel=2e-3, abs=close), (a["step"], name)
    # Decoding for the report: the same parameters rank alike on eight devices and on one.
    report = json.loads((folders["straight"] / "report.json").read_text())["protocols"]
    log, config = finished.trained.log, finished.config
    params = checkpoints.restore_params(folders["straight"] / "supervised", step=json.loads(
        (folders["straight"] / "supervised.json").read_text())["chosen_step"])
    tokenizer = finished.trained.tokenizer
    maker = log.batch_maker(tokenizer.ids, config)
    rank = scoring.make_ranker(finished.trained.model, config, tokenizer, log)
    for protocol in scoring.PROTOCOLS:
        task = scoring.targets(log, config, "test", protocol)
        alone = scoring.evaluate_task(rank, params, maker, task, protocol == "liverec")["all"]
        for figure in ("n", "ndcg@10", "hr@1", "mrr"):
            assert report[protocol]["all"][figure] == pytest.approx(alone[figure], abs=0.005)
    states = [checkpoints.read(folders[name] / "supervised", 12) for name in ("one", "straight")]
    assert states[0]["data"] == states[1]["data"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4), *(state["params"]
                                                                                     for state in states))
