"""Numbers with a gap in their range. The schema says the same as the check; the error also says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from services.contracts.messages import MAX_TEMPERATURE, MAX_TOP_K
from services.contracts.model import Fraction

LEAST_TEMPERATURE = 0.01
"""If asked for less, vLLM samples with this temperature without telling the learner."""


def _but(reason: str, *ranges: dict[str, Any]) -> tuple[Any, ...]:
    """Only what is in one of `ranges` (JSON Schema's `minimum` and `maximum`)."""

    def check(value: Any) -> Any:
        if any(part.get("minimum", value) <= value <= part.get("maximum", value) for part in ranges):
            return value
        raise ValueError(reason)

    limit: Callable[[Any], Any] = check
    return AfterValidator(limit), Field(json_schema_extra={"anyOf": list(ranges)})


_ZERO = {"minimum": 0, "maximum": 0}
Temperature = Annotated[
    float,
    Field(ge=0, le=MAX_TEMPERATURE),
    *_but("vLLM would sample at 0.01; write 0.01 or more", _ZERO, {"minimum": LEAST_TEMPERATURE}),
]
TopK = Annotated[
    int,
    Field(ge=0, le=MAX_TOP_K),
    *_but("greedy siblings are all alike and teach nothing; write 2 or more, 0 for all", _ZERO, {"minimum": 2}),
]
DivergenceAlpha = Annotated[
    Fraction,
    *_but(
        "so close to 0 or 1 the divergence itself vanishes; write 0, 1 or a number from 0.001 to 0.999",
        _ZERO,
        {"minimum": 0.001, "maximum": 0.999},
        {"minimum": 1, "maximum": 1},
    ),
]
