"""The periods of a log: train, validation and test, by time and never by user."""

from typing import NamedTuple

import numpy as np
import polars as pl

from data_pipelines.tables import HOUR_MS, Tables, moment

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
