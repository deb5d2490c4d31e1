"""Ranks the rooms on air at every target of a split and prints what the rankings are worth, beside the heuristics.

    python -m experiments.evaluate --workdir=W [--split=validation|test] [--protocol=strict|liverec]

Without --config, the settings that the workdir was trained with.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments import flags, heuristics, scoring
from experiments.prepare import Log, prepare
from experiments.train_supervised import load_supervised
from experiments.train_tokenizer import load_tokenizer
from onelive_jax import evaluation
from onelive_jax.config import Config


def evaluate(config: Config, log: Log, rank, params, maker, split: str, protocol: str,
             weights: heuristics.Weights) -> dict[str, dict]:
    """Metrics of "onelive" and of every heuristic on a split under a protocol, by name."""
    task = scoring.targets(log, config, split, protocol)
    ours = scoring.evaluate_task(rank, params, maker, task, own_rows=protocol == "liverec")
    return {"onelive": ours} | heuristics.evaluate(log.views, task, log.split.p1_ms, weights)


def tuned_weights(config: Config, log: Log) -> heuristics.Weights:
    """The heuristics' numbers, tuned on the validation targets of this very log."""
    task = scoring.make_task(log, config, "validation", "strict")
    return heuristics.tune(log.views, task, log.split.p1_ms) if task.user.size else heuristics.Weights()


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    log = prepare(config, workdir)
    tokenizer = load_tokenizer(config, workdir)
    model, params, _ = load_supervised(config, workdir, log)
    maker = log.batch_maker(tokenizer.ids, config)
    rows = evaluate(config, log, scoring.make_ranker(model, config), params, maker, values.split, values.protocol,
                    tuned_weights(config, log))
    print(f"{config.name}: {values.split} split, {values.protocol} protocol, heuristics tuned on validation\n")
    print(evaluation.format_table(rows))


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_enum("split", "test", scoring.SPLITS, "which period's views are the targets")
    absl_flags.DEFINE_enum("protocol", "strict", scoring.PROTOCOLS, "which authors count as on air (docs/quality.md)")
    flags.run(main)
