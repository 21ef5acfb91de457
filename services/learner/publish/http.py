"""Transport `http`, the learner's side: the service serves the files (`services.learner.connections.files`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from services.contracts.transports.http import HttpOffer
from services.learner.publish.base import Sender, UnusableError
from services.runtime.settings import Settings


class HttpSender(Sender):
    """Offers the learner's address."""

    def __init__(self, url: str) -> None:
        self._offer = HttpOffer(url)

    @classmethod
    def make(cls, device: torch.device, settings: Settings) -> Self:
        if not settings.advertise_url:
            raise UnusableError("no learner service serves the files", "Start the run through the API")
        return cls(settings.advertise_url)

    def load(self, version: int, weights: Mapping[str, Tensor]) -> None:
        return None

    def offer(self) -> HttpOffer:
        return self._offer

    def standing_offer(self) -> HttpOffer:
        return self._offer


SENDER = HttpSender
