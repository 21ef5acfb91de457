"""Fast weight transports, learner to vLLM worker, with gloo and plain memory where a GPU box has NCCL and CUDA IPC."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from services.contracts.errors import ConfigurationError, MalformedMessageError
from services.contracts.run_config import parse_run_config
from services.contracts.transfer import (
    ITEM_BYTES,
    LAYOUT_FILE,
    Chunk,
    IpcOffer,
    Layout,
    PackedTensor,
    parse_offer,
    parse_transfer,
    to_text,
)
from services.learner import transfer as learner
from services.learner.publish import Publisher
from services.learner.transfer import IpcSender, Sender, make_sender
from services.learner.transfer_nccl import NcclSender
from services.rollout import transfer as rollout
from services.rollout.transfer import Receiver, TransferError
from services.runtime import digest as digests
from services.runtime.digest import digest
from services.runtime.process_group import make_group
from services.runtime.settings import Settings
from services.runtime.weight_store import CorruptWeightsError, WeightStore

CPU = torch.device("cpu")
OFFER = IpcOffer("GPU-1", to_text(b"\x01" * 66), 64, 0, to_text(b"/torch_1_2_3"), 0, to_text(b"e" * 64), True)


def weights_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a.weight": (7, 5), "a.bias": (3,), "b.weight": (40, 9), "scale": (), "c.weight": (2, 3, 4)}
    return {
        name: torch.randn(size, generator=generator).to(torch.bfloat16 if "b" in name else torch.float32)
        for name, size in sizes.items()
    }


def publish(folder: Path, version: int, sender: Sender, weights: Mapping[str, Tensor]) -> tuple[Path, str]:
    layout = sender.load(version, weights)
    store = WeightStore(folder, "run")
    manifest = store.publish(version, lambda path: write_layout(path, layout))
    return store.path(version), manifest.checksum


def write_layout(folder: Path, layout: Layout) -> None:
    (folder / LAYOUT_FILE).write_bytes(msgspec.json.encode(layout))


def transfer_of(sender: Sender) -> dict[str, Any]:
    """As it reaches the worker: through JSON."""
    offer = msgspec.json.decode(msgspec.json.encode(sender.offer()))
    return {"attempt": uuid.uuid4().hex, "offer": offer}


def assert_same(received: Iterator[tuple[str, Tensor]], weights: Mapping[str, Tensor]) -> None:
    found = dict(received)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


shapes = st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(shapes, st.lists(st.sampled_from(sorted(ITEM_BYTES)), min_size=8, max_size=8), st.integers(1, 400))
def test_packing_gives_back_every_tensor(sizes: list[list[int]], dtypes: list[str], chunk_bytes: int) -> None:
    weights = {f"w{i}": torch.randn(size).to(getattr(torch, dtypes[i])) for i, size in enumerate(sizes)}
    chunks, filled = [], []
    for chunk in learner.plan(weights, chunk_bytes):
        buffer = torch.empty(chunk.bytes, dtype=torch.uint8)
        learner.fill(buffer, chunk, weights)
        chunks.append(learner.with_digest(chunk, buffer))
        filled.append(buffer)
        assert chunk.bytes <= chunk_bytes + 16 * len(chunk.tensors) or len(chunk.tensors) == 1
    layout = Layout(chunks)
    assert_same(rollout.unpacked(layout, rollout.verified(iter(filled), layout, stays=True)), weights)


def test_digest_sees_any_changed_byte_and_any_other_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randint(0, 256, (256,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = digest(data.view(torch.int64))
    for place in range(256):
        for bit in (1, 128):
            changed = data.clone()
            changed[place] ^= bit
            assert digest(changed.view(torch.int64)) != whole
    words = data.view(torch.int64)
    for first in range(32):
        for second in range(first):
            order = list(range(32))
            order[first], order[second] = second, first
            assert digest(words[order]) != whole
    assert digest(torch.zeros(8, dtype=torch.int64)) != digest(torch.zeros(9, dtype=torch.int64))
    monkeypatch.setattr(digests, "_PIECE", 5)
    assert digest(words) == whole


def test_digest_is_the_published_form() -> None:
    """Learner and servers may run different builds: the numbers are part of the format. Computed by plain integers."""

    def plain(words: list[int]) -> str:
        mask, total = (1 << 64) - 1, 0
        for place, word in enumerate(words, start=1):
            mixed = (word + place * 0x9E3779B97F4A7C15) & mask
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
            total += mixed ^ (mixed >> 31)
        return f"{total & mask:016x}"

    words = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert digest(torch.tensor(words)) == plain(words)


def test_ipc_brings_a_version_and_refuses_one_that_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "CHUNK_BYTES", 300)
    shared: list[Tensor] = []
    opened: list[IpcOffer] = []

    def share(buffer: Tensor) -> IpcOffer:
        shared.append(buffer)
        return OFFER

    def open_buffer(offer: IpcOffer) -> Tensor:
        opened.append(offer)
        return shared[0]

    sender, receiver = IpcSender(CPU, share), Receiver(CPU, open_buffer=open_buffer)
    first, checksum = publish(tmp_path, 1, sender, weights_of(1))
    received = receiver.receive(first, checksum, transfer_of(sender))
    second, newer = publish(tmp_path, 2, sender, weights_of(2))
    assert_same(received, weights_of(1))  # copies: the buffer holds version 2 by now
    assert_same(receiver.receive(second, newer, transfer_of(sender)), weights_of(2))
    assert len(shared) == 1
    assert opened == [OFFER]
    with pytest.raises(TransferError, match="Chunk 0 differs"):
        receiver.receive(first, checksum, transfer_of(sender))
    with pytest.raises(CorruptWeightsError):
        receiver.receive(first, newer, transfer_of(sender))


def shorten_waits(patch: pytest.MonkeyPatch) -> None:
    """For what is to fail; what is to succeed gets the product's limits, however busy the machine is."""
    patch.setattr(rollout, "WAIT", timedelta(seconds=1))
    patch.setattr("services.learner.transfer_nccl.LIMIT", timedelta(seconds=2))


def test_broadcast_reaches_all_workers_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "CHUNK_BYTES", 300)
    sender = NcclSender("127.0.0.1", CPU)
    try:
        folder, checksum = publish(tmp_path, 1, sender, weights_of(1))
        transfer = transfer_of(sender)
        with ThreadPoolExecutor(3) as pool:
            workers = [Receiver(CPU, worker, 3) for worker in range(3)]
            futures = [pool.submit(worker.receive, folder, checksum, transfer) for worker in workers]
            for future in futures:
                assert_same(future.result(), weights_of(1))
        publish(tmp_path, 2, sender, weights_of(2))
        with pytest.raises(TransferError, match="holds version 2, not version 1"):
            Receiver(CPU).receive(folder, checksum, transfer_of(sender))
        alone, newer = Receiver(CPU, 0, 2), read_checksum(tmp_path, 2)
        with monkeypatch.context() as patch:
            shorten_waits(patch)
            with pytest.raises(TransferError):  # the second worker never comes
                alone.receive(tmp_path / "v00000002", newer, transfer_of(sender))
        assert_same(  # nothing of that is left behind
            Receiver(CPU).receive(tmp_path / "v00000002", newer, transfer_of(sender)),
            weights_of(2),
        )
    finally:
        sender.close()


def read_checksum(folder: Path, version: int) -> str:
    return WeightStore(folder, "run").read_manifest(version).checksum


def test_a_learner_that_is_gone_is_an_error_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = NcclSender("127.0.0.1", CPU)
    folder, checksum = publish(tmp_path, 1, sender, weights_of(1))
    transfer = transfer_of(sender)
    sender.close()
    shorten_waits(monkeypatch)
    with pytest.raises(TransferError):  # nobody answers
        Receiver(CPU).receive(folder, checksum, transfer)
    transfer["offer"]["port"] = 1
    with pytest.raises(TransferError):  # nobody listens
        Receiver(CPU).receive(folder, checksum, transfer)


def test_a_transfer_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    with pytest.raises(TransferError, match="longer than"):
        rollout.within(0.05, Event().wait)


def test_the_communicator_is_made_in_nccls_environment_as_the_learner_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, seen = [False], []

    @contextmanager
    def environment() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    def has_room(*_: object) -> bool:  # asked for once in each transfer, before the first chunk
        seen.append(inside[0])
        return True

    monkeypatch.setattr(rollout, "has_room", has_room)
    sender = NcclSender("127.0.0.1", CPU)
    try:
        folder, checksum = publish(tmp_path, 1, sender, weights_of(1))
        receiver = Receiver(CPU, nccl_environment=environment)
        assert_same(receiver.receive(folder, checksum, transfer_of(sender)), weights_of(1))
    finally:
        sender.close()
    assert seen == [True]
    assert inside == [False]


def test_chunks_are_let_go_of_while_they_are_consumed() -> None:
    weights = weights_of(1)
    chunks, filled = [], []
    for chunk in learner.plan(weights, 100):
        buffer = torch.empty(chunk.bytes, dtype=torch.uint8)
        learner.fill(buffer, chunk, weights)
        chunks.append(chunk)
        filled.append(buffer)
    del buffer
    held = [weakref.ref(data) for data in filled]
    assert len(held) > 2
    received = rollout.unpacked(Layout(chunks), filled)
    for number, chunk in enumerate(chunks):
        for _ in chunk.tensors:
            next(received)
        assert [ref() is None for ref in held].count(True) == number
    assert next(received, None) is None
    assert [ref() for ref in held] == [None] * len(held)


@pytest.mark.parametrize("refusing", [None, 0, 2])
def test_one_worker_that_refuses_stops_all(refusing: int | None) -> None:
    store = HashStore()

    def ask(worker: int) -> bool:
        group = make_group(torch, store, worker, 3, CPU, timedelta(seconds=60))
        return rollout.any_refuses(worker == refusing, group)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == [refusing is not None] * 3


def test_devices_that_cannot_work_together_are_named() -> None:
    with pytest.raises(TransferError, match=r"needs the learner's GPU GPU-1; visible here: none.*set it to store"):
        rollout.open_cuda(OFFER)
    with pytest.raises(TransferError, match="needs a CUDA device here and at the learner"):
        rollout.check_devices("GPU-1", "cpu")
    with pytest.raises(TransferError, match="GPU other than the learner's"):
        rollout.check_devices("GPU-1", "GPU-1")
    rollout.check_devices("GPU-1", "GPU-2")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transport": "carrier pigeon"}, "transport"),
        ({"handle": "not base64!"}, "handle is not base64"),
        ({"ref_counter": to_text(b"/../../etc/passwd")}, "ref_counter is no handle"),
        ({"handle": to_text(b"x" * 5000)}, "length|handle is no handle"),
        ({"storage_bytes": -1}, "storage_bytes"),
        ({"event_sync": "yes"}, "event_sync"),
        ({"extra": 1}, "extra"),
    ],
)
def test_an_offer_is_checked_field_by_field(changes: dict[str, Any], reason: str) -> None:
    values = msgspec.json.decode(msgspec.json.encode(OFFER))
    assert parse_offer(values) == OFFER
    assert values["transport"] == "cuda_ipc"
    with pytest.raises(MalformedMessageError, match=reason):
        parse_offer(values | changes)
    with pytest.raises(MalformedMessageError, match="attempt"):
        parse_transfer({"attempt": "x", "offer": values})


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(32, "", [PackedTensor("a", "float32", [4], 0), PackedTensor("b", "float32", [4], 0)]),
        Chunk(32, "", [PackedTensor("a", "float32", [9], 0)]),
        Chunk(32, "", [PackedTensor("a", "float32", [1], 4)]),
        Chunk(32, "", [PackedTensor("a", "int8", [4], 0)]),
        Chunk(33, "", []),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(chunk: Chunk) -> None:
    with pytest.raises(MalformedMessageError):
        Layout([chunk]).check()


BODY = {"name": "t", "model": {"path": "m"}, "data": {"train": "d"}, "training": {"steps": 1}}


def test_the_setting_chooses_and_a_learner_without_cuda_says_so() -> None:
    warnings: list[str] = []
    config = parse_run_config(BODY)
    assert make_sender(config, CPU, Settings(), warnings.append) is None
    assert warnings == []
    for transport in ("cuda_ipc", "nccl"):
        config = parse_run_config(BODY | {"weights": {"transport": transport}})
        assert make_sender(config, CPU, Settings(), warnings.append) is None
        assert f"weights.transport is {transport}" in warnings[-1]
        assert "set weights.transport to store" in warnings[-1]
        with pytest.raises(ConfigurationError, match="no use with model"):
            parse_run_config(BODY | {"weights": {"transport": transport}, "model": {"path": "m", "lora": {"rank": 2}}})


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_that_cannot_be_shared_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    config = parse_run_config(BODY | {"weights": {"transport": "cuda_ipc"}})
    monkeypatch.setenv(variable, "max_split_size_mb:512,expandable_segments:False")
    assert isinstance(make_sender(config, torch.device("cuda"), Settings(), warnings.append), IpcSender)
    assert warnings == []
    monkeypatch.setenv(variable, "max_split_size_mb:512,expandable_segments:True")
    assert make_sender(config, torch.device("cuda"), Settings(), warnings.append) is None
    assert f"{variable} sets expandable_segments:True" in warnings[0]
    assert "weights go by the store" in warnings[0]


class Link:
    """What a publisher asks of the link."""

    run_id = "run"
    published_version = 0

    def __init__(self) -> None:
        self.announced: list[dict[str, str]] = []
        self.notes: list[tuple[str, str]] = []

    def announce(self, weights: dict[str, str]) -> None:
        self.announced.append(weights)

    def note(self, text: str, level: str = "info") -> None:
        self.notes.append((level, text))

    def emit(self, event: object) -> None: ...
    def report(self, **changes: Any) -> None: ...
    def wake_feeder(self) -> None: ...


def test_a_sender_that_fails_ends_its_use_not_the_run(tmp_path: Path) -> None:
    link: Any = Link()
    sender = IpcSender(CPU, lambda buffer: OFFER)
    store = WeightStore(tmp_path, "run")
    publisher = Publisher(
        link, store, lambda folder, weights: (folder / "model.bin").write_bytes(b"w") and None, sender
    )
    publisher.publish(1, weights_of(1))
    assert parse_offer(msgspec.json.decode(link.announced[0]["transfer"])) == OFFER
    assert (store.path(1) / LAYOUT_FILE).exists()
    publisher.publish(2, {"a": torch.zeros(4, dtype=torch.complex64)})
    assert link.notes[0][0] == "warning"
    assert "weights go by the store from now on" in link.notes[0][1]
    publisher.publish(3, weights_of(3))
    assert [values["transfer"] for values in link.announced[1:]] == ["", ""]
    assert not (store.path(3) / LAYOUT_FILE).exists()
    assert len(link.notes) == 1
