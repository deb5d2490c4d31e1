"""Authors who share a semantic id: what tells them apart at the end of decoding, and what that is worth.

    python -m experiments.studies.collisions --config=experiments/configs/twitch.py --config.data.path=FILE.csv \
        --workdir=W [--seeds=0,1,2]

Four ways, on one log and one tokenizer per seed:

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

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("seeds", ["0"], "trainings")
    flags.read()

import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines.log.tasks import Task
from experiments.common import scoring, study
from experiments.common.tables import interval, table
from experiments.common.tower_scores import TowerScores
from experiments.stages.supervised import train_supervised
from onelive_jax.config import Config
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.files import write_json
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


def run_seed(config: Config, seed: int, workdir: Path) -> dict:
    """Trains the three models of a seed and judges the four ways; the result is kept."""
    return study.kept(workdir / study.RESULT, study.changed(config, {}, seed), lambda: judge(config, seed, workdir))


def judge(config: Config, seed: int, workdir: Path) -> dict:
    base, digit = workdir / "codes", workdir / "digit"
    codes_config = study.changed(config, {"model.identity": False}, seed)
    codes = study.train(codes_config, base, codes_config, base)
    identity = study.train(study.changed(config, {"model.identity": True}, seed), workdir / "identity", codes_config,
                           base)
    digit_config = study.changed(codes_config, {"tokenizer.levels": config.tokenizer.levels + 1, "model.loss_weights": (
        *config.model.loss_weights, config.model.loss_weights[-1])}, seed)
    study.share(base, digit, *study.LOG_PARTS)
    ids, over = with_digit(codes.tokenizer.ids, config.tokenizer.codes)
    longer = dataclasses.replace(codes.tokenizer, ids=ids)
    extra = study.Variant(digit_config, digit, codes.log, longer, *train_supervised(digit_config, digit, codes.log,
                                                                                    longer))
    log, tasks = codes.log, {split: scoring.targets(codes.log, codes_config, split, "strict")
                             for split in scoring.SPLITS}
    scores = {split: {} for split in tasks}
    for way, of, ties in (("random order", codes, None),
                          ("tower score", codes, TowerScores(codes.tokenizer, codes_config, log)),
                          ("extra digit", extra, None), ("identity head", identity, None)):
        rank = dataclasses.replace(scoring.make_ranker(of.model, of.config, of.tokenizer, log), ties=ties)
        maker = log.batch_maker(of.tokenizer.ids, of.config)
        for split, task in tasks.items():
            scores[split][way] = scoring.score(rank, of.params, maker, task)
    before_content = codes.tokenizer.ids.codes_at(np.arange(log.num_authors), np.iinfo(np.int64).min)
    figures = {"seed": seed, "authors": log.num_authors, "ids": len(np.unique(before_content, axis=0)),
               "numbers_modulo_k": over, "splits": {}}
    for split, task in tasks.items():
        shared = shared_on_air(codes.tokenizer.ids, task)
        ranks = {name: ranking_metrics.ranks(scores[split][name], task.offsets, task.position) for name in WAYS}
        figures["splits"][split] = {
            "targets": int(task.user.size), "targets_sharing_an_id_on_air": int(shared.sum()),
            "ways": {name: ranking_metrics.metrics(ranks[name], task.repeat, groups={SHARED: shared}) for name in WAYS},
            "above_random_order": {name: {
                group: ranking_metrics.difference(ranks[name][rows], ranks["random order"][rows])
                for group, rows in (("all", slice(None)), (SHARED, shared)) if shared.any() or group == "all"}
                for name in WAYS[1:]}}
    return figures


def format_study(seeds: list[dict]) -> str:
    """A table per split, a line per way: mean ± standard deviation over seeds; then the gain of each way over random
    order, seed by seed."""
    parts = []
    for split in scoring.SPLITS:
        each = [figures["splits"][split] for figures in seeds]
        counts = [f"{one['targets']:,} ({one['targets_sharing_an_id_on_air']:,})" for one in each]
        parts.append(f"{split}, strict protocol; targets (whose id another author on air has): {', '.join(counts)}")
        columns = [(group, figure) for group in ("all", SHARED) for figure in FIGURES]
        parts.append(table(["", *(f"{figure.upper()} {group}" for group, figure in columns)],
                           [[way, *(study.over_seeds([one["ways"][way][group][figure] for one in each])
                                    for group, figure in columns)] for way in WAYS]))
        parts.append("\nNDCG@10 above random order (95 % interval)\n")
        gains = [(way, figures["seed"], one["above_random_order"][way]) for way in WAYS[1:]
                 for figures, one in zip(seeds, each, strict=True)]
        parts.append(table(["", "seed", "all", SHARED], [[way, seed, *(
            f"{gain[group]['difference']:+.4f} ({interval(gain[group]['interval'], '+.4f')})" if group in gain else "-"
            for group in ("all", SHARED))] for way, seed, gain in gains]))
        parts.append("")
    return "\n".join(parts)


def main(config: Config, workdir: Path) -> None:
    seeds = []
    for seed in absl_flags.FLAGS.seeds:
        seeds.append(run_seed(config, int(seed), workdir / seed))
        write_json(workdir / "collisions.json", seeds)
        print(format_study(seeds), flush=True)
    for figures in seeds:
        print(f"seed {figures['seed']}: {figures['authors']:,} authors on {figures['ids']:,} ids before any content of "
              f"the moment; {figures['numbers_modulo_k']:,} numbers were taken modulo {config.tokenizer.codes}")
    print(workdir / "collisions.json")


if __name__ == "__main__":
    flags.run(main)
