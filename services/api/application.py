"""The API's ASGI application (routes, errors, access control) and its background loops."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import FastAPI

from services.api.container import Parts
from services.api.http import problems
from services.api.http.limiter import RateLimiter
from services.api.http.provide import provide
from services.api.http.reference import router as reference_router
from services.api.http.response_cache import Answers
from services.api.http.security import HEADERS, HEALTH_PATHS, Guard, StrictHeaders
from services.api.live.repeat import repeat
from services.api.page.serve import Page
from services.api.resources.evaluations.endpoints import router as evaluations_router
from services.api.resources.experiments.endpoints import router as experiments_router
from services.api.resources.fleet.endpoints import router as fleet_router
from services.api.resources.history.endpoints import router as history_router
from services.api.resources.keys.endpoints import role_router
from services.api.resources.keys.endpoints import router as keys_router
from services.api.resources.probes.endpoints import router as probes_router
from services.api.resources.run_files.endpoints import router as run_files_router
from services.api.resources.runs.endpoints import router as runs_router
from services.api.resources.serving.endpoints import router as serving_router
from services.api.resources.serving.reading_endpoints import router as readings_router
from services.runtime.http.problem import Problem

ROUTERS = (
    runs_router,
    history_router,
    experiments_router,
    evaluations_router,
    probes_router,
    fleet_router,
    run_files_router,
    serving_router,
    readings_router,
    keys_router,
    role_router,
    reference_router,
)
DESCRIPTION = "Runs, their history, services and metrics. Errors are RFC 9457 problem documents."
SCHEDULE_SECONDS = 0.5
PUSH_SECONDS = 0.5
WATCH_SECONDS = 1.0
EXPERIMENT_SECONDS = 1.0
EXAMINE_SECONDS = 0.5
REFRESH_SECONDS = 1.0


def make_application(parts: Parts) -> FastAPI:
    """Build the application from its parts."""
    app = FastAPI(title="Turnout", version=version("turnout"), description=DESCRIPTION, docs_url=None, redoc_url=None)
    provide(app, parts)
    app.add_middleware(Answers, database=parts.database)
    app.add_middleware(Page)
    app.add_middleware(Guard, keys=parts.keys, limiter=RateLimiter(parts.settings.rate_limit))
    app.add_middleware(StrictHeaders)
    problems.install(app, HEADERS)
    for router in ROUTERS:
        app.include_router(router)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Add the problem schema, the key scheme and the guard's error responses to the OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, object]:
        document = make()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if path in HEALTH_PATHS:
                    operation["security"] = []
                    continue
                answers = operation["responses"]
                for status, answer in problems.responses(403, 422, 429).items():
                    if status != 422 or "422" in answers:
                        answers[str(status)] = answer
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def run_loops(parts: Parts) -> None:
    """Run all loops until cancelled. Each loop's class documents what it consumes, produces and waits for."""
    await parts.board.rebuild(parts.database)
    signals, status = parts.signals, parts.status
    async with asyncio.TaskGroup() as group:
        group.create_task(repeat("ingest", parts.ingest.step, status, seconds=0.0))
        group.create_task(
            repeat("scheduler", parts.scheduler.step, status, seconds=SCHEDULE_SECONDS, wake=signals.schedule)
        )
        group.create_task(repeat("pusher", parts.pusher.step, status, seconds=PUSH_SECONDS, wake=signals.push))
        group.create_task(repeat("watchdog", parts.watchdog.step, status, seconds=WATCH_SECONDS))
        group.create_task(
            repeat("experiments", parts.experiments.step, status, seconds=EXPERIMENT_SECONDS, wake=signals.experiments)
        )
        group.create_task(repeat("examiner", parts.examiner.step, status, seconds=EXAMINE_SECONDS))
        group.create_task(repeat("metrics", parts.refresh.step, status, seconds=REFRESH_SECONDS))
