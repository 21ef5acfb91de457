"""What a model's name stands for if no run serves it: weights of a run on disk, or a base model.

Weights of a run are pinned as an evaluation's are, so that the run may continue while they are loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from services.api.control.on_demand import OnDemandModel
from services.api.resources.runs.fork import unsettle
from services.api.resources.runs.weights import Pinned, Weights, choose, pin
from services.api.storage.database import Database
from services.api.storage.runs import Run
from services.contracts.errors import (
    ConfigurationError,
    ForbiddenError,
    NotFoundError,
    TurnoutError,
    UnavailableError,
)
from services.contracts.run_config import RunConfig
from services.contracts.serving import model_name, on_demand_config, on_demand_id
from services.contracts.states import TERMINAL_STATES
from services.contracts.streams import is_run_id
from services.runtime.inputs import check_model, is_of_hub
from services.runtime.settings import Settings

REMEDY = "GET /v1/models lists the models that are loaded."


@dataclass(frozen=True, slots=True)
class Loadable:
    """A model that can be loaded onto an idle rollout server."""

    name: str
    """What clients call it, with the step if it has one."""
    root: str
    """The base model."""
    version: int
    config: RunConfig
    make: Callable[[], Awaitable[OnDemandModel]]


class Loading:
    """Finds models that can be loaded, and prepares them."""

    def __init__(self, settings: Settings, database: Database, discard: Callable[[str], Awaitable[None]]) -> None:
        """`discard` deletes the files of the model with this id."""
        self._settings = settings
        self._database = database
        self._discard = discard

    async def find(self, text: str, *, may_download: bool) -> Loadable:
        """The model with this name, which no rollout server has.

        Raises:
            NotFoundError: there is none, or the run has no such weights on disk.
            ForbiddenError: it is a model of the hub, and the caller may not make the deployment download any.
            UnavailableError: it is the policy of a run that has not ended, and only its own servers have that.
        """
        run_id = text.partition("@")[0]
        async with self._database.read() as session:
            run = await session.get(Run, run_id) if is_run_id(run_id) else None
        if run is not None:
            return await self._of_run(run, model_name(text)[1])
        if "/" not in text:
            raise NotFoundError(f"The model {text[:100]!r} does not exist.", remedy=REMEDY, field="model")
        if not may_download and is_of_hub(text):
            raise ForbiddenError(
                f"The model {text} is one of the hub, and a key with the role use cannot download any.",
                remedy="Use a key with the role operate, or ask for a model in a folder.",
                field="model",
            )
        return await self._base_model(text)

    async def _of_run(self, run: Run, wanted: int | None) -> Loadable:
        if wanted is None and run.state not in TERMINAL_STATES:
            raise UnavailableError(
                f"Run {run.id} is {run.state}, and none of its rollout servers is ready.",
                remedy=f"Try again when one is, or ask for a version, such as {run.id}@0.",
            )
        is_fork = run.forked_from_run is not None
        try:
            weights = await asyncio.to_thread(choose, self._settings, run.id, wanted, is_fork=is_fork)
        except TurnoutError as error:
            raise NotFoundError(
                f"No rollout server has version {wanted} of run {run.id}, and it is not on disk."
                if wanted is not None
                else f"Run {run.id} has ended ({run.state}), and none of its weights are on disk.",
                remedy=error.remedy.replace("leave it out", f"ask for {run.id}") if wanted is not None else REMEDY,
                field="model",
            ) from error
        if wanted is None and weights.step == 0 < run.step:
            raise NotFoundError(
                f"Run {run.id} has ended ({run.state}), and none of the weights that it trained are on disk.",
                remedy=f"Ask for {run.id}@0, the model that it started from.",
                field="model",
            )
        config = on_demand_config(run.config, None)
        return self._loadable(f"{run.id}@{weights.step}", config, weights, run.config)

    async def _base_model(self, path: str) -> Loadable:
        try:
            config = on_demand_config(None, path)
            await asyncio.to_thread(check_model, config, self._settings)
        except ConfigurationError as error:
            text = error.message.replace("model.path", "model")
            raise NotFoundError(text, remedy=error.remedy, field="model") from error
        return self._loadable(path, config, Weights(0, None, False), None)

    def _loadable(self, name: str, config: RunConfig, weights: Weights, run: dict[str, object] | None) -> Loadable:
        root = config.model.path
        make = partial(self._make, name, config, weights, run)
        return Loadable(name, root, weights.step, config, make)

    async def _make(
        self, name: str, config: RunConfig, weights: Weights, run: dict[str, object] | None
    ) -> OnDemandModel:
        model_id, pinned = on_demand_id(), Pinned(None, None)
        if weights.folder is not None:
            # The mark stays, so that files which a killed API leaves behind are deleted at its next start.
            await asyncio.to_thread(unsettle, self._settings.run_folder(model_id))
            try:
                pinned = await asyncio.to_thread(pin, self._settings, model_id, weights)
            except BaseException:
                await asyncio.shield(self._discard(model_id))
                raise
        root = config.model.path
        if pinned.model is not None:
            config = on_demand_config(run, pinned.model)
        return OnDemandModel(model_id, name, config, pinned.weights, root, weights.step)
