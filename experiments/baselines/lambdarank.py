"""LambdaRank (LightGBM) on the counts and similarities of heuristics.py: what a ranking team without a deep model runs.

Needs lightgbm (requirements/bench.txt). Trees are learned from targets of the last part of the training period, whose
features are counted over what came before that part, so that no target's own row is in its features.

Axes: C candidates of all requests (flat), F features.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_pipelines.log import tasks
from data_pipelines.log.tasks import Task
from data_pipelines.log.timelines import Timelines
from experiments.baselines import heuristics
from experiments.common.fingerprint import identity
from experiments.common.log import Log
from experiments.common.workdir import is_done, mark_done
from onelive_jax.files import write_whole

FEATURES = ("own views", "own views, halved in 7 days", "own views, halved in 28 days", "own views at this time of day",
            "item-kNN", "item-kNN, last view", "popularity", "viewers", "been in this room", "rank of own views",
            "rank of item-kNN", "rank of viewers")


@dataclass(frozen=True)
class Settings:
    """lightgbm's own names. targets: most that trees are learned from; part: share of the training period that they
    lie in, at its end."""

    trees: int = 300
    leaves: int = 31
    learning_rate: float = 0.05
    least: int = 50
    targets: int = 8000
    part: float = 0.25


def features(views: Timelines, task: Task, before_ms: int) -> np.ndarray:
    """float32 [C, F], see `FEATURES`; popularity and co-viewing are counted over views that ended by `before_ms`."""
    weights = heuristics.Weights()
    count, week, same_time = heuristics.own_counts(views, task, heuristics.Weights(half_life_hours=168))
    _, month, _ = heuristics.own_counts(views, task, weights)
    knn = heuristics.item_knn(views, task, before_ms, weights)
    last = heuristics.item_knn(views, task, before_ms, heuristics.Weights(knn_views=1))
    authors = 1 + int(max(views.author.max(initial=0), task.candidates.max(initial=0)))
    popular = np.log1p(heuristics.popularity(views, before_ms, authors)[task.candidates])
    seen = heuristics.already_seen(views, task)
    places = [_places(values, task) for values in (month, knn, task.viewers)]
    return np.stack([count, week, month, same_time, knn, last, popular, task.viewers, seen, *places],
                    1).astype(np.float32)


def _places(values: np.ndarray, task: Task) -> np.ndarray:
    """How many candidates of the same request are strictly better."""
    request = np.repeat(np.arange(task.user.size), np.diff(task.offsets))
    order = np.lexsort((-values, request))
    place = np.arange(values.size) - task.offsets[request[order]]
    new = np.ones(values.size, bool)
    new[1:] = (values[order][1:] != values[order][:-1]) | (request[order][1:] != request[order][:-1])
    result = np.empty(values.size)
    result[order] = np.maximum.accumulate(np.where(new, place + task.offsets[request[order]], 0)
                                          ) - task.offsets[request[order]]
    return result


def labels(task: Task) -> np.ndarray:
    made = np.zeros(task.candidates.size, np.int32)
    made[task.offsets[:-1] + task.position] = 1
    return made


@dataclass
class LambdaRank:
    """See `experiments.baselines`. The trees are kept in folder/trees.txt."""

    settings: Settings
    folder: Path
    seed: int = 0

    def fit(self, log: Log, validation: list[Task]) -> None:
        try:
            import lightgbm
        except ImportError as error:
            raise ValueError("LambdaRank needs lightgbm: pip install -r requirements/bench.txt, or leave lambdarank "
                             "out of --methods") from error
        s, self.views, self.p1_ms = self.settings, log.views, log.split.p1_ms
        settings = asdict(s) | {"baseline": "lambdarank", "seed": self.seed, "log": identity(log)}
        if not is_done(self.folder, settings):
            training = log.training_part()
            begin = int(np.quantile(training.views.start_ms, 1 - s.part))
            task = tasks.strict_targets(training.views, training.presence, begin, None, s.targets, self.seed)
            if not task.user.size:
                raise ValueError("the last part of the training period has no target that others show to be on air")
            data = lightgbm.Dataset(features(training.views, task, begin), labels(task), group=np.diff(task.offsets))
            sets = [lightgbm.Dataset(features(log.views, task, self.p1_ms), labels(task), group=np.diff(task.offsets),
                                     reference=data) for task in validation]
            trees = lightgbm.train(
                {"objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "num_leaves": s.leaves,
                 "learning_rate": s.learning_rate, "min_data_in_leaf": s.least, "seed": self.seed, "verbosity": -1,
                 "feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1, "deterministic": True,
                 "force_row_wise": True, "num_threads": 2}, data, s.trees, sets,
                callbacks=[lightgbm.early_stopping(50, verbose=False)] if sets else None)
            write_whole(self.folder / "trees.txt", trees.model_to_string(num_iteration=trees.best_iteration))
            mark_done(self.folder, settings)
        self.trees = lightgbm.Booster(model_str=(self.folder / "trees.txt").read_text("utf-8"))

    def score(self, task: Task) -> np.ndarray:
        return self.trees.predict(features(self.views, task, self.p1_ms))
