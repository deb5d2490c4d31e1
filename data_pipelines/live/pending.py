"""What is still to come: ends of rooms and views that no event has told, and events whose room has not begun."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from data_pipelines.live import events

FEW = 10_000  # of which none need be dropped


class Deadline(NamedTuple):
    """when_ms: the moment. room: its number. user: of a view, −1 of the room itself. start_ms: of the view or room.
    stop_ms: its end, then."""

    when_ms: int
    room: int
    user: int
    start_ms: int
    stop_ms: int


class Deadlines:
    """A heap that never holds many more entries than there are open rooms and views."""

    def __init__(self, is_open: Callable[[Deadline], bool], few: int = FEW):
        """is_open: whether what a deadline is of still goes on."""
        self._is_open, self._few, self._most = is_open, few, few
        self._heap: list[Deadline] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Deadline]:
        """As they lie; some may be of what is over."""
        return iter(self._heap)

    def add(self, *deadline: int) -> None:
        """The fields of `Deadline`."""
        heapq.heappush(self._heap, Deadline(*deadline))
        if len(self._heap) > self._most:
            self._heap = [each for each in self._heap if self._is_open(each)]
            heapq.heapify(self._heap)
            self._most = max(self._few, 2 * len(self._heap))

    def fill(self, deadlines: Iterable[Iterable[int]]) -> None:
        """Holds these, as they lay in another heap, and nothing else."""
        self._heap = [Deadline(*entry) for entry in deadlines]
        self._most = max(self._few, 2 * len(self._heap))

    def due(self, now_ms: int) -> Iterator[Deadline]:
        """Takes out what is due by now and still open, earliest first; more may be added meanwhile."""
        while self._heap and self._heap[0].when_ms <= now_ms:
            deadline = heapq.heappop(self._heap)
            if self._is_open(deadline):
                yield deadline


class Waiting:
    """Events that came before their room, at most so many; those of the room that waits longest go first."""

    def __init__(self, most: int):
        self._most, self._count = most, 0
        self._of_room: dict[str, list[tuple[events.Event, int]]] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[events.Event, int]]:
        """(event, moment at which it counts), room by room."""
        return (entry for group in self._of_room.values() for entry in group)

    def add(self, event: events.Event, at_ms: int) -> int:
        """Returns how many events are dropped for it (or are not taken: itself)."""
        dropped = 0
        if self._count >= self._most:
            if not self._of_room:
                return 1
            dropped = len(self.pop(next(iter(self._of_room))))
        self._of_room.setdefault(event.room, []).append((event, at_ms))
        self._count += 1
        return dropped

    def pop(self, room: str) -> list[tuple[events.Event, int]]:
        """What has waited for a room."""
        group = self._of_room.pop(room, [])
        self._count -= len(group)
        return group
