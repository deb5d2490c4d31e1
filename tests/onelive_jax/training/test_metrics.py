"""Metric files: no step twice, no NaN unnoticed, no waiting for the device."""

import builtins
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from onelive_jax.training import metrics


def steps(folder):
    return [record["step"] for record in metrics.read(folder)]


def test_lines_are_on_disk_at_once(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer.write(1, {"train/loss": 2.5, "rows": 7})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 2.5, "rows": 7}\n'
    writer.write(2, {"train/loss": jnp.float32(1.5), "valid/repeat": None})
    assert metrics.read(tmp_path)[1] == {"step": 2, "train/loss": 1.5, "valid/repeat": None}
    writer.close()


def test_a_resumed_run_has_every_step_once(tmp_path, caplog):
    with metrics.MetricWriter(tmp_path) as writer:
        for step in range(1, 7):
            writer.write(step, {"loss": float(step)})
    with caplog.at_level(logging.WARNING), metrics.MetricWriter(tmp_path, resume_step=4) as writer:
        assert steps(tmp_path) == [1, 2, 3, 4]
        writer.write(5, {"loss": 50.0})
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    assert metrics.read(tmp_path)[-1]["loss"] == 50.0
    assert "going on from step 4, so 2 later lines are removed" in caplog.text


def test_a_line_cut_short_by_a_crash_is_removed_and_told(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    with caplog.at_level(logging.WARNING), metrics.MetricWriter(tmp_path, resume_step=1):
        assert steps(tmp_path) == [1]
    assert "and an unfinished one" in caplog.text


def test_a_new_run_starts_anew(tmp_path, caplog):
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write(0, {"loss": 1.0})
        writer.write(3, {"loss": 1.0})
    with caplog.at_level(logging.WARNING), metrics.MetricWriter(tmp_path):
        assert steps(tmp_path) == []
    assert "2 later lines are removed" in caplog.text


@pytest.mark.parametrize("line", ["not json", '{"loss": 1.0}', "[1]"])
def test_a_spoilt_file_is_refused_with_the_line(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        metrics.MetricWriter(tmp_path, resume_step=3)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), jnp.float32(jnp.nan)])
def test_a_number_that_is_none_stops_with_step_and_metric(tmp_path, value):
    with metrics.MetricWriter(tmp_path) as writer:
        with pytest.raises(FloatingPointError, match=r"step 12: train/loss = (nan|inf) \(the others: grad = 3\)"):
            writer.write(12, {"train/loss": value, "grad": 3.0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def events(folder):
    """The events of the only event file. A record: length uint64, its checksum uint32, the event, its checksum."""
    (file,) = folder.glob("events.out.tfevents*")
    data, found = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(Event.FromString(data[12:12 + length]))
        data = data[16 + length:]
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with metrics.MetricWriter(tmp_path, resume_step=4) as writer:
        writer.write(5, {"train/loss": 2.0, "valid/new": None})
        first, purge, event = events(tmp_path)  # on disk before it is closed
    assert first.file_version == "brain.Event:2"
    assert (purge.step, purge.session_log.status) == (5, 1)
    assert (event.step, [(v.tag, v.simple_value) for v in event.summary.value]) == (5, [("train/loss", 2.0)])


FILL = """
import resource, signal, sys
from onelive_jax.training import metrics
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
writer = metrics.MetricWriter(sys.argv[1])
if sys.argv[2] == "events":
    writer._file = open("/dev/null", "w")  # else the other file is full first
try:
    for step in range(400):
        writer.write(step, {"train/loss": 1.0, "train/accuracy": 2.0})
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("file", ["metrics.jsonl", "events"])
def test_a_file_that_may_not_grow_is_told_and_never_waited_for(tmp_path, file):
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path), file], capture_output=True, text=True,
                          timeout=300, cwd=Path(__file__).parents[3])
    name = {"metrics.jsonl": file, "events": "TensorBoard's event file"}[file]
    # Either of the two files may meet the limit first.
    sentence = rf"File too large: ({name}|TensorBoard's event file) could not be written to {tmp_path}"
    assert re.search(sentence, done.stdout), done.stderr


def test_without_tensorboard_it_is_said_once(tmp_path, monkeypatch, caplog):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(metrics, "_reported_missing", [])
    with caplog.at_level(logging.WARNING):
        for folder in ("a", "b"):
            with metrics.MetricWriter(tmp_path / folder) as writer:
                writer.write(1, {"loss": 1.0})
            assert steps(tmp_path / folder) == [1]
    assert caplog.text.count("tensorboardX is not installed") == 1


class Scalar:
    """A device scalar that knows whether it was read."""

    def __init__(self, value, log):
        self.value, self.log = value, log

    def __float__(self):
        self.log.append(self.value)
        return float(self.value)


def test_metrics_are_read_one_step_late():
    read, written = [], []
    late = metrics.OneStepLate(lambda step, values: written.append((step, values)))
    late.push(1, {"loss": Scalar(10.0, read)})
    assert (read, written) == ([], [])
    late.push(2, {"loss": Scalar(20.0, read)})
    assert (read, written) == ([10.0], [(1, {"loss": 10.0})])
    late.flush()
    late.flush()
    assert written == [(1, {"loss": 10.0}), (2, {"loss": 20.0})]


def test_every_step_is_checked_but_not_every_step_written():
    written = []
    late = metrics.OneStepLate(lambda step, values: written.append(step), every=2)
    for step in range(1, 6):
        late.push(step, {"loss": jnp.float32(1.0)})
    late.push(6, {"loss": jnp.float32(1.0), "grad": jnp.float32(jnp.inf)})
    assert written == [2, 4]
    with pytest.raises(FloatingPointError, match="step 6: grad = inf"):
        late.push(7, {"loss": jnp.float32(1.0)})
    late.push(7, {"loss": jnp.float32(jnp.nan)})
    with pytest.raises(FloatingPointError, match="step 7: loss = nan"):
        late.flush()
    assert written == [2, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_with_what_to_do(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer._file.close()
    writer._file = open("/dev/full", "w", buffering=1)
    with pytest.raises(OSError, match=r"metrics.jsonl could not be written to .*MiB are free.*Make room"):
        writer.write(1, {"loss": 1.0})


def test_lines_are_valid_json_whatever_the_types(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write(jnp.int32(3), {"a": jnp.bfloat16(0.5), "b": True, "c": 2**60})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "a": 0.5, "b": 1.0, "c": 2**60}


def test_device_memory_is_told_where_the_backend_knows_it(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    for stats, want in ((None, {}), ({"bytes_in_use": 5, "peak_bytes_in_use": 9, "num_allocs": 2},
                                     {"device_bytes": 5, "device_peak_bytes": 9}), ({"bytes_in_use": 5},
                                                                                    {"device_bytes": 5})):
        monkeypatch.setattr(metrics.jax, "local_devices", lambda stats=stats: [Device(stats)])
        assert metrics.device_memory() == want
