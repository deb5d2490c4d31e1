"""The page at `/`: one HTML file, and the stream of events that it listens to."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from experiments.server.live import Live, answer_json
from experiments.server.service import Query, Service

HTML = (Path(__file__).parent / "page.html").read_text("utf-8")
ROOMS, RANKS = 24, 10


async def stream(live: Live, request: Any, user: str, seconds: float) -> AsyncIterator[str]:
    """Server-sent events: what the page shows, every `seconds`, until the browser leaves."""
    while not await request.is_disconnected():
        yield f"data: {json.dumps(await now(live, user), separators=(',', ':'))}\n\n"
        await asyncio.sleep(seconds)


async def now(live: Live, user: str) -> dict[str, Any]:
    """All that the page shows at a moment; the answer is that of `user`, or of somebody who watches just now."""
    def look(service: Service) -> tuple[dict, str]:
        watching = next(reversed(service.state.watched), None)
        return (service.rooms_on_air(ROOMS, 0, live.clock()),
                user or ("" if watching is None else service.state.users.names[watching]))

    rooms, who = await asyncio.wrap_future(live.ask_worker(look))
    answer, problem = None, ""
    if live.ready.is_set() and who:
        try:
            k = min(RANKS, live.service.config.serving.max_k)
            answer = answer_json(await asyncio.wrap_future(live.recommend(Query(who, k))), "")
        except Exception as error:  # noqa: BLE001 - the page says it
            problem = str(error)
    state, engine = live.service.state, live.service.engine
    return {"rooms": rooms["rooms"], "on_air": rooms["on_air"], "user": who, "answer": answer, "problem": problem,
            "ready": live.ready.is_set(), "model": engine.running.name,
            "model_age_s": round(time.time() - engine.running.since), "people": len(state.users),
            "counts": dict(state.counts), "quantiles": live.metrics.quantiles(), "clock_ms": live.clock(),
            "waiting": len(live.batcher), "figures": live.figures}
