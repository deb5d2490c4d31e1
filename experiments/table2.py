"""The paper's Table 2: SASRec, KuaiFormer, GNN, TIGER, OneRec, LambdaRank, heuristics and OneLive on one log.

    python -m experiments.table2 --config=experiments/configs/twitch.py --config.data.path=FILE.csv --workdir=W \\
        [--methods=sasrec,gnn,…] [--seeds=3] [--trials=3] [--steps=1000]

All rank the same candidates: the strict protocol, authors whom others show to be on air. Every method is tried under
the same number of settings, on validation with the first seed; the best then runs with all seeds, and ranks the test
targets once. Where a baseline or a heuristic wins, that is printed first. Each run is kept in W/METHOD: a killed table
resumes, and the table of what is finished is printed after every method. Writes W/table2.json.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.studies import table2
    from onelive_jax.files import write_json

    values = absl_flags.FLAGS
    problem = table2.problem_of(config, workdir, values.steps)
    known = table2.methods(problem)
    if unknown := set(values.methods) - known.keys():
        raise ValueError(f"--methods={','.join(sorted(unknown))}: there are {', '.join(known)}")
    rows = {name: table2.Row(name, [ranks], []) for name, ranks in table2.heuristic_ranks(problem).items()}
    for name in values.methods or known:
        tried = table2.trials(problem, name, known[name], values.trials)
        ranks = [table2.on_test(problem, name, known[name], tried[0], config.seed + i) for i in range(values.seeds)]
        rows[name] = table2.Row(known[name].title, ranks, tried)
        write_json(workdir / "table2.json", table2.to_json(rows))
        print(f"{known[name].title}: {table2.findings(rows)}", flush=True)
    print("\n" + table2.format_table2(rows, problem) + "\n\n" + table2.format_paper())
    print(f"\n{workdir / 'table2.json'}")


if __name__ == "__main__":
    flags.define_config()
    absl_flags.DEFINE_list("methods", [], "methods to run; all when empty")
    absl_flags.DEFINE_integer("seeds", 3, "training seeds, from config.seed on", lower_bound=1)
    absl_flags.DEFINE_integer("trials", 3, "settings that every method is tried under", lower_bound=1, upper_bound=3)
    absl_flags.DEFINE_integer("steps", 1000, "optimizer steps of a baseline's run", lower_bound=10)
    flags.run(main)
