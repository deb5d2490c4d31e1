"""Events on disk: each once, in order, none lost to a kill; snapshots; a restart that answers as before."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.live import events, snapshots
from data_pipelines.live.replay import events_after
from experiments.server import store
from experiments.server.live import Live
from experiments.server.service import Query

ROOT = Path(__file__).resolve().parents[3]


def impression(name, at=5):
    return events.Impression(name, at, "u", "r", 3)


def test_an_event_is_kept_once_in_the_order_of_its_arrival(tmp_path):
    log = store.EventLog(tmp_path)
    assert log.append([impression("a"), impression("b"), impression("a")], 7) == ([impression("a"), impression("b")], 2)
    new, last = log.append([impression("b"), impression("c")], 8)
    assert (new, last > 2) == ([impression("c")], True)
    assert log.append([impression("a")], 9) == ([], last)
    log.close()
    again = store.EventLog(tmp_path)
    assert list(again.after(0)) == [(7, impression("a")), (7, impression("b")), (8, impression("c"))]
    assert list(again.after(2)) == [(8, impression("c"))]
    assert again.last() == last < again.append([impression("d")], 9)[1]
    again.close()


def test_a_second_server_on_the_same_folder_is_refused(tmp_path):
    log = store.EventLog(tmp_path)
    log.append([impression("a")], 7)
    with pytest.raises(OSError, match="another server may run on it.*--state"):
        store.EventLog(tmp_path)
    log.close()


WRITER = """
import sys
from pathlib import Path
from data_pipelines.live import events
from experiments.server import store

log = store.EventLog(Path(sys.argv[1]))
number = log.last()
print("open", flush=True)
while True:
    several = [events.Impression(f"e{number + i + 1}", 5, "u", "r") for i in range(3)]
    _, number = log.append(several, 7)
    print(number, flush=True)  # ids are offsets here: nothing is sent twice
"""


def test_a_kill_at_any_moment_loses_no_acknowledged_event(tmp_path):
    rng, acknowledged = np.random.default_rng(0), 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
                                  text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        assert writer.stdout.readline() == "open\n"
        time.sleep(0.1 * rng.random())
        writer.send_signal(signal.SIGKILL)
        lines = [line for line in writer.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = max([acknowledged, *map(int, lines)])
        log = store.EventLog(tmp_path)
        kept = [event.id for _, event in log.after(0)]
        assert kept == [f"e{i + 1}" for i in range(len(kept))]
        assert len(kept) >= acknowledged
        log.close()
    assert acknowledged > 0


def test_a_restart_answers_as_before(make_service, finished, tmp_path):
    """Half of the events before a snapshot, half behind it, and no orderly end; then another server on the folder."""
    start = finished.trained.log.split.p2_ms
    log, maker = finished.trained.log, finished.trained.log.batch_maker(finished.trained.tokenizer.ids, finished.config)
    coming = list(events_after(start, log.tables, log.split.end_ms, maker, start + 3_600_000))
    live = Live(make_service(start), lambda: coming[-1].at, store.EventLog(tmp_path))
    half = len(coming) // 2
    for low in range(0, len(coming), 50):
        for event in coming[low:low + 50]:
            live.clock = lambda event=event: event.at
            live.take([event])
        if low <= half < low + 50:
            live.save_snapshot()
    queries = [Query(user, 8) for user in log.tables.users["source_id"].head(6)]

    def answers(service):
        return [service.recommend([query], coming[-1].at)[0].rooms for query in queries]

    before = live.ask_worker(answers).result(120)
    live.batcher.close()
    live.log.close()
    again, kept = make_service(start), store.EventLog(tmp_path)
    begun, replayed = store.recover(again.state, kept)
    again.recovered()
    assert 0 < begun < len(coming)
    assert begun + replayed == len(coming)
    assert answers(again) == before
    assert again.state.counts == live.service.state.counts
    # A snapshot that is damaged is passed over: all events are still there.
    newest = max(tmp_path.glob("snapshot-*.npz"))
    newest.write_bytes(newest.read_bytes()[:1000])
    third = make_service(start)
    assert store.recover(third.state, kept) == (0, len(coming))
    third.recovered()
    assert answers(third) == before
    kept.close()


def test_old_snapshots_go_and_a_new_one_is_whole(tmp_path):
    for offset in range(1, 5):
        store.save({"meta": np.zeros(3, np.uint8), "offset": np.array(offset)}, tmp_path, offset)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot-000000003.npz", "snapshot-000000004.npz"]
    assert snapshots.META == "meta"
