"""Clocks: dates and times as people and programs write them, as milliseconds since 1970.

ISO dates are read at once. What is left is tried against SHAPES, other orders of the same parts: a month by its name, a
clock of twelve hours, a week of the year, a zone by its name. 05/06/2025 is read only where the column's `order` is
known: other cells of the column tell it, or a person (`order_of`).
"""

import polars as pl

ORDERS = {"dmy": "day first", "mdy": "month first"}
UNSURE = "unsure"  # dates with slashes that do not tell whether the day or the month is first
_CLOCKS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_ISO_ZONE = r"(:\d\d(?:\.\d*)?)\s*(Z|z|UTC|GMT|[+-]\d\d:?\d\d|[+-]\d\d)$"
_ZONE = r"(?P<zone>z|(?:utc|gmt)?[+-]\d\d?(?::?\d\d)?|utc|gmt|[a-z]+/[a-z_]+(?:/[a-z_]+)?)"
_CLOCK = r"(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,:](?P<part>\d{1,9}))?)?\s*(?P<half>[ap]\.?m\.?)?"
_TAIL = rf"(?:[\st:,]+{_CLOCK})?\s*{_ZONE}?$"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"(?P<name>{'|'.join(_MONTHS)})[a-z]*\.?"
_NTH = "(?:st|nd|rd|th)?"
_SLASHES = r"^(?P<first>\d\d?)(?P<mark>[-/.])(?P<second_>\d\d?)[-/.](?P<year>\d{4}|\d\d)"
# Form of the date that is made of the parts → shapes that have these parts; all without regard to case.
SHAPES = {
    "{year}-{month}-{day} %Y-%m-%d": (
        rf"^(?P<year>\d{{4}})[-./](?P<month>\d\d?)[-./](?P<day>\d\d?){_TAIL}",
        rf"^(?P<year>\d{{4}})(?P<month>\d\d)(?P<day>\d\d){_TAIL}",
        r"^(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)[t ]?(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d)?"
        rf"(?:[.,](?P<part>\d{{1,9}}))?\s*{_ZONE}?$",
        rf"^(?P<day>\d\d?){_NTH}[ /.-]+{_MONTH}[ ,/.-]+(?P<year>\d{{4}}){_TAIL}",
        rf"^{_MONTH} +(?P<day>\d\d?){_NTH},? +(?P<year>\d{{4}}){_TAIL}",
        rf"^{_MONTH} +(?P<day>\d\d?) +{_CLOCK}(?: +{_ZONE})? +(?P<year>\d{{4}})$"),
    "{year}-W{week}-{day} %G-W%V-%u": (rf"^(?P<year>\d{{4}})-?w(?P<week>\d\d)-?(?P<day>[1-7]){_TAIL}",),
    "{year}-{day} %Y-%j": (rf"^(?P<year>\d{{4}})-?(?P<day>\d{{3}}){_TAIL}",),
}


def clocks(cells: pl.Series, offset_ms: int, order: str | None = None) -> pl.Series:
    """int64, milliseconds since 1970 of dates with or without a clock and a zone; null for other text.

    Args:
      cells: text. offset_ms: of clocks without a zone, which are that much ahead of UTC. order: a key of ORDERS.
    """
    plain = cells.str.replace_all("/", "-", literal=True).str.replace(r"^(\d{4}-\d\d?-\d\d?)T", "${1} ")
    zone = plain.str.extract(_ISO_ZONE, 2)
    zoned = zone.is_not_null()
    plain = plain.str.replace(_ISO_ZONE, "${1}") if zoned.any() else plain
    found = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(cells))
    for form in _CLOCKS:
        if found.null_count() == plain.null_count():
            break
        found = found.fill_null(plain.str.to_datetime(form, time_unit="ms", strict=False).dt.epoch("ms"))
    shift = pl.Series([offset_ms]).new_from_index(0, len(cells))
    found = found - (_offset(zone).zip_with(zoned, shift) if zoned.any() else shift)
    left = cells.filter(found.is_null() & cells.is_not_null())
    if not len(left):
        return found
    # A column holds few shapes and many repeats of a moment: each text is read once.
    texts = left.unique()
    read = dict(zip(texts, _shaped(texts, offset_ms, order), strict=True))
    return found.fill_null(cells.replace_strict(read, default=None, return_dtype=pl.Int64))


def _shaped(texts: pl.Series, offset_ms: int, order: str | None) -> pl.Series:
    """`clocks` of texts in one of SHAPES, or with slashes where `order` is known."""
    plain = texts.str.replace_many(["年", "月", "日", "时", "分", "秒"], ["-", "-", " ", ":", ":", ""]).str.replace(
        r"(?i)^(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+", "").str.replace(  # 10:00+08:00[Asia/Shanghai]
        r"([+-]\d\d:?\d\d|Z)\[[\w/+-]+\]$", "${1}").str.replace(r"\[([\w/+-]+)\]$", " ${1}").str.strip_chars(" :")
    found = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(texts))
    shapes = [(form, shape) for form, several in SHAPES.items() for shape in several]
    if order in ORDERS:
        first, second = ("day", "month") if order == "dmy" else ("month", "day")
        shapes.append((next(iter(SHAPES)), _SLASHES.replace("first", first).replace("second_", second) + _TAIL))
    for form, shape in shapes:
        if not found.null_count():
            break
        parts = plain.str.extract_groups(f"(?i){shape}").struct.unnest()
        if not parts["year"].null_count() == len(parts):
            found = found.fill_null(_moment(parts, form, offset_ms))
    return found


def _moment(parts: pl.DataFrame, form: str, offset_ms: int) -> pl.Series:
    """Milliseconds since 1970 of parts of dates (text: year, month or name, …, zone), null where there is no such."""
    absent = [name for name in ("month", "week", "name", "hour", "minute", "second", "part", "half", "zone")
              if name not in parts.columns]
    parts = parts.with_columns(pl.lit(None, pl.String).alias(name) for name in absent)
    months = {name: str(i + 1) for i, name in enumerate(_MONTHS)}
    year = pl.when(pl.col("year").str.len_bytes() == 2).then("20" + pl.col("year")).otherwise("year")
    number = lambda name: pl.col(name).fill_null("0").cast(pl.Int64)  # noqa: E731
    pm, hour = pl.col("half").str.to_lowercase().str.starts_with("p"), number("hour")
    good = hour.is_between(1, 12) | (pl.col("half").is_null() & (hour < 24))
    hour = pl.when(pl.col("half").is_not_null()).then(hour % 12 + pl.when(pm).then(12).otherwise(0)).otherwise(hour)
    clock = (hour * 60 + number("minute")) * 60 + number("second")
    good &= (number("minute") < 60) & (number("second") <= 60)
    made, pattern = form.split(" ")
    names = [name for name in ("year", "month", "week", "day") if f"{{{name}}}" in made]
    date = pl.format(made.format(**dict.fromkeys(names, "{}")), *names).str.to_date(pattern, strict=False)
    parts = parts.with_columns(year=year, month=pl.coalesce("month", pl.col("name").str.to_lowercase().replace_strict(
        months, default=None, return_dtype=pl.String)))
    part = pl.col("part").fill_null("0").str.slice(0, 3).str.pad_end(3, "0").cast(pl.Int64)
    local = parts.select(pl.when(good).then(date.dt.epoch("ms") + clock * 1000 + part)).to_series()
    zone = parts["zone"]
    named = zone.str.contains("/").fill_null(False)
    shift = _offset(zone).zip_with(zone.is_not_null(), pl.Series([offset_ms]).new_from_index(0, len(zone)))
    result = pl.select(pl.when(~named).then(local - shift)).to_series()
    for name in zone.filter(named).unique():
        try:
            there = local.cast(pl.Datetime("ms")).dt.replace_time_zone(name, ambiguous="earliest", non_existent="null")
        except pl.exceptions.PolarsError:
            continue  # no zone of that name: the cell is no time
        result = result.zip_with(zone.ne_missing(pl.Series([name])), there.dt.epoch("ms"))
    return result


def _offset(zone: pl.Series) -> pl.Series:
    """Milliseconds that zones (Z, UTC, +08:00, GMT+8) are ahead of UTC."""
    digits = zone.str.extract_groups(r"([+-])(\d\d?):?(\d\d)?$").struct.unnest()
    hours, minutes = (digits[part].cast(pl.Int64).fill_null(0) for part in ("2", "3"))
    return (hours * 60 + minutes) * 60_000 * ((digits["1"] == "-").fill_null(False).cast(pl.Int64) * -2 + 1)


def order_of(cells: pl.Series) -> str | None:
    """A key of ORDERS for a column with dates like 25/06/2025, UNSURE where every day may be a month; None without."""
    parts = cells.str.extract_groups(_SLASHES).struct.unnest().drop_nulls()
    if not len(parts):
        return None
    first, second = (parts[name].cast(pl.Int64).max() > 12 for name in ("first", "second_"))
    if first == second:
        return "dmy" if not first and (parts["mark"] == ".").all() else UNSURE
    return "dmy" if first else "mdy"
