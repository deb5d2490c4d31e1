"""A played A/B test on the simulated platform, in the form of the paper's Table 6.

    python -m experiments.ab_test --control=W --treatment=W/policy --report=W/ab_test.json [--requests=20000] [--seed=0]

An arm is a workdir (its supervised model), the folder of one of its phases (W/policy, W/policy_dpo), or one of random,
viewers, own_counts, logging, oracle. Both arms answer the same requests of the period after the log, with common random
numbers: the same person given the same room does the same. Intervals are of a paired bootstrap over people. A report
W/ab_test*.json is also shown in W/report.html.
"""

from pathlib import Path

from absl import flags as absl_flags

from experiments.common import flags
from experiments.common.workdir import HEURISTIC_ARMS, command_line, locked, phase_of


def main() -> None:
    values = absl_flags.FLAGS
    for arm in (values.control, values.treatment):
        if arm not in HEURISTIC_ARMS:
            phase_of(arm, HEURISTIC_ARMS)  # a mistyped folder is refused before anything is loaded
    if not values.report:
        play(None)
        return
    report = Path(values.report).expanduser()
    with locked(report.parent, command_line("experiments.ab_test")):
        play(report)


def play(report: Path | None) -> None:
    values = absl_flags.FLAGS
    from experiments.reports import run_page
    from experiments.stages.ab_test import ab_test, format_table, without_nan
    from onelive_jax.files import write_json

    result = ab_test(values.control, values.treatment, values.requests, values.seed)
    print(f"control: {values.control}\ntreatment: {values.treatment}\n{values.requests:,} requests; what was observed, "
          "and of true utility its expectation (that of the rest is in the report):\n")
    print(format_table(result["observed"]))
    if report:
        write_json(report, without_nan(result))
        run_page.refresh(report.parent)
        print(f"\nreport: {report}")


if __name__ == "__main__":
    absl_flags.DEFINE_string("control", None, "arm to compare with", required=True)
    absl_flags.DEFINE_string("treatment", None, "arm to judge", required=True)
    absl_flags.DEFINE_integer("requests", 20_000, "requests that both arms answer", lower_bound=2)
    absl_flags.DEFINE_integer("seed", 0, "of the requests", lower_bound=0)
    absl_flags.DEFINE_string("report", None, "JSON file to write")
    flags.run_plain(main)
