"""Transport `http`: servers that share no folder with the learner fetch each version's files over HTTP."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlsplit

from services.contracts.errors import MalformedMessageError
from services.contracts.transports.base import Name, Offer


class HttpOffer(Offer, frozen=True, tag="http"):
    """The learner serves the files of the versions in its weight store."""

    brings_folder: ClassVar[bool] = True
    url: Name
    """Base URL of the learner."""

    def check(self) -> None:
        try:
            parts = urlsplit(self.url)
            right = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            right = False
        if not right or parts.username or parts.query or parts.fragment:
            raise MalformedMessageError("The weight offer is invalid: url is not http://<host>:<port>.")
