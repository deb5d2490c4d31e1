"""Authors who share a semantic id: what tells them apart at the end of decoding, and what that is worth.

    python -m experiments.collisions --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W \
        [--seeds=0,1,2]

Four ways, on one log and one tokenizer a seed:

- random order: a model of codes alone (model.identity=False); authors of one id tie, and a tie counts as its
  expectation over all orders;
- tower score: the same model, ties by the towers' score of user and author at that moment (the paper's way);
- extra digit: a model of codes alone with one code more, the number of an author among those of its id;
- identity head: our model as it is, whose head scores rooms beside the codes.

Judged on the strict targets of validation and test: all of them, and those that another author on air shares the id
with. Trainings are kept under W/SEED/{codes,digit,identity}, and a killed study goes on; figures are also
W/collisions.json.

Axes: R requests, C candidates of all requests (flat), T history views, A authors, L levels, D embedding width.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from data_pipelines.content import Content, author_content
from experiments import flags, scoring
from experiments.ablate import changed
from experiments.prepare import Log, prepare
from experiments.tasks import Task
from experiments.train_supervised import train_supervised
from experiments.train_tokenizer import Tokenizer, side_features_of, train_tokenizer
from onelive_jax import evaluation
from onelive_jax.config import Config
from onelive_jax.tokenizer import towers
from onelive_jax.tokenizer.semantic_ids import IdTable

WAYS = ("random order", "tower score", "extra digit", "identity head")
FIGURES = ("ndcg@10", "hr@1", "hr@10")
SHARED = "id shared on air"
ROWS = 200_000  # author embeddings made at once
REQUESTS = 1024  # user embeddings made at once


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


def break_ties(scores_C: np.ndarray, second_C: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """float32 [C]: within each request the order of `scores`, candidates of equal score in that of `second`.

    −inf (not returned) stays −inf; equal in both stays a tie.
    """
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((second_C, scores_C, row))
    differs = np.append(False, (np.diff(row[order]) != 0) | (np.diff(second_C[order]) != 0)
                        | (scores_C[order][1:] != scores_C[order][:-1]))
    place = np.cumsum(differs)
    result = np.empty(len(order), np.float32)
    # Places within a request, so that float32 holds them exactly.
    result[order] = place - place[np.asarray(offsets)[:-1]][row[order]] if len(order) else 0.0
    return np.where(np.isneginf(scores_C), -np.inf, result).astype(np.float32)


def tower_scores(tokenizer: Tokenizer, config: Config, log: Log, content: Content | None, task: Task) -> np.ndarray:
    """float32 [C], what the towers alone say of each candidate: user and author as of the request's moment."""
    c, views = config.tokenizer, log.views
    request_C = np.repeat(np.arange(task.user.size), np.diff(task.offsets))
    row_C = np.full(task.candidates.size, -1)
    if content is not None:
        row_C = content.row_at(task.candidates, task.time_ms[request_C])
    pair, which_C = np.unique(np.stack([task.candidates, row_C]), axis=1, return_inverse=True)
    which_C = which_C.reshape(-1)
    parts = []
    for low in range(0, pair.shape[1], ROWS):
        author, row = pair[:, low:low + ROWS]
        known = (None, None) if content is None else (content.values(row), row >= 0)
        parts.append(tokenizer.embeddings(config, author, *known))
    author_PxD = np.concatenate(parts)

    of_users = side_features_of(log)[0] if c.side_features else None
    end_R = views.seen_before(task.user, task.time_ms)
    scores_C = np.empty(task.candidates.size, np.float32)
    for low in range(0, task.user.size, REQUESTS):
        part = slice(low, low + REQUESTS)
        rows_RxT = end_R[part, None] + np.arange(-c.history_items, 0)
        mask_RxT = rows_RxT >= views.user_ptr[task.user[part]][:, None]
        rows_RxT = np.where(mask_RxT, rows_RxT, 0)
        values = known = None
        if content is not None:
            at = content.row_at(views.author[rows_RxT].reshape(-1), views.start_ms[rows_RxT].reshape(-1))
            values, known = content.values(at).reshape(*rows_RxT.shape, -1), (at >= 0).reshape(rows_RxT.shape)
        user_RxD = towers.user_embeddings(
            tokenizer.params, c, tokenizer.author_views, views.author[rows_RxT], mask_RxT, values, known,
            tokenizer.attributes_AxS, None if of_users is None else of_users.values[task.user[part]])
        of_part = slice(task.offsets[low], task.offsets[min(low + REQUESTS, task.user.size)])
        scores_C[of_part] = np.einsum("cd,cd->c", user_RxD[request_C[of_part] - low], author_PxD[which_C[of_part]])
    return scores_C


def shared_on_air(ids: IdTable, task: Task) -> np.ndarray:
    """bool [R]: another author on air at the request has the very id of the one watched."""
    request_C = np.repeat(np.arange(task.user.size), np.diff(task.offsets))
    codes_CxL = ids.codes_at(task.candidates, task.time_ms[request_C])
    target_RxL = ids.codes_at(task.target, task.time_ms)
    same_C = (codes_CxL == target_RxL[request_C]).all(axis=1)
    return np.bincount(request_C[same_C], minlength=task.user.size) > 1


def ranked(scores_C: np.ndarray, task: Task) -> np.ndarray:
    return evaluation.ranks_csr(scores_C, task.offsets, task.position)


def run_seed(config: Config, seed: int, workdir: Path) -> dict:
    """Trains the three models of a seed (or finds them trained) and judges the four ways."""
    result = workdir / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
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
        rank, maker = scoring.make_ranker(network, settings), log.batch_maker(its_tokenizer.ids, settings)
        for split, task in tasks.items():
            scores[split][way[name]] = scoring.score(rank, params, maker, task)
    content = author_content(log.tables, log.split.p1_ms)
    base = tokenizer.ids.codes_at(np.arange(log.num_authors), np.iinfo(np.int64).min)
    figures = {"seed": seed, "authors": log.num_authors, "ids": len(np.unique(base, axis=0)),
               "numbers_modulo_k": over, "splits": {}}
    for split, task in tasks.items():
        second = tower_scores(tokenizer, codes_config, log, content, task)
        scores[split]["tower score"] = break_ties(scores[split]["random order"], second, task.offsets)
        shared = shared_on_air(tokenizer.ids, task)
        ranks = {name: ranked(scores[split][name], task) for name in WAYS}
        figures["splits"][split] = {
            "targets": int(task.user.size), "targets_sharing_an_id_on_air": int(shared.sum()),
            "ways": {name: evaluation.metrics(ranks[name], task.repeat, groups={SHARED: shared}) for name in WAYS},
            "above_random_order": {name: {group: evaluation.difference(ranks[name][rows], ranks["random order"][rows])
                                          for group, rows in (("all", slice(None)), (SHARED, shared))
                                          if shared.any() or group == "all"} for name in WAYS[1:]}}
    result.write_text(json.dumps(figures, indent=1))
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
