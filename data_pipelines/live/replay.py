"""A log as it happened: the state at a moment, and the events after it in order of time.

A replay holds offline and live together: what is asked of the state must be what batches/ makes of the log.
"""

from collections.abc import Iterator

import numpy as np

from data_pipelines.batches.training import BatchMaker
from data_pipelines.live import events
from data_pipelines.live.codes import Encode, LiveCodes
from data_pipelines.live.names import AuthorRows, Names
from data_pipelines.live.people import Buffers
from data_pipelines.live.state import LiveState
from data_pipelines.log.content import Content, Pools
from data_pipelines.log.presence import room_ends
from data_pipelines.tables import Tables
from onelive_jax.config import Config

FOREVER = np.iinfo(np.int64).max  # end of a room that was still on air when the log ended
# Events of one moment: what rooms show counts for the views that begin then, and a view that ends then is over.
ORDER = ("room_started", "segment", "view_started", "video_watched", "gift", "view_ended", "room_ended")


def room_names(tables: Tables) -> list[str]:
    """Ids of the rooms; a source need not name them."""
    names = tables.rooms["source_id" if "source_id" in tables.rooms.columns else "room_id"]
    return [str(name) for name in names]


def state_at(time_ms: int, config: Config, tables: Tables, log_end_ms: int, maker: BatchMaker,
             content: Content | None, encode: Encode) -> LiveState:
    """The state after all events of a log up to a moment, that moment included.

    Args:
      maker: of the log's views and ids. content: of the log (`author_content`), as of the tokenizer; None where ids do
        not follow content. encode: the tokenizer, for what comes later.
    """
    names, spare = tables.authors["source_id"].to_list(), config.serving.spare_authors
    authors = AuthorRows(names, spare)
    ids = maker.ids
    row = [int(np.searchsorted(ids.from_ms[low:high], time_ms, side="right")) + low - 1
           for low, high in zip(ids.ptr[:-1], ids.ptr[1:], strict=True)]

    def with_spare(values: np.ndarray, fill=0) -> np.ndarray:
        return np.concatenate([values, np.full((spare, *values.shape[1:]), fill, values.dtype)])

    pools = title_pools = None
    if content is not None and content.of_titles:
        title_pools = with_spare(content.pools)
    elif content is not None:
        known = Pools.of(content, time_ms)
        pools = Pools(with_spare(known.total), with_spare(known.count),
                      with_spare(known.last_ms, np.iinfo(np.int64).min))
    codes = LiveCodes(with_spare(ids.codes[row]), with_spare(ids.from_ms[row]), encode, len(names), pools, title_pools)
    state = LiveState(config, authors, codes, bool(tables.rooms_are_true_lifetimes), maker.audiences)
    state.users = Names(tables.users["source_id"].to_list())
    for name in config.data.sequences:
        state.buffers[name] = Buffers.of(maker.requests.history_views[name], maker.requests.timelines(name).user_ptr,
                                         config.data.history_window, time_ms)
    for author, last in zip(*_last_of_each(maker.views.author, maker.views.start_ms, time_ms), strict=True):
        authors.used[author] = last
    state.begin(_rooms(tables, maker, time_ms, log_end_ms), _open_views(tables, maker, time_ms), time_ms)
    return state


def events_after(time_ms: int, tables: Tables, log_end_ms: int, maker: BatchMaker, until_ms: int | None = None,
                 segments: bool = True) -> Iterator[events.Event]:
    """Events of a log after a moment (and up to another), in order of time; each comes into being when it is asked for.

    segments: whether the model reads content.
    """
    names, people = room_names(tables), tables.users["source_id"].to_list()
    authors = tables.authors["source_id"].to_list()
    views, parts = maker.views, []
    user = views.users()

    def add(kind: str, when: np.ndarray, row: np.ndarray) -> None:
        late = (when > time_ms) & (True if until_ms is None else when <= until_ms)
        parts.append((when[late], np.full(late.sum(), ORDER.index(kind)), row[late]))

    if tables.rooms_are_true_lifetimes:
        add("room_started", tables.rooms["start_ms"].to_numpy(), np.arange(len(names)))
        end = _room_ends(tables, log_end_ms)
        add("room_ended", np.where(end == FOREVER, time_ms, end), np.arange(len(names)))
    if segments and tables.segments is not None:
        add("segment", tables.segments["end_ms"].to_numpy(), np.arange(len(tables.segments)))
        of_room, vectors = tables.segments["room_id"].to_numpy(), tables.segments["embedding"].to_numpy()
    title, owner = tables.rooms["title_embedding"].to_numpy(), tables.rooms["author_id"].to_numpy()
    titles = tables.titles["embedding"].to_numpy() if segments and tables.titles is not None else None
    rows = np.arange(user.size)
    add("view_started", views.start_ms, rows)
    add("view_ended", views.stop_ms, rows)
    if "gift" in maker.requests.others:
        # Told with the end of the view: a log does not say when.
        gifts = maker.requests.others["gift"]
        add("gift", gifts.stop_ms, np.arange(gifts.author.size))
        giver = gifts.users()
    if "video" in maker.requests.others:
        videos = maker.requests.others["video"]
        add("video_watched", videos.start_ms, np.arange(videos.author.size))
        viewer = videos.users()
    when, kind, row = (np.concatenate(column) for column in zip(*parts, strict=True))
    for i in np.lexsort((row, kind, when)):
        at, name, r = int(when[i]), ORDER[kind[i]], int(row[i])
        event = f"{name}-{r}"
        if name == "room_started":
            shown = titles is not None and title[r] >= 0
            yield events.RoomStarted(event, at, names[r], authors[owner[r]],
                                     tuple(titles[title[r]].tolist()) if shown else None)
        elif name == "room_ended":
            yield events.RoomEnded(event, at, names[r])
        elif name == "segment":
            yield events.Segment(event, at, names[of_room[r]], tuple(vectors[r].tolist()))
        elif name == "view_started":
            yield events.ViewStarted(event, at, people[user[r]], names[views.room[r]], authors[views.author[r]])
        elif name == "view_ended":
            yield events.ViewEnded(event, at, people[user[r]], names[views.room[r]])
        elif name == "gift":
            yield events.Reaction(event, at, "gift", people[giver[r]], names[gifts.room[r]], 1.0)
        else:
            yield events.VideoWatched(event, at, people[viewer[r]], authors[videos.author[r]],
                                      int(videos.stop_ms[r] - at))


def _last_of_each(key: np.ndarray, times_ms: np.ndarray, until_ms: int) -> tuple[np.ndarray, np.ndarray]:
    """(each key, its latest time up to a moment)."""
    early = times_ms <= until_ms
    last = np.full(int(key.max(initial=-1)) + 1, np.iinfo(np.int64).min)
    np.maximum.at(last, key[early], times_ms[early])
    known = np.flatnonzero(last > np.iinfo(np.int64).min)
    return known, last[known]


def _room_ends(tables: Tables, log_end_ms: int) -> np.ndarray:
    """int64, as `room_ends`; FOREVER of a room that the log leaves on air."""
    end, _ = room_ends(tables, log_end_ms)
    return np.where(tables.rooms["end_ms"].is_null().to_numpy() & (end >= log_end_ms), FOREVER, end)


def _rooms(tables: Tables, maker: BatchMaker, time_ms: int, log_end_ms: int) -> list[tuple]:
    """(id, author, start, first seen, end or None) of the rooms on air or watched; of all that were seen where only
    views show them."""
    names, author, views = room_names(tables), tables.rooms["author_id"].to_numpy(), maker.views
    since = maker.presence.room_start_ms
    start, end = since, np.full(len(names), FOREVER)
    shown = np.flatnonzero(since <= time_ms)
    if tables.rooms_are_true_lifetimes:
        start, end = tables.rooms["start_ms"].to_numpy(), _room_ends(tables, log_end_ms)
        watched = views.room[(views.start_ms <= time_ms) & (views.stop_ms > time_ms)]
        shown = np.union1d(watched, np.flatnonzero((start <= time_ms) & (end > time_ms)))
    return [(names[r], int(author[r]), int(start[r]), int(since[r]), None if end[r] > time_ms else int(end[r]))
            for r in shown.tolist()]


def _open_views(tables: Tables, maker: BatchMaker, time_ms: int) -> list[tuple[int, str, int]]:
    """(user, room, start) of the views that go on."""
    names, views = room_names(tables), maker.views
    rows = np.flatnonzero((views.start_ms <= time_ms) & (views.stop_ms > time_ms))
    return [(int(user), names[room], int(start)) for user, room, start in zip(
        views.users()[rows], views.room[rows], views.start_ms[rows], strict=True)]
