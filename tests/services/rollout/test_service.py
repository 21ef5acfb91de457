"""The rollout service from outside: a real process, a real queue, real vLLM on CPU, a tiny random model."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.contracts import codec, streams
from services.contracts.events import Note
from services.contracts.messages import DeadLetter
from services.contracts.transports.layout import LAYOUT_FILE, Layout
from services.contracts.turns import ASLEEP, SERVER, WAITS_FOR_TURN, WANTED
from services.learner.model.export import whole_weights
from services.learner.publish.chunks import plan
from services.learner.publish.nccl import NcclSender
from services.learner.update.sampled import Sampled
from services.runtime.address import free_port
from services.runtime.queue.queue import HANDED_BACK_SECONDS
from services.runtime.weights.store import verify_and_mark
from tests.services.learner.files import files_served
from tests.services.rollout.conftest import INSTANCE, MAX_PROMPT, MAX_RESPONSE, TOKEN, Deployment
from tests.services.rollout.models import make_adapted, make_model
from tests.services.rollout.references import (
    greedy_until_stopped,
    learner_mismatch,
    mismatch,
    mismatch_after_update,
    mismatch_greedy,
    reference_greedy,
)

STOPS: dict[str, Any] = {"stop": ["w28 w2", "w1 w2 w3"], "stop_token_ids": [25]}
"""Rare in sampled responses, but in the greedy ones of two prompts; the first ends within a token."""
LONG = {"num_samples": 8, "max_response_tokens": MAX_RESPONSE}
pytestmark = pytest.mark.timeout(400)


def test_a_group_is_sampled_completely(deployment: Deployment) -> None:
    """The prompt is rendered by the template; lengths, spans, end tokens and log-probabilities are right."""
    task = deployment.feed("whole", "w10 w11 w12", sampling={"num_samples": 8, "max_response_tokens": 60})
    group = deployment.wait_group("whole")
    group.check()
    assert group.task == task
    assert group.server == INSTANCE
    # <system> w1 w2 <user> w10 w11 w12 <assistant>
    assert group.prompt_token_ids.tolist() == [3, 7, 8, 4, 16, 17, 18, 5]
    version = group.rollouts[0].weight_versions[0].version
    for rollout in group.rollouts:
        assert rollout.status == "ok"
        assert [span.version for span in rollout.weight_versions] == [version]
        ended = rollout.token_ids[-1] == 1
        assert rollout.finish_reason == ("stop" if ended else "length")
        assert ended or len(rollout.token_ids) == 60
        assert 1 not in rollout.token_ids[:-1]
        assert "<end>" not in rollout.text
        assert len(rollout.text.split()) <= len(rollout.token_ids)
    assert len({tuple(rollout.token_ids) for rollout in group.rollouts}) == 8, "siblings are sampled independently"
    assert mismatch(group, deployment.seeds[version]) < 1e-3
    assert deployment.redis.xlen(streams.prompts("run-t")) == 0, "acknowledged together with publishing"


def test_logprobs_are_of_the_distribution_that_was_sampled(deployment: Deployment) -> None:
    """With top-k 1 the sampled token has probability 1; a temperature is included in log-probabilities."""
    deployment.feed("cut", "w20", sampling={"temperature": 0.7, "top_k": 1})
    deployment.feed("hot", "w20", sampling={"temperature": 1.7, "max_response_tokens": 40})
    cut, hot = deployment.wait_group("cut"), deployment.wait_group("hot")
    assert all(abs(value) < 1e-5 for rollout in cut.rollouts for value in rollout.logprobs)
    version = hot.rollouts[0].weight_versions[0].version
    assert mismatch(hot, deployment.seeds[version]) < 1e-3


SHAPES: dict[str, dict[str, float]] = {
    "min-p": {"min_p": 0.1},
    "presence": {"presence_penalty": 1.5, "temperature": 0.5},
    "rewarded": {"presence_penalty": -2.0},
    "top-p": {"top_p": 0.6},
    "top-k": {"top_k": 5, "temperature": 1.3},
    "together": {"min_p": 0.05, "presence_penalty": 0.8, "top_p": 0.8, "top_k": 12, "temperature": 0.8},
}


def test_the_learner_computes_the_distribution_that_was_sampled(deployment: Deployment) -> None:
    """Its log-probability of each token, with every option of sampling, is the engine's; and the options matter."""
    for name, options in SHAPES.items():
        deployment.feed(f"shape-{name}", "w20 w21", sampling={"max_response_tokens": 60, **options})
    for name, options in SHAPES.items():
        group = deployment.wait_group(f"shape-{name}")
        version = group.rollouts[0].weight_versions[0].version
        differences = learner_mismatch(group, deployment.seeds[version], Sampled(**options))  # type: ignore[arg-type]
        assert differences.mean() < 1e-3, name
        plain = Sampled(options.get("temperature", 1.0))
        assert learner_mismatch(group, deployment.seeds[version], plain).mean() > 0.02, name


def test_an_overlong_prompt_is_a_fault_and_not_truncated(deployment: Deployment) -> None:
    deployment.feed("long", " ".join(["w5"] * (MAX_PROMPT + 1)))
    group = deployment.wait_group("long")
    assert [rollout.status for rollout in group.rollouts] == ["infrastructure_fault"] * 4
    assert "max_prompt_tokens" in group.rollouts[0].fault


def test_impossible_sampling_is_a_dead_letter(deployment: Deployment) -> None:
    deployment.feed("impossible", "w5", sampling={"top_p": 0.0})
    [(_, fields)] = deployment.wait(lambda: deployment.redis.xrange(streams.dead(deployment.run_id)))
    assert "top_p" in codec.decode(fields[b"m"], DeadLetter).reason


def test_routes_require_the_token(deployment: Deployment) -> None:
    reply = deployment.post("/pause", token="wrong")
    assert reply.status_code == 401
    assert reply.headers["content-type"] == "application/problem+json"
    assert deployment.post("/weight_checker", json={"action": "reset"}).status_code == 409


def test_responses_survive_an_update_and_tasks_wait_for_newer_weights(deployment: Deployment) -> None:
    """Responses in flight survive an update, their spans tell which version sampled what, and later tasks wait."""
    path, manifest = deployment.store_version(1, seed=11)
    deployment.feed("future", "w30", min_weight_version=1)
    deployment.feed("flight", "w31 w32", sampling={"num_samples": 8, "max_response_tokens": 700, "temperature": 0.001})
    deployment.feed("kept", "w31 w32", sampling=LONG)
    deployment.wait_sampling(16 * 4)  # all 16 are decoded together
    assert deployment.completed("future") is None
    assert deployment.push(1, path, manifest.checksum) == [200] * 5
    assert deployment.get_weights() == {"version": 1, "checksum": manifest.checksum, "run_id": "run-t"}
    future, flight = deployment.wait_group("future"), deployment.wait_group("flight")
    assert {span.version for rollout in future.rollouts for span in rollout.weight_versions} == {1}
    assert mismatch(future, 11) < 1e-3
    flight.check()
    assert all(rollout.status == "ok" for rollout in flight.rollouts)
    assert [[span.version for span in rollout.weight_versions] for rollout in flight.rollouts] == [[0, 1]] * 8
    record = deployment.wait_record(lambda record: record.weight_version == 1)
    assert record.tokens_total > 0


def test_damaged_weights_are_rejected_and_the_server_recovers(deployment: Deployment) -> None:
    """A folder that does not match its checksum is not loaded; nothing is sampled until a full update succeeds."""
    path, manifest = deployment.store_version(2, seed=12)
    with open(f"{path}/model.safetensors", "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\x01\x02\x03\x04")
    assert deployment.push(2, path, manifest.checksum) == [200, 200, 500, 409, 409]
    record = deployment.wait_record(lambda record: record.state == "failed")
    assert "differs from its checksum" in record.details["fault"]
    assert record.weight_version == 1
    deployment.feed("after", "w33")
    path, manifest = deployment.store_version(2, seed=12)
    wrong = deployment.push(2, path, "blake3:" + "0" * 64)
    assert wrong == [200, 200, 500, 409, 409]
    assert deployment.completed("after") is None
    assert deployment.push(2, path, manifest.checksum) == [200] * 5
    group = deployment.wait_group("after")
    assert {span.version for rollout in group.rollouts for span in rollout.weight_versions} == {2}
    assert mismatch(group, 12) < 1e-3
    deployment.wait_record(lambda record: record.state == "ready" and "fault" not in record.details)


def test_a_whole_update_in_one_call(deployment: Deployment) -> None:
    """Damaged weights are rejected while the server continues sampling; intact ones are verified, loaded and served."""
    path, manifest = deployment.store_version(3, seed=12)
    with open(f"{path}/model.safetensors", "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\x01\x02\x03\x04")
    for checksum, reason in ((manifest.checksum, "differs from its checksum"), ("blake3:0", "has checksum")):
        refused = deployment.load(3, path, checksum)
        assert refused.status_code == 422
        assert reason in refused.json()["detail"]
    assert deployment.load(4, path, manifest.checksum).status_code == 422, "another version than asked for"
    assert deployment.load(4, path, manifest.checksum, transfer={}).status_code == 422, "by a fast transport too"
    assert_another_model_is_refused(deployment, make_model(0, intermediate_size=80))
    deployment.feed("on", "w33")
    group = deployment.wait_group("on")
    assert {span.version for rollout in group.rollouts for span in rollout.weight_versions} == {2}
    path, manifest = deployment.store_version(3, seed=23)
    taken = deployment.load(3, path, manifest.checksum)
    assert taken.status_code == 200, taken.text
    assert list(taken.json()["seconds"]) == ["prepare", "pause", "start", "update", "finish", "resume"]
    assert deployment.get_weights() == {"version": 3, "checksum": manifest.checksum, "run_id": "run-t"}
    deployment.feed("one-call", "w33")
    group = deployment.wait_group("one-call")
    assert {span.version for rollout in group.rollouts for span in rollout.weight_versions} == {3}
    assert mismatch(group, 23) < 1e-3


def assert_another_model_is_refused(deployment: Deployment, other: torch.nn.Module) -> None:
    """By the store and by a fast transport; vLLM's fused layers do not hide the name."""
    weights = whole_weights(other, 0)

    def write(folder: Path) -> None:
        save_file(weights, folder / "model.safetensors")
        (folder / LAYOUT_FILE).write_bytes(msgspec.json.encode(Layout(plan(weights))))

    path, manifest = deployment.store(3, write)
    offer = {"transport": "nccl", "device": "cpu", "address": "127.0.0.1", "port": 1}
    for how in ({}, {"transfer": {"attempt": uuid.uuid4().hex, "offer": offer}}):
        refused = deployment.load(3, path, manifest.checksum, **how)
        assert refused.status_code == 422
        detail = refused.json()["detail"]
        assert "mlp.down_proj.weight is float32 [64, 80]" in detail
        assert "has float32 [64, 96]" in detail


def test_weights_that_change_between_verification_and_loading_are_rejected(deployment: Deployment) -> None:
    """After the server has verified the files, and while it waits for the engine to pause, one is overwritten with the
    same size and modification time. The engine reads it again, and the server does not sample until it gets intact
    weights."""
    path, manifest = deployment.store_version(4, seed=24)
    while not verify_and_mark(Path(path), manifest.checksum):
        pass  # until a change of the files is visible in their times
    weights = Path(path) / "model.safetensors"
    engine = [int(pid) for pid in _children(deployment.processes[INSTANCE].pid)]
    # a heartbeat may still show the previous push
    deployment.wait_record(lambda record: record.state == "ready" and record.weight_version == 3)
    with ThreadPoolExecutor() as pool:
        for pid in engine:
            os.kill(pid, signal.SIGSTOP)
        try:
            pushed = pool.submit(deployment.load, 4, path, manifest.checksum)
            deployment.wait_record(lambda record: record.state == "updating")
            before = weights.stat()
            with weights.open("r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(b"\x01\x02\x03\x04")
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        finally:
            for pid in engine:
                os.kill(pid, signal.SIGCONT)
        refused = pushed.result()
    assert refused.status_code == 500
    assert "differs from its checksum" in refused.json()["detail"]
    deployment.feed("changed", "w34")
    record = deployment.wait_record(lambda record: record.state == "failed")
    assert record.weight_version == 3
    assert deployment.completed("changed") is None
    path, manifest = deployment.store_version(4, seed=24)
    assert deployment.load(4, path, manifest.checksum).status_code == 200
    assert mismatch(deployment.wait_group("changed"), 24) < 1e-3
    assert [int(pid) for pid in _children(deployment.processes[INSTANCE].pid)] == engine, "nothing was half-written"


def test_prefix_cache_never_serves_older_weights(deployment: Deployment) -> None:
    """After an update, a prompt that was cached with older weights gives the same as without a cache."""
    prompt = " ".join(f"w{index % 150}" for index in range(280))  # more than two cache blocks
    greedy = {"temperature": 0.0, "num_samples": 2, "max_response_tokens": 20}
    for version in (3, 4):
        path, manifest = deployment.store_version(version, seed=10 + version)
        assert deployment.push(version, path, manifest.checksum) == [200] * 5
        for again in range(2):
            deployment.feed(f"cached-{version}-{again}", prompt, sampling=greedy)
            group = deployment.wait_group(f"cached-{version}-{again}")
            assert {span.version for rollout in group.rollouts for span in rollout.weight_versions} == {version}
            for rollout in group.rollouts:
                expected = reference_greedy(group, 10 + version)
                assert torch.allclose(torch.tensor(rollout.logprobs), expected[: len(rollout.logprobs)], atol=1e-3)


def test_an_adapter_is_merged_into_the_base(deployment: Deployment) -> None:
    """The service samples what PEFT computes, whatever weights were loaded before."""
    path, manifest = deployment.store_adapter(5, seed=25)
    assert deployment.push(5, path, manifest.checksum) == [200] * 5
    deployment.feed("adapted", "w50 w51", sampling={"num_samples": 8, "max_response_tokens": 60})
    group = deployment.wait_group("adapted")
    assert {span.version for rollout in group.rollouts for span in rollout.weight_versions} == {5}
    assert mismatch(group, 25, make_adapted) < 1e-3
    assert mismatch(group, 0) > 0.1, "the comparison would also hold for the base alone"


def test_an_adapter_of_another_model_is_refused(deployment: Deployment) -> None:
    """It is rejected before anything changes: the server recovers with a full update, on the same engine."""
    engine = _children(deployment.processes[INSTANCE].pid)

    def write(folder: Path) -> None:
        make_adapted(25).save_pretrained(str(folder))
        tensors = load_file(folder / "adapter_model.safetensors")
        moved = {name.replace("layers.1.", "layers.7."): value for name, value in tensors.items()}
        save_file(moved, folder / "adapter_model.safetensors")

    path, manifest = deployment.store(6, write)
    assert deployment.push(6, path, manifest.checksum) == [200, 200, 500, 409, 409]
    record = deployment.wait_record(lambda record: record.state == "failed")
    assert "model.layers.7.mlp.down_proj.weight" in record.details["fault"]
    path, manifest = deployment.store_version(6, seed=16)
    assert deployment.push(6, path, manifest.checksum) == [200] * 5
    deployment.wait_record(lambda record: record.state == "ready")
    assert _children(deployment.processes[INSTANCE].pid) == engine


def test_weights_come_from_the_learner_itself(deployment: Deployment) -> None:
    """By transport `nccl`, with gloo instead of NCCL. A version that the learner does not offer is refused."""
    sender = NcclSender("127.0.0.1", torch.device("cpu"))
    sent = {name: value for name, value in make_model(26).state_dict().items() if name != "lm_head.weight"}
    layout = msgspec.json.encode(sender.load(6, sent))

    def write(folder: Path) -> None:
        stored = {name: value for name, value in make_model(27).state_dict().items() if name != "lm_head.weight"}
        save_file(stored, folder / "model.safetensors")  # different weights, so that samples show where they came from
        (folder / LAYOUT_FILE).write_bytes(layout)

    def transfer() -> dict[str, object]:
        return {"attempt": uuid.uuid4().hex, "offer": msgspec.json.decode(msgspec.json.encode(sender.offer()))}

    path, manifest = deployment.store(6, write)
    try:
        assert deployment.push(6, path, manifest.checksum, transfer=transfer()) == [200] * 5
        assert deployment.get_weights()["checksum"] == manifest.checksum
        deployment.feed("sent", "w60 w61")
        assert mismatch(deployment.wait_group("sent"), 26) < 1e-3
        assert deployment.load(6, path, manifest.checksum, transfer=transfer()).status_code == 200
        stale: Any = transfer()
        stale["offer"]["port"] = free_port()
        refused = deployment.load(6, path, manifest.checksum, transfer=stale)
        assert refused.status_code == 422, "it samples on"
        assert "The learner cannot be reached at 127.0.0.1" in refused.json()["detail"]
        sender.load(7, sent)
        assert deployment.push(6, path, manifest.checksum, transfer=transfer()) == [200, 200, 500, 409, 409]
        record = deployment.wait_record(lambda record: record.state == "failed")
        assert "offers version 7, not version 6" in record.details["fault"]
        assert deployment.push(6, path, manifest.checksum, transfer={"attempt": "?"}) == [200, 200, 500, 409, 409]
    finally:
        sender.close()
    assert deployment.push(6, path, manifest.checksum) == [200] * 5
    deployment.feed("stored", "w62 w63")
    assert mismatch(deployment.wait_group("stored"), 27) < 1e-3


@pytest.fixture
def far_learner(deployment: Deployment, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Home and URL of a learner with which the servers share no folder."""
    with files_served(tmp_path, TOKEN) as url:
        yield tmp_path, url


def test_a_server_without_a_shared_folder_fetches_and_a_dead_engine_is_replaced(
    deployment: Deployment, far_learner: tuple[Path, str]
) -> None:
    """At a push and, automatically, when it joins late or its engine dies. Damaged files are refused."""
    home, url = far_learner
    path, manifest = deployment.store_adapter(7, seed=17)
    store = home / "runs" / deployment.run_id / "weights" / Path(path).name
    shutil.move(path, store)
    offer: dict[str, Any] = {"transport": "http", "url": url}
    transfer = {"attempt": uuid.uuid4().hex, "offer": offer}
    adapter = store / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:-1] + b"?")
    refused = deployment.load(7, path, manifest.checksum, transfer=transfer)
    assert refused.status_code == 422, "it samples on"
    assert "differs from its checksum" in refused.json()["detail"]
    adapter.write_bytes(whole)
    assert deployment.load(7, path, manifest.checksum, transfer=transfer).status_code == 200
    assert deployment.get_weights()["checksum"] == manifest.checksum
    deployment.announce(7, path, manifest.checksum, offer)
    process = deployment.start("rollout-late", stuck_seconds=1.0, still_seconds=4.0)
    record = deployment.wait_record(lambda record: record.state == "ready", "rollout-late")
    assert record.weight_version == 7
    assert deployment.get_weights("rollout-late")["checksum"] == manifest.checksum
    deployment.redis.delete(streams.assignment(INSTANCE))
    deployment.wait_record(lambda record: record.state == "idle")
    deployment.feed("late", "w40", sampling={"max_response_tokens": 700, "temperature": 0.001})
    deployment.wait(lambda: len(deployment.holders()) == 1)
    children = [int(pid) for pid in _children(process.pid)]
    assert children
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    group = deployment.wait_group("late")
    assert group.server == "rollout-late"
    assert {span.version for rollout in group.rollouts for span in rollout.weight_versions} == {7}
    assert mismatch_greedy(group, make_adapted(17))


def test_an_update_that_its_caller_leaves_open_gets_the_engine_rebuilt(deployment: Deployment) -> None:
    """A custom trainer that used vLLM's routes died between two phases; only the server can end its update."""
    late = "rollout-late"
    process = deployment.processes[late]
    engine = _children(process.pid)
    assert deployment.post("/pause", late, params={"mode": "keep"}).status_code == 200
    assert deployment.post("/start_weight_update", late).status_code == 200
    deployment.wait(lambda: not set(engine) & set(_children(process.pid)))
    record = deployment.wait_record(lambda record: record.state == "ready", late)
    assert record.weight_version == 7
    events = [codec.decode_any(fields[b"m"]) for _, fields in deployment.redis.xrange(streams.EVENTS)]
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "Rebuilding the engine: the update was abandoned halfway." in notes


def test_an_engine_that_hangs_is_replaced_and_its_groups_are_sampled(deployment: Deployment) -> None:
    """Its process is stopped: it exists, does not respond, and raises no error. No one has to intervene."""
    late = "rollout-late"
    process = deployment.processes[late]
    deployment.feed("hung", "w42", sampling={"max_response_tokens": 700, "temperature": 0.001})
    deployment.wait(lambda: len(deployment.holders()) == 1)
    for pid in _children(process.pid):
        os.kill(int(pid), signal.SIGSTOP)
    group = deployment.wait_group("hung")
    assert group.server == late
    assert mismatch_greedy(group, make_adapted(17))
    assert process.poll() is None


def test_a_leaving_server_hands_back_what_it_holds(deployment: Deployment) -> None:
    """Asked to leave, it shuts down cleanly and another server gets its groups at once; killed, it leaves no engine."""
    leaving = deployment.processes["rollout-late"]
    deployment.feed("handed", "w41", min_weight_version=8)
    deployment.wait(lambda: deployment.holders() == ["rollout-late"])
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(30) == 0
    assert deployment.record("rollout-late") is None
    [pending] = deployment.redis.xpending_range(streams.prompts("run-t"), streams.GROUP_ROLLOUT, "-", "+", 10)
    assert pending["time_since_delivered"] >= HANDED_BACK_SECONDS * 1000, "no server waits for the group to become idle"
    deployment.create_run(kv_cache_on_update="recompute", share_gpu=True, **STOPS)
    deployment.redis.set(streams.assignment(INSTANCE), "run-t")
    deployment.wait_record(lambda record: record.waiting_for == WAITS_FOR_TURN)  # the learner has not given it
    deployment.redis.hset(streams.turn("run-t"), WANTED, SERVER)
    deployment.wait_record(lambda record: record.state == "ready")
    deployment.wait(lambda: deployment.holders() == [INSTANCE])


def test_the_kv_cache_is_recomputed_at_updates_if_the_run_asks_for_it(deployment: Deployment) -> None:
    """With `recompute`, a token sampled after an update has the log-probability of the updated weights for the whole
    sequence. With `keep` (group "kept" above) it does not: it attends to keys and values of older weights."""
    path, manifest = deployment.store_version(8, seed=18)
    deployment.feed("recomputed", "w31 w32", sampling=LONG)
    deployment.wait_sampling(8 * 4)
    assert deployment.push(8, path, manifest.checksum) == [200] * 5
    recomputed, handed = deployment.wait_group("recomputed"), deployment.wait_group("handed")
    assert recomputed.server == handed.server == INSTANCE
    assert mismatch_after_update(recomputed, 8, 18) < 1e-3
    assert mismatch(handed, 18) < 1e-3
    kept = deployment.completed("kept")
    assert kept is not None
    assert mismatch_after_update(kept, 1, 11) > 0.1


def test_an_engine_sleeps_while_the_learner_has_their_gpu(deployment: Deployment) -> None:
    """What it was sampling is sampled again, with the version that was published meanwhile; nothing can be pushed to
    it. vLLM's CPU build keeps its memory, but its order of calls is the one of a GPU."""
    turn = streams.turn(deployment.run_id)
    deployment.feed("turned", "w31 w32", sampling=LONG)
    deployment.wait_sampling(8 * 4)
    deployment.redis.hset(turn, WANTED, "request")
    deployment.wait(lambda: deployment.redis.hget(turn, ASLEEP) == b"request")
    record = deployment.wait_record(lambda record: record.waiting_for == WAITS_FOR_TURN)
    assert record.state == "starting"
    path, manifest = deployment.store_version(12, seed=18)
    assert deployment.load(12, path, manifest.checksum).status_code == 409
    refused = deployment.post("/resume")
    assert refused.status_code == 409, "not as an error of the engine"
    assert "It loads the newest published weights when it wakes up." in refused.json()["detail"]
    deployment.announce(12, path, manifest.checksum)
    assert deployment.completed("turned") is None
    before = _processes(deployment)
    deployment.redis.hset(turn, WANTED, SERVER)
    spans = [[span.version for span in rollout.weight_versions] for rollout in deployment.wait_group("turned").rollouts]
    assert [12] in spans, "those that had not ended"
    assert all(len(versions) == 1 for versions in spans), "none continues without its KV cache"
    deployment.feed("woken", "w33")
    assert mismatch(deployment.wait_group("woken"), 18) < 1e-3
    assert _processes(deployment) == before, "it woke up; no other was started"


def test_a_response_ends_at_the_runs_stops(deployment: Deployment) -> None:
    """The token that completes a stop string, or is a stop token, is the response's last, and rewards read up to the
    string. The policy is greedy, so that the end is known."""
    ends = set()
    for word in (52, 16, 31):
        group_id = f"stops-{word}"
        deployment.feed(group_id, f"w{word}", sampling={"temperature": 0.0, "max_response_tokens": 30})
        group = deployment.wait_group(group_id)
        rollout = group.rollouts[0]
        tokens, text, end = greedy_until_stopped(18, group.prompt_token_ids.tolist(), STOPS)
        assert (rollout.token_ids.tolist(), rollout.text) == (tokens, text)
        assert (rollout.finish_reason, len(rollout.logprobs)) == ("stop" if end else "length", len(tokens))
        ends.add(end)
    assert ends >= {"string", "token"}


@pytest.fixture(scope="module")
def group(deployment: Deployment) -> Deployment:
    """The same server with an engine of two workers that share each layer, at version 0."""
    deployment.redis.delete(streams.weights(deployment.run_id), streams.assignment(INSTANCE))
    deployment.wait_record(lambda record: record.state == "idle")
    deployment.create_run(kv_cache_on_update="recompute", tensor_parallel_size=2)
    deployment.redis.set(streams.assignment(INSTANCE), deployment.run_id)
    deployment.wait_record(lambda record: record.state == "ready" and record.weight_version == 0)
    assert len(_workers(deployment)) == 2
    return deployment


def test_a_group_of_workers_samples_and_updates_like_one(group: Deployment) -> None:
    """Log-probabilities are the model's before, during and after an update that responses in flight survive."""
    group.feed("shared", "w70 w71")
    assert mismatch(group.wait_group("shared"), 0) < 1e-3
    path, manifest = group.store_version(9, seed=19)
    group.feed("shared-flight", "w31 w32", sampling=LONG | {"max_response_tokens": 200})
    group.wait_sampling(8 * 4)
    taken = group.load(9, path, manifest.checksum)
    assert taken.status_code == 200, taken.text
    assert mismatch_after_update(group.wait_group("shared-flight"), 9, 19) < 1e-3
    path, manifest = group.store_adapter(10, seed=29)
    assert group.load(10, path, manifest.checksum).status_code == 200
    group.feed("shared-adapter", "w72")
    assert mismatch(group.wait_group("shared-adapter"), 29, make_adapted) < 1e-3


def test_a_group_rejects_and_takes_updates_as_a_whole(group: Deployment) -> None:
    """Each worker verifies what it receives. After a refusal by all of them, the same engine takes the next update, and
    answers to one are not taken for answers to another."""
    workers = _workers(group)
    sender = NcclSender("127.0.0.1", torch.device("cpu"))
    sent = {name: value for name, value in make_model(30).state_dict().items() if name != "lm_head.weight"}
    layout = msgspec.json.encode(sender.load(11, sent))

    def write(folder: Path) -> None:
        save_file(sent, folder / "model.safetensors")
        (folder / LAYOUT_FILE).write_bytes(layout)

    def transfer() -> dict[str, object]:
        return {"attempt": uuid.uuid4().hex, "offer": msgspec.json.decode(msgspec.json.encode(sender.offer()))}

    path, manifest = group.store(11, write)
    try:
        sent["model.norm.weight"] += 1.0  # after its digest was taken
        refused = group.load(11, path, manifest.checksum, transfer=transfer())
        assert refused.status_code == 500
        assert "does not match its digest" in refused.json()["detail"]
        assert group.get_weights()["version"] == 10
        sent["model.norm.weight"] -= 1.0
        assert group.load(11, path, manifest.checksum, transfer=transfer()).status_code == 200
    finally:
        sender.close()
    group.feed("shared-sent", "w73")
    assert mismatch(group.wait_group("shared-sent"), 30) < 1e-3
    assert _workers(group) == workers
    group.announce(11, path, manifest.checksum)


def test_a_group_that_loses_a_worker_is_replaced(group: Deployment) -> None:
    """What it was sampling is sampled again with the published weights, and no shared memory is left behind."""
    group.feed("shared-killed", "w31 w32", sampling=LONG | {"max_response_tokens": 120})
    group.wait_sampling(8 * 4)
    old, queues = _workers(group), _queues(group)
    assert queues
    os.kill(old[1], signal.SIGKILL)
    sampled = group.wait_group("shared-killed")
    assert {span.version for rollout in sampled.rollouts for span in rollout.weight_versions} == {11}
    assert mismatch(sampled, 30) < 1e-3
    assert not set(_workers(group)) & set(old)
    assert not any(queue.exists() for queue in queues)


def test_a_killed_service_leaves_no_engine(group: Deployment) -> None:
    process = group.processes[INSTANCE]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    process.kill()
    process.wait()
    group.wait(lambda: not any(child.is_running() for child in children))


def _queues(deployment: Deployment) -> list[Path]:
    """Files of the shared memory of the engine's workers."""
    lines = [line for pid in _workers(deployment) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [Path(line.split()[-1]) for line in lines if "/dev/shm/psm_" in line]


def _workers(deployment: Deployment) -> list[int]:
    """The processes of the engine's workers."""
    service = psutil.Process(deployment.processes[INSTANCE].pid)
    return [child.pid for child in service.children(recursive=True) if "Worker" in child.name()]


def _processes(deployment: Deployment) -> list[int]:
    """All processes of the server's engine."""
    return [child.pid for child in psutil.Process(deployment.processes[INSTANCE].pid).children(recursive=True)]


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        main = file.read().split()
    found = set(main)
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            found.update(file.read().split())
    return sorted(found)
