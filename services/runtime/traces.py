"""OpenTelemetry traces of groups on their way through the ring: fed, sampled, judged, trained. Off by default.

One group is one trace. Its ids are derived from run id and group id, so every service knows them without a field on the
wire. Spans are recorded when their work is done, with its times; the gaps between them are waiting. The standard OTEL_*
variables configure everything; unless they name an exporter, nothing is imported and `record` does nothing.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any

from services.contracts.errors import ConfigurationError
from services.contracts.messages import PromptTask

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

NANOSECONDS = 1_000_000_000


class _Recorder:
    """Creates spans with derived ids and passes them to the exporter's thread."""

    def __init__(self, exporter: SpanExporter, service: str, instance: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        chosen = self._chosen = threading.local()

        class Ids(RandomIdGenerator):
            def generate_span_id(self) -> int:
                return getattr(chosen, "span", None) or super().generate_span_id()

            def generate_trace_id(self) -> int:
                return getattr(chosen, "trace", None) or super().generate_trace_id()

        named = {"service.name": f"turnout-{service}", "service.instance.id": instance}
        given = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({"service.instance.id": instance} if given else named)
        self.provider: TracerProvider = TracerProvider(resource=resource, id_generator=Ids())
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer("turnout")

    def record(
        self, name: str, ids: tuple[int, int], whole: bool, began: float, ended: float, attributes: dict[str, Any]
    ) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context

        trace_id, group_span = ids
        if whole:
            self._chosen.trace, self._chosen.span = ids
            context = Context()
        else:
            parent = trace.SpanContext(trace_id, group_span, is_remote=True, trace_flags=trace.TraceFlags(1))
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())
        try:
            start = int(began * NANOSECONDS)
            span = self._tracer.start_span(name, context, attributes=attributes, start_time=start)
            span.end(int(max(began, ended) * NANOSECONDS))
        finally:
            self._chosen.trace = self._chosen.span = None


_recorder: _Recorder | None = None


def configure_traces(service: str, instance: str) -> None:
    """Start tracing if the environment names an exporter.

    Raises:
        ConfigurationError: the exporter is not supported.
    """
    exporter = _exporter()
    if exporter is not None:
        use_exporter(exporter, service, instance)


def use_exporter(exporter: SpanExporter | None, service: str = "", instance: str = "") -> None:
    """Set the exporter; None turns tracing off."""
    global _recorder
    _recorder = None if exporter is None else _Recorder(exporter, service, instance)


def _exporter() -> SpanExporter | None:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    name = os.environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if name == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if name == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: f"{span.to_json(indent=None)}\n")
    if name == "none":
        return None
    raise ConfigurationError(
        f"OTEL_TRACES_EXPORTER is {name!r}, which is not a known exporter.",
        remedy="Write otlp (over HTTP), console or none.",
        field="OTEL_TRACES_EXPORTER",
    )


def group_ids(run_id: str, group_id: str) -> tuple[int, int]:
    """Trace id (128 bits) of a group, and id (64 bits) of the span over its whole lifetime; neither is 0."""
    digest = hashlib.sha256(f"{run_id}\0{group_id}".encode()).digest()
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:24], "big") or 1


def record(name: str, task: PromptTask, began: float, ended: float, *, whole: bool = False, **attributes: Any) -> None:
    """Record a part of a training group's lifetime, or (`whole`) all of it, from `began` to `ended` in Unix seconds."""
    if _recorder is None or task.purpose != "train":
        return
    named = {"turnout.run_id": task.run_id, "turnout.group_id": task.group_id, "turnout.step": task.step}
    named |= {f"turnout.{key}": value for key, value in attributes.items() if value is not None}
    _recorder.record(name, group_ids(task.run_id, task.group_id), whole, began, ended, named)


def flush_traces() -> None:
    """Send pending spans before the process exits; takes a few seconds at most."""
    if _recorder is not None:
        _recorder.provider.force_flush(3000)
