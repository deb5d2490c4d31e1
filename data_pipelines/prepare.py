"""A log becomes a folder of canonical tables.

    python -m data_pipelines.prepare --source=log --data_dir=views.csv --out_dir=/data/tables
    python -m data_pipelines.prepare --source=kuailive --data_dir=/data/KuaiLive --out_dir=/data/tables
    python -m data_pipelines.prepare --source=simulated --users=2000 --authors=500 --days=14 --out_dir=/data/tables

Then train on it with --config.data.source=canonical --config.data.path=/data/tables. The folder is whole once it holds
report.json: after an interruption the same command begins again, and on a whole folder it only repeats the summary.
"""

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path

from data_pipelines import tables as tables_lib
from data_pipelines.readers import amazon, kuailive, kuailive_m3, log, rows, twitch
from data_pipelines.readers.rows import DEFAULTS, Options
from data_pipelines.simulator import simulation
from data_pipelines.tables import Tables
from onelive_jax.config import SimulatorConfig
from onelive_jax.files import printable

READERS = {"log": log.read_log, "twitch": twitch.read_twitch, "kuailive": kuailive.read_kuailive,
           "kuailive_m3": kuailive_m3.read_kuailive_m3, "amazon": amazon.read_amazon}
SOURCES = (*READERS, "simulated")
OPTION_FLAGS = ("columns", "utc_offset_hours", "room_gap_min", "default_watch_s", "bad_rows", "limit_users")
SETTINGS = "prepare.json"  # written first: whose folder this is
DAY_MS = 86_400_000


def read_source(source: str, path: str | Path, options: Options = DEFAULTS,
                simulator_config: SimulatorConfig | None = None) -> Tables:
    """The canonical tables of a log.

    Args:
      source: one of SOURCES, or "canonical" for tables that are already made.
      path: of the log, a file or a folder; not used for "simulated".
      options: what a person says of the log; not used for "simulated" and "canonical".
      simulator_config: size and seed, for "simulated".

    Raises:
      FileNotFoundError: if there is no such file or folder.
      ValueError: if the content cannot be understood, with file, line and column; if nothing or less than half of its
        rows can be used, or its times cannot be right; or the source is not known.
    """
    if source in READERS:
        tables = READERS[source](path, options)
        rows.require_most(tables.report)
        return tables
    if options.limit_users is not None:
        raise ValueError(f"limit_users={options.limit_users} is for {', '.join(READERS)}; {source} is read whole")
    if source == "simulated":
        return simulation.simulate(simulator_config or SimulatorConfig())
    if source == "canonical":
        return tables_lib.load(path)
    raise ValueError(f"source={source!r} is not one of {', '.join(SOURCES)}, canonical")


def described(tables: Tables, utc_offset_hours: float = 0.0) -> list[str]:
    """What the log is, in words: from when to when, and how long people watch."""
    views = tables.interactions
    if not len(views):
        return []
    first, last = int(views["start_ms"].min()), int(views["start_ms"].max())
    middle = (views.filter("click")["watch_ms"].median() or 0) / 1000
    length = f"{middle / 60:,.1f} min" if middle >= 60 else f"{middle:,.1f} s"
    return [f"from {tables_lib.moment(first, utc_offset_hours)} to {tables_lib.moment(last, utc_offset_hours)}, "
            f"{(last - first) / DAY_MS:,.1f} days; median watch {length}"]


def prepare(out_dir: str | Path, source: str, data_dir: str | Path = "", options: Options = DEFAULTS,
            simulator_config: SimulatorConfig | None = None, dry_run: bool = False) -> list[str]:
    """Reads a log and writes its canonical tables, unless `dry_run`; returns the lines of the summary.

    Raises:
      ValueError: if `out_dir` holds anything but tables, whole or not, that the same call began to write; and as
        `read_source`.
    """
    out_dir = Path(out_dir)
    settings = {"source": source, "data_dir": str(Path(data_dir).resolve()) if data_dir else "",
                "bytes": _size(Path(data_dir)) if data_dir else 0, "options": asdict(options),
                "simulator": asdict(simulator_config or SimulatorConfig()) if source == "simulated" else {}}
    if not dry_run and _is_ours(out_dir, settings) and (out_dir / "report.json").is_file():
        tables = tables_lib.load(out_dir)
        return [f"{out_dir} is already made; its log:", *tables.report.lines()]
    tables = read_source(source, data_dir, options, simulator_config)
    lines = [*tables.report.lines(), *described(tables, options.utc_offset_hours)]
    lines += [f"{name}: {len(frame):,} rows" for name in tables_lib.REQUIRED + tables_lib.OPTIONAL
              if (frame := getattr(tables, name)) is not None]
    if dry_run:
        return [*lines, "dry run: nothing is written"]
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / SETTINGS).write_text(json.dumps(settings, indent=1))
    tables_lib.save(tables, out_dir)
    return [*lines, f"{out_dir}: {_size(out_dir) / 1e6:,.1f} MB"]


def _is_ours(out_dir: Path, settings: dict) -> bool:
    """Whether the folder was begun with these settings; raises ValueError if it holds anything else."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    if not out_dir.is_dir():
        raise ValueError(f"--out_dir={out_dir} is a file: give a folder, new or empty")
    if not (out_dir / SETTINGS).is_file():
        found = ", ".join(sorted(p.name for p in out_dir.iterdir())[:3])
        raise ValueError(f"--out_dir={out_dir} holds other files ({found}, …): give a folder that is new or empty")
    try:
        before = json.loads((out_dir / SETTINGS).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        before = {}
    changed = [f"{name}: {before.get(name)!r} then, {value!r} now" for name, value in settings.items()
               if before.get(name) != value]
    if changed:
        raise ValueError(f"--out_dir={out_dir} was made from something else ({'; '.join(changed)}): give another "
                         "folder, or delete it")
    return True


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 if there is none."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of `Options`."""
    parser.add_argument("--columns", default="", help="log: which column is what, where the names do not say it: "
                        "user=uid,author=channel,start=joined_at,watch=secs:s. Fields: "
                        f"{', '.join(c.name for c in log.FIELDS)}; units: ms, s, min, h, rounds")
    parser.add_argument("--utc_offset_hours", type=float, default=0.0,
                        help="zone of clocks that name none (Beijing: 8); numbers and clocks with a zone need it not")
    parser.add_argument("--room_gap_min", type=float, default=30.0,
                        help="log: pause of a streamer after which a room without an id is another one")
    parser.add_argument("--default_watch_s", type=float, default=0.0,
                        help="log: length of a view of which the log does not say it (0: it is left out)")
    parser.add_argument("--bad_rows", choices=("drop", "stop"), default="drop",
                        help="leave out rows that cannot be read, and count them, or stop at the first")
    parser.add_argument("--limit_users", type=int, help="keep the first so many people in the order of their ids")


def options_of(columns: str = "", utc_offset_hours: float = 0.0, room_gap_min: float = 30.0,
               default_watch_s: float = 0.0, bad_rows: str = "drop", limit_users: int | None = None) -> Options:
    """The flags of `add_options`. Raises: ValueError: if one is wrong."""
    return Options(log.parse_columns(columns), utc_offset_hours, room_gap_min, default_watch_s, bad_rows == "stop",
                   limit_users)


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads a log and writes it as canonical tables.")
    parser.add_argument("--source", required=True, choices=SOURCES)
    parser.add_argument("--data_dir", default="", help="the log: a file (log, twitch, amazon) or a folder; not for "
                        "simulated")
    parser.add_argument("--out_dir", default="", help="folder for the tables; it must be new or empty")
    parser.add_argument("--dry_run", action="store_true", help="only say how the log is understood")
    add_options(parser)
    for f in fields(SimulatorConfig):
        parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default,
                            help=f"simulated: {f.metadata['doc']}")
    said = vars(parser.parse_args())
    config = SimulatorConfig(**{f.name: said.pop(f.name) for f in fields(SimulatorConfig)})
    if (said["source"] == "simulated") == bool(said["data_dir"]):
        parser.error("--data_dir is needed, the log" if said["source"] != "simulated" else
                     "--data_dir has no meaning with --source=simulated, which makes its own log")
    if not said["out_dir"] and not said["dry_run"]:
        parser.error("--out_dir is needed, the folder for the tables (or --dry_run)")
    try:
        options = options_of(**{name: said.pop(name) for name in OPTION_FLAGS})
        print(printable("\n".join(prepare(options=options, simulator_config=config, **said))))
    except (ValueError, OSError) as error:
        parser.exit(1, printable(f"error: {error}\n"))


if __name__ == "__main__":
    main()
