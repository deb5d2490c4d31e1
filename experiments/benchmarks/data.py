"""How long it takes, and how much memory, to prepare a log as large as KuaiLive, and to make batches from it.

    python -m experiments.benchmarks.data --what=prepare --workdir=/tmp/kuailive_size
    python -m experiments.benchmarks.data --what=loader --workdir=/tmp/kuailive_size      (prepares it first)
    python -m experiments.benchmarks.data --what=growth --workdir=/tmp/growth             (a table: 1, 10 and 50 times)

Writes a folder in KuaiLive's form with its numbers of rows (about 2.5 GB, a few minutes, once a workdir), then prepares
it in a process of its own with `python -m data_pipelines.prepare` and prints that process's wall time, peak memory and
the size of what it wrote. Rows are random, with heavy tails where the real ones have them: this measures size only.
"""

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    absl_flags.DEFINE_enum("what", "prepare", ["prepare", "loader", "growth"], "what is measured")
    absl_flags.DEFINE_string("workdir", None, "folder for the log and its tables", required=True)
    absl_flags.DEFINE_float("scale", 1.0, "size as a share of KuaiLive's", lower_bound=0.0)
    flags.read(plain=True)

import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.readers import kuailive
from data_pipelines.simulator.formats import CONSTANTS
from experiments.benchmarks.loader import benchmark_loader
from experiments.common.tables import table as text_table
from onelive_jax.files import write_json

# Rows of the real files.
SIZES = {"users": 23_772, "streamers": 452_621, "rooms": 11_613_708, "clicks": 4_909_515, "comments": 196_526,
         "likes": 179_311, "gifts": 72_646, "negatives": 12_700_000, "titles": 500_000}
START_MS, DAYS, DAY_MS = 1_746_288_000_000, 21, 86_400_000  # 2025-05-04 in Beijing
LIMIT_S, LIMIT_GB = 300, 8.0


def write_folder(folder: Path, scale: float = 1.0, seed: int = 0) -> None:
    """Writes a folder in KuaiLive's form, `scale` times as large in every file; files are marked whole at the end."""
    done = folder / "sizes.json"
    sizes = {name: max(2, round(count * scale)) for name, count in SIZES.items()}
    if done.is_file() and json.loads(done.read_text()) == sizes | {"seed": seed}:
        return
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    rng = np.random.default_rng(seed)
    fans = rng.lognormal(0, 2.0, sizes["streamers"])
    start, end, streamer = _rooms(rng, sizes)
    live_id = rng.permutation(sizes["rooms"])
    _write_rooms(folder / "room.csv", rng, sizes, live_id, streamer, start, end)

    # A room is entered in proportion to the fans of its streamer.
    order = np.argsort(streamer, kind="stable")
    first = np.searchsorted(streamer[order], np.arange(sizes["streamers"] + 1))
    draw = np.cumsum(np.where(np.diff(first) > 0, fans, 0))
    activity = np.cumsum(rng.lognormal(0, 1.2, sizes["users"]))

    def moments(count: int) -> dict[str, np.ndarray]:
        who = np.searchsorted(draw / draw[-1], rng.random(count))
        room = order[first[who] + (rng.random(count) * (first[who + 1] - first[who])).astype(np.int64)]
        at = start[room] + (rng.random(count) * (end[room] - start[room])).astype(np.int64)
        user = np.searchsorted(activity / activity[-1], rng.random(count))
        return {"user_id": user, "live_id": live_id[room], "streamer_id": streamer[room], "timestamp": at}

    clicks = moments(sizes["clicks"])
    watch = np.minimum(rng.lognormal(9.5, 2.0, sizes["clicks"]).astype(np.int64), 6 * 3_600_000)
    _write(folder / "click.csv", clicks | {"watch_live_time": watch})
    for name in ("comment", "like", "gift"):
        rows = rng.integers(sizes["clicks"], size=sizes[name + "s"])
        events = {key: values[rows] for key, values in clicks.items()}
        events["timestamp"] = events["timestamp"] + (rng.random(rows.size) * watch[rows]).astype(np.int64)
        price = {"gift_price": np.ceil(rng.lognormal(1.0, 2.0, rows.size)).astype(np.int64)} if name == "gift" else {}
        _write(folder / f"{name}.csv", events | price)
    _write(folder / "negative.csv", moments(sizes["negatives"]))
    for name, count in (("user.csv", sizes["users"]), ("streamer.csv", sizes["streamers"])):
        columns = [column.name for column in kuailive.FILES[name]]
        pl.DataFrame({columns[0]: np.arange(count)}).with_columns(
            pl.lit(CONSTANTS[column]).alias(column) for column in columns[1:]).write_csv(folder / name)
    np.save(folder / "title_embeddings.npy", rng.standard_normal((sizes["titles"], 128), dtype=np.float32))
    write_json(done, sizes | {"seed": seed})


def _rooms(rng, sizes: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start_ms, end_ms, streamer) of rooms, int64, sorted by start: more of them towards the evening."""
    count = sizes["rooms"]
    hour = np.cumsum(np.exp(np.cos(2 * np.pi * (np.arange(24) - 20) / 24)))
    clock = (np.searchsorted(hour / hour[-1], rng.random(count)) + rng.random(count)) / 24
    start = np.sort(START_MS + ((rng.integers(DAYS, size=count) + clock) * DAY_MS).astype(np.int64))
    end = start + np.maximum(rng.lognormal(14.0, 1.3, count), 1_000).astype(np.int64)
    rate = np.cumsum(rng.lognormal(0, 1.0, sizes["streamers"]))
    return start, np.minimum(end, start + 3 * DAY_MS), np.searchsorted(rate / rate[-1], rng.random(count))


def _write_rooms(path: Path, rng, sizes, live_id, streamer, start, end) -> None:
    """room.csv: a second row for rooms that end on another day, and no end for those that outlast the log."""
    frame = pl.DataFrame({
        "live_id": live_id, "streamer_id": streamer, "live_type": np.ones(len(live_id), np.int8),
        "start_timestamp": start, "end_timestamp": end, "live_content_category": rng.integers(40, size=len(live_id)),
        "live_name_id": rng.integers(sizes["titles"], size=len(live_id))})
    frame = frame.with_columns(p_date=(pl.col("start_timestamp") - START_MS) // DAY_MS,
                               last=(pl.col("end_timestamp") - START_MS) // DAY_MS)
    names = pl.Series([f"202505{4 + day:02d}" for day in range(DAYS)])
    again = frame.filter((pl.col("last") != pl.col("p_date")) & (pl.col("last") < DAYS)).with_columns(p_date="last")
    frame = pl.concat([frame, again]).with_columns(
        pl.when(pl.col("last") < DAYS).then("end_timestamp").alias("end_timestamp"),
        pl.concat_str(pl.lit("cat"), "live_content_category").alias("live_content_category"))
    frame = frame.sort("p_date", maintain_order=True).with_columns(p_date=names.gather(
        frame.sort("p_date", maintain_order=True)["p_date"]))
    frame.select("p_date", pl.exclude("p_date", "last")).write_csv(path)


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    pl.DataFrame(columns).sort("timestamp").write_csv(path)


def write_views(path: Path, source: str, rows: int, seed: int = 0) -> None:
    """Writes so many random views: of source=log with a header, text ids, likes and categories, or of twitch."""
    rng = np.random.default_rng(seed)
    people, streamers = max(2, rows // 20), max(2, rows // 200)
    user = np.minimum(rng.zipf(1.3, rows), people)
    author = np.minimum(rng.zipf(1.2, rows), streamers)
    start = rng.integers(0, 42 * 144, rows)  # of six weeks, rounds of ten minutes
    room = author * 1000 + start // 24  # a broadcast is four hours of a streamer
    if source == "twitch":
        stop = start + rng.geometric(0.5, rows)
        pl.DataFrame({"user": user, "room": room, "author": author, "start": start, "stop": stop}
                     ).write_csv(path, include_header=False)
        return
    watch = np.ceil(rng.lognormal(4, 1.5, rows)).astype(np.int64)
    frame = pl.DataFrame({"user": user, "room": room, "author": author, "start": START_MS + start * 600_000,
                          "watch": watch, "likes": rng.poisson(0.1, rows)})
    frame = frame.with_columns(pl.col("start") + rng.integers(600_000, size=rows))
    frame.select(pl.format("u{}", "user").alias("user_id"), pl.format("r{}", "room").alias("room"),
                 pl.format("s{}", "author").alias("streamer"), pl.from_epoch("start", "ms").alias("joined_at"),
                 pl.col("watch").alias("watch_secs"), "likes",
                 pl.format("game {}", pl.col("author") % 40).alias("category"),
                 ).write_csv(path, datetime_format="%Y-%m-%d %H:%M:%S%.3f")


def measured(source: str, log: Path, out: Path) -> dict[str, float]:
    """Wall and processor seconds and peak memory in GB of `data_pipelines.prepare` in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    begun, before, peak = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN), 0
    child = subprocess.Popen([sys.executable, "-m", "data_pipelines.prepare", f"--source={source}", f"--data_dir={log}",
                              f"--out_dir={out}"])
    while child.poll() is None:  # ru_maxrss of a child holds its parent's, from before it was another program
        said = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
        peak = int(said[1]) if said else peak
        time.sleep(0.02)
    if child.returncode:
        raise ValueError(f"{log} could not be prepared")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.time() - begun, "cpu_seconds": cpu, "memory_gb": peak * 1024 / 1e9}


def benchmark_prepare(workdir: Path, scale: float) -> dict[str, float]:
    """`measured` of the folder, and the size of its tables in GB; prints them."""
    folder, out = workdir / f"kuailive_{scale:g}", workdir / "tables"
    begun = time.time()
    write_folder(folder, scale)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e9:.2f} GB, written in {time.time() - begun:.0f} s", flush=True)
    used = measured("kuailive", folder, out)
    used["disk_gb"] = sum(path.stat().st_size for path in out.iterdir()) / 1e9
    print(f"prepared in {used['seconds']:.0f} s (limit {LIMIT_S}; {used['cpu_seconds']:.0f} s of processor time), peak "
          f"memory {used['memory_gb']:.2f} GB (limit {LIMIT_GB:g}), {used['disk_gb']:.2f} GB of tables")
    return used


def benchmark_growth(workdir: Path, times: tuple[int, ...] = (1, 10, 50)) -> list[list[str]]:
    """`measured` of logs that are `times` as large; prints a table, and returns its rows.

    What is in the workdir's growth.json is not measured again: an interrupted run goes on.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    table, record = [], workdir / "growth.json"
    known = json.loads(record.read_text()) if record.is_file() else {}
    for source, rows in (("log", 60_000), ("twitch", 100_000), ("kuailive", 36_116)):
        found = []
        for n in times:
            log = workdir / f"{source}_{n}{'' if source == 'kuailive' else '.csv'}"
            if log.name not in known:
                if source == "kuailive":
                    write_folder(log, 0.002 * n)
                else:
                    write_views(log, source, rows * n)
                known[log.name] = measured(source, log, workdir / "out")
                write_json(record, known)
                shutil.rmtree(workdir / "out")
            found.append(known[log.name])
        more = (found[-1]["cpu_seconds"] - found[0]["cpu_seconds"]) / (rows * (times[-1] - times[0])) * 1e6
        table.append([source, f"{rows:,}", *(f"{f['seconds']:.1f} s, {f['cpu_seconds']:.1f} s, {f['memory_gb']:.2f} GB"
                                             for f in found), f"{more:.1f} s"])
    print(text_table(["source", "rows", *(f"{n}x: wall, processor, memory" for n in times), "a further million rows"],
                     table))
    return table


def main() -> None:
    values = absl_flags.FLAGS
    workdir = Path(values.workdir).expanduser()
    if values.what == "growth":
        benchmark_growth(workdir)
        return
    if values.what == "prepare" or not (workdir / "tables" / "report.json").is_file():
        benchmark_prepare(workdir, values.scale)
    if values.what == "loader":
        benchmark_loader(workdir / "tables", workdir / "run")


if __name__ == "__main__":
    flags.run_plain(main)
