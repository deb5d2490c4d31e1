"""What is said of fresh parameters follows from the ranks."""

import numpy as np
import pytest

from experiments.studies.freshness import HEURISTICS, PERIODS, format_summary, lift, recovery, summary

HOUR, DAY = 3_600_000, 86_400_000


def columns_of(n=400):
    """Streaming ranks first always; frozen falls from place 1 to 4 after two days, and never finds unseen authors."""
    time_ms = np.linspace(0, 4 * DAY - 1, n).astype(np.int64)
    unseen = np.arange(n) % 10 == 0
    columns = {"time_ms": time_ms, "user": np.arange(n) % 20, "repeat": np.arange(n) % 2 == 0, "unseen": unseen,
               "both": np.ones(n, bool), "seconds": np.float64(2.0), "steps": np.int64(9), "events": np.int64(99)}
    places = {name: np.ones(n) for name in (*PERIODS, *HEURISTICS)}
    places["frozen"] = np.where(time_ms >= 2 * DAY, 4.0, 1.0)
    places["frozen"][unseen] = np.inf
    for name, place in places.items():
        columns[f"rank_{name}"] = np.stack([place, place], 1)
    ages = {"frozen": time_ms, "daily": time_ms % DAY, "hourly": time_ms % HOUR}
    return columns | {f"age_{name}": age for name, age in ages.items()}


def test_the_summary_compares_the_same_targets():
    made = summary(columns_of(), 0, 3.0, None)
    assert made["targets"]["after 3 days"] == 100
    assert made["targets"]["unseen authors"] == 40
    assert made["ndcg@10"]["after 3 days"]["streaming"] == 1.0
    late = 0.9 / np.log2(5)
    assert made["ndcg@10"]["after 3 days"]["frozen"] == pytest.approx(late)
    control, treatment, relative, low, high = made["streaming over"]["after 3 days"]["frozen"]
    assert (control, treatment) == pytest.approx((late, 1.0))
    assert low < relative < high
    assert relative == pytest.approx(1 / late - 1)
    assert made["streaming over"]["all"]["daily"][2:] == [0.0, 0.0, 0.0]
    assert made["ndcg@10"]["unseen authors"]["frozen"] == 0.0
    text = format_summary(made)
    assert "after 3 days (100)" in text
    assert "99 events and 9 steps in 2 s" in text


def test_staleness_is_what_older_parameters_lose_to_streaming_on_their_targets():
    rows = {tuple(row["hours"]): row for row in summary(columns_of(), 0, 3.0, None)["staleness"]}
    old, young = rows[72, 96], rows[24, 48]
    assert old["n"] == 100
    assert old["ndcg@10"] == pytest.approx(0.9 / np.log2(5) - 1)
    assert young["ndcg@10"] == pytest.approx(-0.1)


def test_recovery_counts_hours_from_a_jump():
    time_ms = np.arange(0, 6 * DAY, HOUR)
    gain = np.where((time_ms >= 3 * DAY) & (time_ms < 3 * DAY + 20 * HOUR), 0.5, 1.0)
    found = recovery(gain, time_ms, 3 * DAY)
    assert found == {"before": 1.0, "behind": 0.5, "hours": 20}
    assert recovery(np.where(time_ms >= 3 * DAY, 0.5, 1.0), time_ms, 3 * DAY)["hours"] is None


def test_nothing_is_said_of_no_targets():
    columns = columns_of()
    assert lift(columns, "streaming", "frozen", np.zeros(400, bool)) is None
