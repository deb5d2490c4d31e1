"""The paper's Table 3: its components stacked one after another, from OneRec to the whole with RL.

    python -m experiments.table3 --config=experiments/configs/world.py --workdir=W [--worlds=3] [--rungs=1,2,…]

Every world is another simulated platform (W/world_S). ACC@all is teacher-forced code accuracy, HR@128 and MRR are of
the strict test split. A rung is kept in W/world_S/rung_NN: a killed table resumes. Writes W/table3.json.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common import study
    from experiments.studies.table3 import RUNGS, format_table3, run_rung
    from onelive_jax.files import write_json

    values, names = absl_flags.FLAGS, list(RUNGS)
    asked = [int(number) for number in values.rungs if number.isdigit()] or list(range(1, len(names) + 1))
    if len(asked) < len(values.rungs) or min(asked) < 1 or max(asked) > len(names):
        raise ValueError(f"--rungs={','.join(values.rungs)}: rungs are numbers 1 … {len(names)}")
    rows: dict[str, list[dict]] = {}
    for name in (names[number - 1] for number in sorted(set(asked))):
        for world in range(values.worlds):
            own = study.changed(config, {"simulator.seed": config.simulator.seed + world}, config.seed)
            rows.setdefault(name, []).append(run_rung(own, name, workdir / f"world_{own.simulator.seed}"))
        write_json(workdir / "table3.json", rows)
        print(format_table3({name: rows[name]}), flush=True)
    print("\n" + format_table3(rows) + f"\n{workdir / 'table3.json'}")


if __name__ == "__main__":
    flags.define_config("world")
    absl_flags.DEFINE_integer("worlds", 3, "simulated worlds, from config.simulator.seed on", lower_bound=1)
    absl_flags.DEFINE_list("rungs", [], "numbers of the rungs, from 1; all when empty")
    flags.run(main)
