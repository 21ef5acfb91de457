"""The wire format stays what it is, and nothing malformed gets through."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts import arrays, codec, messages
from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.errors import MalformedMessageError
from tests.unit.contracts.examples import COMPLETED, EXAMPLES, ROLLOUTS, TASK, VERDICTS

GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_the_bytes_of_each_message_are_those_of_the_golden_file(message: msgspec.Struct) -> None:
    """To change the wire format on purpose, raise `codec.VERSION` and write new golden files:
    `python -m tests.unit.contracts.write_golden`."""
    golden = (GOLDEN / f"{type(message).__name__}.v{codec.VERSION}.bin").read_bytes()
    assert codec.encode(message) == golden
    assert codec.decode(golden, type(message)) == message


def test_every_message_type_of_the_codec_has_an_example() -> None:
    assert {type(message) for message in EXAMPLES} == set(codec._CODES)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name_and_never_crash(payload: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        codec.decode(payload, messages.PromptTask)


@given(st.data())
def test_a_damaged_message_is_refused_or_still_a_checked_message(data: st.DataObject) -> None:
    original = bytearray(codec.encode(COMPLETED))
    position = data.draw(st.integers(0, len(original) - 1))
    original[position] ^= data.draw(st.integers(1, 255))
    try:
        found = codec.decode_any(bytes(original))
    except MalformedMessageError:
        return
    if isinstance(found, messages.CompletedGroup):
        found.check()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "magic"),
        (b"XX\x02\x01", "magic"),
        (b"TN\x63\x01", "wire version 99"),
        (b"TN\x02\xff", "type code 255"),
        (codec.encode(TASK), "expected ScoredGroup"),
    ],
)
def test_the_reason_names_what_is_wrong(payload: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessageError, match=reason):
        codec.decode(payload, messages.ScoredGroup)


def rollout(**changes: object) -> messages.Rollout:
    return msgspec.structs.replace(ROLLOUTS[0], **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"logprobs": LogProbs([-0.5])}, "3 token_ids but 1 logprobs"),
        ({"logprobs": LogProbs([-0.5, float("nan"), -1.0])}, "not a finite"),
        ({"logprobs": LogProbs([-0.5, float("-inf"), -1.0])}, "not a finite"),
        ({"logprobs": LogProbs([-0.5, 0.5, -1.0])}, "not a finite log-probability"),
        ({"weight_versions": [messages.VersionSpan(4, 0, 2)]}, "covers 2 of 3"),
        ({"weight_versions": [messages.VersionSpan(4, 1, 3)]}, "gap"),
        ({"weight_versions": [messages.VersionSpan(4, 0, 2), messages.VersionSpan(4, 1, 3)]}, "gap, overlaps"),
    ],
)
def test_rollouts_whose_parts_do_not_fit_together_are_refused(changes: dict[str, object], reason: str) -> None:
    group = msgspec.structs.replace(COMPLETED, rollouts=[rollout(**changes), ROLLOUTS[1]])
    scored = messages.ScoredGroup(group=group, verdicts=VERDICTS, verifier="v")
    with pytest.raises(MalformedMessageError, match=reason):
        codec.decode(codec.encode(scored), messages.ScoredGroup)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([5, 6, 1], "expected packed TokenIds, got list"),
        (b"\x05\0\0\0\x06", "not a multiple of item size"),
    ],
)
def test_numbers_that_are_not_packed_are_refused(value: object, reason: str) -> None:
    body = msgspec.msgpack.decode(codec.encode(COMPLETED)[4:])
    body["prompt_token_ids"] = value
    payload = codec.encode(COMPLETED)[:4] + msgspec.msgpack.encode(body)
    with pytest.raises(MalformedMessageError, match=reason):
        codec.decode(payload, messages.CompletedGroup)


@given(st.lists(st.integers(0, 2**32 - 1)), st.lists(st.floats(width=32, allow_nan=False)))
def test_packed_numbers_come_back_bit_for_bit(ids: list[int], values: list[float]) -> None:
    for found, given_ in ((TokenIds(ids), ids), (LogProbs(values), values)):
        kind = type(found)
        assert found.tolist() == given_
        assert arrays.unpacked(kind, bytes(arrays.packed(found))) == found
        assert pickle.loads(pickle.dumps(found)) == found


def test_groups_must_have_all_their_rollouts_and_verdicts() -> None:
    short = msgspec.structs.replace(COMPLETED, rollouts=ROLLOUTS[:1])
    with pytest.raises(MalformedMessageError, match="1 rollouts, not 2"):
        codec.decode(codec.encode(short), messages.CompletedGroup)
    scored = messages.ScoredGroup(group=COMPLETED, verdicts=VERDICTS[:1], verifier="v")
    with pytest.raises(MalformedMessageError, match="1 verdicts for 2 rollouts"):
        codec.decode(codec.encode(scored), messages.ScoredGroup)


SAMPLED = ["group", "task", "sampling"]
NAN, ENDLESS = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ([*SAMPLED, "num_samples"], 0, r"int` >= 1 - at `\$.group.task.sampling.num_samples"),
        ([*SAMPLED, "num_samples"], -1, "num_samples"),
        ([*SAMPLED, "num_samples"], 10**9, "num_samples"),
        ([*SAMPLED, "num_samples"], 2**63, "num_samples"),
        ([*SAMPLED, "num_samples"], True, "num_samples"),
        ([*SAMPLED, "temperature"], -0.5, "temperature"),
        ([*SAMPLED, "temperature"], NAN, "temperature"),
        ([*SAMPLED, "temperature"], ENDLESS, "temperature"),
        ([*SAMPLED, "top_p"], 0.0, "top_p"),
        ([*SAMPLED, "top_p"], 1.5, "top_p"),
        ([*SAMPLED, "top_p"], NAN, "top_p"),
        ([*SAMPLED, "top_k"], -1, "top_k"),
        ([*SAMPLED, "top_k"], 2**31, "top_k"),
        ([*SAMPLED, "max_response_tokens"], 0, "max_response_tokens"),
        ([*SAMPLED, "max_response_tokens"], 2**40, "max_response_tokens"),
        ([*SAMPLED, "max_response_tokens"], 2, "a response of 3 tokens, over its limit of 2"),
        (["group", "task", "max_prompt_tokens"], 0, "max_prompt_tokens"),
        (["group", "task", "max_prompt_tokens"], 2, "a prompt of 3 tokens, over its limit of 2"),
        (["group", "task", "group_id"], "", "group_id"),
        (["group", "task", "group_id"], "x" * 501, "group_id"),
        (["group", "task", "sequence"], -1, "sequence"),
        (["group", "task", "step"], -1, "step"),
        (["group", "task", "min_weight_version"], -1, "min_weight_version"),
        (["group", "task", "fed_at"], NAN, "fed_at"),
        (["group", "prompt_token_ids"], b"", "no prompt_token_ids"),
        (["group", "seconds"], NAN, "seconds"),
        (["group", "rollouts"], [], "0 rollouts, not 2"),
        (["group", "rollouts", 0, "weight_versions", 0], [-1, 0, 2], "weight_versions"),
        (["group", "rollouts", 0, "weight_versions", 0], [4, 0, 2**62], "weight_versions"),
        (["group", "rollouts", 0, "finish_reason"], "error", "finish_reason"),
        (["verdicts", 0, "reward"], -0.1, r"verdicts\[0\].reward"),
        (["verdicts", 0, "reward"], 1.1, "reward"),
        (["verdicts", 0, "reward"], NAN, "reward"),
        (["verdicts", 0, "seconds"], ENDLESS, "seconds"),
        (["verifier"], "", "verifier"),
    ],
)
def test_a_field_out_of_its_bounds_is_refused_by_name(place: list[Any], value: object, reason: str) -> None:
    scored = codec.encode(messages.ScoredGroup(group=COMPLETED, verdicts=VERDICTS, verifier="v"))
    body = part = msgspec.msgpack.decode(scored[4:])
    for name in place[:-1]:
        part = part[name]
    assert part[place[-1]] != value
    part[place[-1]] = value
    with pytest.raises(MalformedMessageError, match=reason):
        codec.decode(scored[:4] + msgspec.msgpack.encode(body), messages.ScoredGroup)


def test_tokens_beyond_the_vocabulary_are_refused_by_name() -> None:
    COMPLETED.check_vocabulary(7)
    with pytest.raises(
        MalformedMessageError, match="rollout 0 of group train-3 has token 6, beyond the vocabulary of 6"
    ):
        COMPLETED.check_vocabulary(6)
    with pytest.raises(MalformedMessageError, match="the prompt of group train-3 has token 3"):
        COMPLETED.check_vocabulary(3)


def test_the_oldest_version_of_a_rollout() -> None:
    assert ROLLOUTS[0].oldest_version == 4
    assert ROLLOUTS[1].oldest_version is None
