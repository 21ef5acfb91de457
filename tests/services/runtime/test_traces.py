"""Traces: off by default at no cost, ids that every service derives alike, spans where the environment wants them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.contracts.errors import ConfigurationError
from services.contracts.messages import PromptTask, Question, Sampling
from services.runtime import traces

TASK = PromptTask(
    run_id="run",
    group_id="train-3",
    sequence=3,
    purpose="train",
    question=Question(id="q", kind="mcq", prompt="?"),
    sampling=Sampling(num_samples=2, temperature=1.0, top_p=1.0, top_k=0, max_response_tokens=8),
    min_weight_version=0,
    step=1,
    max_prompt_tokens=8,
    fed_at=100.0,
)


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    traces.use_exporter(made, "learner", "learner-0")
    yield made
    traces.use_exporter(None)


def test_parts_belong_to_the_groups_span_though_they_come_first(exporter: InMemorySpanExporter) -> None:
    traces.record("rollout", TASK, 101.0, 102.5, num_tokens=7, nothing=None)
    traces.record("group", TASK, TASK.fed_at, 104.0, whole=True, outcome="trained")
    traces.record("group", msgspec.structs.replace(TASK, group_id="train-4"), 100.0, 99.0, whole=True)
    traces.record("rollout", msgspec.structs.replace(TASK, purpose="evaluation"), 101.0, 102.0)
    traces.flush_traces()
    part, group, other = exporter.get_finished_spans()
    assert part.context.trace_id == group.context.trace_id == traces.group_ids("run", "train-3")[0]
    assert part.parent.span_id == group.context.span_id
    assert part.context.span_id != group.context.span_id
    assert group.parent is None
    assert other.context.trace_id != group.context.trace_id
    assert (part.start_time, part.end_time) == (101_000_000_000, 102_500_000_000)
    assert other.end_time >= other.start_time  # a clock that was set back makes no negative length
    assert dict(part.attributes or {}) == {
        "turnout.run_id": "run",
        "turnout.group_id": "train-3",
        "turnout.step": 1,
        "turnout.num_tokens": 7,
    }
    assert part.resource.attributes["service.name"] == "turnout-learner"


def test_a_sampler_by_trace_id_keeps_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    kept = []
    for service in ("rollout", "learner"):
        exporter = InMemorySpanExporter()
        traces.use_exporter(exporter, service, service)
        for number in range(100):
            task = msgspec.structs.replace(TASK, group_id=f"train-{number}")
            traces.record("part", task, 1.0, 2.0, whole=service == "learner")
        traces.flush_traces()
        traces.use_exporter(None)
        kept.append({span.attributes["turnout.group_id"] for span in exporter.get_finished_spans()})
    assert kept[0] == kept[1]
    assert 20 < len(kept[0]) < 80


@pytest.mark.parametrize("variables", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_off_imports_nothing(variables: dict[str, str]) -> None:
    program = (
        "import sys; from services.runtime.traces import configure_traces, flush_traces;"
        "configure_traces('learner', 'x'); flush_traces();"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if "OTEL_SDK_DISABLED" in variables else {}
    assert subprocess.run([sys.executable, "-c", program], env=variables | endpoint).returncode == 0


def test_an_unknown_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_EXPORTER is 'zipkin'"):
        traces.configure_traces("learner", "x")
