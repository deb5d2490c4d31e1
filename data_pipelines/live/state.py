"""What the platform knows now: people, rooms on air, who watches, codes; changed by one event at a time.

`apply` takes every event once, in whatever order a bus delivers them. What cannot be used is counted by its reason in
`counts` and changes nothing. Time is that of the events: a state is a function of the events and of when each arrived,
so replaying them makes it anew, to the bit.

Axes: A authors (with spare rows), R requests, C slots of a catalogue, L code levels.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.live import events
from data_pipelines.live.codes import LiveCodes
from data_pipelines.live.names import AuthorRows, KnownIds, Names, Room
from data_pipelines.live.pending import Deadline, Deadlines, Waiting
from data_pipelines.live.people import OPEN, Buffers
from data_pipelines.log.audiences import Audiences, nothing
from onelive_jax.config import Config

logger = logging.getLogger(__name__)
FORGOTTEN_ROOMS = 100_000  # rooms that ended and early ends of views that are remembered


class LiveState:
    """Attributes:
      authors, users: ids and rows. codes: of authors. buffers: of each history sequence.
      rooms: by the platform's id, on air or lately so. watching: int32 [A], views of each author that go on.
      since_ms: int64 [A], when the room of an author that is shown began. now_ms: the latest moment that was heard of.
      ids: which tokenizer the codes are of, in a few characters.
      counts: what came and what became of it. changed: authors whose room may be another since it was last emptied.
      tell: told of views and of authors who get a row, for who learns (examples.py): ("began" | "over", user, author,
        room number, start, stop) and ("author", row).
    """

    def __init__(self, config: Config, authors: AuthorRows, codes: LiveCodes, true_lifetimes: bool,
                 audiences: Audiences | None = None):
        """true_lifetimes: rooms begin and end by events of their own; else a room is on air while somebody watches.
        audiences: what was counted of authors when the model was trained; None: nothing."""
        c = self.config = config.serving
        self.data = config.data
        self.audiences = audiences or nothing()
        self.authors, self.users, self.codes, self.true_lifetimes = authors, Names(), codes, true_lifetimes
        self.buffers = {name: Buffers(config.data.history_window, codes.codes.shape[1])
                        for name in config.data.sequences}
        self.rooms: dict[str, Room] = {}
        self.watching, self.since_ms = np.zeros(len(authors), np.int32), np.zeros(len(authors), np.int64)
        self.now_ms, self.counts, self.changed = 0, Counter(), set()
        self.number, self.ids = 0, ""
        self.tell: Callable[..., None] = lambda *entry: None
        self.on_air: dict[int, dict[int, Room]] = {}  # author → its rooms by number; where lifetimes are true
        self.views: dict[int, dict[tuple[int, int], list[int]]] = {}  # author → (user, room) → starts
        self.watched: dict[int, list[tuple[int, int]]] = {}  # user → (author, room) of open views
        self.room_of: dict[int, Room] = {}  # number → room, of all in `rooms`
        self.gifted: set[tuple[int, int, int]] = set()  # (user, room, start) of open views with a gift
        self.deadlines = Deadlines(self._is_open)
        self.waiting = Waiting(c.waiting_events)
        self.early_ends: dict[tuple[str, str], int] = {}
        self.ended: dict[str, None] = {}  # rooms that ended, oldest first
        self.profiles: dict[str, dict[str, float | None]] = {}  # of authors behind those of training, latest last
        self.known = KnownIds(c.known_events)
        self._do = {events.RoomStarted: self._room_started, events.RoomEnded: self._room_ended,
                    events.Segment: self._segment, events.ViewStarted: self._view_started,
                    events.ViewEnded: self._view_ended, events.Reaction: self._reaction,
                    events.VideoWatched: self._video, events.AuthorProfile: self._author_profile}
        self._ms = {name: round(1000 * seconds) for name, seconds in (
            ("ahead", c.clock_ahead_seconds), ("late", 3600 * c.late_hours), ("view", 3600 * c.view_hours),
            ("room", 3600 * c.room_hours), ("grace", c.grace_seconds))}

    def apply(self, event: events.Event, received_ms: int) -> bool:
        """Takes in one event that arrived at `received_ms`; False where it was known already."""
        if not self.known.add(event.id):
            self.counts["event delivered again"] += 1
            return False
        self.counts[event.type], at = self.counts[event.type] + 1, event.at
        if at > received_ms + self._ms["ahead"]:
            self.counts["clock ahead"] += 1
            at = received_ms
        if at < received_ms - self._ms["late"]:
            self.counts["too late"] += 1
            return True
        self.advance(received_ms)  # as questions do in between: replaying the arrivals comes to the same state
        try:
            self._take(event, at)
        except Exception:  # an event that is kept comes again at every restart: it must not end them all
            self.counts["event that could not be taken in"] += 1
            logger.exception("event %r (%s) could not be taken in", event.id, event.type)
        return True

    def advance(self, time_ms: int) -> None:
        """Time goes on: what was to be over by now without an end of its own is over."""
        self.now_ms = max(self.now_ms, time_ms)
        for _, number, user, start, stop in self.deadlines.due(self.now_ms):
            room = self.room_of[number]
            if user < 0:
                self.counts["room without an end"] += 1
                self._end_room(room, stop)
            else:
                self.counts["view without an end"] += 1
                self._close(user, room, start, max(stop, start))

    def begin(self, rooms: Sequence[tuple[str, int, int, int, int | None]], views: Sequence[tuple[int, str, int]],
              now_ms: int) -> None:
        """Fills a new state whose buffers and codes are those of a log: rooms (id, author, start, first seen, end or
        None) and the views (user, room, start) that go on."""
        self.now_ms = now_ms
        for name, author, start, since, end in sorted(rooms, key=lambda room: room[2]):
            room = self._add_room(name, author, start)
            room.since_ms, room.end_ms = since, end
            if self.true_lifetimes and end is None:
                self._start_room(room)
            else:
                self._retire(room)
        for user, name, start in views:
            room = self.rooms[name]
            if not self.true_lifetimes:
                self.ended.pop(name, None)
            self._open(user, room, start)
            self.show(room.author)
            if room.end_ms is not None:
                self.deadlines.add(room.end_ms + self._ms["grace"], room.number, user, start, room.end_ms)

    # What requests ask.

    def shown(self, author: int) -> Room | None:
        """The room in which an author is on air: the one that began, or is watched, last."""
        return self._newest(author, -1)

    def own_rooms(self, user: int) -> list[tuple[int, int, int]]:
        """(author, other viewers, since_ms) of what a person watches now. Others −1: the room is on air for nobody but
        them, so that it is no answer: their own view must not give it away."""
        found = []
        for author in dict.fromkeys(author for author, _ in self.watched.get(user, ())):
            own = sum(len(starts) for (who, _), starts in self.views[author].items() if who == user)
            others, room = int(self.watching[author]) - own, self._newest(author, user)
            found.append((author, others if room is not None else -1, 0 if room is None else room.since_ms))
        return found

    def _newest(self, author: int, without: int) -> Room | None:
        if self.true_lifetimes:
            rooms = self.on_air.get(author)
            return max(rooms.values(), key=lambda room: (room.start_ms, room.number)) if rooms else None
        views = [(starts[-1], user, number) for (user, number), starts in self.views.get(author, {}).items()
                 if user != without]
        return self.room_of[max(views)[2]] if views else None

    # Events, each at its moment. What comes before the room it names waits for it.

    def _take(self, event: events.Event, at: int) -> None:
        do = self._do.get(type(event))
        if do is not None:
            do(event, at)

    def _wait(self, event: events.Event, at: int) -> None:
        self.counts["before its room"] += 1
        if dropped := self.waiting.add(event, at):
            self.counts["of an unknown room"] += dropped

    def _room_started(self, event: events.RoomStarted, at: int) -> None:
        known = self.rooms.get(event.room)
        if known is not None and known.end_ms is None:
            self.counts["room is on air already"] += 1
            return
        if known is not None and at <= known.end_ms:
            self.counts["start of a room that ended"] += 1
            return
        author = self._author(event.author, at)
        if author < 0:
            return
        room = self._add_room(event.room, author, at)
        if event.title is not None and self.codes.title_pools is not None:
            self._encode(self.codes.add_title, author, at, event.title)
        if self.true_lifetimes:
            self._start_room(room)
        for waiting, when in self.waiting.pop(event.room):
            self._take(waiting, when)

    def _room_ended(self, event: events.RoomEnded, at: int) -> None:
        room = self.rooms.get(event.room)
        if room is None:
            self._wait(event, at)
        elif room.end_ms is not None or at < room.start_ms:
            self.counts["end of a room that ended" if room.end_ms is not None else "end before its start"] += 1
        else:
            self._end_room(room, at)

    def _segment(self, event: events.Segment, at: int) -> None:
        room = self.rooms.get(event.room)
        if room is None:
            self._wait(event, at)
        elif room.end_ms is not None and at > room.end_ms:
            self.counts["segment of a room that ended"] += 1
        elif at <= room.segment_ms:
            self.counts["segment late or delivered again"] += 1
        elif self.codes.pools is None:
            self.counts["segment that no model reads"] += 1
        else:
            room.segment_ms = at
            self._heard(room.author, at)
            self._encode(self.codes.add_segment, room.author, at, event.embedding)

    def _view_started(self, event: events.ViewStarted, at: int) -> None:
        room = self.rooms.get(event.room)
        if room is None and not self.true_lifetimes and event.author is not None:
            author = self._author(event.author, at)
            room = None if author < 0 else self._add_room(event.room, author, at)
            if room is None:
                return
        if room is None:
            self._wait(event, at)
            return
        if room.end_ms is not None and at >= room.end_ms:
            self.counts["view of a room that ended"] += 1
        user = self.users.add(event.user)
        if at in self.views.get(room.author, {}).get((user, room.number), ()):
            self.counts["view delivered again"] += 1
            return
        self._heard(room.author, at)
        if "live" in self.buffers:
            self.buffers["live"].add(user, room.author, at, OPEN, self.codes.at(room.author, at))
        self._open(user, room, at)
        room.since_ms = min(room.since_ms, at)
        if not self.true_lifetimes:
            self.ended.pop(room.name, None)
        self.show(room.author)
        early = self.early_ends.pop((event.user, event.room), None)
        if early is not None and early >= at:
            self._close(user, room, at, early)

    def _view_ended(self, event: events.ViewEnded, at: int) -> None:
        room, user = self.rooms.get(event.room), self.users.row(event.user)
        starts = [] if room is None else self.views.get(room.author, {}).get((user, room.number), [])
        before = [start for start in starts if start <= at]
        if not before:
            self.counts["end of a view before its start"] += 1
            self.early_ends[event.user, event.room] = at
            if len(self.early_ends) > FORGOTTEN_ROOMS:
                del self.early_ends[next(iter(self.early_ends))]
            return
        self._close(user, room, before[-1], at)

    def _reaction(self, event: events.Reaction, at: int) -> None:
        if event.kind != "gift" or "gift" not in self.buffers:
            return
        room, user = self.rooms.get(event.room), self.users.row(event.user)
        if room is None:
            self._wait(event, at)
            return
        starts = self.views.get(room.author, {}).get((user, room.number), [])
        if starts:
            self.gifted.add((user, room.number, starts[-1]))
        else:
            self.counts["gift outside a view"] += 1
            self._give(self.users.add(event.user), room.author, at)

    def _video(self, event: events.VideoWatched, at: int) -> None:
        author = self.authors.row(event.author)
        if author < 0:
            self.counts["video of an unknown author"] += 1
        elif "video" in self.buffers:
            self.buffers["video"].add(self.users.add(event.user), author, at, at + event.watch_ms,
                                      self.codes.at(author, at))

    def _author_profile(self, event: events.AuthorProfile, at: int) -> None:
        row = self.authors.row(event.author)
        if 0 <= row < self.authors.trained:
            self.counts["profile of a trained author"] += 1  # the next training run reads it
            return
        self.profiles.pop(event.author, None)
        self.profiles[event.author] = dict(event.features)
        if len(self.profiles) > FORGOTTEN_ROOMS:
            del self.profiles[next(iter(self.profiles))]
        if row >= 0:
            self.codes.describe(row, self.profiles[event.author])

    # What events change.

    def _author(self, name: str, at: int) -> int:
        """The row of an author, a spare one where it is new; −1 where there is none left."""
        row = self.authors.row(name)
        if row >= 0:
            return row
        row, lost = self.authors.add(name, lambda row: bool(self.on_air.get(row) or self.views.get(row)))
        if row < 0:
            self.counts["new author without a row"] += 1
            return -1
        self.counts["new author"] += 1
        if lost:
            self.counts["author row recycled"] += 1
            for buffers in self.buffers.values():
                buffers.forget_author(row)
            for room in [room for room in self.rooms.values() if room.author == row]:
                self._forget(room)
        self.codes.newcomer(row, self.profiles.get(name))
        self.tell("author", row)
        self._heard(row, at)
        return row

    def _heard(self, author: int, at: int) -> None:
        self.authors.used[author] = max(self.authors.used[author], at)

    def _add_room(self, name: str, author: int, at: int) -> Room:
        if name in self.rooms:
            self._forget(self.rooms[name])
        room = self.rooms[name] = self.room_of[self.number] = Room(self.number, name, author, at, at)
        self.number += 1
        self._heard(author, at)
        return room

    def _start_room(self, room: Room) -> None:
        self.on_air.setdefault(room.author, {})[room.number] = room
        over = room.start_ms + self._ms["room"]
        self.deadlines.add(over, room.number, -1, room.start_ms, over)
        self.show(room.author)

    def _is_open(self, deadline: Deadline) -> bool:
        room = self.room_of.get(deadline.room)
        if room is None:
            return False
        if deadline.user < 0:
            return room.end_ms is None
        return deadline.start_ms in self.views.get(room.author, {}).get((deadline.user, deadline.room), ())

    def _end_room(self, room: Room, at: int) -> None:
        room.end_ms = at
        self.on_air.get(room.author, {}).pop(room.number, None)
        for (user, number), starts in self.views.get(room.author, {}).items():
            if number == room.number:
                for start in starts:
                    self.deadlines.add(at + self._ms["grace"], number, user, start, at)
        self.show(room.author)
        self._retire(room)

    def _retire(self, room: Room) -> None:
        """A room that is over, or that nobody watches, is remembered for a while."""
        self.ended.pop(room.name, None)
        self.ended[room.name] = None
        while len(self.ended) > FORGOTTEN_ROOMS:
            self._forget(self.rooms[next(iter(self.ended))])

    def _forget(self, room: Room) -> None:
        for (user, number), starts in list(self.views.get(room.author, {}).items()):
            for start in list(starts) if number == room.number else ():
                self._close(user, room, start, max(start, room.end_ms or start))
        self.ended.pop(room.name, None)
        self.rooms.pop(room.name, None)
        self.room_of.pop(room.number, None)

    def _open(self, user: int, room: Room, start: int) -> None:
        """Somebody watches from now on."""
        starts = self.views.setdefault(room.author, {}).setdefault((user, room.number), [])
        starts.append(start)
        starts.sort()
        self.watched.setdefault(user, []).append((room.author, room.number))
        self.watching[room.author] += 1
        over = start + self._ms["view"]
        self.deadlines.add(over, room.number, user, start, over)
        self.tell("began", user, room.author, room.number, start, OPEN)

    def _close(self, user: int, room: Room, start: int, stop: int) -> None:
        """A view is over."""
        views = self.views[room.author]
        views[user, room.number].remove(start)
        if not views[user, room.number]:
            del views[user, room.number]
        if not views:
            del self.views[room.author]
        self.watched[user].remove((room.author, room.number))
        if not self.watched[user]:
            del self.watched[user]
        self.watching[room.author] -= 1
        self.tell("over", user, room.author, room.number, start, stop)
        if "live" in self.buffers:
            self.buffers["live"].close(user, room.author, start, stop)
        if (user, room.number, start) in self.gifted:
            self.gifted.remove((user, room.number, start))
            self._give(user, room.author, stop)
        if not self.true_lifetimes:
            self.show(room.author)
            if (user, room.number) not in views:
                self._retire(room)

    def _give(self, user: int, author: int, at: int) -> None:
        """A gift is known for certain when the view is over, as in training."""
        self.buffers["gift"].add(user, author, at, at, self.codes.at(author, at))

    def show(self, author: int) -> None:
        self.changed.add(author)
        room = self.shown(author)
        if room is not None:
            self.since_ms[author] = room.since_ms

    def _encode(self, add, author: int, at: int, values: Sequence[float]) -> None:
        if len(values) != self.codes.width:
            self.counts["embedding of another width"] += 1
        else:
            add(author, at, np.asarray(values, np.float32))
