"""The periods of a log: train, validation and test, by time and never by user."""

import dataclasses
from typing import NamedTuple

import numpy as np
import polars as pl

from data_pipelines.tables import HOUR_MS, Tables, moment, sort_interactions, validate

STRAY_SHARE = 1e-3


class Split(NamedTuple):
    """Train views stop at or before p1_ms; validation targets start in [p1_ms, p2_ms), test targets from p2_ms on.

    end_ms is just after the last start, but for a few that are far from the rest (`split_times`).
    """

    p1_ms: int
    p2_ms: int
    end_ms: int


def split_times(tables: Tables, valid_hours: float, test_hours: float) -> Split:
    """The boundaries of train, validation and test, counted back from the last start of a view or impression.

    A tick after it, to be exact: what all times between starts are multiples of (a round, where times are rounds), an
    hour at most. Starts that are few (STRAY_SHARE) and come after a silence of three days and a tenth of the log do not
    count: one mistyped date must not leave the test period empty. `periods` names them.

    Raises:
      ValueError: if a length is negative or nothing is left to train on.
    """
    if valid_hours < 0 or test_hours < 0:
        raise ValueError(f"valid_hours={valid_hours} and test_hours={test_hours} must not be negative")
    log = tables.interactions
    if not len(log):
        raise ValueError("the interactions table has no row: there is nothing to split")
    start = log["start_ms"].sort()
    stop = log["start_ms"] + log["watch_ms"]
    few = max(int(len(start) * STRAY_SHARE), 1) if len(start) >= 20 else 0
    silence = start[-few - 1:].diff(null_behavior="drop")
    limit = max(72 * HOUR_MS, (start[-few - 1] - start[0]) // 10)
    after = int((silence > limit).arg_max()) if few and (silence > limit).any() else few
    tick = int(np.gcd.reduce(start.to_numpy() - start[0])) or 1
    end = start[len(start) - few - 1 + after] + min(tick, HOUR_MS)
    p2 = end - round(test_hours * HOUR_MS)
    p1 = p2 - round(valid_hours * HOUR_MS)
    if not (stop <= p1).any():
        hours = (end - int(log["start_ms"].min())) / HOUR_MS
        raise ValueError(f"no view ends before the validation period: the log is {hours:.1f} hours long, "
                         f"valid_hours={valid_hours:g} and test_hours={test_hours:g} must leave some of it to train on")
    return Split(p1, p2, end)


def periods(tables: Tables, split: Split, utc_offset_hours: float = 0.0) -> list[str]:
    """The three periods with their dates and numbers of watched views, as sentences; and what starts after them."""
    log = tables.interactions.filter(pl.col("watch_ms") > 0)
    start, stop = log["start_ms"], log["start_ms"] + log["watch_ms"]
    first = int(tables.interactions["start_ms"].min())
    edges = [moment(time, utc_offset_hours) for time in (first, *split)]
    views = (stop <= split.p1_ms, (start >= split.p1_ms) & (start < split.p2_ms), start >= split.p2_ms)
    lines = [f"{name:10s} {begin} to {end}: {mark.sum():,} views" for name, begin, end, mark in
             zip(("train", "validation", "test"), edges[:-1], edges[1:], views, strict=True)]
    late = tables.interactions["start_ms"].filter(tables.interactions["start_ms"] >= split.end_ms)
    if len(late):
        when = moment(int(late.min()), utc_offset_hours)
        lines.append(f"{len(late):,} row(s) begin far after all others, from {when} on: the periods are not counted "
                     "from there. Is a date mistyped?")
    return lines


def cut(tables: Tables, time_ms: int) -> Tables:
    """A log as it was at a moment: rows that began before it, views as far as they were watched, and only the authors
    and titles that had appeared by then, whose numbers are dense again. People stay, whether they had come or not."""
    rooms = tables.rooms.filter(pl.col("start_ms") < time_ms)
    if tables.rooms_are_true_lifetimes:
        rooms = rooms.with_columns(end_ms=pl.when(pl.col("end_ms") <= time_ms).then(pl.col("end_ms")))
    authors = tables.authors.filter(pl.col("author_id").is_in(rooms["author_id"].unique().implode()))
    new_room = _renumber(rooms["room_id"], len(tables.rooms))
    new_author = _renumber(authors["author_id"], len(tables.authors))

    def renumbered(frame: pl.DataFrame, **numbers: np.ndarray) -> pl.DataFrame:
        return frame.with_columns(**{name: pl.Series(to[frame[name].to_numpy()], dtype=frame[name].dtype)
                                     for name, to in numbers.items()})

    log = tables.interactions.filter((pl.col("start_ms") < time_ms)
                                     & pl.col("room_id").is_in(rooms["room_id"].implode()))
    log = log.with_columns(watch_ms=pl.min_horizontal("watch_ms", time_ms - pl.col("start_ms")))
    segments, videos, titles = tables.segments, tables.videos, tables.titles
    if segments is not None:
        segments = renumbered(segments.filter((pl.col("end_ms") <= time_ms)
                                              & pl.col("room_id").is_in(rooms["room_id"].implode())), room_id=new_room)
    if videos is not None:
        known = pl.col("author_id").is_in(authors["author_id"].implode())
        videos = renumbered(videos.filter((pl.col("start_ms") + pl.col("watch_ms") <= time_ms) & known),
                            author_id=new_author)
    if titles is not None:
        used = titles["title_id"].is_in(rooms["title_embedding"].implode())
        new_title = np.append(_renumber(titles["title_id"].filter(used), len(titles)), -1)  # −1: no title
        titles = renumbered(titles.filter(used), title_id=new_title)
        rooms = renumbered(rooms, title_embedding=new_title)
    rooms = renumbered(rooms, room_id=new_room, author_id=new_author)
    authors = renumbered(authors, author_id=new_author)
    if "source_id" not in rooms.columns:
        rooms = rooms.with_columns(source_id=pl.Series(np.flatnonzero(new_room >= 0).astype(str)))
    log = renumbered(log, room_id=new_room, author_id=new_author)
    report = dataclasses.replace(tables.report, rows_read=len(log), rows_kept=len(log))
    return validate(dataclasses.replace(tables, interactions=sort_interactions(log), rooms=rooms, authors=authors,
                                        segments=segments, videos=videos, titles=titles, report=report))


def _renumber(kept: pl.Series, count: int) -> np.ndarray:
    """int64 [count]: old number → new one; −1 of what is not kept."""
    new = np.full(count, -1)
    new[kept.to_numpy()] = np.arange(len(kept))
    return new
