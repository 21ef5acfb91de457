"""`turnout runs teachers`: what it asks the API for, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from services.contracts.errors import TurnoutError
from services.contracts.records import TeacherReading, TeacherReadings
from turnout.cli.main import app

TOLD = {"demonstrations": [2], "reference": False, "feedback": False}
GROUP: dict[str, Any] = {
    "step": 6,
    "group_id": "train-9",
    "samples": [{"index": index, "tokens": [f"t{n}" for n in range(10)]} for index in (0, 1, 2)],
    "material": {"responses": [{"index": index, "told": TOLD if index == 1 else None} for index in (0, 1, 2)]},
}


class Client:
    """Returns one group, and what was asked of it."""

    asked: dict[str, Any]
    group = GROUP

    def samples(self, run_id: str, **_: Any) -> list[dict[str, Any]]:
        return [self.group]

    def read_sample(self, run_id: str, **asked: Any) -> TeacherReadings:
        self.asked = asked
        readings = [
            TeacherReading(prompt="p", num_prompt_tokens=1, logprobs=[-2.0] * 9 + [-2.0 + gap]) for gap in (1.5, 0.0)
        ]
        return TeacherReadings(weights=f"{run_id}@7", policy=[-2.0] * 10, teachers=readings)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    found = Client()

    @contextmanager
    def client_of(_: str | None, given: str) -> Iterator[tuple[Client, str]]:
        yield found, given

    monkeypatch.setattr("turnout.client.run_ids.client_of", client_of)
    return found


def ask(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["runs", "teachers", "r-1", *arguments])


def test_the_response_that_training_taught_is_read_by_default(client: Client) -> None:
    result = ask("--teacher", "training,feedback", "--teacher", "0")
    assert result.exit_code == 0, result.output
    first, second = client.asked["teachers"]
    assert first == {"demonstrations": [2], "reference": False, "feedback": True}
    assert second == {"demonstrations": [0], "reference": False, "feedback": False}
    assert (client.asked["step"], client.asked["group_id"], client.asked["index"]) == (6, "train-9", 1)
    assert '9\t"t9"\t-2.000\t+1.500\t+0.000' in result.stdout
    assert "Response 1, read by r-1@7." in result.stdout
    assert "training,feedback: mean gap +0.150; 100% of its size at 90 to 100% of the response" in result.stdout
    assert "0: no gap at all" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--teacher", "sibling"], "'sibling' is nothing that a teacher can read"),
        (["--teacher", "training", "--response", "0"], "Training's teacher did not read response 0"),
        (["--teacher", "0", "--response", "5"], "no response 5. Choose one of 0, 1, 2."),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_remedy(client: Client, arguments: list[str], text: str) -> None:
    result = ask(*arguments)
    assert isinstance(result.exception, TurnoutError)
    assert text in str(result.exception)


def test_a_group_of_an_older_release_cannot_be_read(client: Client) -> None:
    client.group = {name: value for name, value in GROUP.items() if name != "material"}
    result = ask("--teacher", "0")
    assert "did not keep token ids" in str(result.exception)
