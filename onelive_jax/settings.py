"""What every dataclass of settings has: fields that know their meaning and range, their check, how two sets differ."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any


def setting(default, doc: str, low=None, high=None, choices=None):
    """A dataclass field that knows its meaning and its allowed values."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices})


def check_ranges(node: Any, path: str) -> None:
    """Raises ValueError with the dotted name of the first field whose type or value is not allowed."""
    for f in dataclasses.fields(node):
        value, name, meta = getattr(node, f.name), f"{path}.{f.name}", f.metadata
        if dataclasses.is_dataclass(value):
            check_ranges(value, name)
            continue
        many = isinstance(f.default, tuple)
        if many != isinstance(value, tuple) or not all(_fits(v, f.default[0] if many else f.default)
                                                       for v in (value if many else (value,))):
            raise ValueError(f"{name}={value!r} must be of the type of its default, {f.default!r}, and finite")
        for v in value if many else (value,):
            if meta.get("choices") and v not in meta["choices"]:
                raise ValueError(f"{name}={v!r} is not one of {', '.join(map(repr, meta['choices']))}")
            low, high = meta.get("low"), meta.get("high")
            if (low is not None and v < low) or (high is not None and v > high):
                raise ValueError(f"{name}={v} is outside {low if low is not None else '-inf'} … "
                                 f"{high if high is not None else 'inf'}")


def _fits(value: Any, default: Any) -> bool:
    """Same type (a whole number may stand for a float), and finite."""
    if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
        return False
    return not isinstance(value, float) or math.isfinite(value)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings in which two calls differ, for a person: "name: 1 then, 2 now; …"; "" where they do not. Values are
    compared as JSON has them."""
    before, now = (json.loads(json.dumps(dict(settings))) for settings in (before, now))
    return "; ".join(f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
                     for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))
