"""`/docs`: the REST reference as Swagger UI. Its files come from a package, so the page works offline.

The page and `/openapi.json` need no key: they describe the release and reveal nothing about the deployment. Requests
sent from the page do; "Authorize" takes the key.
"""

from __future__ import annotations

import asyncio
import gzip
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Header, Response
from starlette.exceptions import HTTPException

from services.api.page.serve import ASK_AGAIN, HEADERS, KEEP

PATH = "/docs"
router = APIRouter(prefix=PATH, include_in_schema=False)
MEDIA_TYPES = {"swagger-ui-bundle.js": "text/javascript; charset=utf-8", "swagger-ui.css": "text/css; charset=utf-8"}
# The content security policy forbids inline scripts, so this is a separate file.
START = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#reference", deepLinking: true, validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout",
});
"""


def _page() -> str:
    files = f"{PATH}/{version('fastapi-offline')}"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Turnout: REST</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{files}/swagger-ui.css">
<div id="reference"></div>
<script src="{files}/swagger-ui-bundle.js"></script>
<script src="{PATH}/start.js"></script>
</html>
"""


@router.get("")
async def page() -> Response:
    return Response(_page(), headers={**HEADERS, "Cache-Control": ASK_AGAIN}, media_type="text/html; charset=utf-8")


@router.get("/start.js")
async def start() -> Response:
    return Response(START, headers={**HEADERS, "Cache-Control": ASK_AGAIN}, media_type="text/javascript; charset=utf-8")


@router.get("/{release}/{name}")
async def file(release: str, name: str, accept_encoding: Annotated[str, Header()] = "") -> Response:
    if name not in MEDIA_TYPES or release != version("fastapi-offline"):
        raise HTTPException(404, "No such file. Reload /docs")
    gzipped = "gzip" in accept_encoding
    body = await asyncio.to_thread(_file, name, gzipped)
    headers = {**HEADERS, "Cache-Control": KEEP, "Vary": "Accept-Encoding"}
    if gzipped:
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers, media_type=MEDIA_TYPES[name])


@cache
def _file(name: str, gzipped: bool) -> bytes:
    body = (resources.files("fastapi_offline") / "static" / name).read_bytes()
    return gzip.compress(body, 6, mtime=0) if gzipped else body
