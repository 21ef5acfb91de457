"""The Kubernetes manifests keep their promises: who reaches whom, with which rights, passwords and settings.

`make check` compares them with Kubernetes' schemas.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError

from services.contracts import streams
from services.learner.settings import LearnerSettings
from services.runtime.address import free_port
from services.runtime.connection import connect
from services.runtime.settings import Settings
from services.verifier.settings import JudgeEndpointSettings, VerifierSettings
from tests.client.rings import until
from tests.conftest import ROOT
from turnout.cli.local.queue_server import answers, find_binary

FOLDER = ROOT / "deploy" / "kubernetes"
ENTRIES = ("overlays/cpu", "overlays/gpu", "example")
SERVICES = ("api", "learner", "rollout", "verifier")
NAME = "app.kubernetes.io/name"
Resource = dict[str, Any]


def render(folder: str) -> list[Resource]:
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", FOLDER / folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


RENDERED = {folder: render(folder) for folder in ENTRIES}


def named(folder: str, *kinds: str) -> dict[str, Resource]:
    return {item["metadata"]["name"]: item for item in RENDERED[folder] if item["kind"] in kinds}


def workloads(folder: str) -> dict[str, Resource]:
    return named(folder, "Deployment", "StatefulSet")


def pod(workload: Resource) -> Resource:
    return dict(workload["spec"]["template"]["spec"])


def container(workload: Resource) -> Resource:
    (only,) = pod(workload)["containers"]
    return dict(only)


def environment(workload: Resource) -> dict[str, Resource]:
    return {item["name"]: item for item in container(workload)["env"]}


@pytest.fixture(params=ENTRIES)
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Structure


def test_everything_is_in_the_namespace(folder: str) -> None:
    assert {item["metadata"].get("namespace") for item in RENDERED[folder] if item["kind"] != "Namespace"} == {
        "turnout"
    }


def test_there_is_one_learner_with_a_fixed_name_and_one_api(folder: str) -> None:
    learner = named(folder, "StatefulSet")["learner"]
    assert "replicas" not in learner["spec"]
    assert learner["spec"]["volumeClaimTemplates"]
    api = named(folder, "Deployment")["api"]["spec"]
    assert (api["replicas"], api["strategy"]["type"]) == (1, "Recreate")


def test_instances_are_called_after_their_pods(folder: str) -> None:
    """The queue server lets a service use the keys of instances whose names begin with its kind."""
    for name in ("learner", "rollout", "verifier"):
        source = environment(workloads(folder)[name])["TURNOUT_INSTANCE"]["valueFrom"]
        assert source == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_gpus_are_asked_for_by_the_gpu_overlay_alone() -> None:
    def gpus(folder: str) -> dict[str, int]:
        limits = {name: container(item)["resources"]["limits"] for name, item in workloads(folder).items()}
        return {name: limit["nvidia.com/gpu"] for name, limit in limits.items() if "nvidia.com/gpu" in limit}

    assert gpus("overlays/cpu") == {}
    assert gpus("overlays/gpu") == {"learner": 1, "rollout": 1}
    assert gpus("example") == {"learner": 4, "rollout": 2}


def test_liveness_and_readiness_ask_different_questions(folder: str) -> None:
    for name, workload in workloads(folder).items():
        main = container(workload)
        assert main["livenessProbe"] != main["readinessProbe"], name
        if name in SERVICES:
            assert main["livenessProbe"]["httpGet"]["path"] == "/healthz"
            assert main["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_every_container_says_what_it_needs_at_least_and_at_most(folder: str) -> None:
    for name, workload in workloads(folder).items():
        resources = container(workload)["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]), name
        assert "memory" in resources["limits"], name


# Rights


def test_pods_fit_the_restricted_standard(folder: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    assert (
        named(folder, "Namespace")["turnout"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        == "restricted"
    )
    for name, workload in workloads(folder).items():
        of_pod, of_container = pod(workload)["securityContext"], container(workload)["securityContext"]
        assert of_pod["runAsNonRoot"], name
        assert of_pod["runAsUser"] > 0, name
        assert {**of_pod, **of_container}["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost"), name
        assert of_container["allowPrivilegeEscalation"] is False, name
        assert of_container["capabilities"] == {"drop": ["ALL"]}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(workload)), name
        allowed = {"emptyDir", "persistentVolumeClaim", "secret", "configMap"}
        assert all(set(volume) - {"name"} <= allowed for volume in pod(workload)["volumes"]), name


def test_nothing_writes_to_an_image_or_holds_a_token_for_kubernetes(folder: str) -> None:
    for name, workload in workloads(folder).items():
        assert container(workload)["securityContext"]["readOnlyRootFilesystem"], name
        assert pod(workload)["automountServiceAccountToken"] is False, name


def test_the_verifier_sees_no_file_of_the_deployment(folder: str) -> None:
    assert [set(volume) for volume in pod(workloads(folder)["verifier"])["volumes"]] == [{"name", "emptyDir"}]


def test_the_sandbox_has_its_profile_where_asked_for() -> None:
    profile = container(workloads("example")["verifier"])["securityContext"]["seccompProfile"]
    assert profile["type"] == "Localhost"
    assert (ROOT / "deploy" / "seccomp" / profile["localhostProfile"]).is_file()


# Network


def selects(selector: Resource, labels: dict[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    expressions = selector.get("matchExpressions", [])
    assert all(item["operator"] == "In" for item in expressions)
    return all(labels.get(item["key"]) in item["values"] for item in expressions)


def peers(folder: str, name: str, direction: str) -> Iterator[tuple[str, str | int]]:
    """With whom a pod may speak, and on which port: pods by name; of the rest, what the policy says."""
    labels = workloads(folder)[name]["spec"]["template"]["metadata"]["labels"]
    side = "to" if direction == "Egress" else "from"
    policies = [item["spec"] for item in named(folder, "NetworkPolicy").values()]
    mine = [item for item in policies if selects(item["podSelector"], labels)]
    assert any(direction in item["policyTypes"] for item in mine), "without a policy everything is allowed"
    for rule in (rule for item in mine for rule in item.get(direction.lower(), [])):
        for peer in rule.get(side, ["anyone"]):
            selector = peer.get("podSelector") if isinstance(peer, dict) else None
            others = [
                other
                for other, item in workloads(folder).items()
                if selector is not None and selects(selector, item["spec"]["template"]["metadata"]["labels"])
            ]
            for port in rule.get("ports", [{"port": "all"}]):
                yield from ((other, port["port"]) for other in others or [str(peer)])


def test_the_verifier_reaches_the_queue_and_nothing_else(folder: str) -> None:
    assert set(peers(folder, "verifier", "Egress")) == {("valkey", 6379)}
    # Without DNS, it is told the address.
    assert "@$(VALKEY_SERVICE_HOST):6379/" in environment(workloads(folder)["verifier"])["TURNOUT_REDIS_URL"]["value"]


def test_with_a_judge_the_verifier_reaches_it_too(tmp_path: Path) -> None:
    """The component over an overlay: one more destination, at an address that needs no DNS."""
    places = {name: os.path.relpath(FOLDER / name, tmp_path) for name in ("overlays/cpu", "components/judge")}
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{places['overlays/cpu']}]\ncomponents: [{places['components/judge']}]\n"
    )
    RENDERED["judge"] = render(str(tmp_path))
    try:
        found = dict(peers("judge", "verifier", "Egress"))
        assert found.pop("valkey") == 6379
        ((judge, port),) = found.items()
        assert ("app.kubernetes.io/name': 'judge'" in judge, port) == (True, 8000)
        variables = environment(workloads("judge")["verifier"])
        assert variables["TURNOUT_JUDGE_URL"]["value"] == "http://$(JUDGE_SERVICE_HOST):8000/v1"
        assert {name for name in variables if name.startswith("TURNOUT_JUDGE")} <= known_settings()
    finally:
        del RENDERED["judge"]


def test_only_the_api_reaches_database_and_services() -> None:
    folder = "overlays/gpu"
    assert set(peers(folder, "postgres", "Ingress")) == {("api", "postgres")}
    assert set(peers(folder, "verifier", "Ingress")) == {("api", "http")}
    assert {(name, 8401) for name in SERVICES if name != "api"} | {("postgres", 5432)} <= set(
        peers(folder, "api", "Egress")
    )
    assert not set(peers(folder, "valkey", "Egress"))


def test_both_ends_of_a_connection_allow_it(folder: str) -> None:
    """What one pod may send, the other may receive: by the container's own name of the port."""
    for name in workloads(folder):
        for other, port in peers(folder, name, "Egress"):
            if other not in workloads(folder):
                continue
            ports = {item["containerPort"]: item["name"] for item in container(workloads(folder)[other])["ports"]}
            assert (name, ports.get(port, port)) in set(peers(folder, other, "Ingress")), (name, other)


# Settings and secrets


def made_secrets(*names: str) -> dict[str, dict[str, str]]:
    program = FOLDER / "make_secrets.py"
    done = subprocess.run([sys.executable, program, *names], capture_output=True, text=True, check=True, cwd=ROOT)
    return {item["metadata"]["name"]: item["stringData"] for item in yaml.safe_load_all(done.stdout)}


def references(item: Any) -> Iterator[tuple[str, str]]:
    """Every (Secret, key) that a manifest refers to and cannot do without."""
    if isinstance(item, list):
        for value in item:
            yield from references(value)
    elif isinstance(item, dict):
        for key, value in item.items():
            if key in ("secretKeyRef", "credentials") and not value.get("optional"):
                yield value["name"], value["key"]
            elif key == "secret":
                yield from ((value["secretName"], entry["key"]) for entry in value["items"])
            else:
                yield from references(value)


def test_secrets_are_named_and_never_contained(folder: str) -> None:
    assert not named(folder, "Secret")
    made = {(name, key) for name, data in made_secrets().items() for key in data}
    external = {("turnout-database", "url")} if folder == "example" else set()
    assert set(references(RENDERED[folder])) - made == external


def test_every_secret_that_is_made_is_used() -> None:
    people = {("turnout-queue", "operator")}
    used = {*references(RENDERED["example"]), *references(RENDERED["overlays/cpu"])}
    assert {(name, key) for name, data in made_secrets().items() for key in data} - used == people


def test_secrets_differ_each_time_and_can_be_made_one_by_one() -> None:
    assert list(made_secrets("turnout-api")) == ["turnout-api"]
    assert made_secrets("turnout-api") != made_secrets("turnout-api")


def test_settings_exist(folder: str) -> None:
    """A misspelt variable would be ignored."""
    (shared,) = named(folder, "ConfigMap").values()
    given = set(shared["data"]).union(*(environment(workloads(folder)[name]) for name in SERVICES))
    assert {name for name in given if name.startswith("TURNOUT_")} <= known_settings()


def known_settings() -> set[str]:
    known = {f"TURNOUT_{name}".upper() for name in Settings.model_fields}
    known |= {f"TURNOUT_VERIFIER_{name}".upper() for name in VerifierSettings.model_fields}
    known |= {f"TURNOUT_JUDGE_{name}".upper() for name in JudgeEndpointSettings.model_fields}
    return known | {f"TURNOUT_LEARNER_{name}".upper() for name in LearnerSettings.model_fields}


@pytest.mark.parametrize("part", ["leaderTemplate", "workerTemplate"])
def test_a_learner_on_several_nodes_has_the_pods_of_the_one_on_one_node(part: str) -> None:
    """Its manifest repeats what patches add to the other pods, and has no StatefulSet with it."""
    found = {(item["kind"], item["metadata"]["name"]): item for item in render("overlays/machines")}
    assert ("StatefulSet", "learner") not in found
    template = found["LeaderWorkerSet", "learner"]["spec"]["leaderWorkerTemplate"][part]
    one = workloads("overlays/gpu")["learner"]
    assert template["metadata"]["labels"].items() >= one["spec"]["template"]["metadata"]["labels"].items()
    differing = {"containers", "volumes"}
    assert {key: value for key, value in template["spec"].items() if key not in differing} == {
        key: value for key, value in pod(one).items() if key not in differing
    }
    (main,) = template["spec"]["containers"]
    for key, value in container(one).items():
        if key not in ("env", "envFrom", "ports", "volumeMounts"):
            assert main[key] == value, key
    assert {mount["mountPath"] for mount in main["volumeMounts"]} == {
        mount["mountPath"] for mount in container(one)["volumeMounts"]
    }
    (settings,) = named("overlays/gpu", "ConfigMap").values()
    given = {item["name"] for item in main["env"]}
    assert given >= set(settings["data"]) | environment(one).keys()
    assert ("TURNOUT_LEARNER_MACHINES" in given) == (part == "leaderTemplate")
    assert ("TURNOUT_LEARNER_MAIN" in given) == (part == "workerTemplate")
    assert {name for name in given if name.startswith("TURNOUT_")} <= known_settings()


@pytest.fixture
def passwords(tmp_path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A queue server with the users that `make_secrets.py` makes: its port, and the Secret."""
    made = made_secrets()["turnout-queue"]
    users, port = tmp_path / "users.acl", free_port()
    users.write_text(made["users.acl"])
    with (tmp_path / "log").open("wb") as log:
        command = [str(find_binary()), "--port", str(port), "--dir", str(tmp_path), "--aclfile", str(users)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: not answers(f"redis://operator:{made['operator']}@127.0.0.1:{port}/0"))
        yield port, made
    finally:
        process.kill()
        process.wait()


async def test_each_service_signs_in_to_the_queue_server_as_itself(passwords: tuple[int, dict[str, str]]) -> None:
    port, secret = passwords
    for name in SERVICES:
        variables = environment(workloads("overlays/cpu")[name])
        assert list(variables).index("QUEUE_PASSWORD") < list(variables).index(
            "TURNOUT_REDIS_URL"
        )  # else not filled in
        password = secret[variables["QUEUE_PASSWORD"]["valueFrom"]["secretKeyRef"]["key"]]
        url = variables["TURNOUT_REDIS_URL"]["value"].replace("$(QUEUE_PASSWORD)", password)
        async with connect(re.sub(r"@[^/]+/", f"@127.0.0.1:{port}/", url)) as redis:
            assert await redis.ping()
            if name == "verifier":
                with pytest.raises(NoPermissionError):
                    await redis.xadd(streams.prompts("r1"), {"field": "value"})
    async with Redis(port=port, retry=Retry(NoBackoff(), 0)) as redis:
        with pytest.raises(AuthenticationError):
            await redis.ping()


# Monitoring and scaling


def test_scalers_and_budgets_name_deployments_without_a_number_of_their_own() -> None:
    deployments = named("example", "Deployment")
    for kind in ("ScaledObject", "PodDisruptionBudget"):
        assert set(named("example", kind)) == {"rollout", "verifier"}
    for name, scaler in named("example", "ScaledObject").items():
        assert scaler["spec"]["scaleTargetRef"]["name"] == name
        assert "replicas" not in deployments[name]["spec"]
        (trigger,) = scaler["spec"]["triggers"]
        stream = re.fullmatch(
            r'sum\(turnout_queue_depth\{stream="(\w+)"\}\) or vector\(0\)', trigger["metadata"]["query"]
        )
        assert stream
        assert stream[1] == {"rollout": "prompts", "verifier": "completions"}[name]


def test_every_service_is_scraped_once_by_its_port() -> None:
    found: list[str] = []
    for monitor in named("example", "PodMonitor").values():
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        for name, workload in workloads("example").items():
            if selects(monitor["spec"]["selector"], workload["spec"]["template"]["metadata"]["labels"]):
                assert endpoint["port"] in {port["name"] for port in container(workload)["ports"]}
                found.append(name)
    assert sorted(found) == sorted(SERVICES)
