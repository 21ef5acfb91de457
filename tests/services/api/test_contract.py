"""The API conforms to its OpenAPI document, whatever is sent: Schemathesis with every check, including links."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from redis.asyncio import Redis

from services.api.application import make_application
from services.api.container import make_parts
from services.api.storage.database import open_database
from services.runtime.settings import Settings
from tests.conftest import ROOT
from tests.services.api.fakes import looping, served

KEY = "of the contract's test"


async def test_every_operation_answers_as_documented(settings: Settings, redis: Redis) -> None:
    """A short version with a fixed seed; tests/services/api/schemathesis.toml says how to run a long one."""
    with_key = settings.model_copy(update={"api_key": KEY})
    parts = make_parts(with_key, redis, await open_database(with_key))
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "--config-file", "tests/services/api/schemathesis.toml", "run"]
    options = ["--max-examples", "4", "--seed", "1", "--header", f"Authorization: Bearer {KEY}"]
    async with served(make_application(parts)) as url, looping(parts):
        process = await asyncio.create_subprocess_exec(
            *command, *options, f"{url}/openapi.json", cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        output = (await process.communicate())[0].decode()
    await parts.close()
    assert process.returncode == 0, output
    [(selected, total)] = re.findall(r"Selected: (\d+)/(\d+)", output)
    [tested] = re.findall(r"Tested: (\d+)", output)
    assert int(selected) == int(total) == int(tested) >= 24, output
    [covered] = re.findall(r"API Links: +(\d+) covered", output)
    assert int(covered) >= 5, output
