"""Baselines beside published figures: do they reach what others report for them on public sequences?

    python -m experiments.public_check --config=experiments/configs/amazon.py --config.data.path=Beauty.txt \\
        --workdir=W [--baselines=sasrec,…] [--codes=Beauty_index_rqvae.json] [--steps=2000]

Leave-one-out, full ranking over all items, history not excluded. The step is chosen on the validation items of 2,048
people; the test items of everybody are ranked once, by the chosen parameters. Each baseline is kept in W/NAME: a killed
run resumes. TIGER needs --codes, a JSON object item → semantic id of the items of the log. The published figures are
those on Beauty.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common.log import prepare
    from experiments.studies.public_check import check, entries, format_check
    from onelive_jax.files import write_json

    values, rows = absl_flags.FLAGS, {}
    log = prepare(config, workdir)
    known = entries(log, values.codes, values.steps)
    if unknown := set(values.baselines) - known.keys():
        raise ValueError(f"--baselines={','.join(sorted(unknown))}: there are {', '.join(known)}"
                         + ("" if values.codes else " (and tiger, with --codes)"))
    for name in values.baselines or known:
        rows[name] = check(config, known[name], workdir / name, log)
        write_json(workdir / "public_check.json", rows)
    models = {name: known[name].model for name in rows}
    print(f"{Path(config.data.path).name}: {log.views.num_users:,} people, {log.num_authors:,} items; ± is half a 95 % "
          "bootstrap interval\n")
    print(format_check(rows, models, Path(config.data.path).name.startswith("Beauty")))
    print(f"\n{workdir / 'public_check.json'}")


if __name__ == "__main__":
    flags.define_config("amazon")
    absl_flags.DEFINE_string("codes", "", "JSON object item → list of codes, for TIGER")
    absl_flags.DEFINE_integer("steps", 0, "optimizer steps of a run; 0: each baseline's own", lower_bound=0)
    absl_flags.DEFINE_list("baselines", [], "baselines to check; all when empty")
    flags.run(main)
