"""The settings of a config as the command line and config files give them: found, named, typed and described."""

import dataclasses
import difflib
import math
import re
from typing import Any

from onelive_jax.config import Config

_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "numbers"}


def fields(config: Any, prefix: str = "") -> list[tuple[str, dataclasses.Field, Any]]:
    """Every setting of a config as (dotted name, dataclass field, value), groups opened, in order."""
    result = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            result += fields(value, f"{prefix}{f.name}.")
        else:
            result.append((prefix + f.name, f, value))
    return result


def describe(config: Config) -> str:
    """One line a setting: name, default, allowed values, meaning."""
    lines, group = [], ""
    for name, f, value in fields(config):
        section = name.rpartition(".")[0]
        if section != group:
            group = section
            lines.append(f"\n{section}: {(type(getattr(config, section)).__doc__ or '').strip().splitlines()[0]}")
        lines.append(f"  --config.{name}={_shown(value)}  [{allowed(f)}]  {f.metadata['doc']}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def allowed(f: dataclasses.Field) -> str:
    """The values that a field takes, for a person."""
    meta = f.metadata
    if meta["choices"]:
        return " | ".join(map(str, meta["choices"]))
    if meta["low"] is not None or meta["high"] is not None:
        low = "-inf" if meta["low"] is None else meta["low"]
        return f"{_TYPES[type(f.default)]} {low} … {'inf' if meta['high'] is None else meta['high']}"
    return _TYPES[type(f.default)]


def groups() -> list[str]:
    """Names of the sections of a config."""
    return [f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory)]


def near(name: str, known: list[str]) -> str:
    """The known fields that `name` resembles: as a whole, or in its last part (a field put into the wrong group)."""
    last = name.rsplit(".", 1)[-1]
    found = [field for field in known if field.rsplit(".", 1)[-1] == last]
    found += difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    parts = difflib.get_close_matches(last, [field.rsplit(".", 1)[-1] for field in known], n=2, cutoff=0.75)
    found += [field for field in known if field.rsplit(".", 1)[-1] in parts]
    if found:
        return "did you mean " + " or ".join(f"config.{field}" for field in list(dict.fromkeys(found))[:4]) + "?"
    return "--helpfull lists all of them"


def check_overrides(argv: list[str]) -> None:
    """Raises ValueError for the first --config.a.b that is not a field, with what it may have been meant to be."""
    known = {name: f for name, f, _ in fields(Config())}
    for arg in argv[1:]:
        match = re.match(r"--?(no)?config\.([^=]*)", arg)
        if not match or match[2] in known:
            continue
        name = match[2]
        inside = [field for field in known if field.startswith(name + ".")]
        if inside:
            raise ValueError(f"--config.{name} is a group of settings; set one of them, e.g. --config.{inside[0]}=…")
        raise ValueError(f"--config.{name} is not a setting; {near(name, list(known))}")


def tidy(node: Any, path: str, file: str) -> None:
    """Brings values to their declared types, and finds fields that a config file made up.

    Assigning to a misspelt attribute of a dataclass is legal Python, and would leave the default in force.
    """
    names = [f.name for f in dataclasses.fields(node)]
    for name in vars(node):
        if name not in names:
            prefix = path.removeprefix("config").lstrip(".")
            full = f"{prefix}.{name}" if prefix else name
            raise ValueError(f"{file} sets {path}.{name}, which is not a setting; "
                             f"{near(full, [field for field, _, _ in fields(Config())])}")
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(f.default_factory) and not isinstance(value, f.default_factory):
            raise ValueError(f"{path}.{f.name} is a group of settings, not {value!r}")
        if dataclasses.is_dataclass(value):
            tidy(value, f"{path}.{f.name}", file)
        else:
            setattr(node, f.name, _typed(value, f, f"{path}.{f.name}"))


def _typed(value: Any, f: dataclasses.Field, name: str) -> Any:
    """`value` as the field's type: a whole number may stand for a float, a list for a tuple, nothing else."""
    default = f.default
    if isinstance(default, tuple) and isinstance(default[0], str):
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{name}={value!r} must be names separated by commas, e.g. --{name}={','.join(default)}")
        return tuple(value)
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(_is_number(v) for v in value):
            raise ValueError(f"{name}={value!r} must be numbers separated by commas, e.g. --{name}=1.0,0.5,0.5")
        return tuple(float(v) for v in value)
    if isinstance(default, float) and _is_number(value):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number")
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"{name}={value!r} must be {_TYPES[type(default)]}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
