"""What a cell says: ids, numbers, times and lengths, out of text or out of the types of a parquet file.

One rule each for the whole project. Every function takes a column of any type and returns its values, null where the
cell is missing or cannot be read, and which cells cannot be read.
"""

import polars as pl

MISSING = ("", "NULL", "null", "Null", "\\N", "nan", "NaN", "NAN", "NA", "N/A", "<NA>", "None", "NaT")
UNKNOWN = ("unknown", "Unknown", "UNKNOWN")  # where the cell is a category
TRUE, FALSE = ("true", "True", "TRUE", "yes", "t", "y"), ("false", "False", "FALSE", "no", "f", "n")
EXACT = 2.0**53  # whole numbers up to here are exact in a float
LARGEST = 2**31 - 1
# A number of a time column → its unit: between 1973 and the year 5138 the four do not overlap.
EPOCHS = {"s": (1e8, 1e11), "ms": (1e11, 1e14), "us": (1e14, 1e17), "ns": (1e17, 9.3e18)}
UNIT_MS = {"ms": 1.0, "s": 1000.0, "us": 1e-3, "ns": 1e-6, "min": 60_000.0, "h": 3_600_000.0, "rounds": 600_000.0}
UNIT_NAMES = {"ms": "milliseconds", "s": "seconds", "us": "microseconds", "ns": "nanoseconds", "min": "minutes",
              "h": "hours", "rounds": "rounds of ten minutes"}
DECADE_MS = 315_576_000_000  # no log is longer: what lies further from the others is no date
_CLOCKS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y%m%d %H:%M:%S")
_ZONE = r"(:\d\d(?:\.\d*)?)\s*(Z|z|UTC|GMT|[+-]\d\d:?\d\d|[+-]\d\d)$"
_ROUNDED = r"^[+-]?\d+(\.\d*[eE][+-]?|[eE]\+)\d+$"
_FRACTION = r"^[+-]?\d+\.\d*[1-9]\d*$"


def text(cells: pl.Series) -> pl.Series:
    """Stripped text; null where missing."""
    if cells.dtype in (pl.Categorical, pl.Enum, pl.Boolean) or cells.dtype.is_numeric():
        cells = cells.cast(pl.String)
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
        yes, no = rest.is_in(TRUE).fill_null(False), rest.is_in(FALSE).fill_null(False)
        values = values.fill_null(only(yes.cast(pl.Int64), yes | no))
        rest = only(rest, ~(yes | no))
    if negative == "missing":
        values = only(values, values >= 0)
    return _result(values, (values < 0) | (values > LARGEST), fraction, rest)


def reals(cells: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Finite numbers of 0 or more, float64; NaN is missing."""
    told = cells.cast(pl.Float64).fill_nan(None) if cells.dtype.is_numeric() else text(cells)
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


def times(cells: pl.Series, unit: str, offset_ms: int) -> tuple[pl.Series, pl.Series]:
    """Milliseconds since 1970 (or, of small numbers, since the log's beginning), int64.

    Numbers are in `unit`. Clocks with a zone say what they mean; those without are local times, `offset_ms` ahead of
    UTC.
    """
    if cells.dtype.is_temporal():
        zoned = isinstance(cells.dtype, pl.Datetime) and cells.dtype.time_zone
        values = cells.cast(pl.Datetime("ms", cells.dtype.time_zone if zoned else None)).dt.epoch("ms")
        return _result(values if zoned else values - offset_ms)
    values, fraction, rest = _numbers(cells)
    values, fraction = _scaled(values, fraction, unit)
    if rest is not None:
        found = clocks(rest, offset_ms)
        values, rest = values.fill_null(found), only(rest, found.is_null() & ~rest.str.contains(r"^0000-00-00"))
    return _result(values, fraction, rest)


def lengths(cells: pl.Series, unit: str) -> tuple[pl.Series, pl.Series]:
    """Milliseconds, int64, 0 or more, of numbers in `unit` or of clocks (01:30:00)."""
    if isinstance(cells.dtype, pl.Duration):
        values, fraction, rest = cells.dt.total_milliseconds(), None, None
    else:
        values, fraction, rest = _numbers(cells)
        values, fraction = _scaled(values, fraction, unit)
    if rest is not None:
        parts = rest.str.extract_groups(r"^(\d+):(\d\d):(\d\d)(?:\.\d*)?$").struct.unnest().cast(pl.Int64)
        found = ((parts["1"] * 60 + parts["2"]) * 60 + parts["3"]) * 1000
        values, rest = values.fill_null(found), only(rest, found.is_null())
    return _result(values, (values < 0) | (values > DECADE_MS), fraction, rest)


def clocks(cells: pl.Series, offset_ms: int) -> pl.Series:
    """Milliseconds since 1970 of dates with or without a clock and a zone; null for other text."""
    plain = cells.str.replace_all("/", "-", literal=True).str.replace(r"^(\d{4}-\d\d?-\d\d?)T", "${1} ")
    zone = plain.str.extract(_ZONE, 2)
    zoned = zone.is_not_null()
    plain = plain.str.replace(_ZONE, "${1}") if zoned.any() else plain
    moment = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(cells))
    for form in _CLOCKS:
        if moment.null_count() == plain.null_count():
            break
        moment = moment.fill_null(plain.str.to_datetime(form, time_unit="ms", strict=False).dt.epoch("ms"))
    if not zoned.any():
        return moment - offset_ms
    digits = zone.str.extract_groups(r"([+-])(\d\d):?(\d\d)?").struct.unnest()
    hours, minutes = (digits[part].cast(pl.Int64).fill_null(0) for part in ("2", "3"))
    shift = (hours * 60 + minutes) * 60_000 * ((digits["1"] == "-").fill_null(False).cast(pl.Int64) * -2 + 1)
    return moment - shift.zip_with(zoned, pl.Series([offset_ms]).new_from_index(0, len(shift)))


def only(values: pl.Series, where: pl.Series) -> pl.Series:
    """The values where a mark is True, null elsewhere."""
    return pl.select(pl.when(where).then(values)).to_series().alias(values.name)


def _none(like: pl.Series) -> pl.Series:
    return pl.Series([False]).new_from_index(0, len(like))


def _numbers(cells: pl.Series) -> tuple[pl.Series, pl.Series | None, pl.Series | None]:
    """(whole numbers int64, fractions float64 or None, other text that is not missing or None), null elsewhere."""
    if cells.dtype in (pl.Categorical, pl.Enum):
        cells = cells.cast(pl.String)
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
    values = values * int(factor) if factor >= 1 else values // round(1 / factor)
    if factor > 1 and fraction is not None:
        return values.fill_null((only(fraction, fraction.is_finite()) * factor).round().cast(pl.Int64)), only(
            fraction, ~fraction.is_finite())
    return values, fraction


def _result(values: pl.Series, *bad: pl.Series | None) -> tuple[pl.Series, pl.Series]:
    """The values, null where bad, and which are bad. `bad` are marks, or columns whose values are bad."""
    wrong = _none(values)
    for part in bad:
        if part is not None:
            wrong |= part.fill_null(False) if part.dtype == pl.Boolean else part.is_not_null()
    return (only(values, ~wrong) if wrong.any() else values), wrong
