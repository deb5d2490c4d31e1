"""Is it worth it that semantic ids follow the content of a room? Dynamic against static and against content-only ids.

    python -m experiments.studies.dynamic_ids --workdir=W [--seeds=0,1,2] [--world=N] [--config.simulator.users=…]

On the simulated platform, where it is known when a room's content jumped (a song, a sale, a battle). Every variant is
trained on the same log with the same settings but for its ids, and judged on the test period: over all targets, and
over those whose room had jumped in the ten minutes before the view, to something else than it showed before (of these
also over the new ones: a person returns to an author for other reasons than what is on). A seed is a world and a
training of its own; with --world=N, a training (towers, codebooks and model) in that one world, so that intervals over
seeds say how much trainings vary, and not worlds. All variants of a seed read the same towers: what differs is what is
quantized, and when.
"ids alone" is the model without its identity head: there only the ids say what is on. Runs are kept under
W/SEED/VARIANT (W/world-N/SEED/VARIANT) and a killed study resumes; the table is also dynamic_ids.json beside them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from scipy import stats

from data_pipelines.simulator.world import make_world
from experiments.ablate import changed
from experiments.common import flags, scoring
from experiments.common.log import Log, prepare
from experiments.common.workdir import flat, keep_result, kept_result, save_config
from experiments.stages.supervised import stage_settings, train_supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import Config
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.tokenizer.semantic_ids import IdTable

IDS: dict[str, dict[str, object]] = {
    "dynamic": {},
    "static": {"tokenizer.follow_content": False},
    "content only": {"tokenizer.embedding": "mllm"},
}
SHARED = {"tokenizer.follow_content": True, "tokenizer.embedding": "ia"}  # of the tokenizer whose towers all read
MODELS: dict[str, dict[str, object]] = {"whole model": {}, "ids alone": {"model.identity": False}}
JUMP_MINUTES = 10.0
WINDOW_MS = round(JUMP_MINUTES * 60_000)
SAME = 0.7  # content before and after a jump that is at least so alike (cosine) did not change: one theme, or none
FIGURES = (("after_jump", "hr@10"), ("after_jump_new", "hr@10"), ("new", "hr@10"), ("all", "hr@10"), ("all", "ndcg@10"))


def jumped(log: Log, config: Config, view: np.ndarray) -> np.ndarray:
    """bool [n]: views of a room whose content had jumped in the last JUMP_MINUTES before they began, to something else
    than it showed just before that jump."""
    room, time = log.views.room[view], log.views.start_ms[view]
    world = make_world(config.simulator)
    last = world.last_jump_ms(room, time)
    recent = (last >= 0) & (time - last <= WINDOW_MS)
    alike = np.einsum("nz,nz->n", world.content(room, np.where(recent, last - 1, time)), world.content(room, time))
    return recent & (alike < SAME)


def changed_codes(log: Log, ids: IdTable, view: np.ndarray, after_jump: np.ndarray) -> dict[str, dict[str, float]]:
    """Shares of views whose author's q0, and id, are others than JUMP_MINUTES before: after a jump, and the rest.

    Of views of a room that was on air then. An id that moves as often without a jump says nothing of the content.
    """
    author, time = log.views.author[view], log.views.start_ms[view]
    lasting = log.tables.rooms["start_ms"].to_numpy()[log.views.room[view]] <= time - WINDOW_MS
    differs = ids.codes_at(author, time) != ids.codes_at(author, time - WINDOW_MS)
    shares = {}
    for name, group in (("after_jump", after_jump & lasting), ("calm", ~after_jump & lasting)):
        part = differs[group]
        shares[name] = {"q0": float(part[:, 0].mean()), "id": float(part.any(1).mean())} if len(part) else {}
    return shares


def run_variant(config: Config, seed: int, ids: str, model: str, workdir: Path,
                world: int | None = None) -> dict[str, dict]:
    """Trains one variant (or finds it trained); metrics of the test period by group, kept in result.json.

    `world`: seed of the simulator; None for the seed of the training.
    """
    config = changed(config, {"simulator.seed": seed if world is None else world} | IDS[ids] | MODELS[model], seed)
    folder = workdir / str(seed) / f"{ids}, {model}".replace(", ", "-").replace(" ", "_")
    result, settings = folder / "result.json", stage_settings(config) | flat(config, "decoding")
    if (rows := kept_result(result, settings)) is not None:
        return rows
    folder.mkdir(parents=True, exist_ok=True)
    shared = workdir / str(seed) / "log"
    towers = train_tokenizer(changed(config, SHARED, seed), shared, prepare(config, shared))
    for part in ("data", "examples"):
        if not (folder / part).exists():
            shutil.copytree(shared / part, folder / part)
    log = prepare(config, folder)
    tokenizer = train_tokenizer(config, folder, log, towers)
    network, params, _ = train_supervised(config, folder, log, tokenizer)
    save_config(config, folder)
    task = scoring.targets(log, config, "test", "strict")
    rank = scoring.make_ranker(network, config, tokenizer, log)
    scores = scoring.score(rank, params, log.batch_maker(tokenizer.ids, config), task)
    ranks = ranking_metrics.ranks(scores, task.offsets, task.position)
    after_jump = jumped(log, config, task.view)
    rows = ranking_metrics.metrics(ranks, task.repeat, groups={"after_jump": after_jump,
                                                          "after_jump_new": after_jump & ~task.repeat})
    rows["changed_codes"] = changed_codes(log, tokenizer.ids, task.view, after_jump)
    keep_result(result, settings, rows)
    return rows


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t-interval over seeds; one seed has no interval (its ends are the mean)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def format_study(results: dict[str, list[dict]]) -> str:
    """A line a variant, and the differences to dynamic ids seed by seed."""
    group_name = {"all": "all", "new": "new", "after_jump": "after a jump", "after_jump_new": "after a jump, new"}
    lines = ["mean (95 % interval over seeds)".ljust(32) + "".join(
        f"{figure.upper()} {group_name[group]}".rjust(30) for group, figure in FIGURES)]
    value = lambda row, group, figure: row[group][figure]  # noqa: E731
    for name, rows in results.items():
        cells = []
        for group, figure in FIGURES:
            mean, low, high = interval([value(row, group, figure) for row in rows])
            cells.append(f"{mean:.3f} ({low:.3f} … {high:.3f})".rjust(30))
        lines.append(name.ljust(32) + "".join(cells))
    lines.append("dynamic minus the other, seed by seed")
    for name, rows in results.items():
        ids, _, model = name.partition(", ")
        if ids == "dynamic" or f"dynamic, {model}" not in results:
            continue
        cells = []
        for group, figure in FIGURES:
            mean, low, high = interval([value(a, group, figure) - value(b, group, figure)
                                        for a, b in zip(results[f"dynamic, {model}"], rows, strict=True)])
            cells.append(f"{mean:+.3f} ({low:+.3f} … {high:+.3f})".rjust(30))
        lines.append(f"  {name}".ljust(32) + "".join(cells))
    lines.append(f"q0 (id) other than {JUMP_MINUTES:.0f} minutes before: of views after a jump, of the rest; by seed")
    for name, rows in results.items():
        cells = ["{q0:.2f} ({id:.2f})".format(**shares) if shares else "-"
                 for row in rows for shares in row["changed_codes"].values()]
        lines.append(f"  {name}".ljust(32) + "; ".join(", ".join(cells[i:i + 2]) for i in range(0, len(cells), 2)))
    return "\n".join(lines)


def main(config: Config, workdir: Path) -> None:
    seeds, world = [int(seed) for seed in absl_flags.FLAGS.seeds], absl_flags.FLAGS.world
    if world is not None:
        workdir /= f"world-{world}"
    results: dict[str, list[dict]] = {}
    for model in MODELS:
        for ids in IDS:
            results[f"{ids}, {model}"] = [run_variant(config, seed, ids, model, workdir, world) for seed in seeds]
            print(format_study(results), flush=True)
    table = {"seeds": seeds, "world": world, "results": results}
    (workdir / "dynamic_ids.json").write_text(json.dumps(table, indent=1))
    n = [row["after_jump"]["n"] for row in next(iter(results.values()))]
    print(f"\n{len(seeds)} seeds, {n} targets after a jump; {workdir / 'dynamic_ids.json'}")


if __name__ == "__main__":
    flags.define_config(default_config="experiments/configs/dynamic_ids.py")
    absl_flags.DEFINE_list("seeds", ["0", "1", "2"], "worlds and trainings")
    absl_flags.DEFINE_integer("world", None, "one world for all seeds, which are then trainings", lower_bound=0)
    flags.run(main)
