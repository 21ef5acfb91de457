"""The first questions of a run file, rendered by `services.runtime.first_questions`, one request at a time."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import msgspec

from services.contracts.errors import UnavailableError
from services.contracts.run_config import RunConfig
from services.runtime.first_questions import FirstQuestions, Request
from services.runtime.inputs import check_inputs
from services.runtime.logs import get_logger
from services.runtime.settings import Settings

PROGRAM: Final = "services.runtime.first_questions"
SECONDS: Final = 60.0
WAIT_SECONDS: Final = 30.0
"""For the requests of others."""
_KEPT: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "HOME", "HF_HOME", "HF_HUB_CACHE")
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
"""Looking at questions downloads nothing: models and data of the hub are shown if this machine has them already."""

log = get_logger(__name__)


class QuestionReader:
    """Renders questions in a process that ends with the request."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._turn = asyncio.Lock()

    async def read(self, config: RunConfig, rows: int) -> FirstQuestions:
        """The first `rows` questions of each source.

        Raises:
            ConfigurationError: an input is missing or outside the folders that runs may read.
            UnavailableError: others' requests, or this one, took too long.
        """
        await asyncio.to_thread(check_inputs, config, self.settings)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turn.acquire()
        except TimeoutError as error:
            raise UnavailableError("The questions of another run file are being read.", remedy="Try again.") from error
        try:
            return await self._in_process(msgspec.json.encode(Request(config.model_dump(mode="json"), rows)))
        finally:
            self._turn.release()

    async def _in_process(self, request: bytes) -> FirstQuestions:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", PROGRAM),
            env={name: os.environ[name] for name in _KEPT if name in os.environ} | _OFFLINE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(SECONDS):
                output, _ = await process.communicate(request)
            return msgspec.json.decode(output, type=FirstQuestions)
        except (TimeoutError, msgspec.DecodeError) as error:
            log.warning("first questions not read", error=repr(error))
            raise UnavailableError(
                f"The questions could not be read within {SECONDS:.0f} s.",
                remedy="See the API's log, or run `turnout data show FILE` on a machine that has the model.",
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
