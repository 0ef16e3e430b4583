"""The server's routes."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from attempt_cli.evaluation.serving import ServedTask
from attempt_cli.server.catalogue import Catalogue
from attempt_cli.server.engine import Engine
from attempt_cli.server.gate import Gate
from attempt_cli.server.metrics import Metrics
from attempt_cli.server.openai import ChatRequest, CompletionRequest
from attempt_cli.server.problems import AsciiJson, explain_errors
from attempt_cli.server.service import PredictRequest, Service
from attempt_cli.server.settings import ServerSettings
from attempt_registry.records import Composition

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
OPEN = {*PAGE, "/health"}  # without a key: they say nothing about the registry


def create_app(catalogue: Catalogue, engine: Engine, settings: ServerSettings) -> FastAPI:
    """Makes the application that answers requests; `engine` has been started."""
    app = FastAPI(title="attempt", docs_url=None, redoc_url=None, openapi_url=None, default_response_class=AsciiJson)
    metrics = Metrics(engine, catalogue)
    service = Service(catalogue, engine, settings)

    @app.get("/health")
    async def health() -> Response:
        body = {"status": "ok" if engine.alive else "stopped", "backbone": engine.backbone.name}
        return AsciiJson({**body, "waiting": engine.waiting}, 200 if engine.alive else 503)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [described(name, one) for name, one in catalogue.all().items()]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Any:
        served = catalogue[name]
        return {**described(name, served), "lineage": catalogue.lineage(served)}

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest) -> Any:
        return await service.complete(body)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest) -> Any:
        return await service.complete(body)

    @app.post("/predict")
    async def predict(body: PredictRequest) -> Any:
        return await service.predict(body)

    for path, (file, kind) in PAGE.items():
        content = files("attempt_cli.server").joinpath(file).read_bytes()
        app.add_api_route(path, _fixed(content, kind), methods=["GET", "HEAD"])
    explain_errors(app)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    return app


def _fixed(content: bytes, kind: str) -> Any:
    async def page() -> Response:
        return Response(content, media_type=kind)

    return page


def described(name: str, served: ServedTask) -> dict[str, Any]:
    """Returns a model as `/v1/models` shows it: OpenAI's fields, and what the page shows."""
    from datetime import datetime

    record, task = served.model.record, served.task
    assert record is not None
    prompts = served.model.targets
    return {
        "id": name,
        "object": "model",
        "created": int(datetime.fromisoformat(record.created).timestamp()),
        "owned_by": "attempt",
        "record": record.ref,
        "kind": served.model.kind,
        "method": None if isinstance(record, Composition) else record.method,
        "placement": record.placement,
        "task": task.name,
        "columns": list(task.input_columns()),
        "labels": dict(task.labels) if task.labels is not None else None,
        "sources": list(served.model.sources),
        "targets": [prompt.ref for prompt in prompts],
        "tags": sorted({tag for prompt in prompts for tag in prompt.tags}),
        "note": record.note,
    }
