"""One definition of a record: its table, its schema and its JSON are made from it."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa

from services.api.http.records import answer, listing, schema
from services.api.storage import history
from services.contracts import events
from services.contracts.records import Checkpoint, Evaluation, Step, WeightPush


@pytest.mark.parametrize(
    ("table", "record", "shown"),
    [
        (history.STEPS, events.StepFinished, Step),
        (history.EVALUATIONS, events.EvaluationFinished, Evaluation),
        (history.CHECKPOINTS, events.CheckpointWritten, Checkpoint),
        (history.WEIGHT_PUSHES, WeightPush, WeightPush),
    ],
)
def test_a_table_holds_the_fields_of_its_record(
    table: sa.Table, record: type[msgspec.Struct], shown: type[msgspec.Struct]
) -> None:
    assert {*table.c.keys()} - {"id"} == {*record.__struct_fields__} <= {*shown.__struct_fields__}


def test_a_schema_has_fields_and_descriptions_of_its_record_and_its_bases() -> None:
    item = schema("CheckpointItem", Checkpoint)
    described = listing("CheckpointList", item).model_json_schema()["$defs"]["CheckpointItem"]
    assert described["properties"]["at"] == {"description": "Unix time in seconds.", "title": "At", "type": "number"}
    assert described["properties"]["exists"]["description"].startswith("Whether the folder is still on disk")
    assert sorted(described["required"]) == sorted({*Checkpoint.__struct_fields__} - {"run_id"})


def test_an_answer_has_the_fields_of_its_schema_and_null_for_what_is_no_number() -> None:
    push = WeightPush(run_id="r", at=1.5, version=3, instance="rollout-0", seconds=float("nan"))
    found = msgspec.json.decode(answer(schema("WeightPushItem", WeightPush), [push]).body)
    [item] = found["items"]
    expected = {"at": 1.5, "version": 3, "instance": "rollout-0", "seconds": None, "error": "", "transport": "store"}
    assert item == expected
