"""The learner's files over HTTP, for machines with which it shares no folder: versions of the weights for rollout
servers, checkpoints for ranks elsewhere.

    GET /v1/runs/{run}/weights/{version}/{name}        manifest.json, or a file that it lists
    GET /v1/runs/{run}/checkpoints/{step}/{name}       the same

With the services' token only. Ranges are served, so a broken fetch continues where it broke.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.responses import FileResponse

from services.contracts.errors import TurnoutError
from services.runtime.http.access import is_service, unauthorized
from services.runtime.http.problem import problem
from services.runtime.settings import Settings
from services.runtime.weights.checkpoint_files import checkpoint_folder, read_checkpoint_manifest
from services.runtime.weights.store import MANIFEST, WeightStore, read_manifest


def add_file_routes(app: FastAPI, settings: Settings) -> None:
    """Add the routes."""

    def answer(request: Request, find: Callable[[], tuple[Path, set[str]]], name: str) -> Response:
        if not is_service(request, settings):
            return unauthorized()
        try:
            folder, names = find()
            if name != MANIFEST and name not in names:
                return _not_found()
            found = os.lstat(folder / name)
        except (TurnoutError, OSError):
            return _not_found()
        if not stat.S_ISREG(found.st_mode):
            return _not_found()
        return FileResponse(folder / name, media_type="application/octet-stream", stat_result=found)

    @app.get("/v1/runs/{run_id}/weights/{version}/{name}")
    def weights(request: Request, run_id: str, version: int, name: str) -> Response:
        def find() -> tuple[Path, set[str]]:
            folder = WeightStore(settings.weights_of(run_id), run_id).path(version)
            return folder, {entry.name for entry in read_manifest(folder).files}

        return answer(request, find, name)

    @app.get("/v1/runs/{run_id}/checkpoints/{step}/{name:path}")
    def checkpoints(request: Request, run_id: str, step: int, name: str) -> Response:
        def find() -> tuple[Path, set[str]]:
            folder = checkpoint_folder(settings.run_folder(run_id), step)
            return folder, {entry.name for entry in read_checkpoint_manifest(folder).files}

        return answer(request, find, name)


def _not_found() -> Response:
    return problem(404, "Not found", "This learner does not have the file, or has deleted it.")
