"""Includes the verifiers' metrics in the API's /metrics, so that one scrape reads everything. The set of names is
fixed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from services.contracts.heartbeat import ServiceRecord
from services.runtime.http.outgoing import request
from services.runtime.logs import get_logger

log = get_logger(__name__)
NAMES = {
    "turnout_verifier_seconds": ("histogram", "Time to judge one rollout, by kind of task."),
    "turnout_judge_requests": ("counter", "Requests to the judge model, by outcome."),
    "turnout_judge_tokens": ("counter", "Tokens of requests to the judge model, by kind."),
    "turnout_judge_verdicts": ("counter", "Verdicts of the judge model, by source: asked or cached."),
    "turnout_judge_request_seconds": ("histogram", "Time of one answer of the judge model."),
    "turnout_sandbox_violations": ("counter", "Attempts by judged code to do what the sandbox forbids, by reason."),
}
MAX_SAMPLES = 2000
MAX_BYTES = 4 << 20
TIMEOUT_SECONDS = 2.0


class Federation:
    """Reads the named families of each verifier's /metrics and shows them with the label `instance`."""

    def __init__(self, client: httpx.AsyncClient, service_token: str = "") -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {service_token}"} if service_token else {}
        self._families: dict[str, Metric] = {name: _empty(name) for name in NAMES}

    async def refresh(self, services: list[ServiceRecord]) -> None:
        """Read all verifiers concurrently. One that does not answer is left out."""
        verifiers = [record for record in services if record.kind == "verifier"]
        pages = await asyncio.gather(*(self._read(record) for record in verifiers))
        families = {name: _empty(name) for name in NAMES}
        for record, found in zip(verifiers, pages, strict=True):
            for family in found:
                if family.name in families:
                    target = families[family.name]
                    for sample in family.samples[: MAX_SAMPLES - len(target.samples)]:
                        if not sample.name.endswith("_created"):
                            labels = {**sample.labels, "instance": record.instance}
                            target.add_sample(sample.name, labels, sample.value)
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()

    async def _read(self, record: ServiceRecord) -> list[Metric]:
        try:
            url = record.url.rstrip("/") + "/metrics"
            reply = await request(
                self._client, "GET", url, seconds=TIMEOUT_SECONDS, max_bytes=MAX_BYTES, headers=self._headers
            )
            return list(text_string_to_metric_families(reply.text)) if reply.is_success else []
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: not a page of metrics
            log.debug("verifier metrics unreadable", verifier=record.instance, error=str(error))
            return []


def _empty(name: str) -> Metric:
    kind, text = NAMES[name]
    return Metric(name, text, kind)
