"""Wake-up calls between the API's loops. They only save time: every loop also polls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Signals:
    schedule: asyncio.Event = field(default_factory=asyncio.Event)
    """A run's state or desired state changed."""
    push: asyncio.Event = field(default_factory=asyncio.Event)
    """New weights are published, or a push has ended."""
    experiments: asyncio.Event = field(default_factory=asyncio.Event)
    """A run's state changed, or an experiment was created or resumed."""
