"""Events: what comes in as JSON goes out as JSON, and what is wrong is named."""

import json

import pytest

from data_pipelines.live import events

GOOD = [
    {"type": "room_started", "id": "a", "at": 5, "room": "r", "author": "s", "title": [0.5, 1.0]},
    {"type": "room_ended", "id": "b", "at": 6, "room": "r"},
    {"type": "segment", "id": "c", "at": 7, "room": "r", "embedding": [1.0, -2.5]},
    {"type": "view_started", "id": "d", "at": 8, "user": "u", "room": "r"},
    {"type": "view_ended", "id": "e", "at": 9, "user": "u", "room": "r"},
    {"type": "gift", "id": "f", "at": 9, "user": "u", "room": "r", "value": 2.5},
    {"type": "impression", "id": "g", "at": 9, "user": "u", "room": "r", "position": 3},
    {"type": "video_watched", "id": "h", "at": 9, "user": "u", "author": "s", "watch_ms": 100},
    {"type": "author_profile", "id": "i", "at": 9, "author": "s", "features": {"fans": 3.5, "age": None}},
    {"type": "user_profile", "id": "j", "at": 9, "user": "u", "features": {}},
]


@pytest.mark.parametrize("value", GOOD, ids=lambda value: value["type"])
def test_an_event_survives_json(value):
    assert events.to_json(events.from_json(json.loads(json.dumps(value)))) == value


def test_a_reaction_keeps_its_kind_and_a_number_is_an_id():
    event = events.from_json({"type": "like", "id": 17, "at": 0, "user": 4, "room": "4"})
    assert event == events.Reaction("17", 0, "like", "4", "4")
    assert event.type == "like"


@pytest.mark.parametrize("change, message", [
    ({"type": "birth"}, r"event 'd': type='birth' is not one of room_started, .*gift"),
    ({"type": ["view_started"]}, "is not one of"),
    ({"user": None}, "event 'd' .view_started.: the field 'user' is missing"),
    ({"id": None}, "the field 'id' is missing"),
    ({"at": -1}, "at=-1 must be a whole number 0 … 1000000000000000"),
    ({"at": 1.5}, "at=1.5 must be a whole number"),
    ({"at": True}, "at=True must be a whole number"),
    ({"at": 10**30}, "must be a whole number"),
    ({"user": ""}, "user='' must be a whole number or 1 to 200 printable"),
    ({"user": "x" * 201}, "must be a whole number or 1 to 200"),
    ({"user": "a\x1b[2J"}, "printable"),
    ({"user": 1.0}, "user=1.0 must be a whole number or"),
    ({"rooms": 1}, "unknown field 'rooms'; known are type, id, at, user, room, author"),
    ({"type": "gift", "value": -1}, "value=-1 must be 0 or more"),
    ({"type": "gift", "value": float("nan")}, "value=nan must be a finite number"),
    ({"type": "gift", "value": 10**400}, "must be a finite number")])
def test_what_is_wrong_is_named(change, message):
    value = {"type": "view_started", "id": "d", "at": 8, "user": "u", "room": "r"} | change
    with pytest.raises(ValueError, match=message):
        events.from_json(value)


@pytest.mark.parametrize("embedding", [[], [float("inf")], [1e39], ["1"], [True], "12", {"a": 1}])
def test_an_embedding_is_finite_numbers(embedding):
    with pytest.raises(ValueError, match="embedding=.*finite numbers"):
        events.from_json({"type": "segment", "id": "c", "at": 7, "room": "r", "embedding": embedding})


@pytest.mark.parametrize("value", [None, [], "view_started", 3])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(ValueError, match="an event is a JSON object"):
        events.from_json(value)
