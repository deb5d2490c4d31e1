"""The HTTP interface: recommendations, events, rooms, people, models, health, metrics, the page.

Everything that takes time is done by the worker of `Live`; handlers wait for it without holding a thread.
"""

import asyncio
import hmac
import json
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from data_pipelines.live import events
from experiments.server import kserve, page
from experiments.server.live import Live, answer_json, compact
from experiments.server.service import Query as Asked
from experiments.server.service import Unanswerable
from onelive_jax import __version__
from onelive_jax.serving.batching import Full

MOST_EVENTS, MOST_QUERIES = 10_000, 256  # of one call
COOKIE = "onelive_token"
OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")  # asked by probes, which have no token
# (Checked before pydantic looks: it would take true for 1.)
Name = Annotated[str, BeforeValidator(events.name_of), WithJsonSchema({
    "anyOf": [{"type": "string"}, {"type": "integer"}],
    "description": "the platform's own id: text, or a whole number"})]


@dataclass(frozen=True)
class Limits:
    """token: bearer token that is asked for, or "" for none. body: most bytes of a request. rate: requests a second of
    one client address, 0 for no limit."""

    token: str = ""
    body: int = 8 * 2**20
    rate: float = 0.0


class Watched(BaseModel):
    """A view of somebody whose history is given with the request."""

    model_config = ConfigDict(extra="forbid")
    author: Name
    at: int = Field(ge=0, le=events.LATEST_MS, description="start, milliseconds")
    watch_ms: int = Field(ge=0, le=events.LATEST_MS)


class RecommendRequest(BaseModel):
    """Who asks, and for how many rooms."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [
        {"user": "u42", "k": 5}, {"user": "guest-7", "k": 5, "exclude": ["r7"], "context": [
            {"author": "a3", "at": 1767225000000, "watch_ms": 240000}]}]})
    user: Name
    k: int | None = Field(None, ge=1, description="rooms wanted, at most config.serving.max_k; 10 if left out")
    at: int | None = Field(None, ge=0, le=events.LATEST_MS, description="milliseconds; now if left out. Rooms are "
                           "those on air now, whatever it says")
    exclude: list[Name] = Field([], max_length=1000, description="rooms that are not to be named")
    context: list[Watched] | None = Field(None, max_length=1000, description="recent views that stand for the history "
                                          "that is known of the person")
    deadline_ms: float | None = Field(None, gt=0, le=60_000, description="time to answer in; when it is near, the "
                                      "answer is a cheap one, marked as such")

    def asked(self, most: int) -> Asked:
        """What the service reads; `most` is config.serving.max_k."""
        context = None if self.context is None else tuple(
            (view.author, view.at, view.watch_ms) for view in self.context)
        return Asked(self.user, min(10, most) if self.k is None else self.k, tuple(self.exclude), self.at, context)


class ArmFigures(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    requests: int = Field(ge=0)
    ctr: float
    utility: float


class MinuteFigures(BaseModel):
    """What a simulated platform measures of its arms in a minute."""

    model_config = ConfigDict(extra="forbid")
    minute: int = Field(ge=0)
    model: ArmFigures
    viewers: ArmFigures


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    requests: list[RecommendRequest] = Field(min_length=1, max_length=MOST_QUERIES)


class Room(BaseModel):
    room: str
    author: str
    score: float = Field(description="log-probability of the room's id + its identity score")
    codes: list[int] = Field(description="semantic id now")
    viewers: int = Field(description="other people who watch now")


class Recommendation(BaseModel):
    request_id: str
    at: int
    model: str = Field(description='name of the parameters that answered, or "fallback"')
    catalogue: int = Field(description="version of the rooms on air")
    fallback: bool
    rooms: list[Room]


def make_app(live: Live, limits: Limits = Limits()) -> FastAPI:
    """The application of one server."""
    app = FastAPI(title="OneLive-JAX", version=__version__, description="Which rooms now?",
                  openapi_tags=[{"name": "serving"}, {"name": "models"}, {"name": "operation"}, {"name": "KServe v2"}])
    app.add_middleware(Guard, limits=limits, refused=live.metrics.refused)

    @app.exception_handler(Full)
    async def too_many(request: Request, error: Full) -> JSONResponse:
        live.metrics.refused.labels("429").inc()
        return JSONResponse({"detail": str(error)}, 429, {"Retry-After": str(math.ceil(error.retry_after))})

    @app.exception_handler(Unanswerable)
    async def wrong(request: Request, error: Unanswerable) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        # (The values themselves are not given back: they may be long, or no JSON.)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return JSONResponse({"detail": f"{where or 'body'}: {first['msg'].removeprefix('Value error, ')}"}, 422)

    @app.exception_handler(OSError)
    async def broken(request: Request, error: OSError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    async def answered(body: RecommendRequest) -> dict[str, Any]:
        seconds = None if body.deadline_ms is None else body.deadline_ms / 1000
        answer = await asyncio.wrap_future(live.recommend(body.asked(live.service.config.serving.max_k), seconds))
        return answer_json(answer, uuid.uuid4().hex)

    @app.post("/v1/recommend", response_model=Recommendation, tags=["serving"])
    async def recommend(body: RecommendRequest) -> Response:
        """The best rooms on air for a person, best first."""
        check_ready()
        return Response(compact(await answered(body)), media_type="application/json")

    @app.post("/v1/recommend/batch", tags=["serving"])
    async def recommend_batch(body: BatchRequest) -> Response:
        """As `/v1/recommend`, for many people: all are answered, or none (429)."""
        check_ready()
        made = [answered(each) for each in body.requests]
        return Response(compact({"answers": await asyncio.gather(*made)}), media_type="application/json")

    @app.post("/v1/events", tags=["serving"], openapi_extra={"requestBody": {"required": True, "content": {
        "application/json": {"schema": {"type": "object", "required": ["events"], "properties": {"events": {
            "type": "array", "maxItems": MOST_EVENTS, "items": {"type": "object"}}}}, "example": {"events": [
                {"type": "room_started", "id": "1", "at": 1767225600000, "room": "r7", "author": "a3"},
                {"type": "segment", "id": "2", "at": 1767225630000, "room": "r7", "embedding": [0.1, -0.4]},
                {"type": "view_started", "id": "3", "at": 1767225640000, "user": "u42", "room": "r7"}]}}}}})
    async def post_events(request: Request, wait: bool = False) -> dict[str, int]:
        """Events of any type, at most 10,000 a call; all are taken, or none. When the answer comes they are kept for
        good. With `wait=true`, it comes when recommendations know of them. Types: room_started, room_ended, segment,
        view_started, view_ended, like, comment, follow, share, gift, impression, video_watched, author_profile,
        user_profile (data_pipelines/live/events.py)."""
        coming = await _events_of(request)
        new, done = await asyncio.to_thread(live.take, coming)
        if wait:
            await asyncio.wrap_future(done)
        return {"accepted": new, "known": len(coming) - new}

    @app.get("/v1/rooms", tags=["serving"])
    async def rooms(limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
                    offset: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        """Rooms on air, those with most viewers first."""
        return await asyncio.wrap_future(live.ask_worker(lambda s: s.rooms_on_air(limit, offset, live.clock())))

    @app.get("/v1/users/{user:path}", tags=["serving"])
    async def person(user: Name) -> dict[str, Any]:
        """What is known of a person: what they watch now, their last views."""
        found = await asyncio.wrap_future(live.ask_worker(lambda s: s.person(user)))
        if found is None:
            raise HTTPException(404, f"nothing is known of {user!r}: no event named them")
        return found

    @app.get("/v1/models", tags=["models"])
    async def models() -> dict[str, Any]:
        """What answers, and what a rollback would put back."""
        return model_names()

    @app.post("/v1/models/load", tags=["models"])
    async def load(step: Annotated[int | None, Query(ge=0)] = None) -> dict[str, Any]:
        """Puts the parameters of a step (or of the one that training chose) in place, once they are compared with the
        running ones on the last requests."""
        if live.models is None:
            raise HTTPException(409, "this server has no workdir to load models from")
        try:
            await asyncio.to_thread(live.models.load, step)
        except ValueError as error:
            raise HTTPException(409, str(error)) from None
        return model_names()

    @app.post("/v1/models/rollback", tags=["models"])
    async def rollback() -> dict[str, Any]:
        """Puts the model before back in place, with its ids."""
        try:
            await asyncio.to_thread(live.rollback)
        except ValueError as error:
            raise HTTPException(409, str(error)) from None
        return model_names()

    def model_names() -> dict[str, Any]:
        service, other = live.service, live.other
        before = service.engine.previous or (other.engine.running if other else None)
        return {"running": service.engine.running.name, "ids": service.state.ids, "previous": before and before.name,
                "compared": live.models.last if live.models else {}}

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> dict[str, str]:
        """Every program is compiled: answers come in milliseconds."""
        check_ready()
        return {"status": "ready"}

    @app.get("/v2/health/live", tags=["KServe v2"])
    async def v2_live() -> dict[str, bool]:
        return {"live": True}

    @app.post("/v1/figures", include_in_schema=False)
    async def figures(body: MinuteFigures) -> dict[str, int]:
        """For the page; a minute may be told again as it fills."""
        before = [minute for minute in live.figures if minute["minute"] != body.minute]
        live.figures = [*before, body.model_dump()][-240:]
        return {"kept": len(live.figures)}

    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(live.gauges(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index(request: Request, token: str = "") -> Response:
        if token:  # the browser keeps it: a page cannot send headers with its events
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return answer
        return HTMLResponse(page.HTML)

    @app.get("/v1/stream", include_in_schema=False)
    async def stream(request: Request, user: str = "",
                     seconds: Annotated[float, Query(ge=0.2, le=60)] = 1.0) -> Response:
        return StreamingResponse(page.stream(live, request, user, seconds), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    def check_ready() -> None:
        if not live.ready.is_set():
            raise HTTPException(503, "not ready: programs are being compiled, or the server is shutting down",
                                {"Retry-After": "1"})

    app.include_router(kserve.make_router(live), dependencies=[Depends(check_ready)])
    return app


async def _events_of(request: Request) -> list[events.Event]:
    """The events of a body. Raises HTTPException that names the first wrong one."""
    try:
        body = json.loads(await request.body(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is no JSON: {error}") from None
    coming = body.get("events") if isinstance(body, dict) else None
    if not isinstance(coming, list) or len(coming) > MOST_EVENTS:
        raise HTTPException(422, f'the body must be {{"events": [ … ]}} with at most {MOST_EVENTS:,} events')
    made = []
    for place, value in enumerate(coming):
        try:
            made.append(events.from_json(value))
        except ValueError as error:
            raise HTTPException(422, f"events[{place}]: {error}") from None
    return made


def _no_constant(name: str):
    raise ValueError(f"{name} is no JSON")


class Guard:
    """Before anything is read: the token, the size of the body, the rate of a client."""

    def __init__(self, app: Callable, limits: Limits, refused):
        self.app, self.limits, self.refused = app, limits, refused
        self.spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client → (tokens left, when)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, limits = Request(scope), self.limits
        status, detail, more = 0, "", {}
        if limits.token and request.url.path not in OPEN and not self._knows(request):
            status, detail, more = 401, "a token is asked for: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"}
        elif limits.rate and request.url.path not in OPEN and (wait := self._wait(request)) > 0:
            status, detail, more = 429, f"more than {limits.rate:g} requests a second", {
                "Retry-After": str(math.ceil(wait))}
        elif not _size(request) <= limits.body:
            status, detail = 413, f"the body is larger than {limits.body:,} bytes"
        if status:
            self.refused.labels(str(status)).inc()
            await JSONResponse({"detail": detail}, status, more)(scope, receive, send)
            return
        read = 0

        async def counted():
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limits.body:  # a body that does not say how long it is
                raise HTTPException(413, f"the body is larger than {limits.body:,} bytes")
            return message

        await self.app(scope, counted, send)

    def _knows(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.url.path == "/" and "token" in request.query_params:
            given = request.query_params["token"]
        return any(hmac.compare_digest(token.encode(), self.limits.token.encode())
                   for token in (given, request.cookies.get(COOKIE, "")))

    def _wait(self, request: Request) -> float:
        """Seconds until a client may ask again; 0 where it may now (a second's worth may come at once)."""
        client, now, rate = request.client.host if request.client else "", time.monotonic(), self.limits.rate
        most = max(rate, 1.0)
        left, then = self.spent.pop(client, (most, now))
        left = min(most, left + (now - then) * rate)
        self.spent[client] = (max(left - 1, 0) if left >= 1 else left, now)
        if len(self.spent) > 10_000:
            self.spent.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / rate


def _size(request: Request) -> float:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else math.inf

