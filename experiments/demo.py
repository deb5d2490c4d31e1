"""The whole system on a simulated platform: `make demo`. Nothing is downloaded; a few minutes on two cores.

From the log to a trained model and its report, recommendations for some people, a reward model, a short alignment, and
a played A/B test of the aligned model against the supervised one.

    python -m experiments.demo [--workdir=runs/demo]
"""

from pathlib import Path

import numpy as np

from experiments.common import flags, played
from experiments.common.tower_scores import tie_breaker
from experiments.stages import ab_test
from experiments.stages.policy import format_curve, train_policy
from experiments.stages.recommend import format_rooms, moment, recommend
from experiments.stages.reward import format_report, train_reward
from experiments.stages.run import Trained, print_report, run
from onelive_jax.config import Config
from onelive_jax.decoding.recommend import make_recommender

PEOPLE, ROOMS = 3, 5
REQUESTS = 4000  # of the A/B test


def show_people(trained: Trained, config: Config) -> None:
    """The best rooms for the people with the most views, one evening at the end of the log."""
    log = trained.log
    evening = moment(log, config, log.split.end_ms - 3 * 3_600_000)
    busiest = np.argsort(-np.diff(log.views.user_ptr), kind="stable")[:PEOPLE]
    rank = make_recommender(trained.model, config.decoding, ROOMS)
    ties = tie_breaker(trained.model, trained.tokenizer, config, log)
    for user in busiest.tolist():
        rooms = recommend(config, log, trained.tokenizer.ids, rank, trained.params, user, evening, ties)
        print(f"\nThe {ROOMS} best rooms for person {log.tables.users['source_id'][user]}, three hours before the end "
              "of the log:\n")
        print(format_rooms(rooms))


def align_and_play(trained: Trained, config: Config, workdir: Path) -> None:
    """A reward model, a short alignment, and both models played against each other on the days after the log."""
    log, tokenizer = trained.log, trained.tokenizer
    _, _, reward = train_reward(config, workdir, log, tokenizer)
    print("\nThe reward model on validation rows:\n\n" + format_report(reward))
    model, params, policy = train_policy(config, workdir, log, tokenizer, workdir / "supervised")
    print("\nAlignment, judged on validation:\n\n" + format_curve(policy))
    platform = played.make_platform(config, log)
    policy, asked = played.ranking(model, config, log, platform, tokenizer), platform.requests(REQUESTS, 0)
    arms = [platform.play(policy(arm), asked) for arm in (trained.params, params)]
    print(f"\nPlayed A/B test: the supervised model (control) against the aligned one, {REQUESTS:,} requests of the "
          f"{config.simulator.play_days} days after the log, means over what chance decides:\n")
    print(ab_test.format_table(ab_test.report(*arms)["expected"]))


def main(config: Config, workdir: Path) -> None:
    trained = run(config, workdir)
    print_report(trained, workdir)
    show_people(trained, config)
    align_and_play(trained, config, workdir)
    print(f"\nOpen {(workdir / 'report.html').resolve()} in a browser.")


if __name__ == "__main__":
    flags.define_config(str(Path(__file__).parent / "configs" / "demo.py"), "runs/demo")
    flags.run(main)
