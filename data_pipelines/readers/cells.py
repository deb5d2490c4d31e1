"""What a cell says: ids, numbers, times and lengths, out of text or out of the types of a parquet file.

One rule each for the whole project. Every function takes a column of any type and returns its values, null where the
cell is missing or cannot be read, and which cells cannot be read.
"""

import polars as pl

from data_pipelines.readers import dates

MISSING = ("", "-", "--", "NULL", "null", "Null", "\\N", "nan", "NaN", "NAN", "NA", "N/A", "<NA>", "None", "NaT")
UNKNOWN = ("unknown", "Unknown", "UNKNOWN")  # where the cell is a category
TRUE, FALSE = ("true", "yes", "t", "y", "on", "是"), ("false", "no", "f", "n", "off", "否")  # in any case
EXACT = 2.0**53  # whole numbers up to here are exact in a float
LARGEST = 2**31 - 1
# A number of a time column → its unit: between 1973 and the year 5138 the four do not overlap.
# 20250505080000 is a date; in milliseconds it would be the year 2611.
DIGITS, DIGITS_RANGE = "digits", (1.9e13, 2.1e13)
EPOCHS = {"s": (1e8, 1e11), "ms": (1e11, 1e14), "us": (1e14, 1e17), "ns": (1e17, 9.3e18)}
UNIT_MS = {"ms": 1.0, "s": 1000.0, "us": 1e-3, "ns": 1e-6, "min": 60_000.0, "h": 3_600_000.0, "rounds": 600_000.0,
           DIGITS: 1.0}
UNIT_NAMES = {"ms": "milliseconds", "s": "seconds", "us": "microseconds", "ns": "nanoseconds", "min": "minutes",
              "h": "hours", "rounds": "rounds of ten minutes", DIGITS: "digits of a date"}
DECADE_MS = 315_576_000_000  # no log is longer: what lies further from the others is no date
LATEST = 2**62  # no time and no length is further from 0
_ROUNDED = r"^[+-]?\d+(\.\d*[eE][+-]?|[eE]\+)\d+$"
_FRACTION = r"^[+-]?\d+\.\d*[1-9]\d*$"
_CURRENCY = "$€£¥￥₩₹ \u00a0"
# 01:30:00 and 0 days 01:30:00; 1h 30m and PT90S.
_LENGTH = (r"^(?:(?P<d>\d+)\s*d(?:ays?)?,?\s*)?(?P<h>\d+):(?P<min>\d\d):(?P<s>\d\d(?:\.\d*)?)$",
           r"^p?(?:(?P<d>\d+)\s*(?:d|days?|天))?\s*t?(?:(?P<h>\d+(?:\.\d+)?)\s*(?:h|hrs?|hours?|小时))?\s*"
           r"(?:(?P<min>\d+(?:\.\d+)?)\s*(?:m|mins?|minutes?|分钟?))?\s*"
           r"(?:(?P<s>\d+(?:\.\d+)?)\s*(?:s|secs?|seconds?|秒))?\s*(?:(?P<ms>\d+)\s*(?:ms|millis))?$")


def text(cells: pl.Series) -> pl.Series:
    """Stripped text; null where missing."""
    if cells.dtype in (pl.Categorical, pl.Enum, pl.Boolean) or cells.dtype.is_numeric():
        cells = cells.cast(pl.String)
    elif cells.dtype in (pl.Null, pl.Binary):  # old writers of parquet do not say that bytes are text
        cells = cells.cast(pl.String, strict=False)
    elif cells.dtype != pl.String:
        raise TypeError(f"{cells.dtype} where text or numbers are needed")
    trimmed = cells.str.strip_chars()
    missing = trimmed.is_in(MISSING)
    return only(trimmed, ~missing) if missing.any() else trimmed


def category(cells: pl.Series) -> pl.Series:
    """`text`, null where unknown."""
    found = text(cells)
    return only(found, ~found.is_in(UNKNOWN))


def ids(cells: pl.Series, whole: bool = False) -> tuple[pl.Series, pl.Series]:
    """Ids as text, or (`whole`) as int64. `7.0` is `7`; a rounded number (3.38429E+10) and a fraction are no id.

    `007` is not `7`: with `whole` it cannot be read.
    """
    if cells.dtype.is_integer() or isinstance(cells.dtype, pl.Decimal) and not cells.dtype.scale:
        values = cells.cast(pl.Int64, strict=False) if whole else cells.cast(pl.String)
        return values, values.is_null() & cells.is_not_null()
    if cells.dtype.is_numeric():
        values, fraction, _ = _numbers(cells)
        return (values if whole else values.cast(pl.String)), fraction.is_not_null()
    found, bad = text(cells), _none(cells)
    if found.str.contains(r"[.+]").any():
        bad = (found.str.contains(_ROUNDED) | found.str.contains(_FRACTION)).fill_null(False)
        found = only(found.str.replace(r"^([+-]?\d+)\.0*$", "${1}"), ~bad)
    if not whole:
        return found, bad
    values = found.cast(pl.Int64, strict=False)
    padded = found.str.contains(r"^[+-]?0\d|^[+]")
    values = only(values, ~padded) if padded.any() else values
    return values, bad | (found.is_not_null() & values.is_null())


def counts(cells: pl.Series, negative: str = "bad") -> tuple[pl.Series, pl.Series]:
    """Whole numbers of 0 or more; words for yes and no are 1 and 0. A `negative` number is bad, or "missing"."""
    values, fraction, rest = _numbers(cells)
    if rest is not None:
        yes, no = (rest.str.to_lowercase().is_in(words).fill_null(False) for words in (TRUE, FALSE))
        values = values.fill_null(only(yes.cast(pl.Int64), yes | no))
        rest = only(rest, ~(yes | no))
    if negative == "missing":
        values = only(values, values >= 0)
    return _result(values, (values < 0) | (values > LARGEST), fraction, rest)


def reals(cells: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Finite numbers of 0 or more, float64, with or without the sign of a currency; NaN is missing."""
    told = cells.cast(pl.Float64).fill_nan(None) if cells.dtype.is_numeric() else text(cells)
    if told.dtype == pl.String:
        told = told.str.strip_chars(_CURRENCY)
    values = told.cast(pl.Float64, strict=False)
    good = (values.is_finite() & (values >= 0)).fill_null(False)
    return only(values, good), told.is_not_null() & ~good


def median(cells: pl.Series) -> float | None:
    """Of the numbers above 0 in a column of times or lengths; None where there is none (clocks, or nothing)."""
    if cells.dtype.is_temporal():
        return None
    values, fraction, _ = _numbers(cells)
    values = values.cast(pl.Float64) if fraction is None else values.cast(pl.Float64).fill_null(fraction)
    return values.filter(values > 0).median()


def times(cells: pl.Series, unit: str, offset_ms: int, order: str | None = None) -> tuple[pl.Series, pl.Series]:
    """Milliseconds since 1970 (or, of small numbers, since the log's beginning), int64.

    Numbers are in `unit`. Clocks with a zone say what they mean; those without are local times, `offset_ms` ahead of
    UTC; `order` is that of day and month where they are told apart by it (`dates`).
    """
    if cells.dtype in (pl.Duration, pl.Time):
        raise TypeError(f"{cells.dtype} where dates are needed")
    if cells.dtype.is_temporal():
        zoned = isinstance(cells.dtype, pl.Datetime) and cells.dtype.time_zone
        values = cells.cast(pl.Datetime("ms", cells.dtype.time_zone if zoned else None)).dt.epoch("ms")
        return _result(values if zoned else values - offset_ms)
    values, fraction, rest = _numbers(cells)
    if unit == DIGITS:
        told = values.cast(pl.String).str.replace(r"^(\d{8})(\d{6})$", "${1}T${2}")
        values, wrong = dates.clocks(told, offset_ms), told.is_not_null()
    else:
        (values, fraction), wrong = _scaled(values, fraction, unit), None
    if rest is not None:
        found = dates.clocks(rest, offset_ms, order)
        values, rest = values.fill_null(found), only(rest, found.is_null() & ~rest.str.contains(r"^0000-00-00"))
    return _result(values, fraction, rest, None if wrong is None else wrong & values.is_null())


def lengths(cells: pl.Series, unit: str) -> tuple[pl.Series, pl.Series]:
    """Milliseconds, int64, 0 or more, of numbers in `unit`, of clocks (01:30:00) or with units (1h 30m, PT90S)."""
    if isinstance(cells.dtype, pl.Duration):
        values, fraction, rest = cells.dt.total_milliseconds(), None, None
    elif cells.dtype == pl.Time:
        values, fraction, rest = cells.cast(pl.Int64) // 1_000_000, None, None
    else:
        values, fraction, rest = _numbers(cells)
        values, fraction = _scaled(values, fraction, unit)
    if rest is not None:
        for shape in _LENGTH:
            parts = rest.str.to_lowercase().str.extract_groups(shape).struct.unnest().cast(pl.Float64, strict=False)
            told = parts.select(~pl.all_horizontal(pl.all().is_null())).to_series()
            if "ms" not in parts.columns:
                parts = parts.with_columns(ms=pl.lit(None, pl.Float64))
            zero = {name: parts[name].fill_null(0.0) for name in parts.columns}
            found = (((zero["d"] * 24 + zero["h"]) * 60 + zero["min"]) * 60 + zero["s"]) * 1000 + zero["ms"]
            found = only(found, told & (found <= DECADE_MS)).round().cast(pl.Int64)
            values, rest = values.fill_null(found), only(rest, found.is_null())
    return _result(values, (values < 0) | (values > DECADE_MS), fraction, rest)


def only(values: pl.Series, where: pl.Series) -> pl.Series:
    """The values where a mark is True, null elsewhere."""
    return pl.select(pl.when(where).then(values)).to_series().alias(values.name)


def _none(like: pl.Series) -> pl.Series:
    return pl.Series([False]).new_from_index(0, len(like))


def _numbers(cells: pl.Series) -> tuple[pl.Series, pl.Series | None, pl.Series | None]:
    """(whole numbers int64, fractions float64 or None, other text that is not missing or None), null elsewhere."""
    if cells.dtype in (pl.Categorical, pl.Enum, pl.Null, pl.Binary):
        cells = cells.cast(pl.String, strict=False)
    if cells.dtype.is_integer() or cells.dtype == pl.Boolean:
        return cells.cast(pl.Int64, strict=False), pl.Series([None], dtype=pl.Float64).new_from_index(
            0, len(cells)), None
    if cells.dtype.is_numeric():
        return *_whole_part(cells.cast(pl.Float64).fill_nan(None)), None
    if cells.dtype != pl.String:
        raise TypeError(f"{cells.dtype} where numbers are needed")
    values = cells.cast(pl.Int64, strict=False)
    if not values.null_count():
        return values, None, None
    left = text(only(cells, values.is_null()))
    if left.null_count() == len(left):
        return values, None, None
    numbers = only(left, left.str.contains(r"^[+-]?\d+\.?\d*$|^[+-]?\.\d+$")).cast(pl.Float64, strict=False)
    whole, fraction = _whole_part(numbers)
    return values.fill_null(whole), fraction, only(left, numbers.is_null())


def _whole_part(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    whole = (values == values.floor()) & (values.abs() < EXACT)
    return only(values, whole).cast(pl.Int64), only(values, ~whole)


def _scaled(values: pl.Series, fraction: pl.Series | None, unit: str) -> tuple[pl.Series, pl.Series | None]:
    """Both in milliseconds; a fraction of a longer unit is rounded, one of a millisecond stays a fraction."""
    factor = UNIT_MS[unit]
    if factor > 1 and (values.abs().max() or 0) > LATEST // int(factor):
        far = (values.abs() > LATEST // int(factor)).fill_null(False)
        beyond = only(values.cast(pl.Float64), far) * LATEST
        values, fraction = only(values, ~far), beyond if fraction is None else fraction.fill_null(beyond)
    values = values * int(factor) if factor >= 1 else values // round(1 / factor)
    if factor > 1 and fraction is not None:
        near = fraction.abs() < LATEST / factor  # neither infinite
        return values.fill_null((only(fraction, near) * factor).round().cast(pl.Int64)), only(fraction, ~near)
    return values, fraction


def localised(cells: pl.Series, delimiter: str) -> pl.Series:
    """Numbers with decimal commas (1.250,50, in files that part cells with semicolons) or commas between thousands
    (1,250.50, in others) without them; other cells as they are."""
    if cells.dtype != pl.String or not cells.str.contains(",", literal=True).any():
        return cells
    if delimiter == ";":
        cells = cells.str.replace(r"^\s*([+-]?\d{1,3})\.(\d{3}(?:\.\d{3})*,\d+)\s*$", "${1}${2}")
        return cells.str.replace(r"^\s*([+-]?[$€£¥]?\s*\d+),(\d+)(\s*[$€£¥]?)\s*$", "${1}.${2}${3}")
    grouped = cells.str.contains(r"^\s*[+-]?[$€£¥]?\d{1,3}(,\d{3})+(\.\d+)?\s*$").fill_null(False)
    return cells.str.replace_all(",", "", literal=True).zip_with(grouped, cells) if delimiter != "\t" else cells


def _result(values: pl.Series, *bad: pl.Series | None) -> tuple[pl.Series, pl.Series]:
    """The values, null where bad, and which are bad. `bad` are marks, or columns whose values are bad."""
    wrong = _none(values)
    for part in bad:
        if part is not None:
            wrong |= part.fill_null(False) if part.dtype == pl.Boolean else part.is_not_null()
    return (only(values, ~wrong) if wrong.any() else values), wrong
