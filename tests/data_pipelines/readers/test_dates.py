"""Dates and clocks in the ways in which people and programs write them."""

import polars as pl
import pytest

from data_pipelines.readers import dates

T = 1_746_403_200_000  # Mon 5 May 2025 00:00 UTC
HOUR = 3_600_000
WRITTEN = {
    "2025-05-05 00:00:00.123456": T + 123, "2025/5/5 07:30": T + 7.5 * HOUR, "2025-05-05T00:00Z": T,
    "20250505T070000Z": T + 7 * HOUR,
    "2025-W19-1T00:00:00": T, "2025-125": T, "5 May 2025": T, "05-May-2025 01:00": T + HOUR,
    "May 5th, 2025 1:00 PM": T + 13 * HOUR,
    "Mon, 05 May 2025 00:00:00 +0000": T, "Mon May  5 00:00:00 2025": T, "05/May/2025:02:00:00 +0200": T,
    "2025年5月5日 8时05分": T + 8 * HOUR + 300_000, "2025.05.05 00:00:00": T, "2025-05-05 00:00:00,250": T + 250,
    "2025-05-05 12:00:00 AM": T, "2025-05-05 12:00:00pm": T + 12 * HOUR, "2025-05-05 08:00 GMT+8": T,
    "2025-05-05 08:00:00 Asia/Shanghai": T, "2025-05-05T08:00:00+08:00[Asia/Shanghai]": T,
    "2025-05-05T02:00:00[Europe/Berlin]": T,  # in summer
}
NO_DATES = ("", "soon", "2025-13-05", "30 Feb 2025", "2025-05-05 24:00", "2025-05-05 13:00 PM", "2025-05-05 00:60",
            "2025-05-05 08:00:00 CST", "2025-05-05 08:00 Foo/Bar", "05/06/2025", "2025-W54-1", "2025-366")


def test_every_way_of_writing_a_moment_is_read():
    found = dates.clocks(pl.Series([*WRITTEN, *NO_DATES, None]), 0)
    assert found.to_list() == [*WRITTEN.values(), *[None] * (len(NO_DATES) + 1)]
    for text, moment in WRITTEN.items():  # alone, as in the company of others
        assert dates.clocks(pl.Series([text]), 0)[0] == moment, text


def test_only_clocks_without_a_zone_are_shifted():
    cells = pl.Series(["2025-05-05 08:00", "5 May 2025 8:00", "2025-05-05 00:00Z", "Mon, 05 May 2025 00:00:00 GMT",
                       "2025-05-05 08:00 Asia/Shanghai"])
    assert dates.clocks(cells, 8 * HOUR).to_list() == [T] * 5


@pytest.mark.parametrize("cells, order", [
    (["05/06/2025", "25/06/2025 10:00"], "dmy"), (["05/06/2025", "06/25/25"], "mdy"), (["05.06.2025", None], "dmy"),
    (["05/06/2025", "06/05/2025"], dates.UNSURE), (["25/06/2025", "06/25/2025"], dates.UNSURE),
    (["2025-06-05", "x"], None),
])
def test_the_order_of_day_and_month_is_told_by_the_column(cells, order):
    assert dates.order_of(pl.Series(cells)) == order


def test_day_and_month_in_a_known_order():
    cells = pl.Series(["05/06/2025 1:00 pm", "5.6.25", "13/06/2025"])
    june, may = 1_749_081_600_000, 1_746_489_600_000  # 5 June and 6 May
    assert dates.clocks(cells, 0, "dmy").to_list() == [june + 13 * HOUR, june, june + 8 * 24 * HOUR]
    assert dates.clocks(cells, 0, "mdy").to_list() == [may + 13 * HOUR, may, None]
