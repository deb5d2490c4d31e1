"""The whole system on a simulated platform: `make demo`. Nothing is downloaded; a few minutes on two cores.

    python -m experiments.demo [--workdir=runs/demo]
"""

from pathlib import Path

import numpy as np

from experiments import flags
from experiments.recommend import format_rooms, moment, recommend
from experiments.run import Trained, print_report, run
from onelive_jax.config import Config
from onelive_jax.decoding.recommend import make_recommender

PEOPLE, ROOMS = 3, 5


def show_people(trained: Trained, config: Config) -> None:
    """The best rooms for the people with the most views, one evening at the end of the log."""
    log = trained.log
    evening = moment(log, config, log.split.end_ms - 3 * 3_600_000)
    busiest = np.argsort(-np.diff(log.views.user_ptr), kind="stable")[:PEOPLE]
    rank = make_recommender(trained.model, config.decoding, ROOMS)
    for user in busiest.tolist():
        rooms = recommend(config, log, trained.tokenizer.ids, rank, trained.params, user, evening)
        print(f"\nThe {ROOMS} best rooms for person {log.tables.users['source_id'][user]}, three hours before the end "
              "of the log:\n")
        print(format_rooms(rooms))


def main(config: Config, workdir: Path) -> None:
    trained = run(config, workdir)
    print_report(trained, workdir)
    show_people(trained, config)
    print(f"\nOpen {(workdir / 'report.html').resolve()} in a browser.")


if __name__ == "__main__":
    flags.define_config(str(Path(__file__).parent / "configs" / "demo.py"), "runs/demo")
    flags.run(main)
