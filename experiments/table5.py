"""The paper's Table 5: the supervised model against DPO, GRPO, ECPO and GBPO at 1 %, 10 % and 100 % of the requests.

    python -m experiments.table5 --config=experiments/configs/alignment.py --workdir=W [--worlds=1]
        [--losses=dpo,grpo,ecpo,gbpo] [--shares=0.01,0.1,1]

Every world is another simulated platform, whose true utilities are known (W/world_S). All arms of a world start from
one supervised model and one reward model, and are played on the same requests. A killed table resumes. Writes
W/table5.json.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.common import study
    from experiments.studies.table5 import LOSSES, format_table5, run_world
    from onelive_jax.files import write_json

    values = absl_flags.FLAGS
    if unknown := set(values.losses) - set(LOSSES):
        raise ValueError(f"--losses={','.join(sorted(unknown))}: there are {', '.join(LOSSES)}")
    try:
        shares = [float(share) for share in values.shares]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"--shares={','.join(values.shares)}: shares are numbers above 0 and up to 1")
    worlds = []
    for seed in range(config.simulator.seed, config.simulator.seed + values.worlds):
        own = study.changed(config, {"simulator.seed": seed}, config.seed)
        worlds.append(run_world(own, workdir / f"world_{seed}", values.losses, shares, values.requests))
        write_json(workdir / "table5.json", worlds)
    print(format_table5(worlds) + f"\n{workdir / 'table5.json'}")


if __name__ == "__main__":
    flags.define_config("alignment")
    absl_flags.DEFINE_integer("worlds", 1, "simulated worlds, from config.simulator.seed on", lower_bound=1)
    absl_flags.DEFINE_integer("requests", 20_000, "requests that every arm is played on", lower_bound=2)
    absl_flags.DEFINE_list("losses", ["dpo", "grpo", "ecpo", "gbpo"], "policy losses")
    absl_flags.DEFINE_list("shares", ["0.01", "0.1", "1"], "shares of the requests that get a policy term")
    flags.run(main)
