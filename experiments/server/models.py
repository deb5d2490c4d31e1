"""Another model in the place of the running one: found in the workdir, compared on the last requests, swapped whole."""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.server.live import Live
from experiments.server.service import Service
from experiments.stages.supervised import calibrated
from onelive_jax.training.checkpoints import restore_params

logger = logging.getLogger(__name__)
UNREADABLE = (ValueError, OSError, KeyError)


class Models:
    """Watches W/PHASE.json, which a phase writes when it has chosen a step, and puts that step's parameters in place.
    Where W has another tokenizer by then, ids, histories and parameters change together.

    Attributes: last: what the last comparison found, or why a model was not taken.
    """

    def __init__(self, live: Live, workdir: Path, phase: str, seconds: float = 10.0,
                 remake: Callable[[], Service] | None = None):
        """seconds: between looks; 0 looks only when `load` is called. remake: makes the service of W as it is now; None
        where the tokenizer stays."""
        self.live, self.workdir, self.phase, self._remake = live, workdir, phase, remake
        self.last: dict[str, Any] = {}
        self._loading, self._stop = threading.Lock(), threading.Event()
        # (What a stream had learned of new authors comes with the first look: only now it is known who they are here.)
        self._seen, self._tokenizer = None if phase == "stream" else self.chosen(), self._tokenizer_now()
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
            tokenizer = self._tokenizer_now()
            if self._remake is not None and tokenizer != self._tokenizer:
                self._change_ids()
                self._tokenizer = tokenizer
            else:
                self._change_params(self.chosen() if step is None else step)
            return self.last

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _change_params(self, step: int | None) -> None:
        name = f"{self.phase}/{step}"
        try:
            params = calibrated(restore_params(self.workdir / self.phase, step=step), self._report())
        except UNREADABLE as error:
            raise ValueError(f"{name} cannot be loaded: {error}") from error
        version = self.live.service.engine.prepare(params, name, self._learned(step))
        self._compare(name, lambda service, part, now: service.recommend(part, now, version=version))
        self.live.swap(version)
        self._say(name)

    def _report(self) -> dict[str, Any]:
        """W/PHASE.json, empty where there is none."""
        try:
            return json.loads((self.workdir / f"{self.phase}.json").read_text())
        except (OSError, ValueError):
            return {}

    def _learned(self, step: int | None) -> dict[int, tuple[str, int]]:
        """Of authors behind those of training, whom a stream has learned of: our row → (author, row of the step)."""
        said = self._report()
        names = said.get("authors", {}) if said.get("chosen_step") == step else {}

        def ours(service: Service) -> dict[int, tuple[str, int]]:
            rows = service.state.authors
            return {rows.row(who): (who, int(row)) for row, who in names.items() if rows.row(who) >= rows.trained}

        return self.live.ask_worker(ours).result() if names else {}

    def _change_ids(self) -> None:
        try:
            fresh = self._remake()
        except UNREADABLE as error:
            raise ValueError(f"{self.workdir} cannot be loaded with its new tokenizer: {error}") from error
        name, kept = f"{fresh.engine.running.name} with new ids", self.live.other
        self.live.catch_up(fresh)
        try:
            self._compare(name, lambda service, part, now: fresh.recommend(part, now))
        except ValueError:
            self.live.other = kept
            raise
        self.live.change_service()
        self._say(name)

    def _say(self, name: str) -> None:
        logger.info("%s answers now, not %s: %.0f %% of the rooms of the last %d requests are the same", name,
                    self.last["against"], 100 * self.last["same_rooms"], self.last["requests"])

    def _compare(self, name: str, ask: Callable[[Service, list, int], list]) -> None:
        """Both models on the last requests, a batch at a time, so that answers in between wait for one batch only.

        Raises: ValueError where the answers of `ask` are broken.
        """
        queries, largest = list(self.live.recent), self.live.service.config.serving.max_batch
        same, apart, broken = [], [], 0
        for low in range(0, len(queries), largest):
            part = queries[low:low + largest]

            def both(service: Service, part=part):
                now = self.live.clock()
                return service.recommend(part, now), ask(service, part, now)

            for ours, theirs in zip(*self.live.ask_worker(both).result(), strict=True):
                before, after = ({room.room: room.score for room in answer.rooms} for answer in (ours, theirs))
                broken += len(after) < len(before) or not np.isfinite(list(after.values())).all()
                same.append(len(before.keys() & after.keys()) / max(len(before), 1))
                apart += [abs(before[room] - after[room]) for room in before.keys() & after.keys()]
        self.last = {"candidate": name, "against": self.live.service.engine.running.name, "requests": len(queries),
                     "broken": broken, "same_rooms": round(float(np.mean(same or [1.0])), 4),
                     "score_difference": round(float(np.mean(apart or [0.0])), 4)}
        if broken:
            raise ValueError(f"{name} is not taken: {broken} of {len(queries)} answers are not finite, or shorter than "
                             "those of the running model")

    def _tokenizer_now(self) -> bytes:
        """What the workdir says of its tokenizer."""
        try:
            return (self.workdir / "tokenizer.json").read_bytes()
        except OSError:
            return b""

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            chosen = self.chosen()
            if chosen is None or (chosen, self._tokenizer_now()) == (self._seen, self._tokenizer):
                continue
            self._seen = chosen
            try:
                self.load(chosen)
            except ValueError as error:
                self._tokenizer = self._tokenizer_now()  # the same is not tried for ever
                self.last = {"candidate": f"{self.phase}/{chosen}", "refused": str(error)}
                logger.warning("%s", error)
