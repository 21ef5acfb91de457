"""The SLURM scripts, as far as they can be seen without SLURM: `srun` and `scontrol` are stand-ins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.contracts.queue_users import USERS
from services.learner.settings import LearnerSettings
from services.runtime.settings import Settings
from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "slurm"
SCRIPTS = ("turnout.sbatch", "node.sh")


def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "SLURM_SUBMIT_DIR": str(ROOT), **variables}
    return subprocess.run(
        ["bash", FOLDER / script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_and_their_settings_exist(script: str) -> None:
    subprocess.run(["bash", "-n", FOLDER / script], check=True)
    known = {f"TURNOUT_{name}".upper() for name in Settings.model_fields}
    known |= {f"TURNOUT_LEARNER_{name}".upper() for name in LearnerSettings.model_fields}
    known |= {"TURNOUT_CHECKOUT", "TURNOUT_API_URL"}
    assert set(re.findall(r"TURNOUT_[A-Z_]+", (FOLDER / script).read_text())) <= known


@pytest.mark.parametrize(
    ("num_learner_nodes", "says"), [("2", "has 2 nodes, of which LEARNER_NODES=2"), ("", "run file")]
)
def test_a_job_that_cannot_work_ends_at_once(tmp_path: Path, num_learner_nodes: str, says: str) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'n1\\nn2\\n'\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    arguments = ["run.yaml"] if num_learner_nodes else []
    done = run("turnout.sbatch", *arguments, PATH=path, SLURM_JOB_NODELIST="n[1-2]", LEARNER_NODES=num_learner_nodes)
    assert done.returncode != 0
    assert says in done.stderr


def test_a_node_names_its_address() -> None:
    assert run("node.sh", "address", NODE_ADDRESS="10.0.0.7").stdout == "10.0.0.7\n"
    assert run("node.sh", "address", NODE_INTERFACE="lo").stdout == "127.0.0.1\n"


def test_an_unknown_role_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    done = run("node.sh", "verifier", TURNOUT_HOME=str(tmp_path), MAIN_ADDRESS="127.0.0.1", NODE_ADDRESS="127.0.0.1")
    assert (done.returncode, done.stderr) == (2, "node.sh takes address, main, learner or rollout, not verifier.\n")


def test_gpus_of_a_node_that_servers_cannot_share_evenly(tmp_path: Path) -> None:
    prepare(tmp_path)
    variables = {"TURNOUT_HOME": str(tmp_path), "MAIN_ADDRESS": "127.0.0.1", "NODE_ADDRESS": "127.0.0.1"}
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2", "ROLLOUT_GPUS_PER_SERVER": "2", "SLURMD_NODENAME": "n1"}
    done = run("node.sh", "rollout", **variables, **gpus)
    assert done.returncode == 2
    assert done.stderr == "n1 has 3 GPUs, which ROLLOUT_GPUS_PER_SERVER=2 does not divide into groups.\n"


def test_secrets_are_made_once(tmp_path: Path) -> None:
    prepare(tmp_path)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == {"service-token", "api-key"} | {f"queue-{user}" for user in USERS}
    prepare(tmp_path)
    assert made == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "secrets").iterdir())
    assert (tmp_path / "queue" / "command").read_text().splitlines()[1] == str(tmp_path / "queue" / "valkey.conf")


def prepare(home: Path) -> None:
    subprocess.run(
        [sys.executable, FOLDER / "prepare.py", home], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
