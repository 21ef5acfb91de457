"""What the REST API answers, as far as the command line and Python callers use it. Unknown fields are ignored."""

from __future__ import annotations

from typing import Any

import msgspec

from services.contracts.records import Checkpoint as Checkpoint
from services.contracts.records import Evaluation as Evaluation
from services.contracts.records import Key as Key
from services.contracts.records import NewKey as NewKey
from services.contracts.records import QueueState as QueueState
from services.contracts.records import Run as Run
from services.contracts.records import RunFile as RunFile
from services.contracts.records import Service as Service
from services.contracts.records import Step as Step
from services.contracts.records import WeightPush as WeightPush


class RunEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event. `id` goes into `after` to get those that follow it."""

    id: str
    type: str
    data: dict[str, Any]
