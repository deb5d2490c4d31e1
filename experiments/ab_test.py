"""A played A/B test on the simulated platform, in the form of the paper's Table 6.

    python -m experiments.ab_test --control=W1 --treatment=W2/policy [--requests=20000] [--seed=0] --report=FILE.json

An arm is a workdir (its supervised model), the folder of one of its phases (W/policy, W/policy_dpo), or one of random,
viewers, own_counts, logging, oracle. Both arms answer the same requests of the period after the log, with common random
numbers: the same person given the same room does the same. Intervals are of a paired bootstrap over people.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from experiments.stages.ab_test import ab_test, format_table, without_nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--control", required=True, help="arm to compare with")
    parser.add_argument("--treatment", required=True, help="arm to judge")
    parser.add_argument("--requests", type=int, default=20_000, help="requests that both arms answer")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--report", help="JSON file to write")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    if options.requests < 2 or options.seed < 0:
        parser.error("--requests must be at least 2 and --seed at least 0")
    try:
        result = ab_test(options.control, options.treatment, options.requests, options.seed)
    except (ValueError, FileNotFoundError) as error:
        print(f"experiments.ab_test: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"control: {options.control}\ntreatment: {options.treatment}\n{options.requests:,} requests; what was "
          "observed, and of true utility its expectation (that of the rest is in the report):\n")
    print(format_table(result["observed"]))
    if options.report:
        Path(options.report).parent.mkdir(parents=True, exist_ok=True)
        Path(options.report).write_text(json.dumps(without_nan(result), indent=1))
        print(f"\nreport: {options.report}")


if __name__ == "__main__":
    main()
