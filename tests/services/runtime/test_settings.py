"""Settings of containers: secrets from files, names from the host."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.contracts.errors import ConfigurationError
from services.runtime.settings import load, load_settings
from services.verifier.settings import EndpointSettings


def test_secrets_come_from_files_and_variables_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_SECRETS_FOLDER", str(tmp_path))
    for name in ("turnout_api_key", "turnout_service_token", "turnout_reward_token"):
        (tmp_path / name).write_text(f"the {name}\n")
    (tmp_path / "turnout_redis_url").write_text("redis://learner:secret@valkey:6379/0")
    monkeypatch.setenv("TURNOUT_SERVICE_TOKEN", "of the environment")
    settings = load_settings()
    assert settings.redis_url == "redis://learner:secret@valkey:6379/0"
    assert (settings.api_key, settings.service_token) == ("the turnout_api_key", "of the environment")
    assert load(EndpointSettings).token == "the turnout_reward_token"


def test_a_folder_of_secrets_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_SECRETS_FOLDER", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"TURNOUT_SECRETS_FOLDER is .*nowhere, but there is no such folder"):
        load_settings()


def test_containers_with_one_configuration_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_INSTANCE", "rollout-{hostname}")
    monkeypatch.setenv("TURNOUT_ADVERTISE_URL", "http://{hostname}:8401")
    settings = load_settings()
    assert settings.instance_name("rollout") == f"rollout-{socket.gethostname()}"
    assert settings.advertise_url == f"http://{socket.gethostname()}:8401"
