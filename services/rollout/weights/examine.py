"""Examines weights offered to a rollout server: a folder of the weight store and the checksum that it must have."""

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
from services.runtime.weights.store import (
    CorruptWeightsError,
    Manifest,
    Marks,
    read_manifest,
    read_verified,
    verify_and_mark,
)

REACH_SECONDS = 3.0
"""Timeout for connecting to the learner."""


class WeightUpdateError(TurnoutError):
    """A weight update was rejected or failed. The server does not sample until a full update succeeds."""

    title = "Weight update failed"


class WeightsRefusedError(WeightUpdateError):
    """The offered weights are not what was announced. The server continues sampling with its current weights."""

    status = 422
    title = "Weights refused"


@dataclass(frozen=True, slots=True)
class ExaminedWeights:
    """What an update names, and the version in the folder's manifest."""

    path: str
    """Folder of the version on this machine."""
    checksum: str
    version: int
    marks: Marks
    """Reveals later changes of the files (`verify_and_mark`); empty with a fast transport."""


def examined(
    update_info: Any,
    run_id: str | None,
    form: ModelForm,
    folders: Sequence[Path],
    version: int | None = None,
    fetched: FetchedWeights | None = None,
) -> ExaminedWeights:
    """Examine an offer as far as possible without changing the model. Blocks while it fetches and reads.

    Fetches the version first if the learner offers that and the folder is not on this machine. Then checks that the
    tensors fit the model, and every byte of the files. For a fast transport, whose bytes are verified on arrival, it
    checks the layout and that the learner is reachable instead.

    Args:
        update_info: {"path", "checksum"}, and "transfer" if the learner offers one.
        form: the run's model.
        folders: nothing outside them is read.
        version: must equal the folder's version, if given.
        fetched: stores a version that is fetched; None to fetch nothing.

    Raises:
        WeightUpdateError: the offer is malformed, is for another run or version, is not what was announced, or does not
            fit the model.
    """
    if not isinstance(update_info, dict) or set(update_info) - {"transfer"} != {"path", "checksum"}:
        raise WeightUpdateError(f"{REFUSED}: update_info must be an object with path and checksum.")
    path, checksum = str(update_info["path"]), str(update_info["checksum"])
    try:
        transfer = update_info.get("transfer")
        offer = None if transfer is None else parse_transfer(transfer).offer
        if isinstance(offer, HttpOffer) and not _is_here(Path(path), checksum, folders):
            if fetched is None or run_id is None or version is None:
                raise CorruptWeightsError("Only PUT /v1/weights can fetch weights.")
            path = str(fetched.bring(offer, run_id, version, checksum))
        if not _is_within(Path(path), folders):
            raise CorruptWeightsError(f"{path[:500]} is outside the folders of published weights.")
        manifest = _manifest(Path(path), run_id, version)
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


def _manifest(folder: Path, run_id: str | None, version: int | None) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.run_id != run_id:
        raise CorruptWeightsError(f"The weights belong to run {manifest.run_id}, not {run_id}.")
    if version not in (None, manifest.version):
        raise CorruptWeightsError(f"The folder contains version {manifest.version}, not {version}.")
    return manifest


def _is_within(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def _is_here(path: Path, checksum: str, folders: Sequence[Path]) -> bool:
    """Whether the learner's own folder of the version is on this machine."""
    try:
        return _is_within(path, folders) and read_manifest(path).checksum == checksum
    except (TurnoutError, ValueError):
        return False


def _stored(folder: Path, checksum: str, version: int, form: ModelForm, fetched: FetchedWeights | None) -> Marks:
    """Verify a folder and compare it with the model. Returns its marks."""
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
    """Raise `CorruptWeightsError` if the learner's store is unreachable. torch's own client would retry while the
    server does not sample."""
    try:
        socket.create_connection((address, port), REACH_SECONDS).close()
    except OSError as error:
        raise CorruptWeightsError(
            f"The learner cannot be reached at {address} port {port} ({error}). It may have exited, or its "
            "TURNOUT_ADVERTISE_URL may name a host that is unreachable from here."
        ) from error
