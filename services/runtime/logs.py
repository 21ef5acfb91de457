"""Structured logs: one JSON object (or readable line) per event on standard error, with context such as run_id."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from typing import Any, cast

import structlog

from services.contracts.plain_text import in_line, in_lines
from services.runtime.settings import Settings

_fields: dict[str, str] = {}
"""Fields on every line of this process, whichever thread writes it."""


def configure_logs(settings: Settings, service: str) -> None:
    """Send our logs and those of libraries to standard error, with service and instance."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_fields,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    plain = [] if settings.log_format == "json" else [_plain]  # JSON escapes them
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *plain, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.getLogger("httpx").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    set_log_fields(service=service, instance=settings.instance_name(service))


def set_log_fields(**fields: str | None) -> None:
    """Add fields to all following lines of this process; None removes a field."""
    for name, value in fields.items():
        if value is None:
            _fields.pop(name, None)
        else:
            _fields[name] = value


def log_fields(**fields: str) -> AbstractContextManager[Any]:
    """Add fields to the current task's lines within this context."""
    return structlog.contextvars.bound_contextvars(**fields)


def _with_fields(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**_fields, **event}


def _plain(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """One line per event, whatever text is in it; tracebacks follow on separate lines."""
    return {
        name: value if not isinstance(value, str) else in_lines(value) if name == "exception" else in_line(value)
        for name, value in event.items()
    }


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose events carry key-value pairs: `log.info("group sampled", group_id=..., seconds=...)`."""
    return cast(structlog.stdlib.BoundLogger, structlog.get_logger(name))
