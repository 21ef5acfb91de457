"""Weights that are offered to a rollout server: a folder of the weight store and the checksum that it must have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.contracts.errors import TurnoutError
from services.rollout.environment import REFUSED
from services.runtime.weight_store import CorruptWeightsError, Marks, read_manifest, verify_and_mark


class WeightUpdateError(TurnoutError):
    """A weight update was refused or failed. The server is out of use until a full update succeeds."""

    title = "Weight update failed"


class WeightsRefusedError(WeightUpdateError):
    """The offered weights are not what was promised. The server samples on with the weights that it has."""

    status = 422
    title = "Weights refused"


@dataclass(frozen=True, slots=True)
class Offer:
    """What an update names, with the version that the folder's manifest says."""

    path: str
    checksum: str
    version: int


def read_offer(update_info: Any, run_id: str | None) -> Offer:
    """A first look at `update_info`, {"path", "checksum"} and perhaps "transfer"; nothing is verified yet.

    Raises:
        WeightUpdateError: it is no offer, or of another run.
    """
    if not isinstance(update_info, dict) or set(update_info) - {"transfer"} != {"path", "checksum"}:
        raise WeightUpdateError(f"{REFUSED}: update_info must be an object with path and checksum.")
    path, checksum = str(update_info["path"]), str(update_info["checksum"])
    try:
        manifest = read_manifest(Path(path))
    except CorruptWeightsError as error:
        raise WeightUpdateError(f"{REFUSED}: {error}") from error
    if manifest.run_id != run_id:
        raise WeightUpdateError(f"{REFUSED}: the weights are of run {manifest.run_id}, not {run_id}.")
    return Offer(path, checksum, manifest.version)


def checked_offer(path: str, checksum: str, version: int, run_id: str | None) -> Offer:
    """An offer of `version`; only its manifest is looked at. Raises `WeightUpdateError` where it is another."""
    offer = read_offer({"path": path, "checksum": checksum}, run_id)
    if offer.version != version:
        raise WeightUpdateError(f"{REFUSED}: the folder holds version {offer.version}, not {version}.")
    return offer


def verified_offer(path: str, checksum: str, version: int, run_id: str | None) -> tuple[Offer, Marks]:
    """An offer whose every byte was read and compared; blocks for as long. With its marks: what shows a later change.

    Raises:
        WeightUpdateError: it is not what was promised.
    """
    offer = checked_offer(path, checksum, version, run_id)
    try:
        return offer, verify_and_mark(Path(path), checksum)
    except (CorruptWeightsError, OSError) as error:
        raise WeightUpdateError(f"{REFUSED}: {error}") from error
