"""The JSON schema of run files, by which the page's editor completes and explains fields."""

from __future__ import annotations

import json

from services.contracts.run_config import RunConfig


def run_file_schema() -> bytes:
    """JSON. Contains no data, so it is a file of the page, which loads without a key and is cached."""
    return json.dumps(RunConfig.model_json_schema(), separators=(",", ":")).encode()
