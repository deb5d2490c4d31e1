"""The interface, over a real socket: answers, events, what is refused and with which word."""

import itertools
import threading

import pytest

NUMBER = itertools.count()


def sent(serving, *events, wait=True):
    """Posts events that happen now; returns the response."""
    at = serving.live.clock()
    made = [{"id": f"t{next(NUMBER)}", "at": at} | event for event in events]
    return serving.client.post("/v1/events", params={"wait": str(wait).lower()}, json={"events": made})


def asked(serving, **body):
    response = serving.client.post("/v1/recommend", json={"user": "nobody", "k": 8} | body)
    assert response.status_code == 200, response.text
    return response.json()


def rooms_of(answer):
    return [room["room"] for room in answer["rooms"]]


@pytest.fixture
def room(serving):
    """A room on air by an author of the log; it ends with the test."""
    name = f"room{next(NUMBER)}"
    author = serving.live.service.state.authors.names[3]
    assert sent(serving, {"type": "room_started", "room": name, "author": author}).json() == {"accepted": 1, "known": 0}
    yield name, author
    sent(serving, {"type": "room_ended", "room": name})


def test_a_room_is_in_answers_from_its_start_to_its_end(serving):
    author = serving.live.service.state.authors.names[5]
    everything = asked(serving)
    assert "here" not in rooms_of(everything)
    sent(serving, {"type": "room_started", "room": "here", "author": author})
    answer = asked(serving)
    found = next(each for each in answer["rooms"] if each["room"] == "here")
    assert (found["author"], found["viewers"]) == (author, 0)
    assert (answer["model"], answer["fallback"]) == ("first", False)
    assert answer["catalogue"] > everything["catalogue"]
    scores = [each["score"] for each in answer["rooms"]]
    assert scores == sorted(scores, reverse=True)
    sent(serving, {"type": "room_ended", "room": "here"})
    assert rooms_of(asked(serving)) == rooms_of(everything)


def test_viewers_are_counted_without_the_one_who_asks(serving, room):
    name, author = room
    sent(serving, {"type": "view_started", "user": "ann", "room": name},
         {"type": "view_started", "user": "bob", "room": name})
    viewers = {user: next(each["viewers"] for each in asked(serving, user=user)["rooms"] if each["room"] == name)
               for user in ("ann", "bob", "someone")}
    assert viewers == {"ann": 1, "bob": 1, "someone": 2}
    person = serving.client.get("/v1/users/ann").json()
    assert person["watching"] == [name]
    assert (person["views"][-1]["author"], person["views"][-1]["watch_ms"]) == (author, None)
    listed = serving.client.get("/v1/rooms", params={"limit": 1000}).json()["rooms"]
    assert {each["room"]: each["viewers"] for each in listed}[name] == 2
    assert [each["viewers"] for each in listed] == sorted((each["viewers"] for each in listed), reverse=True)


def test_excluded_rooms_are_not_named_and_a_context_stands_for_a_history(serving, room):
    name, author = room
    assert name in rooms_of(asked(serving))
    without = asked(serving, exclude=[name])
    assert name not in rooms_of(without)
    at = serving.live.clock()
    views = [{"author": author, "at": at - 600_000 * (i + 1), "watch_ms": 500_000} for i in range(5)]
    known = asked(serving, context=views)
    score = {which: next(each["score"] for each in answer["rooms"] if each["room"] == name)
             for which, answer in (("known", known), ("unknown", asked(serving)))}
    assert score["known"] > score["unknown"] + 0.5  # most views go to an author that is known already


def test_events_count_once_and_are_taken_all_or_none(serving):
    event = {"type": "impression", "id": "again", "at": serving.live.clock(), "user": "u", "room": "r"}
    post = lambda *events: serving.client.post("/v1/events", json={"events": list(events)})  # noqa: E731
    assert [post(event).json() for _ in range(2)] == [{"accepted": 1, "known": 0}, {"accepted": 0, "known": 1}]
    refused = post(event | {"id": "other"}, event | {"id": "third", "type": "view"})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("events[1]: event 'third': type='view' is not one of room_started")
    assert post(event | {"id": "other"}).json() == {"accepted": 1, "known": 0}


def test_a_new_author_gets_a_row_an_id_and_is_recommended(serving):
    width = serving.live.service.state.codes.width
    sent(serving, {"type": "room_started", "room": "debut", "author": "newcomer"})
    sent(serving, {"type": "segment", "room": "debut", "embedding": [0.3] * width})
    found = next(each for each in asked(serving)["rooms"] if each["room"] == "debut")
    service = serving.live.service
    row = service.state.authors.row("newcomer")
    assert row >= service.state.authors.trained
    table = service.engine.running.params["author_table"]
    assert float(abs(table[row]).sum()) > 0
    assert found["codes"] == service.state.codes.codes[row].tolist()
    sent(serving, {"type": "room_ended", "room": "debut"})


@pytest.mark.parametrize("path, body, status, detail", [
    ("recommend", {"k": 3}, 422, "user: Field required"),
    ("recommend", {"user": "u", "k": 0}, 422, "k: Input should be greater than or equal to 1"),
    ("recommend", {"user": "u", "k": 9}, 422, "k=9 must be 1 … 8 (config.serving.max_k)"),
    ("recommend", {"user": "u", "many": 1}, 422, "many: Extra inputs are not permitted"),
    ("recommend", {"user": "x\u0000y"}, 422, "user: must be a whole number or 1 to 200 printable characters"),
    ("recommend", {"user": True}, 422, "user: must be a whole number"),
    ("recommend", {"user": 1.5}, 422, "user: must be a whole number"),
    ("recommend", {"user": "u", "exclude": ["r", None]}, 422, "exclude.1: must be a whole number"),
    ("recommend", {"user": 10**30}, 422, "user: must be a whole number"),
    ("figures", {"minute": 1, "model": {}, "viewers": {}}, 422, "model.requests: Field required"),
    ("recommend", {"user": "u", "at": 10**15}, 422, "lies in the future"),
    ("recommend/batch", {"requests": []}, 422, "requests: List should have at least 1 item"),
    ("events", {"event": []}, 422, 'the body must be {"events"'),
    ("events", [], 422, 'the body must be {"events"')])
def test_what_cannot_be_answered_is_named(serving, path, body, status, detail):
    response = serving.client.post(f"/v1/{path}", json=body)
    assert response.status_code == status
    assert detail is None or detail in response.json()["detail"]


@pytest.mark.parametrize("body", [b"{", b"NaN", b"[" * 100_000, b"\xff\xfe"])
def test_a_body_that_is_no_json_is_refused(serving, body):
    for path in ("events", "recommend"):
        response = serving.client.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= response.status_code < 500


def test_a_body_that_is_too_long_is_refused_whether_it_says_so_or_not(serving):
    assert serving.client.post("/v1/events", content=b"x" * 200_001).status_code == 413
    assert serving.client.post("/v1/events", content=iter([b"x" * 100_000] * 3)).status_code == 413


def test_many_at_once_get_the_answers_that_each_gets_alone(serving, room):
    users = serving.live.service.state.users.names[:12]
    at = serving.live.clock()
    alone = {user: asked(serving, user=user, at=at) for user in users}
    batch = serving.client.post("/v1/recommend/batch", json={"requests": [
        {"user": user, "k": 8, "at": at} for user in users]}).json()["answers"]
    found, threads = {}, []
    for user in users:
        ask = lambda user=user: found.update({user: asked(serving, user=user, at=at)})  # noqa: E731
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for place, user in enumerate(users):
        for other in (batch[place], found[user]):
            assert rooms_of(other) == rooms_of(alone[user])
            assert [r["score"] for r in other["rooms"]] == pytest.approx([r["score"] for r in alone[user]["rooms"]],
                                                                        abs=1e-4)


def test_a_deadline_that_cannot_be_met_gets_the_cheap_answer(serving, room):
    answer = asked(serving, deadline_ms=0.001)
    assert (answer["fallback"], answer["model"]) == (True, "fallback")
    on_air = serving.client.get("/v1/rooms").json()
    assert len(answer["rooms"]) == min(8, on_air["on_air"])
    viewers = [each["viewers"] for each in answer["rooms"]]
    assert viewers == sorted(viewers, reverse=True)


def test_the_kserve_protocol(serving, room):
    client = serving.client
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/onelive/ready", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200, path
    assert client.get("/v2/models/other").status_code == 404
    card = client.get("/v2/models/onelive").json()
    assert [tensor["name"] for tensor in card["outputs"]] == ["room", "author", "score", "viewers"]
    body = {"inputs": [{"name": "user", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}], "parameters": {"k": 3}}
    made = client.post("/v2/models/onelive/infer", json=body).json()
    answer = {tensor["name"]: tensor for tensor in made["outputs"]}
    wanted = rooms_of(asked(serving, user="a", k=3))
    assert answer["room"]["shape"] == [2, len(wanted)]
    assert answer["room"]["data"][:len(wanted)] == wanted
    body["inputs"][0]["shape"] = [3]
    assert client.post("/v2/models/onelive/infer", json=body).status_code == 400


def test_metrics_models_and_the_page(serving):
    text = serving.client.get("/metrics").text
    assert 'onelive_model_info{name="first"} 1.0' in text
    assert f"onelive_rooms_on_air {float(len(serving.live.service.catalogue))}" in text
    assert 'onelive_answers_total{kind="model"}' in text
    assert serving.client.get("/v1/models").json() == {
        "running": "first", "ids": serving.live.service.state.ids, "previous": None, "compared": {}}
    assert serving.client.post("/v1/models/rollback").status_code == 409
    assert serving.client.post("/v1/models/load").status_code == 409
    page = serving.client.get("/").text
    assert "EventSource" in page
    assert "http://" not in page
    assert "https://" not in page
    spec = serving.client.get("/openapi.json").json()
    assert spec["components"]["schemas"]["RecommendRequest"]["examples"][0] == {"user": "u42", "k": 5}
    with serving.client.stream("GET", "/v1/stream", params={"seconds": 0.2}) as stream:
        line = next(line for line in stream.iter_lines() if line)
    assert line.startswith('data: {"rooms":')
    assert serving.client.get("/v1/users/unheard").status_code == 404
