"""What the policy term costs: a step at 1 %, 10 % and 100 % of the requests, against a supervised one.

Wired as `python -m experiments.benchmark --what=policy`; prints and reports like the others.

Measured are a supervised step and steps with a policy term for R requests, which take turns, so that a busy moment of
the machine hits all of them. The cost of a share is that of its schedule (`is_policy_step`): so many steps with a
policy term, all others supervised; 1 % and 10 % of a batch of 64 run the same program of 8 requests, in 2 steps of 25
and in 4 of 5. Ratios are medians of the ratios of turns.

Axes: as in experiments/benchmarks/problem.py; R requests with a policy term, G candidates.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from experiments.benchmarks.problem import ModelSizes, make_model, random_batch, random_parameters
from experiments.benchmarks.report import row
from onelive_jax.alignment import policy_step
from onelive_jax.config import AlignmentConfig, Config
from onelive_jax.reward.model import RewardModel
from onelive_jax.reward.rewards import make_reward
from onelive_jax.training.train_state import TrainState

SHARES = (0.01, 0.1, 1.0)
TARGET = 4.0  # times the cost of a supervised step, at 100 % of the requests and G = 16
GROUP_SIZE = 16
PERIOD = 1000  # steps over which a schedule is counted


def measure_policy(sizes: ModelSizes, repeats: int = 20) -> dict:
    """Rows and the seconds of every step."""
    rng = np.random.default_rng(0)
    batch = jax.device_put(random_batch(rng, sizes))
    model = make_model(sizes, sizes.model)
    scorer = RewardModel(Config().reward, sizes.levels, sizes.codes, sizes.authors, sizes.author_dim)
    shapes = jax.eval_shape(lambda key: meta.unbox(scorer.init(key, batch.request, batch.live)["params"]),
                            jax.random.key(0))
    reward_params = jax.tree.map(lambda x: jnp.asarray(0.05 * rng.normal(size=x.shape), jnp.float32), shapes)
    settings = {f"{share:.0%}, beam": AlignmentConfig(share=share, group_size=GROUP_SIZE) for share in SHARES}
    settings["100%, gumbel"] = AlignmentConfig(share=1.0, group_size=GROUP_SIZE, sampler="gumbel")
    programs: dict[str, Any] = {"supervised": None}
    rows_of = {name: policy_step.policy_rows(setting, sizes.batch) for name, setting in settings.items()}
    for name, setting in settings.items():
        programs.setdefault(f"{rows_of[name]} requests, {setting.sampler}", setting)
    config = Config(model=sizes.model)
    tx = policy_step.make_policy_optimizer(config)
    params = random_parameters(model, batch)
    state = policy_step.with_reference(TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(0)))
    steps = {}
    for name, setting in programs.items():
        part = config if setting is None else dataclasses.replace(config, alignment=setting)
        steps[name] = jax.jit(policy_step.make_policy_step(model, tx, part, make_reward("model", scorer),
                                                      setting is not None), donate_argnums=0)

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    compile_seconds = {}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            state, metrics = step(state, batch, reward_params)
            jax.block_until_ready((state.params, metrics))
            took = time.perf_counter() - start
            if turn:
                seconds[name].append(took)
            else:
                compile_seconds[name] = took
    rows, ratios = [], {}
    for name, setting in settings.items():
        often = sum(policy_step.is_policy_step(step, setting, sizes.batch) for step in range(PERIOD)) / PERIOD
        costs = seconds[f"{rows_of[name]} requests, {setting.sampler}"]
        ratios[name] = [often * c / s + 1 - often for c, s in zip(costs, seconds["supervised"], strict=True)]
        # The target is that of 100 %; a smaller share must stay below it all the more.
        rows.append(row(f"policy term for {name}, G = {GROUP_SIZE}: times a supervised step", "<=", TARGET,
                        statistics.median(ratios[name])))
    return {"rows": rows, "sizes": dataclasses.asdict(sizes), "group_size": GROUP_SIZE, "seconds_of_step": seconds,
            "compile_seconds": compile_seconds, "ratios": ratios}
