"""Authors who share a semantic id: what tells them apart at the end of decoding, and what that is worth.

    python -m experiments.studies.collisions --config=experiments/configs/twitch.py --config.data.path=FILE.csv \
        --workdir=W [--seeds=0,1,2]

Four ways, on one log and one tokenizer a seed:

- random order: a model of codes alone (model.identity=False); authors of one id tie, and a tie counts as its
  expectation over all orders;
- tower score: the same model, decoded with the towers' score of user and author at that moment as tie-break
  (config.decoding.tie_break="towers", the paper's way);
- extra digit: a model of codes alone with one code more, the number of an author among those of its id;
- identity head: our model as it is, whose head scores rooms beside the codes.

Judged on the strict targets of validation and test: all of them, and those that another author on air shares the id
with. Trainings are kept under W/SEED/{codes,digit,identity}, and a killed study goes on; figures are also
W/collisions.json.

Axes: R requests, C candidates of all requests (flat), A authors, L levels.
"""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from data_pipelines.log.tasks import Task
from experiments.ablate import changed
from experiments.common import flags, scoring
from experiments.common.log import prepare
from experiments.common.tower_scores import TowerScores
from experiments.common.workdir import flat, keep_result, kept_result
from experiments.stages.supervised import stage_settings, train_supervised
from experiments.stages.tokenizer import train_tokenizer
from onelive_jax.config import Config
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.tokenizer.semantic_ids import IdTable

WAYS = ("random order", "tower score", "extra digit", "identity head")
FIGURES = ("ndcg@10", "hr@1", "hr@10")
SHARED = "id shared on air"


def numbered(ids_AxL: np.ndarray, codes: int) -> tuple[np.ndarray, int]:
    """(int32 [A], each author's number among the authors of its id, modulo K; how many numbers were K or more)."""
    _, group = np.unique(ids_AxL, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], group[order])
    number = np.empty(len(group), np.int64)
    number[order] = np.arange(len(group)) - first
    return (number % codes).astype(np.int32), int((number >= codes).sum())


def with_digit(ids: IdTable, codes: int) -> tuple[IdTable, int]:
    """The table with a further code: an author's number among those of its first id; and how many were K or more.

    The number stays with the author while its other codes move: two authors can then meet with one number.
    """
    first = ids.codes_at(np.arange(ids.num_authors), np.iinfo(np.int64).min)
    digit, over = numbered(first, codes)
    return IdTable(ids.author, ids.from_ms, np.column_stack([ids.codes, digit[ids.author]])), over


def shared_on_air(ids: IdTable, task: Task) -> np.ndarray:
    """bool [R]: another author on air at the request has the very id of the one watched."""
    request_C = np.repeat(np.arange(task.user.size), np.diff(task.offsets))
    codes_CxL = ids.codes_at(task.candidates, task.time_ms[request_C])
    target_RxL = ids.codes_at(task.target, task.time_ms)
    same_C = (codes_CxL == target_RxL[request_C]).all(axis=1)
    return np.bincount(request_C[same_C], minlength=task.user.size) > 1


def ranked(scores_C: np.ndarray, task: Task) -> np.ndarray:
    return ranking_metrics.ranks(scores_C, task.offsets, task.position)


def run_seed(config: Config, seed: int, workdir: Path) -> dict:
    """Trains the three models of a seed (or finds them trained) and judges the four ways."""
    result, made_with = workdir / "result.json", stage_settings(config) | flat(config, "decoding")
    if (figures := kept_result(result, made_with)) is not None:
        return figures
    codes_config = changed(config, {"model.identity": False}, seed)
    folders = {name: workdir / name for name in ("codes", "digit", "identity")}
    log = prepare(codes_config, folders["codes"])
    tokenizer = train_tokenizer(codes_config, folders["codes"], log)
    for name, parts in (("digit", ("data", "examples")), ("identity", ("data", "examples", "tokenizer"))):
        for part in parts:
            if not (folders[name] / part).exists():
                shutil.copytree(folders["codes"] / part, folders[name] / part)
    digit_config = changed(codes_config, {"tokenizer.levels": config.tokenizer.levels + 1, "model.loss_weights": (
        *config.model.loss_weights, config.model.loss_weights[-1])}, seed)
    digits, over = with_digit(tokenizer.ids, config.tokenizer.codes)
    digit_tokenizer = copy.copy(tokenizer)
    digit_tokenizer.ids = digits
    # (settings, tokenizer) of each model; the ways that it serves come below.
    models = {"codes": (codes_config, tokenizer), "digit": (digit_config, digit_tokenizer),
              "identity": (changed(config, {"model.identity": True}, seed), tokenizer)}
    tasks = {split: scoring.targets(log, codes_config, split, "strict") for split in scoring.SPLITS}
    scores = {split: {} for split in tasks}
    way = {"codes": "random order", "digit": "extra digit", "identity": "identity head"}
    for name, (settings, its_tokenizer) in models.items():
        network, params, _ = train_supervised(settings, folders[name], log, its_tokenizer)
        maker = log.batch_maker(its_tokenizer.ids, settings)
        rank = scoring.make_ranker(network, settings, its_tokenizer, log)
        for split, task in tasks.items():
            scores[split][way[name]] = scoring.score(dataclasses.replace(rank, ties=None), params, maker, task)
            if name == "codes":
                towers = dataclasses.replace(rank, ties=TowerScores(its_tokenizer, settings, log))
                scores[split]["tower score"] = scoring.score(towers, params, maker, task)
    base = tokenizer.ids.codes_at(np.arange(log.num_authors), np.iinfo(np.int64).min)
    figures = {"seed": seed, "authors": log.num_authors, "ids": len(np.unique(base, axis=0)),
               "numbers_modulo_k": over, "splits": {}}
    for split, task in tasks.items():
        shared = shared_on_air(tokenizer.ids, task)
        ranks = {name: ranked(scores[split][name], task) for name in WAYS}
        figures["splits"][split] = {
            "targets": int(task.user.size), "targets_sharing_an_id_on_air": int(shared.sum()),
            "ways": {name: ranking_metrics.metrics(ranks[name], task.repeat, groups={SHARED: shared}) for name in WAYS},
            "above_random_order": {name: {
                group: ranking_metrics.difference(ranks[name][rows], ranks["random order"][rows])
                for group, rows in (("all", slice(None)), (SHARED, shared)) if shared.any() or group == "all"}
                for name in WAYS[1:]}}
    keep_result(result, made_with, figures)
    return figures


def format_study(seeds: list[dict]) -> str:
    """A table a split: a line a way, mean over seeds; then what each way gains over random order, seed by seed."""
    lines = []
    for split in scoring.SPLITS:
        each = [figures["splits"][split] for figures in seeds]
        counts = [f"{one['targets']:,} ({one['targets_sharing_an_id_on_air']:,})" for one in each]
        lines.append(f"{split}, strict protocol; targets (whose id another author on air has): {', '.join(counts)}")
        lines.append("".ljust(16) + "".join(f"{figure.upper() + ' ' + group:>26}" for group in ("all", SHARED)
                                            for figure in FIGURES))
        for name in WAYS:
            cells = []
            for group in ("all", SHARED):
                for figure in FIGURES:
                    values = [one["ways"][name][group][figure] for one in each]
                    values = [value for value in values if value is not None]
                    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
                    cells.append((f"{np.mean(values):.4f}{spread}" if values else "-").rjust(26))
            lines.append(name.ljust(16) + "".join(cells))
        for name in WAYS[1:]:
            gains = [", ".join(f"{group} {row['difference']:+.4f} ({' … '.join(f'{x:+.4f}' for x in row['interval'])})"
                               for group, row in one["above_random_order"][name].items()) for one in each]
            lines.append(f"  NDCG@10 of {name} above random order, by seed: " + "; ".join(gains))
        lines.append("")
    return "\n".join(lines)


def main(config: Config, workdir: Path) -> None:
    seeds = []
    for seed in absl_flags.FLAGS.seeds:
        seeds.append(run_seed(config, int(seed), workdir / seed))
        (workdir / "collisions.json").write_text(json.dumps(seeds, indent=1))
        print(format_study(seeds), flush=True)
    for figures in seeds:
        print(f"seed {figures['seed']}: {figures['authors']:,} authors on {figures['ids']:,} ids before any content of "
              f"the moment; {figures['numbers_modulo_k']:,} numbers were taken modulo {config.tokenizer.codes}")
    print(workdir / "collisions.json")


if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("seeds", ["0"], "trainings")
    flags.run(main)
