"""The paper's Table 5: supervised model, DPO, GRPO, ECPO and GBPO at several shares of the requests (python -m
experiments.table5)."""

import itertools
from pathlib import Path

from experiments.common import played, study
from experiments.common.log import prepare
from experiments.common.tables import table
from experiments.common.workdir import save_config
from experiments.stages import ab_test
from experiments.stages.policy import load_params, train_policy
from experiments.stages.reward import train_reward
from experiments.stages.supervised import train_supervised
from experiments.stages.tokenizer import train_tokenizer
from experiments.studies.alignment import STRICT, WEIGHT, strict_figures
from onelive_jax.config import Config

LOSSES, SHARES = ("dpo", "grpo", "ecpo", "gbpo"), (0.01, 0.1, 1.0)
SFT, UTILITY = "SFT", "utility"


def arms(losses: list[str], shares: list[float]) -> list[tuple[str, float]]:
    return list(itertools.product(losses, shares))


def run_world(config: Config, workdir: Path, losses: list[str], shares: list[float], requests: int) -> dict:
    """Figures of every arm on one world, by "LOSS SHARE"; kept in WORLD/result.json, each policy in its own folder."""
    def result() -> dict:
        log = prepare(config, workdir)
        tokenizer = train_tokenizer(config, workdir, log)
        model, params, _ = train_supervised(config, workdir, log, tokenizer)
        save_config(config, workdir)
        train_reward(config, workdir, log, tokenizer)
        parameters = {SFT: params}
        for loss, share in arms(losses, shares):
            settings = study.changed(config, {
                "alignment.loss": loss, "alignment.share": share,
                "alignment.weight": config.alignment.weight * WEIGHT.get(loss, 1.0)}, config.seed)
            name = f"policy_{loss}_{share:g}".replace(".", "_")
            train_policy(settings, workdir, log, tokenizer, workdir / "supervised", name)
            parameters[f"{loss} {share:g}"] = load_params(workdir / name)
        strict = strict_figures(config, log, tokenizer, model, parameters)
        platform = played.make_platform(config, log)
        policy, asked = played.ranking(model, config, log, platform, tokenizer), platform.requests(requests, 1)
        outcomes = {name: platform.play(policy(values), asked) for name, values in parameters.items()}
        return {name: {key: strict[name][key] for key in STRICT} | {UTILITY: 0.0 if name == SFT else ab_test.report(
            outcomes[SFT], outcomes[name])["expected"][UTILITY]["lift"]} for name in parameters}

    return study.kept(workdir / study.RESULT, config, result, losses=losses, shares=shares, requests=requests)


def format_table5(worlds: list[dict]) -> str:
    """One line an arm: figures of the strict test split, and the expected lift of true utility over SFT."""
    return table(["policy, share of requests", *STRICT.values(), "true utility over SFT"], [
        [name, *(study.over_seeds([world[name][key] for world in worlds]) for key in STRICT),
         "" if name == SFT else study.over_seeds([world[name][UTILITY] for world in worlds], "+.2%")]
        for name in worlds[0]])
