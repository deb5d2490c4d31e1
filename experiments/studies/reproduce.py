"""What of the paper is repeated: every table and figure run by its command, and a page that sets both side by side
(python -m experiments.reproduce)."""

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onelive_jax.files import write_json, write_whole

logger = logging.getLogger(__name__)
RECORD, OUTPUT = "record.json", "output.txt"
Verdicts = list[tuple[str, bool]]  # (an ordering of the paper, whether it holds here)


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper.

    Attributes:
      title: heading of its section. module, flags: the command, without --workdir. needs: the flag of the command
        `reproduce` without which it cannot run ("" where it needs none). verdicts: folder of the run → orderings.
      why: what we think of it, where orderings do not hold.
    """

    title: str
    module: str
    flags: tuple[str, ...]
    verdicts: Callable[[Path], Verdicts] = lambda folder: []
    needs: str = ""
    why: str = ""


def items(twitch: str, amazon: str, seeds: int) -> dict[str, Item]:
    """By the name that --table and --figure know; paths may be empty."""
    return {
        "table1": Item("Table 1: utilization and collisions of ids", "experiments.table1", (), table1_verdicts,
                       why="code counts are scaled to fewer authors, and the content is simulated"),
        "public": Item("Before Table 2: baselines against public figures", "experiments.public_check", (
            "--config=amazon", f"--config.data.path={amazon}/Beauty.txt"), public_verdicts,
                       "amazon", "runs are cut to what two cores do in minutes"),
        "table2": Item("Table 2: baselines, a real log", "experiments.table2", (
            "--config=twitch", f"--config.data.path={twitch}", f"--seeds={seeds}"),
                       table2_verdicts, "twitch", "most views of this log go to a streamer whom the viewer knows, "
                       "about 50 are on air at a time, and counting is hard to beat"),
        "table2_world": Item("Table 2: baselines, a simulated world", "experiments.table2", (
            "--config=world", f"--seeds={seeds}"), table2_verdicts,
                             why="the world is small, and people's habits in it are simple"),
        "table3": Item("Table 3: components one after another", "experiments.table3", (f"--worlds={seeds}",),
                       table3_verdicts, why="models are far smaller than the paper's, and so is the world"),
        "table4": Item("Table 4: what multi-token prediction gains", "experiments.table4", (), table4_verdicts,
                       why="a CPU decodes a narrow model, where fixed costs weigh more"),
        "table5": Item("Table 5: policy losses and shares of requests", "experiments.table5", (), table5_verdicts,
                       why="1 % of a short run is a handful of policy groups"),
        "table6": Item("Table 6: online A/B test", "experiments.demo", (), why="both arms are played on the simulated "
                       "platform of the demonstration, whose true utility is known"),
        "figure3": Item("Figure 3: QK-norm", "experiments.studies.qk_norm", (
            "--config=demo",), why="the model is small and the run short"),
        "figure4": Item("Figure 4: scaling", "experiments.studies.scaling", ("--config=demo",),
                        why="sizes are far below the paper's"),
    }


def run_item(name: str, item: Item, workdir: Path) -> dict:
    """Runs the command of an item in W/NAME, unless it is done; a stopped one goes on. Returns its record.

    Raises: ValueError where the command failed, with what it said last.
    """
    folder = workdir / name
    command = ["-m", item.module, *item.flags, f"--workdir={folder}"]
    record = read_record(folder) or {"seconds": 0.0, "runs": 0, "done": False}
    if record["done"] and record["flags"] == list(item.flags):
        logger.info("%s is done", name)
        return record
    logger.info("python %s", shlex.join(command))
    began, load = time.perf_counter(), os.getloadavg()[0]
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=False)
    record |= {"module": item.module, "flags": list(item.flags), "runs": record["runs"] + 1, "load": load,
               "seconds": record["seconds"] + time.perf_counter() - began, "done": done.returncode == 0}
    write_json(folder.with_name(f"{name}.{RECORD}"), record)
    if done.returncode:
        raise ValueError(f"{name}: python {shlex.join(command)} ended with code {done.returncode}; what it finished is "
                         "kept, the same command goes on")
    write_whole(folder.with_name(f"{name}.{OUTPUT}"), done.stdout)
    return record


def read_record(folder: Path) -> dict | None:
    file = folder.with_name(f"{folder.name}.{RECORD}")
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def page(known: dict[str, Item], workdir: Path) -> str:
    """docs/reproduce.md: what has been run in this workdir, and what has not."""
    parts = ["# The paper's tables and figures, repeated", "Written by `python -m experiments.reproduce --workdir=W`. "
             "Hours are those of the run on one machine of two cores, other work on it included. The paper's data are "
             "private: only orderings and ratios can be compared."]
    for name, item in known.items():
        record, output = read_record(workdir / name), workdir / f"{name}.{OUTPUT}"
        parts.append(f"## {item.title}")
        shown = shlex.join(["python", "-m", item.module, *item.flags, "--workdir=W"])
        parts.append(f"```\n{shown}\n```")
        if record is None or not record["done"] or not output.is_file():
            parts.append("Not run yet.")
            continue
        parts.append(f"{record['seconds'] / 3600:.2f} hours in {record['runs']} run(s), load {record['load']:.1f} when "
                     "the last one began.")
        parts += [f"```\n{output.read_text('utf-8').strip()}\n```", sentence(item, workdir / name)]
    return "\n\n".join(parts) + "\n"


def sentence(item: Item, folder: Path) -> str:
    """Which orderings of the paper hold here, which do not, and why we think so."""
    found = item.verdicts(folder)
    if not found:
        return f"No ordering is checked: {item.why}."
    holds, fails = ([text for text, holds in found if holds is wanted] for wanted in (True, False))
    parts = [f"{len(holds)} of {len(found)} orderings of the paper hold here"]
    parts += ["those that do not: " + "; ".join(fails)] if fails else []
    return ", ".join(parts) + (f" (we think because {item.why})" if fails else "") + "."


def _json(folder: Path, name: str):
    file = folder / name
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def table1_verdicts(folder: Path) -> Verdicts:
    from experiments.studies import table1

    rows = {tuple(row["key"]): row["figures"] for row in _json(folder, "table1.json") or []}
    return [(text, verdict == "holds") for verdict, text, *_ in table1.verdicts(rows)]


def public_verdicts(folder: Path) -> Verdicts:
    """Whether ours reach the lowest published figure of the same model, by R@10."""
    from experiments.studies.public_check import PUBLISHED

    rows = _json(folder, "public_check.json") or {}
    return [(f"{name} reaches R@10 {least:.4f}", row["figures"][1] >= least) for name, row in rows.items()
            if (least := min((figures[1] for (model, _), figures in PUBLISHED.items() if model.lower() == name),
                             default=None)) is not None]


def table2_verdicts(folder: Path) -> Verdicts:
    """Every two methods of the paper's table, by MRR@128 of clicks."""
    from experiments.studies.table2 import PAPER

    found = {row["title"]: sum(seed["mrr@128"] for seed in row["seeds"]) / len(row["seeds"])
             for row in (_json(folder, "table2.json") or {}).values()}
    ranked = sorted((name for name in PAPER if name in found), key=lambda name: -PAPER[name][7])
    return [(f"{high} above {low}", found[high] > found[low]) for i, high in enumerate(ranked)
            for low in ranked[i + 1:]]


def table3_verdicts(folder: Path) -> Verdicts:
    """Every rung against the one before, by HR@128."""
    from experiments.studies.table3 import RUNGS

    rows = _json(folder, "table3.json") or {}
    names = [name for name in RUNGS if name in rows]
    mean = {name: sum(world["HR@128"] for world in rows[name]) / len(rows[name]) for name in names}
    result = []
    for before, name in zip(names, names[1:], strict=False):
        if RUNGS[name][1] != RUNGS[before][1]:
            up = RUNGS[name][1] > RUNGS[before][1]
            result.append((f"“{name}” {'above' if up else 'below'} the rung before",
                           (mean[name] > mean[before]) == up and mean[name] != mean[before]))
    return result


def table4_verdicts(folder: Path) -> Verdicts:
    rows = {(row["layers"], row["mtp"]): row["qps"] for row in (_json(folder, "table4.json") or {}).get("table", [])}
    if not rows:
        return []
    gain = {layers: rows[layers, True] / rows[layers, False] for layers in (6, 3)}
    return [(f"MTP gains throughput with {layers} layers", gain[layers] > 1) for layers in (6, 3)] + [
        ("it gains more with 6 layers than with 3", gain[6] > gain[3])]


def table5_verdicts(folder: Path) -> Verdicts:
    """The paper says that GRPO is better than DPO: by true utility, at every share."""
    worlds = _json(folder, "table5.json") or []
    names = list(worlds[0]) if worlds else []
    shares = [name.removeprefix("grpo ") for name in names if name.startswith("grpo ")]
    mean = {name: sum(world[name]["utility"] for world in worlds) / len(worlds) for name in names}
    return [(f"GRPO above DPO at a share of {share}", mean[f"grpo {share}"] > mean[f"dpo {share}"]) for share in shares
            if f"dpo {share}" in mean]
