"""Fast weight transports, learner to vLLM worker, with gloo and plain memory where a GPU box has NCCL and CUDA IPC."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from services.contracts.errors import ConfigurationError, MalformedMessageError
from services.contracts.run_config import parse_run_config
from services.contracts.transports.base import to_text
from services.contracts.transports.cuda_ipc import IpcOffer
from services.contracts.transports.http import HttpOffer
from services.contracts.transports.layout import LAYOUT_FILE, Layout
from services.contracts.transports.registry import TRANSPORTS, Transfer, parse_offer, parse_transfer
from services.learner.publish.base import Sender
from services.learner.publish.cuda_ipc import IpcSender
from services.learner.publish.factory import make_sender
from services.learner.publish.http import HttpSender
from services.learner.publish.nccl import NcclSender
from services.learner.publish.publisher import Publisher
from services.learner.publish.store import StoreSender
from services.rollout.weights.receive import chunks, cuda_ipc, nccl
from services.rollout.weights.receive.base import Receiver, TransferError, Update, Worker, any_refuses
from services.rollout.weights.receive.cuda_ipc import IpcReceiver
from services.rollout.weights.receive.factory import Receivers
from services.rollout.weights.receive.nccl import NcclReceiver
from services.runtime.settings import Settings
from services.runtime.torch.process_group import make_group
from services.runtime.weights.store import CorruptWeightsError, WeightStore
from tests.services.rollout.test_packing import assert_same, weights_of

CPU = torch.device("cpu")
OFFER = IpcOffer("GPU-1", to_text(b"\x01" * 66), 64, 0, to_text(b"/torch_1_2_3"), 0, to_text(b"e" * 64), True)


def publish(folder: Path, version: int, sender: Sender, weights: Mapping[str, Tensor]) -> tuple[Path, str]:
    layout = sender.load(version, weights)
    assert layout is not None
    store = WeightStore(folder, "run")
    manifest = store.publish(version, lambda path: write_layout(path, layout))
    return store.path(version), manifest.checksum


def write_layout(folder: Path, layout: Layout) -> None:
    (folder / LAYOUT_FILE).write_bytes(msgspec.json.encode(layout))


def transfer_of(sender: Sender, **changes: Any) -> Transfer:
    """The offer as it reaches the worker, through JSON."""
    offer = msgspec.json.decode(msgspec.json.encode(sender.offer()))
    return parse_transfer({"attempt": uuid.uuid4().hex, "offer": offer | changes})


def test_ipc_delivers_a_version_and_rejects_one_that_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.learner.publish.chunks.CHUNK_BYTES", 300)
    shared: list[Tensor] = []
    opened: list[IpcOffer] = []

    def share(buffer: Tensor) -> IpcOffer:
        shared.append(buffer)
        return OFFER

    def open_buffer(offer: IpcOffer) -> Tensor:
        opened.append(offer)
        return shared[0]

    sender, receiver = IpcSender(CPU, share), IpcReceiver(Worker(CPU), open_buffer)
    first, checksum = publish(tmp_path, 1, sender, weights_of(1))
    received = receiver.receive(Update(first, checksum, transfer_of(sender)))
    second, newer = publish(tmp_path, 2, sender, weights_of(2))
    assert_same(received, weights_of(1))  # copies, since the buffer has version 2 by now
    assert_same(receiver.receive(Update(second, newer, transfer_of(sender))), weights_of(2))
    assert len(shared) == 1
    assert opened == [OFFER]
    with pytest.raises(TransferError, match="Chunk 0 does not match"):
        receiver.receive(Update(first, checksum, transfer_of(sender)))
    with pytest.raises(CorruptWeightsError):
        receiver.receive(Update(first, newer, transfer_of(sender)))


def shorten_waits(patch: pytest.MonkeyPatch) -> None:
    """Limits for transfers that must fail. Those that must succeed get the product's, however busy the machine is."""
    patch.setattr(nccl, "WAIT", timedelta(seconds=1))
    patch.setattr("services.learner.publish.nccl.LIMIT", timedelta(seconds=2))


def test_broadcast_reaches_all_workers_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.learner.publish.chunks.CHUNK_BYTES", 300)
    sender = NcclSender("127.0.0.1", CPU)
    try:
        folder, checksum = publish(tmp_path, 1, sender, weights_of(1))
        transfer = transfer_of(sender)
        with ThreadPoolExecutor(3) as pool:
            workers = [Receivers(Worker(CPU, number, 3)) for number in range(3)]
            futures = [pool.submit(worker.receive, Update(folder, checksum, transfer)) for worker in workers]
            for future in futures:
                assert_same(future.result(), weights_of(1))
        publish(tmp_path, 2, sender, weights_of(2))
        with pytest.raises(TransferError, match="offers version 2, not version 1"):
            NcclReceiver(Worker(CPU)).receive(Update(folder, checksum, transfer_of(sender)))
        alone, newer = NcclReceiver(Worker(CPU, 0, 2)), read_checksum(tmp_path, 2)
        with monkeypatch.context() as patch:
            shorten_waits(patch)
            with pytest.raises(TransferError):  # the second worker never comes
                alone.receive(Update(tmp_path / "v00000002", newer, transfer_of(sender)))
        assert_same(  # the failure leaves nothing behind
            NcclReceiver(Worker(CPU)).receive(Update(tmp_path / "v00000002", newer, transfer_of(sender))),
            weights_of(2),
        )
    finally:
        sender.close()


def read_checksum(folder: Path, version: int) -> str:
    return WeightStore(folder, "run").read_manifest(version).checksum


def test_a_learner_that_is_gone_is_an_error_within_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = NcclSender("127.0.0.1", CPU)
    folder, checksum = publish(tmp_path, 1, sender, weights_of(1))
    no_answer, no_listener = transfer_of(sender), transfer_of(sender, port=1)
    sender.close()
    shorten_waits(monkeypatch)
    for transfer in (no_answer, no_listener):
        with pytest.raises(TransferError):
            NcclReceiver(Worker(CPU)).receive(Update(folder, checksum, transfer))


def test_a_transfer_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Event()
    try:
        with pytest.raises(TransferError, match="Timed out after"):
            chunks.within(0.05, end.wait)
    finally:
        end.set()


def test_the_communicator_is_created_with_the_learners_nccl_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, seen = [False], []

    @contextmanager
    def environment() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    def has_room(*_: object) -> bool:  # entered once per transfer, before the first chunk
        seen.append(inside[0])
        return True

    monkeypatch.setattr(chunks, "has_room", has_room)
    sender = NcclSender("127.0.0.1", CPU)
    try:
        folder, checksum = publish(tmp_path, 1, sender, weights_of(1))
        receiver = NcclReceiver(Worker(CPU, nccl_environment=environment))
        assert_same(receiver.receive(Update(folder, checksum, transfer_of(sender))), weights_of(1))
    finally:
        sender.close()
    assert seen == [True]
    assert inside == [False]


@pytest.mark.parametrize("refusing", [None, 0, 2])
def test_one_worker_that_rejects_an_update_stops_all(refusing: int | None) -> None:
    store = HashStore()

    def ask(worker: int) -> bool:
        group = make_group(torch, store, worker, 3, CPU, timedelta(seconds=60))
        return any_refuses(worker == refusing, group)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == [refusing is not None] * 3


def test_devices_that_cannot_work_together_are_named() -> None:
    with pytest.raises(
        TransferError, match=r"needs the learner's GPU GPU-1, but the GPUs visible here are: none.*to store"
    ):
        cuda_ipc.open_cuda(OFFER)
    with pytest.raises(TransferError, match="needs a CUDA device on the server and the learner"):
        nccl.check_devices("GPU-1", "cpu")
    with pytest.raises(TransferError, match="GPU other than the learner's"):
        nccl.check_devices("GPU-1", "GPU-1")
    nccl.check_devices("GPU-1", "GPU-2")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transport": "carrier pigeon"}, "transport"),
        ({"handle": "not base64!"}, "handle is not base64"),
        ({"ref_counter": to_text(b"/../../etc/passwd")}, "ref_counter is not a torch handle"),
        ({"handle": to_text(b"x" * 5000)}, "length|handle is not a torch handle"),
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


@pytest.mark.parametrize("url", ["ftp://10.0.0.1", "http://", "http://a:99999", "http://u:p@a", "http://a?x=1", "a:80"])
def test_an_offer_of_files_names_a_plain_address(url: str) -> None:
    with pytest.raises(MalformedMessageError, match="http://<host>:<port>"):
        parse_offer({"transport": "http", "url": url})


BODY = {"name": "t", "model": {"path": "m"}, "data": {"train": "d"}, "training": {"steps": 1}}


def sender_of(transport: str, warnings: list[str], device: torch.device = CPU, url: str = "") -> Sender:
    config = parse_run_config(BODY | {"weights": {"transport": transport}})
    return make_sender(config.weights.transport, device, Settings(advertise_url=url), warnings.append)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_transport_has_its_offer_its_sender_and_its_receiver(transport: str) -> None:
    kind = TRANSPORTS[transport]
    assert kind is None or kind.__struct_config__.tag == transport
    sender = import_module(f"services.learner.publish.{transport}").SENDER
    receiver = import_module(f"services.rollout.weights.receive.{transport}").RECEIVER
    assert issubclass(sender, Sender)
    assert issubclass(receiver, Receiver)


def test_the_setting_selects_the_sender_and_a_learner_without_cuda_warns() -> None:
    warnings: list[str] = []
    assert isinstance(sender_of("store", warnings), StoreSender)
    assert warnings == []
    assert sender_of("http", warnings, url="http://10.0.0.1:8401").offer() == HttpOffer("http://10.0.0.1:8401")
    parse_run_config(BODY | {"weights": {"transport": "http"}, "model": {"path": "m", "lora": {"rank": 2}}})
    for transport in ("cuda_ipc", "nccl"):
        assert isinstance(sender_of(transport, warnings), StoreSender)
        assert f"weights.transport is {transport}" in warnings[-1]
        assert "set weights.transport to store" in warnings[-1]
        with pytest.raises(ConfigurationError, match="no use with model"):
            parse_run_config(BODY | {"weights": {"transport": transport}, "model": {"path": "m", "lora": {"rank": 2}}})


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_that_cannot_be_shared_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    cuda = torch.device("cuda")
    monkeypatch.setenv(variable, "max_split_size_mb:512,expandable_segments:False")
    assert isinstance(sender_of("cuda_ipc", warnings, cuda), IpcSender)
    assert warnings == []
    monkeypatch.setenv(variable, "max_split_size_mb:512,expandable_segments:True")
    assert isinstance(sender_of("cuda_ipc", warnings, cuda), StoreSender)
    assert f"{variable} sets expandable_segments:True" in warnings[0]
    assert "Servers load weights from the store instead" in warnings[0]


class Link:
    """The part of the link that a publisher uses."""

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


def test_files_that_a_predecessor_published_are_offered_again(tmp_path: Path) -> None:
    """Under this learner's address. What only its own memory held is not: it does not hold it yet."""
    published = {"version": "4", "path": "/w/v4", "checksum": "blake3:4", "transfer": ""}
    for sender, offers in ((HttpSender("http://10.0.0.1:8401"), 1), (StoreSender(), 0), (IpcSender(CPU), 0)):
        link: Any = Link()
        Publisher(link, WeightStore(tmp_path, "run"), lambda *_: None, sender).renew_offer(published)
        assert len(link.announced) == offers
        for announced in link.announced:
            assert {**announced, "transfer": ""} == published
            assert parse_offer(msgspec.json.decode(announced["transfer"])) == HttpOffer("http://10.0.0.1:8401")


def test_a_failing_sender_is_disabled_but_does_not_end_the_run(tmp_path: Path) -> None:
    link: Any = Link()
    sender = IpcSender(CPU, lambda buffer: OFFER)
    store = WeightStore(tmp_path, "run")

    def write(folder: Path, weights: object) -> None:
        (folder / "model.bin").write_bytes(b"w")

    publisher = Publisher(link, store, write, sender)
    publisher.publish(1, weights_of(1))
    assert parse_offer(msgspec.json.decode(link.announced[0]["transfer"])) == OFFER
    assert (store.path(1) / LAYOUT_FILE).exists()
    publisher.publish(2, {"a": torch.zeros(4, dtype=torch.complex64)})
    assert link.notes[0][0] == "warning"
    assert "servers load weights from the store instead" in link.notes[0][1]
    publisher.publish(3, weights_of(3))
    assert [values["transfer"] for values in link.announced[1:]] == ["", ""]
    assert not (store.path(3) / LAYOUT_FILE).exists()
    assert len(link.notes) == 1
