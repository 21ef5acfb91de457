"""The objectives that a run can name. A new one is a file in this folder and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from services.contracts.objectives.advantage_mix import AdvantageMix
from services.contracts.objectives.base import Objective
from services.contracts.objectives.grpo import Grpo
from services.contracts.objectives.rlsd import Rlsd
from services.contracts.objectives.sdpo import Sdpo
from services.contracts.objectives.srpo import Srpo

OBJECTIVES: Final[Mapping[str, Objective]] = {kind.name: kind() for kind in (Srpo, Grpo, Sdpo, AdvantageMix, Rlsd)}
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    name: values for objective in OBJECTIVES.values() for name, values in objective.presets.items()
}
