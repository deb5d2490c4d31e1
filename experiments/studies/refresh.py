"""Daily refreshes of the codebooks after training: how many ids change, and whether the trained model keeps working.

    python -m experiments.studies.refresh --workdir=W [--config=experiments/configs/refresh.py] [--days=3]

Tokenizer and model are trained on the views up to p1, as by experiments.run (a workdir that has them is taken as it
is). Then, day by day over the validation and test periods, the codebooks move on to newer data from where they are
(config.tokenizer.refresh_*), and three things are measured:

- churn: the share of authors whose ids changed with the codebooks although their content did not change since the last
  refresh; and of all authors, whose content is the same before and after the codebooks are exchanged;
- distortion of the refreshed codebooks, with the ids that authors keep, against codebooks fitted from scratch to the
  same points;
- HR@10 on the next day of the model trained before: with the codebooks it was trained with, and with those refreshed
  every day since. Histories carry what authors were called when they were watched, so that old ids and new ones meet
  in one request. The whole model, and its codes alone (identity_weight=0): nothing else then carries what is on.

The towers stay where training left them: new content moves the embeddings, and nothing else does. With
--config.tokenizer.refresh_tower_steps=N they are trained on at each refresh. On a small simulated log, 50 steps changed
half of the ids a day, raised the distortion by 4 to 9 % and cost the codes alone 3 to 8 % of HR@10, for nothing gained.

Figures are kept in W/refresh.json. The tokenizer as it is right after refresh N, its table of ids without anything
later than the refresh, is left in W/refresh/N in the form of W/tokenizer: `load_tokenizer(config, W/refresh/N)` reads
it, and `IdTable.extend` adds what is encoded with its codebooks from then on.

Axes: A authors, P points, L levels, D embedding width.
"""

from absl import flags as absl_flags

from experiments.common import flags

if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_integer("days", 3, "daily refreshes after the training period", lower_bound=1)
    flags.read()

import dataclasses
import functools
import logging
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.log import tasks
from data_pipelines.log.content import Content, author_content
from data_pipelines.tables import HOUR_MS
from experiments.common import scoring, study
from experiments.common.log import Log, prepare
from experiments.common.tables import table
from experiments.common.workdir import save_config
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import (
    Tokenizer,
    fit_towers,
    id_figures,
    load_tokenizer,
    pooled_content,
    save_tokenizer,
    segment_codes,
    segment_points,
    side_features_of,
    standing_points,
    train_tokenizer,
    training_sample,
    view_log,
)
from onelive_jax.config import Config
from onelive_jax.files import write_json
from onelive_jax.sharding.partitioning import process_mesh
from onelive_jax.tokenizer import residual_kmeans
from onelive_jax.tokenizer.encoder import Encoder
from onelive_jax.tokenizer.refresh import encode_sticky, refresh
from onelive_jax.tokenizer.semantic_ids import IdTable, churn

logger = logging.getLogger(__name__)
DAY_HOURS = 24.0
WINDOW_DAYS = 7  # content of so many days before a refresh is what the codebooks move on to
# (figure of a day, what it must not exceed): churn, distortion against a new fit, relative fall of HR@10.
TARGETS = {"churn_q0": 0.02, "churn_id": 0.10, "distortion": 1.02, "fall": 0.02}


class Served(NamedTuple):
    """A tokenizer, the table of ids as served, and the moment of the last refresh (the end of training at first)."""

    tokenizer: Tokenizer
    ids: IdTable
    since_ms: int


class Refreshed(NamedTuple):
    """The tokenizer after a refresh, its table of ids as served until then, and what the refresh cost."""

    tokenizer: Tokenizer
    served: IdTable
    figures: dict


def current(tokenizer: Tokenizer, config: Config, log: Log, content: Content | None, time_ms: int) -> np.ndarray:
    """float32 [A, D], what is quantized of every author at a moment: its latest content, or x_pool where ids are
    static."""
    if content is None or not config.tokenizer.follow_content:
        return standing_points(tokenizer.encoder.towers, log.num_authors, content, time_ms)
    row = content.row_at(np.arange(log.num_authors), np.full(log.num_authors, time_ms))
    standing = standing_points(tokenizer.encoder.towers, log.num_authors, content, log.split.p1_ms)  # never on air
    standing[row >= 0] = segment_points(tokenizer.encoder.towers, content, row[row >= 0])
    return standing


def refresh_at(tokenizer: Tokenizer, served: IdTable, config: Config, log: Log, content: Content | None,
               before_ms: int, time_ms: int, seed: int) -> Refreshed:
    """Refreshes a tokenizer at `time_ms`, the last refresh having been at `before_ms`. Nothing later is read."""
    c, everyone = config.tokenizer, np.arange(log.num_authors)
    old_ids = served.codes_at(everyone, time_ms)
    if c.refresh_tower_steps:
        tokenizer = with_trained_towers(tokenizer, config, log, content, time_ms)
    points, previous = current(tokenizer, config, log, content, time_ms), old_ids
    standing = points
    if content is not None and c.follow_content:
        rows = training_sample(content, time_ms, seed, time_ms - round(WINDOW_DAYS * DAY_HOURS * HOUR_MS))
        points = np.concatenate([points, segment_points(tokenizer.encoder.towers, content, rows)])
        previous = np.concatenate([old_ids, served.codes_at(content.author[rows], content.from_ms[rows])])
    mesh = process_mesh(config.mesh)
    books = refresh(tokenizer.encoder.books, points, previous, c.refresh_iterations, c.refresh_step, c.refresh_margin,
                    mesh=mesh)
    new_ids = np.asarray(encode_sticky(books, standing, old_ids, c.refresh_margin, mesh=mesh))
    kept = np.asarray(encode_sticky(books, points, previous, c.refresh_margin, mesh=mesh))
    scratch = residual_kmeans.fit(points, c, jax.random.key(seed), mesh=mesh)
    unchanged = np.ones(log.num_authors, bool)
    if content is not None:
        unchanged = (content.row_at(everyone, np.full(log.num_authors, before_ms))
                     == content.row_at(everyone, np.full(log.num_authors, time_ms)))
    made = id_figures(new_ids, c.codes, residual_kmeans.residual_norms(books, points, kept))
    encoder = Encoder(dataclasses.replace(tokenizer.encoder.towers, config=c), books)
    now = dataclasses.replace(tokenizer, encoder=encoder, figures=tokenizer.figures | made)
    figures = {"settings": refresh_settings(config), "points": len(points), "authors_unchanged": int(unchanged.sum()),
               "churn": churn(old_ids, new_ids, unchanged) if unchanged.any() else None,
               "churn_of_all": churn(old_ids, new_ids),
               "distortion": squared(books, points, kept) / squared(scratch, points)}
    served, figures["late"] = extended(served, everyone, np.full(log.num_authors, time_ms), new_ids)
    return Refreshed(now, served, figures)


def extended(ids: IdTable, author: np.ndarray, from_ms: np.ndarray, codes: np.ndarray) -> tuple[IdTable, int]:
    """(`IdTable.extend`, how many rows it left out for being older than what their author has); warns of these."""
    more = ids.extend(author, from_ms, codes)
    if more.late:
        logger.warning("%d of %d new codes are left out: their authors have codes of a later moment already. Extend a "
                       "table in the order of time", more.late, len(author))
    return more.table, more.late


def with_trained_towers(tokenizer: Tokenizer, config: Config, log: Log, content: Content | None,
                        time_ms: int) -> Tokenizer:
    """The tokenizer with towers trained on, from where they are, on the views that are over by `time_ms`."""
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer,
                                                                       steps=config.tokenizer.refresh_tower_steps))
    of_users, of_authors = side_features_of(log) if config.tokenizer.side_features else (None, None)
    views = view_log(log, content, np.flatnonzero(log.views.stop_ms <= time_ms), of_users, of_authors)
    towers = fit_towers(config, views, tokenizer.encoder.towers.params).towers
    return dataclasses.replace(
        tokenizer, encoder=Encoder(towers, tokenizer.encoder.books),
        embedding_AxD=towers.authors(np.arange(log.num_authors), *pooled_content(content, log.num_authors, time_ms)))


def squared(books: residual_kmeans.Codebooks, points_PxD: np.ndarray, codes_PxL: np.ndarray | None = None) -> float:
    """Distortion: mean squared distance of points to what their codes stand for."""
    return float(residual_kmeans.residual_norms(books, points_PxD, codes_PxL)[-1]) ** 2


def until(ids: IdTable, time_ms: int) -> IdTable:
    """The rows of a table that hold from before a moment on."""
    kept = ids.from_ms < time_ms
    return IdTable(ids.author[kept], ids.from_ms[kept], ids.codes[kept])


def with_content_of(served: IdTable, tokenizer: Tokenizer, config: Config, content: Content | None, after_ms: int,
                    until_ms: int) -> tuple[IdTable, int]:
    """The table with the segments of (after_ms, until_ms], encoded as they come, and how many came too late.

    `after_ms` is the moment of the refresh: an author's code of then stays while no other is nearer by the margin.
    """
    if content is None or not config.tokenizer.follow_content:
        return served, 0
    rows = np.flatnonzero((content.from_ms > after_ms) & (content.from_ms <= until_ms))
    before = served.codes_at(content.author[rows], np.full(rows.size, after_ms))
    codes = segment_codes(tokenizer.encoder, content, rows, before)
    return extended(served, content.author[rows], content.from_ms[rows], codes)


def next_day(log: Log, config: Config, from_ms: int, to_ms: int) -> tasks.Task:
    """The strict targets of [from_ms, to_ms)."""
    return tasks.strict_targets(log.views, log.presence, from_ms, to_ms, config.data.max_targets)


def run_study(config: Config, workdir: Path, days: int) -> dict:
    """All refreshes; returns what refresh.json holds, and prints a few lines per day."""
    log = prepare(config, workdir)
    day_ms = round(DAY_HOURS * HOUR_MS)
    hours = (log.split.end_ms - log.split.p1_ms) / HOUR_MS
    possible = int((log.split.end_ms - 1 - log.split.p1_ms) // day_ms)
    if possible < 1:
        raise ValueError(f"after training the log goes on for {hours:.1f} hours:"
                         " a refresh needs a day of new data and some of the next to judge it on; make "
                         "config.data.valid_hours and config.data.test_hours longer")
    if days > possible:
        print(f"the log has data for {possible} of the {days} refreshes")
    tokenizer = train_tokenizer(config, workdir, log)
    model, params, _ = train_supervised(config, workdir, log, tokenizer)
    if not (workdir / "config.json").exists():
        save_config(config, workdir)
    rankers = {"whole model": scoring.make_ranker(model, config, tokenizer, log)}
    if model.config.identity and config.decoding.identity_weight:
        codes_alone = study.changed(config, {"decoding.identity_weight": 0.0}, config.seed)
        rankers["codes alone"] = scoring.make_ranker(model, codes_alone, tokenizer, log)
    content = author_content(log.tables, log.split.p1_ms)
    served = Served(tokenizer, until(tokenizer.ids, log.split.p1_ms + day_ms), log.split.p1_ms)
    judge = functools.partial(hit_rates, rankers, params, log, config, tokenizer.ids)
    rows = []
    for day in range(1, min(days, possible) + 1):
        folder = workdir / "refresh" / str(day)
        make = functools.partial(run_day, day, folder, served, config, log, content, judge)
        rows.append(study.kept(folder / study.RESULT, config, make, day_hours=DAY_HOURS))
        print(format_day(rows[-1]), flush=True)
        made, time = load_tokenizer(config, folder, log), rows[-1]["time_ms"]
        served = Served(made, with_content_of(made.ids, made, config, content, time, time + day_ms)[0], time)
    return {"settings": refresh_settings(config), "days": rows, "targets": judged(rows)}


def run_day(day: int, folder: Path, served: Served, config: Config, log: Log, content: Content | None, judge) -> dict:
    """One refresh, which leaves its tokenizer in `folder`, judged by `judge(targets, ids)` on the day after it."""
    day_ms = round(DAY_HOURS * HOUR_MS)
    time = log.split.p1_ms + day * day_ms
    done = refresh_at(served.tokenizer, served.ids, config, log, content, served.since_ms, time, config.seed + day)
    figures = done.figures | {"day": day, "time_ms": time, "folder": str(folder)}
    save_tokenizer(dataclasses.replace(done.tokenizer, ids=done.served, figures=done.tokenizer.figures | {
        "refresh": figures}), config, folder, log)
    ids, late = with_content_of(done.served, done.tokenizer, config, content, time, time + day_ms)
    task = next_day(log, config, time, min(time + day_ms, log.split.end_ms))
    return figures | {"late": figures["late"] + late, "targets": int(task.user.size),
                      "hr@10": judge(task, ids) if task.user.size else {}}


def hit_rates(rankers: dict, params, log: Log, config: Config, old: IdTable, task: tasks.Task, ids: IdTable) -> dict:
    """Ranker → HR@10 under the ids of training, under refreshed ones, and the relative fall from one to the other."""
    result = {}
    for name, rank in rankers.items():
        first, second = (scoring.evaluate_task(rank, params, log.batch_maker(table, config), task)["all"]["hr@10"]
                         for table in (old, ids))
        result[name] = {"old codebooks": first, "refreshed": second, "fall": (first - second) / first if first else
                        None}
    return result


def refresh_settings(config: Config) -> dict:
    return {name: getattr(config.tokenizer, name) for name in ("refresh_iterations", "refresh_step", "refresh_margin",
                                                               "refresh_tower_steps")}


def format_day(figures: dict) -> str:
    """The lines of one refresh."""
    def changed(shares):
        return ", ".join(f"{name} {share:.2%}" for name, share in shares.items()) if shares else "nobody to count"

    lines = [f"refresh {figures['day']}: churn of the {figures['authors_unchanged']:,} authors whose content did not "
             f"change {changed(figures['churn'])}; of all {changed(figures['churn_of_all'])}",
             f"  distortion {figures['distortion']:.4f} of a fit from scratch on the same {figures['points']:,} points"]
    if figures["late"]:
        lines.append(f"  {figures['late']:,} new codes left out: their authors had codes of a later moment already")
    for name, rates in figures["hr@10"].items():
        fall = "" if rates["fall"] is None else f" ({-rates['fall']:+.2%})"
        lines.append(f"  HR@10 of the next day, {name}: {rates['old codebooks']:.4f} with the old codebooks, "
                     f"{rates['refreshed']:.4f} with the refreshed{fall}; {figures['targets']:,} targets")
    lines.append(f"  the refreshed tokenizer: {figures['folder']}")
    return "\n".join(lines)


def judged(rows: list[dict]) -> list[dict]:
    """Targets and the worst day of each: {"name", "target", "measured", "met"}; a figure that no day has is left out.

    Churn is that of authors whose content did not change, or of all where everybody's did.
    """
    shares = [list((row["churn"] or row["churn_of_all"]).values()) for row in rows]
    falls = {name: [row["hr@10"][name]["fall"] for row in rows if name in row["hr@10"]] for name in
             ("whole model", "codes alone")}
    figures = [("daily churn of q0", TARGETS["churn_q0"], [share[0] for share in shares]),
               ("daily churn of ids", TARGETS["churn_id"], [share[-1] for share in shares]),
               ("distortion against a fit from scratch", TARGETS["distortion"], [row["distortion"] for row in rows]),
               *((f"relative fall of HR@10, {name}", TARGETS["fall"], [fall for fall in each if fall is not None])
                 for name, each in falls.items())]
    return [{"name": name, "target": target, "measured": max(values), "met": max(values) <= target}
            for name, target, values in figures if values]


def main(config: Config, workdir: Path) -> None:
    file = workdir / "refresh.json"
    report = run_study(config, workdir, absl_flags.FLAGS.days)
    write_json(file, report)
    print("\nworst day:\n" + table(["", "measured", "target", ""], [
        [row["name"], f"{row['measured']:.4f}", f"<= {row['target']:g}", "met" if row["met"] else "missed"]
        for row in report["targets"]]))
    print(file)


if __name__ == "__main__":
    flags.run(main)
