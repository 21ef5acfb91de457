"""Weights that are offered to a rollout server: a folder of the weight store and the checksum that it must have."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.contracts.errors import TurnoutError
from services.contracts.transports.http import HttpOffer
from services.contracts.transports.layout import LAYOUT_FILE, parse_layout
from services.contracts.transports.registry import parse_transfer
from services.rollout.environment import REFUSED
from services.rollout.weights.fetch import FetchedWeights
from services.rollout.weights.shapes import ModelForm, forms_of_files, forms_of_layout
from services.runtime.weights.store import CorruptWeightsError, Marks, read_manifest, read_verified, verify_and_mark

REACH_SECONDS = 3.0
"""For the learner's machine to answer at all."""


class WeightUpdateError(TurnoutError):
    """A weight update was refused or failed. The server is out of use until a full update succeeds."""

    title = "Weight update failed"


class WeightsRefusedError(WeightUpdateError):
    """The offered weights are not what was promised. The server samples on with the weights that it has."""

    status = 422
    title = "Weights refused"


@dataclass(frozen=True, slots=True)
class ExaminedWeights:
    """What an update names, with the version that the folder's manifest says."""

    path: str
    """Folder of the version on this machine."""
    checksum: str
    version: int
    marks: Marks
    """What shows a later change of the files, see `verify_and_mark`; empty with a fast transport."""


def examined(
    update_info: Any,
    run_id: str | None,
    form: ModelForm,
    folders: Sequence[Path],
    version: int | None = None,
    fetched: FetchedWeights | None = None,
) -> ExaminedWeights:
    """`update_info`, {"path", "checksum"} and perhaps "transfer", looked at as far as it can be without touching
    anything: every byte of the store's files, or, for a fast transport, whose bytes are verified on their way, the
    layout and whether the learner can be reached; and whether the tensors fit the model. Fetched before, if the learner
    offers that and the folder is not on this machine. Blocks for as long.

    Args:
        form: the run's model.
        folders: nothing outside them is read.
        version: must be the folder's, if given.
        fetched: where a version that is fetched is put; None: nothing is.

    Raises:
        WeightUpdateError: it is no offer, of another run or version, not what was promised, or does not fit.
    """
    if not isinstance(update_info, dict) or set(update_info) - {"transfer"} != {"path", "checksum"}:
        raise WeightUpdateError(f"{REFUSED}: update_info must be an object with path and checksum.")
    path, checksum = str(update_info["path"]), str(update_info["checksum"])
    try:
        transfer = update_info.get("transfer")
        offer = None if transfer is None else parse_transfer(transfer).offer
        if isinstance(offer, HttpOffer) and not _is_here(Path(path), checksum, folders):
            if fetched is None or run_id is None or version is None:
                raise CorruptWeightsError("Weights are fetched by PUT /v1/weights alone.")
            path = str(fetched.bring(offer, run_id, version, checksum))
        if not _is_within(Path(path), folders):
            raise CorruptWeightsError(f"{path[:500]} is outside the folders of published weights.")
        manifest = read_manifest(Path(path))
        if manifest.run_id != run_id:
            raise CorruptWeightsError(f"The weights are of run {manifest.run_id}, not {run_id}.")
        if version not in (None, manifest.version):
            raise CorruptWeightsError(f"The folder holds version {manifest.version}, not {version}.")
        if offer is None or offer.brings_folder:
            marks = _stored(Path(path), checksum, manifest.version, form, fetched)
            return ExaminedWeights(path, checksum, manifest.version, marks)
        _, layout = read_verified(Path(path), LAYOUT_FILE, checksum)
        form.check(manifest.version, forms_of_layout(parse_layout(layout)))
        if (place := offer.meeting_point) is not None:
            reach(*place)
    except (TurnoutError, OSError, ValueError) as error:  # ValueError: a path with a null character
        raise WeightUpdateError(f"{REFUSED}: {error}") from error
    return ExaminedWeights(path, checksum, manifest.version, {})


def _is_within(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def _is_here(path: Path, checksum: str, folders: Sequence[Path]) -> bool:
    """Whether the learner's own folder of the version is on this machine."""
    try:
        return _is_within(path, folders) and read_manifest(path).checksum == checksum
    except (TurnoutError, ValueError):
        return False


def _stored(folder: Path, checksum: str, version: int, form: ModelForm, fetched: FetchedWeights | None) -> Marks:
    """Marks of a folder that was verified and compared with the model."""
    from services.rollout.weights.lora import checked_deltas, holds_adapter

    try:
        marks = verify_and_mark(folder, checksum)
    except CorruptWeightsError:
        if fetched is not None and fetched.owns(folder):
            fetched.discard(folder)
        raise
    if holds_adapter(folder):
        checked_deltas(folder, form.model)
    else:
        form.check(version, forms_of_files(folder))
    return marks


def reach(address: str, port: int) -> None:
    """Raise `CorruptWeightsError` if the learner's meeting point is gone: torch's own client would keep asking for an
    answer while the server samples nothing."""
    try:
        socket.create_connection((address, port), REACH_SECONDS).close()
    except OSError as error:
        raise CorruptWeightsError(
            f"The learner does not answer at {address} port {port} ({error}): it has ended, or its "
            "TURNOUT_ADVERTISE_URL names a host that cannot be reached from here."
        ) from error
