"""The example of docs/baselines.md is run as it stands there."""

import re
from pathlib import Path

import numpy as np

from data_pipelines.log import tasks
from data_pipelines.log.presence import Presence
from data_pipelines.log.timelines import Timelines
from experiments.baselines import fitting

PAGE = Path(__file__).resolve().parents[3] / "docs" / "baselines.md"


class OfLog:
    def __init__(self, views):
        self.views = views


def test_the_example_of_the_page_ranks_by_the_last_view():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    # Person 0 has watched 0, then 1, then watches 1; person 1 shows all three authors on air meanwhile.
    author = np.array([0, 1, 1, 0, 1, 2], np.int32)
    views = Timelines(np.array([0, 3, 6]), author, author, np.array([0, 10, 500, 400, 400, 400]),
                      np.array([5, 20, 600, 900, 900, 900]))
    scope = {"np": np}
    exec(compile(code, "docs/baselines.md", "exec"), scope)
    baseline = scope["LastSeen"]()
    baseline.fit(OfLog(views), [])
    task = tasks.strict_targets(views, Presence.of(views, None, 3), 450)
    assert task.candidates.tolist() == [0, 1, 2]
    assert baseline.score(task).tolist() == [0, 1, -1]
    assert fitting.judge(baseline.score, [task]).tolist() == [[1, 1]]
