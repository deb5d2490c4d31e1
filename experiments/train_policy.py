"""Alignment: the supervised model becomes a policy that is rewarded for many objectives (paper, section c).

    python -m experiments.train_policy --workdir=W --init_from=W/supervised [--out=NAME] [--config.alignment.loss=dpo …]

Writes W/policy (or W/policy_NAME, so that several live side by side) and W/policy.json. A killed run resumes. Every
judged step keeps its checkpoint. Handed on is the last one whose predicted reward on validation is above that of step
0, of those before the policy has lost more than 1 % of the HR@128 that it began with: beyond it, the reward is bought
with what people are known to want. Where there is none, step 0 is handed on: the model that it began with.
"""

import re
from pathlib import Path

from absl import app
from absl import flags as absl_flags

from experiments.common import flags
from experiments.common.workdir import phase_of
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    values = absl_flags.FLAGS
    if values.out and not re.fullmatch(r"[\w-][\w.-]*", values.out):
        raise app.UsageError(f"--out={values.out!r} is a name, not a path: letters, digits, '_', '-' and '.'")
    init_from = Path(values.init_from).expanduser() if values.init_from else workdir / "supervised"
    phase_of(init_from)  # a mistyped folder is refused before anything is loaded
    from experiments.common.log import prepare
    from experiments.reports import run_page
    from experiments.stages.policy import format_curve, train_policy
    from experiments.stages.tokenizer import load_tokenizer
    from onelive_jax.sharding.processes import is_main

    log = prepare(config, workdir)
    name = f"policy_{values.out}" if values.out else "policy"
    _, _, report = train_policy(config, workdir, log, load_tokenizer(config, workdir, log), init_from, name)
    if is_main():
        print(format_curve(report))
        run_page.refresh(workdir)


if __name__ == "__main__":
    flags.define_config(from_workdir=True)
    absl_flags.DEFINE_string("init_from", None, "folder of the phase whose parameters it starts from (W/supervised)")
    absl_flags.DEFINE_string("out", None, "name of the policy: W/policy_NAME instead of W/policy")
    flags.run(main)
