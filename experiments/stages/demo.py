"""What the demonstration shows beside a run: recommendations for some people, alignment, a played A/B test."""

from pathlib import Path

import numpy as np

from experiments.common import distributed, played, scoring
from experiments.common.tables import interval
from experiments.common.tower_scores import tie_breaker
from experiments.stages import ab_test
from experiments.stages.policy import format_curve, train_policy
from experiments.stages.recommend import format_rooms, moment, recommend
from experiments.stages.reward import format_report, train_reward
from experiments.stages.run import Trained
from onelive_jax.config import Config
from onelive_jax.decoding.recommend import make_recommender
from onelive_jax.files import write_json

PEOPLE, ROOMS = 3, 5
REQUESTS = 4000  # of the A/B test


def show_people(trained: Trained, config: Config) -> dict[str, list[dict]]:
    """Prints and returns the best rooms for the people with the most views, one evening at the end of the log."""
    log = trained.log
    evening = moment(log, config, log.split.end_ms - 3 * 3_600_000)
    busiest = np.argsort(-np.diff(log.views.user_ptr), kind="stable")[:PEOPLE]
    rank = make_recommender(trained.model, config.decoding, ROOMS)
    ties = tie_breaker(trained.model, trained.tokenizer, config, log)
    people = {}
    for user in busiest.tolist():
        rooms = recommend(config, log, trained.tokenizer.ids, rank, trained.params, user, evening, ties)
        people[log.tables.users["source_id"][user]] = rooms
        name = log.tables.users["source_id"][user]
        print(f"\nThe {ROOMS} best rooms for person {name}, three hours before the end of the log:\n")
        print(format_rooms(rooms))
    return people


def align_and_play(trained: Trained, config: Config, workdir: Path) -> None:
    """A reward model, a short alignment, and both models played against each other on the days after the log."""
    log, tokenizer = trained.log, trained.tokenizer
    _, _, reward = train_reward(config, workdir, log, tokenizer)
    print("\nThe reward model on validation rows:\n\n" + format_report(reward))
    model, params, policy = train_policy(config, workdir, log, tokenizer, workdir / "supervised")
    print("\nAlignment, judged on validation:\n\n" + format_curve(policy))
    with distributed.stage("A/B test"):
        platform = played.make_platform(config, log)
        ranking, asked = played.ranking(model, config, log, platform, tokenizer), platform.requests(REQUESTS, 0)
        result = ab_test.report(*(platform.play(ranking(arm), asked) for arm in (trained.params, params)))
    print(f"\nPlayed A/B test: the supervised model (control) against the aligned one, {REQUESTS:,} requests of the "
          f"{config.simulator.play_days} days after the log, means over what chance decides:\n")
    print(ab_test.format_table(result["expected"]))
    write_json(workdir / "ab_test.json", ab_test.without_nan({
        "control": str(workdir / "supervised"), "treatment": str(workdir / "policy"), "requests": REQUESTS} | result))
    rooms = np.diff(scoring.targets(log, config, "test", "strict").offsets).mean()
    print("\n" + "\n".join(conclusion(trained.report, rooms, result["expected"])))


def conclusion(report: dict, rooms: float, lifts: dict[str, dict]) -> list[str]:
    """What the demonstration shows, in three sentences: of `run`'s report, with so many rooms on air at a target on
    average, and of the expected lifts of the A/B test (`ab_test.report`)."""
    ours, heuristics = report["protocols"]["strict"]["all"], report["heuristics"]
    best = max(heuristics, key=lambda name: heuristics[name]["all"]["ndcg@10"])
    theirs, told = heuristics[best]["all"], report["against_heuristics"][best]["interval"]
    utility, click = lifts["utility"], lifts["click"]
    better = _verdict(told, "better than", "worse than", "level with")
    worth = _verdict((utility["low"], utility["high"]), "more", "less", "neither more nor less")
    often = _verdict((click["low"], click["high"]), "more", "less", "as much as before")
    said = {name: f"{x['lift']:+.1%} ({interval((x['low'], x['high']), '+.1%')})" for name, x in lifts.items()}
    return [
        f"Ranking: of {rooms:.0f} rooms on air, the one that was watched is in the model's first ten in "
        f"{ours['hr@10']:.1%} of {ours['n']:,} test views; by NDCG@10 it is {better} the best heuristic, {best} "
        f"({ours['ndcg@10']:.3f} against {theirs['ndcg@10']:.3f}).",
        f"Alignment: the aligned model's rooms are worth {worth} to people than the supervised model's: true utility "
        f"{said['utility']}.",
        f"Clicks: people click {often}: {said['click']}.",
    ]


def _verdict(bounds: tuple[float, float], above: str, below: str, neither: str) -> str:
    return above if bounds[0] > 0 else below if bounds[1] < 0 else neither
