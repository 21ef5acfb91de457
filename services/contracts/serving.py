"""What API and rollout servers agree on about served models: their names, and errors in OpenAI's format.

A run's policy is named by the run. A model on demand is a checkpoint or base model that a rollout server has because
someone asked for it. The server knows it by an id of its own, as it would a run, so each request says which one it is
for, and what clients call it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from services.contracts.errors import NotFoundError, TurnoutError
from services.contracts.run_config import RunConfig, merge, parse_run_config, without_untaken

ON_DEMAND = "on-demand-"
"""Beginning of the ids of models on demand."""
ID_HEADER = "Turnout-Model-Id"
NAME_HEADER = "Turnout-Model-Name"


def on_demand_id() -> str:
    """The id of another model on demand."""
    return f"{ON_DEMAND}{secrets.token_hex(5)}"


def on_demand_headers(model_id: str, name: str) -> dict[str, str]:
    """What a request for a model on demand says to its rollout server."""
    return {ID_HEADER: model_id, NAME_HEADER: quote(name)}


def on_demand_model(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Id and name of the model on demand that a request is for; None if it is for a run."""
    if (model_id := headers.get(ID_HEADER)) is None:
        return None
    return model_id, unquote(headers.get(NAME_HEADER, model_id))


def on_demand_config(run: Mapping[str, Any] | None, model: str | None) -> RunConfig:
    """The configuration with which a rollout server serves a model on demand, as it serves a run.

    Args:
        run: the configuration of the run as it is stored; None for a base model with the defaults of a run file.
        model: folder or hub name of the weights, if it is not the run's.

    Raises:
        ConfigurationError: there can be no run of this model.
    """
    base = without_untaken(run) if run is not None else {"model": {}, "data": {"train": "none"}}
    values = merge(base, {"name": "on demand", "rollout": {"num_servers": 1, "share_gpu": False}})
    values["training"] = base.get("training") or {"steps": 1}
    values["weights"], values["probe"] = {}, None
    values["model"] = {**values["model"], "lora": None}  # nothing is trained
    if model is not None:
        values["model"]["path"] = model
    return parse_run_config(values)


def model_name(text: str) -> tuple[str, int | None]:
    """Run and pinned weight version of a model's name, `run` or `run@version`; None if no version is pinned.

    Raises:
        NotFoundError: what follows the @ is not a version.
    """
    run_id, separator, version = text.partition("@")
    if not separator:
        return run_id, None
    if not (version.isascii() and version.isdigit() and len(version) < 12):
        raise NotFoundError(
            f"The model {text[:100]!r} does not exist: {version[:100]!r} is not a weight version.",
            remedy=f"Ask model {run_id[:100]} for the newest version, or write a number after the @.",
            field="model",
        )
    return run_id, int(version)


def fingerprint(run_id: str, versions: set[int]) -> str:
    """A reply's `system_fingerprint`: the run, and the first and last weight version that sampled it."""
    first, last = min(versions), max(versions)
    return f"{run_id}@{first}" if first == last else f"{run_id}@{first}..{last}"


def openai_error(error: TurnoutError) -> tuple[dict[str, Any], int]:
    """Body and HTTP status of an error in OpenAI's format, with the remedy in the message."""
    status = 400 if error.status == 422 else error.status
    code = "model_not_found" if status == 404 else status
    return {"error": {"message": str(error), "type": error.title, "param": error.field, "code": code}}, status
