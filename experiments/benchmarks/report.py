"""What every benchmark reports: rows of target and measurement, further lines, and the machine."""

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata

import jax

from experiments.common.tables import table

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def row(name: str, sense: str, target: float, measured: float, limit: float | None = None) -> dict:
    """One line of the report. `sense` is ">=" or "<="; `limit`: `block_limit`, where it applies."""
    met = measured >= target if sense == ">=" else measured <= target
    return {"name": name, "sense": sense, "target": target, "limit": limit, "measured": measured, "met": met}


def environment() -> dict:
    """Device, versions, date and load: what a figure needs to be compared with another."""
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": str(jax.devices()[0]),
            "devices": jax.device_count(), "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(),
            "system": platform.platform(), "python": platform.python_version(), "load_average": os.getloadavg()[0],
            "versions": {name: metadata.version(name) for name in PACKAGES}}


def make_report(what: str, measure: Callable[[], dict]) -> dict:
    """What `measure()` gives, with the environment before and after it; ready for JSON."""
    before = environment()
    measured = measure()
    return {"what": what, "before": before, "after": environment(), **measured}


def as_text(report: dict, lines: Sequence[str] = ()) -> str:
    """The rows of a report beside their targets, further lines, and what the figures must be judged by."""
    parts = list(lines)
    if report.get("rows"):
        parts.insert(0, table(["", "target", "limit", "measured", ""], [
            [r["name"], f"{r['sense']} {_number(r['target'])}", None if r["limit"] is None else f"{r['limit']:.2f}×",
             _number(r["measured"]), "" if r["met"] else "missed"] for r in report["rows"]]))
    return "\n".join([*parts, machine(report)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def machine(report: dict) -> str:
    """The last line of a report: device, load, version, date."""
    before, after = report["before"], report["after"]
    return (f"{after['device']}, {after['cores']} cores, load {before['load_average']:.1f} before, "
            f"{after['load_average']:.1f} after, jax {after['versions']['jax']}, {after['date']}")
