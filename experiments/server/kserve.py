"""The KServe v2 protocol ("open inference protocol"): health, the model's card, and infer on tensors of people.

    POST /v2/models/onelive/infer
    {"inputs": [{"name": "user", "datatype": "BYTES", "shape": [2], "data": ["u1", "u2"]}], "parameters": {"k": 5}}
"""

import asyncio
from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from data_pipelines.live import events
from experiments.server.live import Live
from experiments.server.service import Query
from onelive_jax import __version__

MODEL = "onelive"
OUTPUTS = (("room", "BYTES"), ("author", "BYTES"), ("score", "FP32"), ("viewers", "INT64"))


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": [
        {"name": "user", "datatype": "BYTES", "shape": [2], "data": ["u1", "u2"]}], "parameters": {"k": 5}}]})
    id: str = ""
    inputs: list[Tensor] = Field(min_length=1, max_length=1)
    parameters: dict[str, Any] = {}


def make_router(live: Live) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=["KServe v2"])

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @router.get("")
    async def server() -> dict[str, Any]:
        return {"name": "onelive-jax", "version": __version__, "extensions": []}

    @router.get("/models/{model}/ready")
    async def model_ready(model: str) -> dict[str, Any]:
        check(model)
        return {"name": MODEL, "ready": True}

    @router.get("/models/{model}")
    async def card(model: str) -> dict[str, Any]:
        check(model)
        return {"name": MODEL, "versions": [live.service.engine.running.name], "platform": "jax",
                "inputs": [{"name": "user", "datatype": "BYTES", "shape": [-1]}],
                "outputs": [{"name": name, "datatype": kind, "shape": [-1, -1]} for name, kind in OUTPUTS]}

    @router.post("/models/{model}/infer")
    async def infer(model: str, body: InferRequest) -> dict[str, Any]:
        """Rooms of each person, best first; rows as long as the longest answer, padded with "" and a lowest score."""
        check(model)
        tensor, k = body.inputs[0], body.parameters.get("k", 10)
        if tensor.name != "user" or tensor.datatype != "BYTES" or tensor.shape != [len(tensor.data)]:
            raise HTTPException(400, 'one input is needed: name "user", datatype BYTES, shape [n], data of n ids')
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= len(tensor.data) <= 256:
            raise HTTPException(400, "parameters.k must be a whole number, and 1 to 256 people may be asked for")
        try:
            queries = [Query(events.name_of(user), k) for user in tensor.data]
        except ValueError as error:
            raise HTTPException(400, f"an id of user {error}") from None
        answers = await asyncio.gather(*(asyncio.wrap_future(live.recommend(query)) for query in queries))
        width = max(len(answer.rooms) for answer in answers)

        def column(of, blank) -> list[Any]:
            return [of(answer.rooms[i]) if i < len(answer.rooms) else blank for answer in answers for i in range(width)]

        columns = (column(lambda r: r.room, ""), column(lambda r: r.author, ""), column(lambda r: r.score, -3.4e38),
                   column(lambda r: r.viewers, 0))
        return {"model_name": MODEL, "model_version": answers[0].model, "id": body.id, "outputs": [
            {"name": name, "datatype": kind, "shape": [len(answers), width], "data": data}
            for (name, kind), data in zip(OUTPUTS, columns, strict=True)]}

    def check(model: str) -> None:
        if model != MODEL:
            raise HTTPException(404, f"there is no model {model!r}: the model is called {MODEL!r}")

    return router
