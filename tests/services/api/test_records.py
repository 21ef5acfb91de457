"""A record's table, schema and JSON are derived from one definition."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa

from services.api.http.records import answer, answer_one, listing, schema
from services.api.storage import history
from services.contracts import events
from services.contracts.records import Checkpoint, Evaluation, Run, Step, WeightPush


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


def test_a_record_in_a_record_is_described_and_one_that_is_new_has_a_place() -> None:
    item = schema("RunDetail", Run, hidden=())
    described = item.model_json_schema()
    assert described["$defs"]["ForkedFrom"]["properties"]["run_id"]["description"].startswith("The parent")
    made = answer_one(item, Run(id="r", name="n", state="queued"), created_at="/v1/runs/r")
    assert (made.status_code, made.headers["location"]) == (201, "/v1/runs/r")
    assert {*msgspec.json.decode(made.body)} == {*Run.__struct_fields__}
