"""A played A/B test on the simulated platform, in the form of the paper's Table 6."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from data_pipelines.simulator.platform import Outcomes, Platform, Policy, compare
from experiments.common import played
from experiments.common.log import prepare
from experiments.common.tables import interval, table
from experiments.common.workdir import HEURISTIC_ARMS, phase_of
from experiments.stages.policy import load_params
from experiments.stages.supervised import make_model
from experiments.stages.tokenizer import load_tokenizer
from onelive_jax.config import Config, from_json

# Rows of the table, by the names of the paper where it has them.
ROWS = {"exposure": "Exposure", "click_through": "CTR", "click": "Click", "watch": "Watch time",
        "long_view": "Long view", "like": "Like", "comment": "Comment", "follow": "Follow", "share": "Share",
        "gift": "Gift", "utility": "True utility"}


def read_config(workdir: Path) -> Config:
    return from_json((workdir / "config.json").read_text()).validate()


def make_policy(arm: str, platform: Platform, rankings: dict[Path, Callable]) -> Policy:
    """The policy of an arm. `rankings`: what was made for a workdir, kept for the next arm."""
    if arm in HEURISTIC_ARMS:
        return played.heuristics(platform)[arm]
    workdir, folder = phase_of(arm)
    if workdir not in rankings:
        config = read_config(workdir)
        log = prepare(config, workdir)
        rankings[workdir] = played.ranking(make_model(config, log), config, log, platform,
                                           load_tokenizer(config, workdir, log))
    return rankings[workdir](load_params(folder))


def open_platform(arms: list[str]) -> Platform:
    """The one platform that all trained arms share.

    Raises: ValueError where no arm is trained (no platform is named) or where they were trained on different ones.
    """
    trained = [phase_of(arm)[0] for arm in arms if arm not in HEURISTIC_ARMS]
    if not trained:
        raise ValueError("one of --control and --treatment must be a trained workdir: it says which platform is played")
    configs = [read_config(workdir) for workdir in trained]
    for workdir, config in zip(trained, configs, strict=True):
        if config.simulator != configs[0].simulator:
            raise ValueError(f"{workdir} and {trained[0]} were trained on different platforms (config.simulator)")
    return played.make_platform(configs[0], prepare(configs[0], trained[0]))


def play(platform: Platform, arms: list[str], requests: int, seed: int) -> list[Outcomes]:
    """What came of each arm's rankings for the same requests."""
    asked, rankings = platform.requests(requests, seed), {}
    return [platform.play(make_policy(arm, platform, rankings), asked) for arm in arms]


def report(control: Outcomes, treatment: Outcomes) -> dict[str, dict]:
    """Lifts of what was observed, and of its mean over all random numbers ("expected"), ready for JSON."""
    return {kind: {name: lift._asdict() for name, lift in compare(control, treatment, kind == "expected").items()}
            for kind in ("observed", "expected")}


def format_table(lifts: dict[str, dict]) -> str:
    return table(*lift_rows(lifts))


def lift_rows(lifts: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(headers, a row per outcome) of Table 6: control, treatment, lift and its 95 % interval; * where the interval
    does not hold 0, n/a over a control of 0 (an interval: where resamples have one)."""
    rows = []
    for name, label in ROWS.items():
        x = {key: math.nan if value is None else value for key, value in lifts[name].items()}
        lift = spread = "n/a"
        if x["control"] > 0:
            lift = f"{x['lift']:+.2%}"
            if not math.isnan(x["low"]):
                spread = interval((x["low"], x["high"]), "+.2%") + (" *" if x["low"] > 0 or x["high"] < 0 else "")
        rows.append([label, f"{x['control']:.4f}", f"{x['treatment']:.4f}", lift, spread])
    return ["per request", "control", "treatment", "lift", "95 % interval"], rows


def ab_test(control: str, treatment: str, requests: int, seed: int) -> dict:
    """Plays both arms; returns what is written to the report."""
    platform = open_platform([control, treatment])
    first, second = play(platform, [control, treatment], requests, seed)
    return {"control": control, "treatment": treatment, "requests": requests, "seed": seed,
            "simulator": dataclasses.asdict(platform.config), **report(first, second)}


def without_nan(tree):
    """The same JSON value with null for nan, which JSON does not have."""
    if isinstance(tree, dict):
        return {name: without_nan(value) for name, value in tree.items()}
    return None if isinstance(tree, float) and math.isnan(tree) else tree
