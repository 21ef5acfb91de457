"""Fixtures for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.client.rings import light_plan, until
from tests.conftest import ROW
from turnout import Client
from turnout.cli.local.launcher import Deployment


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file whose model and data exist, so that the real API accepts it."""
    folder = tmp_path_factory.mktemp("run-file")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "train.jsonl").write_text(ROW)
    path = folder / "run.yaml"
    values = {
        "name": "small",
        "model": {"path": str(folder / "model")},
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "train.jsonl")},
        "training": {"steps": 6, "prompts_per_step": 4},
        "evaluation": {"every_steps": None, "num_samples": 16, "max_questions": 64},
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running light ring for one test module."""
    deployment = Deployment(light_plan(tmp_path_factory.mktemp("home")))
    deployment.start()
    try:
        until(lambda: deployment.ready, deployment.tick)
        with Client(deployment.plan.api_url) as client:
            until(client.ready, deployment.tick)
        yield deployment
    finally:
        deployment.stop(grace_seconds=5)
