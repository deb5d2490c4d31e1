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

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    flags.define_config("dynamic_ids")
    absl_flags.DEFINE_list("seeds", ["0", "1", "2"], "worlds and trainings")
    absl_flags.DEFINE_integer("world", None, "one world for all seeds, which are then trainings", lower_bound=0)
    flags.read()

from pathlib import Path

import numpy as np
from scipy import stats

from data_pipelines.simulator.world import make_world
from experiments.common import scoring, study
from experiments.common.log import Log
from experiments.common.tables import table
from onelive_jax.config import Config
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.files import write_json
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
    """Trains one variant (or finds it trained); metrics of the test period by group, which are kept.

    `world`: seed of the simulator; None for the seed of the training.
    """
    config = study.changed(config, {"simulator.seed": seed if world is None else world} | IDS[ids] | MODELS[model],
                           seed)
    folder, base = workdir / str(seed) / f"{ids}-{model}".replace(" ", "_"), workdir / str(seed) / "log"
    return study.kept(folder / study.RESULT, config, lambda: judge(
        study.train(config, folder, study.changed(config, SHARED, seed), base, share_towers=True)))


def judge(variant: study.Variant) -> dict[str, dict]:
    config, log, ids = variant.config, variant.log, variant.tokenizer.ids
    task = scoring.targets(log, config, "test", "strict")
    rank = scoring.make_ranker(variant.model, config, variant.tokenizer, log)
    scores = scoring.score(rank, variant.params, log.batch_maker(ids, config), task)
    ranks = ranking_metrics.ranks(scores, task.offsets, task.position)
    after_jump = jumped(log, config, task.view)
    rows = ranking_metrics.metrics(ranks, task.repeat, groups={"after_jump": after_jump,
                                                               "after_jump_new": after_jump & ~task.repeat})
    return rows | {"changed_codes": changed_codes(log, ids, task.view, after_jump)}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t-interval over seeds; one seed has no interval (its ends are the mean)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def format_study(results: dict[str, list[dict]]) -> str:
    """A line per variant, the differences to dynamic ids seed by seed, and how often codes changed."""
    names = {"all": "all", "new": "new", "after_jump": "after a jump", "after_jump_new": "after a jump, new"}
    head = [f"{figure.upper()} {names[group]}" for group, figure in FIGURES]

    def line(name: str, form: str, rows: list[dict], less: list[dict] | None = None) -> list[str]:
        values = [[row[group][figure] for row in rows] for group, figure in FIGURES]
        if less is not None:
            values = [[a - row[group][figure] for a, row in zip(each, less, strict=True)]
                      for each, (group, figure) in zip(values, FIGURES, strict=True)]
        return [name, *("{0:{3}} ({1:{3}} … {2:{3}})".format(*interval(each), form) for each in values)]

    dynamic = {model: results[f"dynamic, {model}"] for model in MODELS if f"dynamic, {model}" in results}
    parts = [table(["mean (95 % interval over seeds)", *head], [line(name, ".3f", rows)
                                                                for name, rows in results.items()]), ""]
    pairs = [(name, rows, dynamic.get(name.partition(", ")[2])) for name, rows in results.items()]
    parts += [table(["dynamic minus the other, seed by seed", *head], [
        line(name, "+.3f", whole, rows) for name, rows, whole in pairs if whole not in (None, rows)]), ""]
    cells = [[name, "; ".join(", ".join("{q0:.2f} ({id:.2f})".format(**shares) if shares else "-"
                                        for shares in row["changed_codes"].values()) for row in rows)]
             for name, rows in results.items()]
    parts.append(table([f"q0 (id) other than {JUMP_MINUTES:.0f} minutes before",
                        "views after a jump, the rest; by seed"], cells))
    return "\n".join(parts)


def main(config: Config, workdir: Path) -> None:
    seeds, world = [int(seed) for seed in absl_flags.FLAGS.seeds], absl_flags.FLAGS.world
    if world is not None:
        workdir /= f"world-{world}"
    results: dict[str, list[dict]] = {}
    for model in MODELS:
        for ids in IDS:
            results[f"{ids}, {model}"] = [run_variant(config, seed, ids, model, workdir, world) for seed in seeds]
            print(format_study(results), flush=True)
    write_json(workdir / "dynamic_ids.json", {"seeds": seeds, "world": world, "results": results})
    n = [row["after_jump"]["n"] for row in next(iter(results.values()))]
    print(f"\n{len(seeds)} seeds, {n} targets after a jump; {workdir / 'dynamic_ids.json'}")


if __name__ == "__main__":
    flags.run(main)
