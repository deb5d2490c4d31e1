"""Another model in place of the running one: no answer fails, none is of both, and the one before can come back."""

import dataclasses
import json
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from data_pipelines.live import events, snapshots
from experiments.server import store
from experiments.server.live import Live
from experiments.server.models import Models
from experiments.server.service import Query, from_log
from onelive_jax.tokenizer import residual_kmeans
from onelive_jax.tokenizer.semantic_ids import IdTable


@pytest.fixture
def live(make_service):
    service = make_service()
    live = Live(service, lambda: service.state.now_ms)
    yield live
    live.batcher.close()


def answer(live, user="somebody"):
    return live.recommend(Query(user, 8)).result(240)


def test_a_swap_answers_all_requests_each_by_one_model(live):
    """Scores tell which parameters answered: they must be those of the model that the answer names."""
    engine, first = live.service.engine, answer(live)
    params = jax.tree.map(np.asarray, {**engine.running.params, "identity": {
        **engine.running.params["identity"], "bias": engine.running.params["identity"]["bias"] + 100.0}})
    params["author_table"] = params["author_table"][:engine.trained]
    params["identity"]["bias"] = params["identity"]["bias"][:engine.trained]
    other = engine.prepare(params, "second")
    found, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            found.append(answer(live))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        live.swap(other)
        time.sleep(0.05)
        live.ask_worker(lambda service: service.engine.rollback()).result(60)
    live.swap(other)
    time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    raised = 100 * float(params["combine"][1])  # the weight of identity in a score
    lowest = {"first": first.rooms[0].score, "second": first.rooms[0].score + raised}
    assert {each.model for each in found} == {"first", "second"}
    for each in found:
        assert each.rooms[0].score == pytest.approx(lowest[each.model], abs=1e-3)
    assert answer(live).model == "second"


def test_a_step_that_training_chooses_is_loaded_compared_and_can_be_rolled_back(live, finished, tmp_path):
    shutil.copytree(finished.workdir / "supervised", tmp_path / "supervised")
    steps = sorted(int(path.name) for path in (tmp_path / "supervised").iterdir() if path.name.isdigit())
    models = Models(live, tmp_path, "supervised", seconds=0.05)
    before = [answer(live, f"u{i}") for i in range(3)]
    (tmp_path / "supervised.json").write_text(json.dumps({"chosen_step": steps[0]}))
    for _ in range(600):
        if live.service.engine.running.name == f"supervised/{steps[0]}":
            break
        time.sleep(0.05)
    assert answer(live).model == f"supervised/{steps[0]}"
    assert (models.last["requests"], models.last["broken"], models.last["against"]) == (3, 0, "first")
    assert 0 <= models.last["same_rooms"] <= 1
    live.ask_worker(lambda service: service.engine.rollback()).result(60)
    assert [answer(live, f"u{i}") for i in range(3)] == before
    with pytest.raises(ValueError, match="supervised/999 cannot be loaded: .*no checkpoint of step 999"):
        models.load(999)
    models.close()


def test_a_model_whose_answers_are_broken_is_not_taken(live, monkeypatch, tmp_path):
    answer(live)
    engine = live.service.engine
    broken = jax.tree.map(lambda x: np.full_like(np.asarray(x), np.nan), engine.running.params)
    broken["author_table"] = broken["author_table"][:engine.trained]
    broken["identity"]["bias"] = broken["identity"]["bias"][:engine.trained]
    monkeypatch.setattr("experiments.server.models.restore_params", lambda folder, step: broken)
    with pytest.raises(ValueError, match="supervised/7 is not taken: 1 of 1 answers"):
        Models(live, tmp_path, "supervised", seconds=0).load(7)
    assert answer(live).model == "first"



def test_another_tokenizer_changes_ids_and_parameters_together_and_can_be_rolled_back(make_service, finished, tmp_path):
    """The second tokenizer has the codebooks of the first in another order: every id is another one."""
    service = make_service()
    live = Live(service, lambda: service.state.now_ms + 5000, store.EventLog(tmp_path / "state"))
    end, author = service.state.now_ms, service.state.authors.names[0]
    live.take([events.RoomStarted("e1", end + 1, "old room", author),
               events.ViewStarted("e2", end + 2, "somebody", "old room")])[1].result(60)
    before, trained = answer(live), finished.trained
    encoder = trained.tokenizer.encoder
    ids = IdTable(trained.tokenizer.ids.author, trained.tokenizer.ids.from_ms, 3 - trained.tokenizer.ids.codes)
    turned = dataclasses.replace(trained.tokenizer, ids=ids, encoder=dataclasses.replace(
        encoder, books=residual_kmeans.Codebooks(encoder.books.centroids[:, ::-1])))

    def remake():
        return from_log(service.config, trained.log, turned, trained.model, trained.params, "second")

    (tmp_path / "supervised.json").write_text(json.dumps({"chosen_step": 12}))
    (tmp_path / "tokenizer.json").write_text("1")
    models = Models(live, tmp_path, "supervised", seconds=0, remake=remake)
    (tmp_path / "tokenizer.json").write_text("2")
    found = models.load()
    assert (found["against"], found["broken"], found["requests"]) == ("first", 0, 1)
    after = answer(live)
    assert (after.model, live.service.state.ids != service.state.ids) == ("second", True)
    viewers = {room.room: room.viewers for room in before.rooms}
    assert {room.room: room.viewers for room in after.rooms} == viewers
    assert viewers["old room"] == 0  # the one who asks is the one who watches
    codes = {room.room: room.codes for room in before.rooms}
    assert all(room.codes == tuple(3 - code for code in codes[room.room]) for room in after.rooms)
    # Both know what happens from now on, so that the way back is open.
    live.take([events.RoomStarted("e3", end + 3, "new room", service.state.authors.names[1])])[1].result(60)
    assert "new room" in {room.room for room in answer(live).rooms}
    live.rollback()
    back = answer(live)
    assert back.model == "first"
    assert "new room" in {room.room for room in back.rooms}
    # A snapshot of one tokenizer's ids is none of the other's.
    live.save_snapshot()
    with pytest.raises(ValueError, match="the snapshot is of another ids than"):
        snapshots.restore(remake().state, snapshots.to_arrays(service.state))
    live.close()
