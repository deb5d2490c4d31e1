"""Replicas behind one stream, on a real Redis that the test starts itself."""

import shutil
import socket
import subprocess
import time

import pytest

from data_pipelines.live import events
from experiments.server.live import Live
from experiments.server.service import Query

redis = pytest.importorskip("redis", reason="needs requirements/serve.txt")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                              cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}"
    server.terminate()
    server.wait(10)


def test_two_replicas_behind_one_stream_give_equal_answers_and_a_third_begins_from_their_snapshot(url, make_service):
    from experiments.server.redis_bus import RedisBus

    def replica():
        service, bus = make_service(), RedisBus(url, "test")
        position = bus.recover(service.state)
        service.recovered()
        return Live(service, lambda: start + 1000, bus=bus, applied=position)

    service = make_service()
    start, authors = service.state.now_ms, service.state.authors.names
    one, two = replica(), replica()
    made = [events.RoomStarted(f"s{i}", start + i, f"room{i}", authors[i]) for i in range(6)]
    made += [events.ViewStarted(f"v{i}", start + 10 + i, f"person{i % 3}", f"room{i % 5}") for i in range(12)]
    for i, event in enumerate(made):  # each twice, once by each replica
        first, second = (one, two) if i % 2 else (two, one)
        assert first.take([event])[0] == 1
        count, done = second.take([event])
        done.result(30)
        assert count == 0
    _, done = one.take([events.RoomEnded("last", start + 40, "room5")])
    done.result(30)
    for _ in range(200):
        if two.applied == one.applied:
            break
        time.sleep(0.02)
    queries = [Query(user, 8) for user in ("person0", "person1", "somebody", service.state.users.names[0])]

    def answers(live):
        return live.ask_worker(lambda s: [s.recommend([query], start + 2000)[0].rooms for query in queries]).result(240)

    assert answers(one) == answers(two)
    assert {room.room for room in answers(one)[0]} >= {f"room{i}" for i in range(5)}
    one.save_snapshot()
    third = replica()
    assert third.applied == one.applied
    assert third.service.state.counts == one.service.state.counts
    assert answers(third) == answers(one)
    for live in (one, two, third):
        live.close()


def test_a_redis_that_is_not_there_is_told():
    from experiments.server.redis_bus import RedisBus

    with pytest.raises(OSError, match="no Redis answers at redis://127.0.0.1:1 .*start redis-server"):
        RedisBus("redis://127.0.0.1:1")
