"""What happens on the platform, one typed event at a time, and how events travel as JSON.

    {"type": "view_started", "id": "v-81", "at": 1767225600000, "user": "u42", "room": "r7"}

Every event has an `id`, by which it counts once however often it is delivered, and `at`, milliseconds since the epoch
by the sender's clock. Users, authors and rooms are named by the platform's own ids: strings, or whole numbers, which
are taken as their decimal digits (7 and "7" are one room).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

LONGEST_ID = 200  # characters
LATEST_MS = 10**15  # as in data_pipelines/tables.py
WIDEST = 65_536  # numbers of an embedding
REACTIONS = ("like", "comment", "follow", "share", "gift")


@dataclass(frozen=True, slots=True)
class Event:
    """id: of this event. at: int, milliseconds."""

    type: ClassVar[str]
    id: str
    at: int


@dataclass(frozen=True, slots=True)
class RoomStarted(Event):
    """A broadcast begins. title: embedding of its title, where content is of titles."""

    type: ClassVar[str] = "room_started"
    room: str
    author: str
    title: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class RoomEnded(Event):
    type: ClassVar[str] = "room_ended"
    room: str


@dataclass(frozen=True, slots=True)
class Segment(Event):
    """What a room showed in the last 30 s, `at` being their end."""

    type: ClassVar[str] = "segment"
    room: str
    embedding: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ViewStarted(Event):
    """author: needed only where no room_started comes (a platform that logs nothing but views)."""

    type: ClassVar[str] = "view_started"
    user: str
    room: str
    author: str | None = None


@dataclass(frozen=True, slots=True)
class ViewEnded(Event):
    """The end of the view of this room that the person began last."""

    type: ClassVar[str] = "view_ended"
    user: str
    room: str


@dataclass(frozen=True, slots=True)
class Reaction(Event):
    """A like, comment, follow, share or gift (value: what it is worth)."""

    kind: str
    user: str
    room: str
    value: float = 0.0

    @property
    def type(self) -> str:
        return self.kind


@dataclass(frozen=True, slots=True)
class Impression(Event):
    """A room that was shown. position: from 0."""

    type: ClassVar[str] = "impression"
    user: str
    room: str
    position: int | None = None


@dataclass(frozen=True, slots=True)
class VideoWatched(Event):
    """A short video, `at` being the start of the watch."""

    type: ClassVar[str] = "video_watched"
    user: str
    author: str
    watch_ms: int


@dataclass(frozen=True, slots=True)
class AuthorProfile(Event):
    """Side features of a streamer: column of the authors table → number (null: missing). It places a streamer whom
    training did not know until their content does; else it is kept in the event log, counted, and read by the next
    training run (so with user_profile)."""

    type: ClassVar[str] = "author_profile"
    author: str
    features: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class UserProfile(Event):
    type: ClassVar[str] = "user_profile"
    user: str
    features: Mapping[str, float | None]


KINDS: dict[str, type[Event]] = {kind.type: kind for kind in (
    RoomStarted, RoomEnded, Segment, ViewStarted, ViewEnded, Impression, VideoWatched, AuthorProfile, UserProfile)}
KINDS |= dict.fromkeys(REACTIONS, Reaction)


def from_json(value: Any) -> Event:
    """The event of a JSON object.

    Raises: ValueError that names the event's id (where it has one), the field and what is allowed there.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"an event is a JSON object with type, id and at, not {_shown(value)}")
    name = value.get("type")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"event {_shown(value.get('id'))}: type={_shown(name)} is not one of {', '.join(KINDS)}")
    kind, made = KINDS[name], {}
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "kind"}
    if unknown := sorted(set(value) - set(fields) - {"type"}):
        raise ValueError(f"event {_shown(value.get('id'))} ({name}): unknown field {unknown[0]!r}; known are type, "
                         f"{', '.join(fields)}")
    for field in fields.values():
        given = value.get(field.name)
        if given is None:
            if field.default is dataclasses.MISSING:
                raise ValueError(f"event {_shown(value.get('id'))} ({name}): the field {field.name!r} is missing")
            continue
        try:
            made[field.name] = CHECKS[field.name](given)
        except ValueError as error:
            raise ValueError(f"event {_shown(value.get('id'))} ({name}): {field.name}={_shown(given)} {error}"
                             ) from None
    return kind(**made, **({"kind": name} if kind is Reaction else {}))


def to_json(event: Event) -> dict[str, Any]:
    """The inverse of `from_json`, ready for json.dumps."""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event) if field.name != "kind"}
    return {"type": event.type} | {name: list(value) if isinstance(value, tuple) else value
                                   for name, value in fields.items() if value is not None}


def name_of(value: Any) -> str:
    """A platform id as text. Raises ValueError for what is neither text nor a whole number, or is too long or empty."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return str(value)
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID or not value.isprintable():
        raise ValueError(f"must be a whole number or 1 to {LONGEST_ID} printable characters")
    return value


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"must be a whole number {low} … {high}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise ValueError("must be a finite number")
    return float(value)


def _worth(value: Any) -> float:
    if _number(value) < 0:
        raise ValueError("must be 0 or more")
    return float(value)


def _embedding(value: Any) -> tuple[float, ...]:
    # A float32 later: what overflows there would be infinite.
    if not isinstance(value, list | tuple) or not 0 < len(value) <= WIDEST or not all(
            isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 3e38 for x in value):
        raise ValueError(f"must be a list of 1 to {WIDEST} finite numbers")
    return tuple(map(float, value))


def _features(value: Any) -> dict[str, float | None]:
    if not isinstance(value, Mapping) or len(value) > 1000 or not all(
            isinstance(key, str) and (x is None or isinstance(x, int | float) and abs(x) < 1e300)
            for key, x in value.items()):
        raise ValueError("must be an object of at most 1000 columns, each a finite number or null")
    return dict(value)


CHECKS = {"id": name_of, "user": name_of, "author": name_of, "room": name_of,
          "at": lambda value: _whole(value, 0, LATEST_MS), "watch_ms": lambda value: _whole(value, 0, LATEST_MS),
          "position": lambda value: _whole(value, 0, 10**6), "value": _worth, "title": _embedding,
          "embedding": _embedding, "features": _features}


def _shown(value: Any) -> str:
    """A value in a message: short, whatever came."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
