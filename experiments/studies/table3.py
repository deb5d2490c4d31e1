"""The paper's Table 3: components stacked one after another (python -m experiments.table3).

The first five rungs are encoder–decoder and decoder-only baselines over ids of content (MLLM) or of the towers (IA);
from the lazy decoder on it is the library's model without what the paper does not have: no identity head, no copying,
no habits, a softmax over all codes, a history of views.
"""

import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines.log.tasks import Task
from experiments.baselines import encoder_decoder
from experiments.baselines.fitting import Training
from experiments.common import scoring, study
from experiments.common.log import Log, prepare
from experiments.common.tables import table
from experiments.stages.policy import load_params, train_policy
from experiments.stages.reward import train_reward
from experiments.stages.tokenizer import train_tokenizer
from experiments.studies.ablation import VARIANTS
from onelive_jax.config import Config
from onelive_jax.evaluation import ranking_metrics
from onelive_jax.training import supervised

FIGURES = ("ACC@all", "HR@128", "MRR")
PLAIN = VARIANTS["paper_only"]
WITHOUT = {"model.mtp": False, "model.gate": False, "model.item_time": False, "model.request_time": False}
IA, SMALL = {"tokenizer.embedding": "ia"}, "small"
# Rung → (the paper's ACC@all and HR@128, architecture, changes of the config; "small": a quarter of the codes).
RUNGS = {
    "OneRec, 3×small MLLM": (.613, .621, "encoder-decoder", {"tokenizer.embedding": "mllm", SMALL: True}),
    "+ 3×large MLLM": (.592, .643, "encoder-decoder", {"tokenizer.embedding": "mllm"}),
    "+ 3×small IA": (.616, .640, "encoder-decoder", IA | {SMALL: True}),
    "+ 3×large IA": (.608, .684, "encoder-decoder", IA),
    "+ standard decoder-only": (.618, .695, "decoder-only", IA),
    "+ lazy decoder-only": (.621, .710, "lazy", IA | PLAIN | WITHOUT),
    "+ MTP": (.619, .708, "lazy", IA | PLAIN | WITHOUT | {"model.mtp": True}),
    "+ gated attention": (.619, .710, "lazy", IA | PLAIN | WITHOUT | {"model.mtp": True, "model.gate": True}),
    "+ time-aware gated attention": (.630, .717, "lazy", IA | PLAIN),
    "full OneLive (with RL)": (.641, .725, "policy", IA | PLAIN),
}
SMALLER = 4  # the large codebooks have so many times the codes of the small ones (the paper: 8192 and 512)


def rung_config(config: Config, changes: dict) -> Config:
    """Raises: ValueError where a change is out of range."""
    changes = dict(changes)
    if changes.pop(SMALL, False):
        changes["tokenizer.codes"] = max(2, config.tokenizer.codes // SMALLER)
    return study.changed(config, changes, config.seed)


def run_rung(config: Config, name: str, world: Path) -> dict:
    """A rung on one world: figures of the strict test split; kept in WORLD/RUNG/result.json."""
    _, _, kind, changes = RUNGS[name]
    own, folder = rung_config(config, changes), world / f"rung_{list(RUNGS).index(name) + 1:02d}"

    def result() -> dict:
        log = prepare(config, world)
        task = scoring.targets(log, config, "test", "strict")
        run = run_lazy if kind in ("lazy", "policy") else run_encoder_decoder
        return run(own, kind, folder, log, task, world)

    return study.kept(folder / study.RESULT, own, result, kind=kind)


def run_encoder_decoder(config: Config, kind: str, folder: Path, log: Log, task: Task, world: Path) -> dict:
    home = tokenizer_home(config, world)
    ids = train_tokenizer(config, home, log).ids
    authors = np.arange(log.num_authors, dtype=np.int32)
    codes = np.asarray(ids.codes_at(authors, np.full(authors.size, log.split.p1_ms)), np.int32)
    m, t = config.model, config.training
    settings = encoder_decoder.Settings(
        dim=m.dim, heads=m.num_heads, dropout=m.dropout, encoder_layers=m.num_layers, decoder_layers=m.num_layers,
        length=config.data.history_items, rows=16, beams=config.decoding.beams, token_a_code=False,
        decoder_only=kind == "decoder-only",
        training=Training(t.steps, max(1, t.steps // 4), t.learning_rate, t.weight_decay))
    made = encoder_decoder.EncoderDecoder(settings, folder / "run", codes, config.seed, kind)
    small = dataclasses.replace(config, data=dataclasses.replace(config.data, max_targets=min(
        1000, config.data.max_targets)))
    made.fit(log, [scoring.targets(log, small, "validation", "strict")])
    return figures(made.accuracy(task), made.score(task), task)


def tokenizer_home(config: Config, world: Path) -> Path:
    """Rungs with the same ids share a tokenizer."""
    home = world / f"ids_{config.tokenizer.embedding}_{config.tokenizer.codes}"
    study.share(world, home, *study.LOG_PARTS)
    return home


def run_lazy(config: Config, kind: str, folder: Path, log: Log, task: Task, world: Path) -> dict:
    home = tokenizer_home(config, world)
    tokenizer = train_tokenizer(config, home, log)
    study.share(world, folder, *study.LOG_PARTS)
    study.share(home, folder, *study.TOKENIZER_PARTS)
    base = dataclasses.replace(config)
    made = study.train(config, folder, base, home)
    params = made.params
    if kind == "policy":
        train_reward(config, folder, log, tokenizer)
        train_policy(config, folder, log, tokenizer, folder / "supervised", "policy")
        params = load_params(folder / "policy")
    maker = log.batch_maker(tokenizer.ids, config)
    rank = scoring.make_ranker(made.model, config, tokenizer, log)
    return figures(accuracy(made.model, params, maker, task, config), scoring.score(rank, params, maker, task), task)


def accuracy(model, params, maker, task: Task, config: Config) -> float:
    """ACC@all of the targets of a task, teacher-forced, for the library's model."""
    import jax

    @jax.jit
    def hits(batch):
        return supervised.losses(*model.apply({"params": params}, batch), batch, config.model)[1]["acc_all"]

    size, total = 64, 0.0
    for low in range(0, task.view.size, size):
        view = task.view[np.minimum(np.arange(low, low + size), task.view.size - 1)]
        batch = maker.batch(view, np.random.default_rng(low))
        there = (np.arange(low, low + size) < task.view.size).astype(np.float32)
        total += float(hits(batch.replace(weight=there))) * there.sum()
    return total / task.view.size


def figures(acc_all: float, scores: np.ndarray, task: Task) -> dict:
    gains = ranking_metrics.gains(ranking_metrics.ranks(scores, task.offsets, task.position))
    return {"ACC@all": acc_all, "HR@128": float(gains["hr@128"].mean()), "MRR": float(gains["mrr"].mean()),
            "n": int(task.user.size), "on_air": int(np.median(np.diff(task.offsets)))}


def format_table3(rows: dict[str, list[dict]]) -> str:
    """One line a rung: mean ± spread over worlds, HR@128 against the first rung, and the paper's."""
    first = np.mean([row["HR@128"] for row in rows[next(iter(rows))]])
    paper_first = next(iter(RUNGS.values()))[1]
    cells = []
    for name, worlds in rows.items():
        hit = np.mean([row["HR@128"] for row in worlds])
        paper = RUNGS[name]
        cells.append([name, *(study.over_seeds([row[figure] for row in worlds]) for figure in FIGURES),
                      f"{hit / first - 1:+.2%}" if first else "-", f"{paper[0]:.3f}", f"{paper[1]:.3f}",
                      f"{paper[1] / paper_first - 1:+.2%}"])
    on_air = [row["on_air"] for row in next(iter(rows.values()))]
    return table(["variant", *FIGURES, "against the first", "paper ACC@all", "HR@128", "against the first"],
                 cells) + (f"\n{len(on_air)} world(s); authors on air at the median target: "
                           + ", ".join(map(str, on_air)))
