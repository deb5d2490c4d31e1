"""A log becomes a folder of canonical tables.

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
from data_pipelines.readers import kuailive, kuailive_m3, twitch
from data_pipelines.simulator import simulation
from data_pipelines.tables import Tables
from onelive_jax.config import SimulatorConfig

SOURCES = ("kuailive", "kuailive_m3", "twitch", "simulated")
SETTINGS = "prepare.json"  # written first: whose folder this is


def read_source(source: str, path: str | Path, limit_users: int | None = None,
                simulator_config: SimulatorConfig | None = None, progress: bool = True,
                drop_unknown_rooms: bool = False) -> Tables:
    """The canonical tables of a log.

    Args:
      source: one of SOURCES, or "canonical" for tables that are already made.
      path: folder of the log; for twitch a file, or a folder that holds one .csv; not used for "simulated".
      limit_users: keep the first so many people in the order of their ids; the Kuaishou sources only.
      simulator_config: size and seed, for "simulated".
      progress: bars on a terminal. drop_unknown_rooms: see the readers of the Kuaishou sources.

    Raises:
      FileNotFoundError: if there is no such file or folder.
      ValueError: if the content breaks the source's form, with file, line and column, or the source is not known.
    """
    if source in ("kuailive", "kuailive_m3"):
        read = kuailive.read_kuailive if source == "kuailive" else kuailive_m3.read_kuailive_m3
        return read(path, limit_users, progress, drop_unknown_rooms)
    if limit_users is not None:
        raise ValueError(f"limit_users={limit_users} is for kuailive and kuailive_m3; source={source!r} is read whole")
    if source == "twitch":
        return twitch.read_twitch(_only_csv(Path(path)))
    if source == "simulated":
        return simulation.simulate(simulator_config or SimulatorConfig())
    if source == "canonical":
        return tables_lib.load(path)
    raise ValueError(f"source={source!r} is not one of {', '.join(SOURCES)}, canonical")


def prepare(out_dir: str | Path, source: str, data_dir: str | Path = "", limit_users: int | None = None,
            simulator_config: SimulatorConfig | None = None, progress: bool = True, drop_unknown_rooms: bool = False
            ) -> list[str]:
    """Reads a log and writes its canonical tables; returns the lines of the summary.

    Raises:
      ValueError: if `out_dir` holds anything but tables, whole or not, that the same call began to write; and as
        `read_source`.
    """
    out_dir = Path(out_dir)
    settings = {"source": source, "data_dir": str(Path(data_dir).resolve()) if data_dir else "",
                "bytes": _size(Path(data_dir)) if data_dir else 0, "limit_users": limit_users,
                "drop_unknown_rooms": drop_unknown_rooms,
                "simulator": asdict(simulator_config or SimulatorConfig()) if source == "simulated" else {}}
    if _is_ours(out_dir, settings) and (out_dir / "report.json").is_file():
        tables = tables_lib.load(out_dir)
        return [f"{out_dir} is already made; its log:", *tables.report.lines()]
    tables = read_source(source, data_dir, limit_users, simulator_config, progress, drop_unknown_rooms)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / SETTINGS).write_text(json.dumps(settings, indent=1))
    tables_lib.save(tables, out_dir)
    rows = {name: len(frame) for name in tables_lib.REQUIRED + tables_lib.OPTIONAL
            if (frame := getattr(tables, name)) is not None}
    return [*tables.report.lines(), *[f"{name}: {count:,} rows" for name, count in rows.items()],
            f"{out_dir}: {_size(out_dir) / 1e6:,.1f} MB"]


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


def _only_csv(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted([*path.glob("*.csv"), *path.glob("*.csv.gz")])
    if len(files) != 1:
        raise ValueError(f"{path} holds {len(files)} .csv files, one is needed: give the path of the log itself")
    return files[0]


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 if there is none."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads a log and writes it as canonical tables.")
    parser.add_argument("--source", required=True, choices=SOURCES)
    parser.add_argument("--data_dir", default="", help="folder (or, for twitch, file) of the log; not for simulated")
    parser.add_argument("--out_dir", required=True, help="folder for the tables; it must be new or empty")
    parser.add_argument("--limit_users", type=int, help="keep the first so many people in the order of their ids")
    parser.add_argument("--drop_unknown_rooms", action="store_true",
                        help="leave out comments, likes and gifts of rooms that the log does not list, and count them")
    for f in fields(SimulatorConfig):
        parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default,
                            help=f"simulated: {f.metadata['doc']}")
    options = vars(parser.parse_args())
    config = SimulatorConfig(**{f.name: options.pop(f.name) for f in fields(SimulatorConfig)})
    if (options["source"] == "simulated") == bool(options["data_dir"]):
        parser.error("--data_dir is needed, the folder of the log" if options["source"] != "simulated" else
                     "--data_dir has no meaning with --source=simulated, which makes its own log")
    try:
        print("\n".join(prepare(simulator_config=config, **options)))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
