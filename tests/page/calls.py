"""Calls to the API that a test makes itself."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from tests.page.conftest import Api


def post(api: Api, path: str, body: Any = None) -> Any:
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(api.url + path, data, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def get(api: Api, path: str) -> Any:
    with urllib.request.urlopen(api.url + path, timeout=30) as answer:
        return json.load(answer)
