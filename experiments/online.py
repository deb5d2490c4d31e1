"""Online signals: the played platform's own feedback, round by round, fed back by GBPO on logged probabilities.

    python -m experiments.online --workdir=W [--init_from=W/policy] [--rounds=10] [--requests=4000]
        [--steps_per_round=60] [--judged_hours=12] [--config.alignment.learning_rate=…]

The played period is cut into rounds. In each, the policy answers requests by drawing rooms from its own distribution
and logs with what probability; what people did goes into the platform's log (habits, follows and histories move on);
then the policy takes steps on all rounds so far, rewarded by the feedback itself (config.alignment.reward=feedback,
sampler=logged, loss=gbpo) beside the supervised loss on what was clicked. An arm that does not learn answers the same
requests on a platform of its own.

Rounds lie at different hours, so that their lifts do not compare well. The last hours of the period are therefore kept
out of all rounds: there the policy after each round answers one and the same set of requests, on the platform of the
arm that did not learn.

W/online holds what was shown in each round, the policy after it, and metrics of each step: a killed run goes on from
its last whole round. W/online.json: true utility per request, round by round and in the judged hours.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from experiments.common.workdir import phase_of
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    init_from = Path(values.init_from).expanduser() if values.init_from else workdir / "supervised"
    phase_of(init_from)  # a mistyped folder is refused before anything is loaded
    from experiments.stages.online import OnlinePlan, format_rounds, online
    from onelive_jax.files import write_json

    plan = OnlinePlan(values.rounds, values.requests, values.steps_per_round, values.judged_hours)
    report = online(config, workdir, init_from, plan)
    write_json(workdir / "online.json", report)
    print("true utility per request, round by round:\n" + format_rounds(report["rounds"]))
    if report["judged"]:
        print(f"the policy after each round on the same requests of the last {values.judged_hours:g} hours:\n"
              + format_rounds(report["judged"]))


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_string("init_from", None, "folder of the phase whose parameters it starts from (W/supervised)")
    absl_flags.DEFINE_integer("rounds", 10, "rounds that the played period is cut into", lower_bound=1)
    absl_flags.DEFINE_integer("requests", 4000, "requests of a round", lower_bound=2)
    absl_flags.DEFINE_integer("steps_per_round", 60, "optimizer steps after each round", lower_bound=1)
    absl_flags.DEFINE_float("judged_hours", 12.0, "last hours of the played period, in which the policy after each "
                            "round is judged; 0 for none", lower_bound=0.0)
    flags.run(main)
