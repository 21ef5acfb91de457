"""Responses about a run's history: the contracts' records without the fields that the request names."""

from __future__ import annotations

from pydantic import Field

from services.api.http.records import listing, schema
from services.contracts.events import SamplesTaken
from services.contracts.records import Checkpoint, Evaluation, EvaluationDifference, Step, WeightPush

StepItem = schema("StepItem", Step, hidden=("run_id", "histograms"))
EvaluationItem = schema("EvaluationItem", Evaluation, hidden=("run_id", "questions"))
Difference = schema("EvaluationDifference", EvaluationDifference, ())
CheckpointItem = schema("CheckpointItem", Checkpoint)
WeightPushItem = schema("WeightPushItem", WeightPush)
SampleItem = schema("SampleGroup", SamplesTaken)

_NEXT_AFTER = "Pass as `after` to get the next steps; null if there are none."
StepList = listing("StepList", StepItem, next_after=(int | None, Field(description=_NEXT_AFTER)))
EvaluationList = listing("EvaluationList", EvaluationItem)
CheckpointList = listing("CheckpointList", CheckpointItem)
WeightPushList = listing("WeightPushList", WeightPushItem)
SampleList = listing("SampleList", SampleItem)
