"""Publishes files as a model repository of the Hugging Face hub (HF_ENDPOINT), in one commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.contracts.errors import ConfigurationError, ConflictError, TurnoutError, UnavailableError
from services.contracts.hub import is_hub_name
from turnout.cli.package import Contents

KEPT = ".gitattributes"
"""The hub creates it with a repository, and it says which files are large."""


def _http_error() -> type[Exception]:
    """Base of all errors of the HTTP library that huggingface_hub uses: httpx2, or in older versions httpx."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


class Hub:
    """One repository."""

    def __init__(self, repository: str) -> None:
        """Raises `ConfigurationError` if the name is none of the hub, or there is no package or token for it."""
        if not is_hub_name(repository):
            raise ConfigurationError(
                f"The repository is {repository}, which is not owner/name.", remedy="Correct it.", field="REPOSITORY"
            )
        try:
            import huggingface_hub
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "Publishing needs the package huggingface_hub, which is not installed.",
                remedy="Install it with pip install 'turnout[hub]', or write a folder with --to-folder.",
            ) from error
        token = huggingface_hub.get_token()
        if not token:
            raise ConfigurationError(
                "There is no token for the hub.",
                remedy="Set HF_TOKEN to a token that may write, or run `hf auth login`.",
                field="HF_TOKEN",
            )
        self.repository = repository
        self.endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        self._api: Any = huggingface_hub.HfApi(endpoint=self.endpoint, token=token)

    def license_of(self, model: str) -> str:
        """The licence of a model of the hub; empty if it is unknown."""
        try:
            tags = self._api.model_info(model).tags or []
        except _http_error():
            return ""
        return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")

    def push(self, contents: Contents, run: tuple[str, str], *, public: bool, force: bool, message: str) -> str:
        """Publish the files, and delete others that an earlier publication of the run left. Returns the URL.

        Args:
            run: the field of the card's metadata that has a run's id, and the id of this run.

        Raises:
            ConfigurationError: the hub refuses the token or the files.
            ConflictError: the repository has other content, and not `force`.
            UnavailableError: the hub does not respond.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with self._errors():
            url = str(self._api.create_repo(self.repository, private=not public, exist_ok=True))
            info = self._api.model_info(self.repository)
            there = {item.rfilename for item in info.siblings or []} - {KEPT}
            card = info.card_data.to_dict() if info.card_data else {}
            if there and card.get(run[0]) != run[1] and not force:
                raise ConflictError(
                    f"{self.repository} has other content: {', '.join(sorted(there)[:3])}.",
                    remedy="Choose another repository, or replace its content with --force.",
                )
            operations: list[Any] = [CommitOperationDelete(name) for name in sorted(there - contents.keys())]
            operations += [CommitOperationAdd(name, content) for name, content in contents.items()]
            self._api.create_commit(self.repository, operations, commit_message=message)
        return url

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """The library's errors as ours. They name the endpoint, never the token."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except HfHubHTTPError as error:
            raise self._refused(error) from error
        except _http_error() as error:
            raise UnavailableError(
                f"The hub at {self.endpoint} does not respond: {str(error) or type(error).__name__}.",
                remedy="Try again later, check HF_ENDPOINT and HTTPS_PROXY, or write a folder with --to-folder.",
            ) from error

    def _refused(self, error: Any) -> TurnoutError:
        status = error.response.status_code if error.response is not None else 0
        if status == 401:
            return ConfigurationError(
                f"The hub at {self.endpoint} does not know the token (401).",
                remedy="Set HF_TOKEN to a valid token that may write, or run `hf auth login`.",
                field="HF_TOKEN",
            )
        if status == 403:
            return ConfigurationError(
                f"The token may not write to {self.repository} (403).",
                remedy="Choose an owner that the token may write to, or use another token.",
                field="HF_TOKEN",
            )
        said = getattr(error, "server_message", None) or f"status {status}"
        if 400 <= status < 500 and status != 429:
            return ConfigurationError(f"The hub at {self.endpoint} refuses {self.repository}: {said}.")
        return UnavailableError(f"The hub at {self.endpoint} failed: {said}.", remedy="Try again later.")
