"""Another model in the place of the running one: found in the workdir, compared on the last requests, swapped whole."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np

from experiments.server.live import Live
from experiments.server.service import Service
from experiments.stages.supervised import load_params

logger = logging.getLogger(__name__)
UNREADABLE = (ValueError, OSError, KeyError)


class Models:
    """Watches W/PHASE.json, which a phase writes when it has chosen a step, and puts that step's parameters in place.

    Attributes: last: what the last comparison found, or why a model was not taken.
    """

    def __init__(self, live: Live, workdir: Path, phase: str, seconds: float = 10.0):
        """seconds: between looks; 0 looks only when `load` is called."""
        self.live, self.workdir, self.phase = live, workdir, phase
        self.last: dict[str, Any] = {}
        self._loading, self._stop = threading.Lock(), threading.Event()
        self._seen = self.chosen()
        self._thread = threading.Thread(target=self._watch, args=(seconds,), name="models", daemon=True)
        if seconds:
            self._thread.start()

    def chosen(self) -> int | None:
        """The step that the phase has chosen; None while it has not."""
        try:
            return json.loads((self.workdir / f"{self.phase}.json").read_text())["chosen_step"]
        except (OSError, ValueError, KeyError):
            return None

    def load(self, step: int | None = None) -> dict[str, Any]:
        """Loads a step (the chosen one when None), compares it, and swaps it in. Returns `last`.

        Raises: ValueError where there is no such step, it is of another model, or its answers are broken: the running
          model stays.
        """
        with self._loading:
            step = self.chosen() if step is None else step
            name = f"{self.phase}/{step}"
            try:
                params = load_params(self.workdir / self.phase, step)
            except UNREADABLE as error:
                raise ValueError(f"{name} cannot be loaded: {error}") from error
            engine = self.live.service.engine
            version = engine.prepare(params, name)
            self.last = {"candidate": name, "against": engine.running.name, **self._compare(version)}
            if self.last["broken"]:
                raise ValueError(f"{name} is not taken: {self.last['broken']} of {self.last['requests']} answers are "
                                 "not finite, or shorter than those of the running model")
            self.live.swap(version)
            logger.info("%s answers now, not %s: %.0f %% of the rooms of the last %d requests are the same", name,
                        self.last["against"], 100 * self.last["same_rooms"], self.last["requests"])
            return self.last

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _compare(self, version) -> dict[str, Any]:
        """Both models on the last requests, a batch at a time, so that answers in between wait for one batch only."""
        queries, largest = list(self.live.recent), self.live.service.config.serving.max_batch
        same, apart, broken = [], [], 0
        for low in range(0, len(queries), largest):
            part = queries[low:low + largest]

            def both(service: Service, part=part):
                now = self.live.clock()
                return service.recommend(part, now), service.recommend(part, now, version=version)

            for ours, theirs in zip(*self.live.ask_worker(both).result(), strict=True):
                before, after = ({room.room: room.score for room in answer.rooms} for answer in (ours, theirs))
                broken += len(after) < len(before) or not np.isfinite(list(after.values())).all()
                same.append(len(before.keys() & after.keys()) / max(len(before), 1))
                apart += [abs(before[room] - after[room]) for room in before.keys() & after.keys()]
        return {"requests": len(queries), "broken": broken, "same_rooms": round(float(np.mean(same or [1.0])), 4),
                "score_difference": round(float(np.mean(apart or [0.0])), 4)}

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            chosen = self.chosen()
            if chosen is None or chosen == self._seen:
                continue
            self._seen = chosen
            try:
                self.load(chosen)
            except ValueError as error:
                self.last = {"candidate": f"{self.phase}/{chosen}", "refused": str(error)}
                logger.warning("%s", error)
