"""The whole system on a simulated platform: `make demo`. Nothing is downloaded; a few minutes on two cores.

From the log to a trained model and its report, recommendations for some people, a reward model, a short alignment, and
a played A/B test of the aligned model against the supervised one.

    python -m experiments.demo [--workdir=runs/demo]
"""

from pathlib import Path

from experiments.common import flags
from onelive_jax.config import Config


def main(config: Config, workdir: Path) -> None:
    from experiments.reports import run_page
    from experiments.stages.demo import align_and_play, show_people
    from experiments.stages.run import print_report, run
    from onelive_jax.files import write_json

    trained = run(config, workdir)
    print_report(trained, workdir)
    write_json(workdir / "recommendations.json", show_people(trained, config))
    align_and_play(trained, config, workdir)
    run_page.refresh(workdir)
    print(f"\nOpen {(workdir / 'report.html').resolve()} in a browser.")


if __name__ == "__main__":
    flags.define_config("demo", "runs/demo")
    flags.run(main)
