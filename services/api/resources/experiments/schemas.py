"""Experiments as the API describes them, derived from the contracts' records."""

from __future__ import annotations

from services.api.http.records import NEXT_CURSOR, listing, schema
from services.contracts import records

Summary = schema("ExperimentSummary", records.ExperimentSummary, ())
Detail = schema("Experiment", records.Experiment, ())
ExperimentList = listing("ExperimentList", Summary, **NEXT_CURSOR)
Results = schema("ExperimentResults", records.Results, ())
