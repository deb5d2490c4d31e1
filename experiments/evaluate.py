"""Ranks the rooms on air at every target of a split and prints what the rankings are worth, beside the heuristics.

    python -m experiments.evaluate --workdir=W [--split=validation|test] [--protocol=strict|liverec] [--policy=W/policy]

Without --config, the settings that the workdir was trained with. With --policy, an aligned policy is compared with the
supervised model request by request, also by NDCG@10 in which a target weighs as many minutes as it was watched.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from experiments.common.workdir import phase_of
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    if values.policy:
        phase_of(values.policy)  # a mistyped folder is refused before anything is loaded
    from experiments.common import scoring
    from experiments.common.log import prepare
    from experiments.stages.evaluate import (
        compare_policies,
        evaluate,
        format_differences,
        format_dropped,
        format_policies,
        format_ranking,
        tuned_weights,
    )
    from experiments.stages.supervised import load_fitting, load_supervised
    from experiments.stages.tokenizer import load_tokenizer

    log = prepare(config, workdir)
    tokenizer = load_tokenizer(config, workdir, log)
    model, params, _ = load_supervised(config, workdir, log)
    maker = log.batch_maker(tokenizer.ids, config)
    if values.policy:
        policy = load_fitting(phase_of(values.policy)[1], config, log)
        model, params, policy = scoring.on_all_devices(config, maker, model, params, policy)
        rank = scoring.make_ranker(model, config, tokenizer, log)
        print(format_policies(compare_policies(log, config, rank, params, policy, maker, values.split,
                                               values.protocol)))
        return
    model, params = scoring.on_all_devices(config, maker, model, params)
    rank = scoring.make_ranker(model, config, tokenizer, log)
    rows, differences, dropped = evaluate(config, log, rank, params, maker, values.split, values.protocol,
                                          tuned_weights(config, log))
    print(f"{config.name}: {values.split} split, {values.protocol} protocol, heuristics tuned on validation\n")
    print(format_ranking(rows))
    print("\n" + format_dropped(dropped) + "\n\n" + format_differences(differences))


if __name__ == "__main__":
    flags.define_config(from_workdir=True, writes=False)
    absl_flags.DEFINE_enum("split", "test", ["validation", "test"], "which period's views are the targets")
    absl_flags.DEFINE_string("policy", None, "folder of an aligned policy (W/policy) to compare with W/supervised")
    absl_flags.DEFINE_enum("protocol", "strict", ["strict", "liverec"], "which authors count as on air: "
                           "docs/quality.md")
    flags.run(main)
