"""Services authenticate to each other with the deployment's token."""

from __future__ import annotations

import hmac

from fastapi import Request
from fastapi.responses import JSONResponse

from services.runtime.http.problem import problem
from services.runtime.settings import Settings


def is_service(request: Request, settings: Settings) -> bool:
    """Whether a request has the deployment's token, or the deployment has none (and listens only on loopback)."""
    if not settings.service_token:
        return True
    given = request.headers.get("authorization", "").encode()
    return hmac.compare_digest(given, f"Bearer {settings.service_token}".encode())


def unauthorized() -> JSONResponse:
    """The response to a request without the token."""
    return problem(401, "Unauthorized", "Send the services' token as `Authorization: Bearer <TURNOUT_SERVICE_TOKEN>`.")
