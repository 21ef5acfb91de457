"""Exports the board to Prometheus, including metrics that have no value yet, since dashboards rely on their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from services.api.live.board import Board, RunNumbers
from services.api.live.histograms import RunningHistogram
from services.api.metrics.federation import Federation
from services.contracts.records import EvaluationState
from services.contracts.states import RUN_STATES
from services.contracts.step_metrics import ACCURACY, STEP_HISTOGRAMS, families

FAMILIES = families()


def make_registry(board: Board, federation: Federation) -> CollectorRegistry:
    """The API's collectors: the board, the verifiers' metrics, this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BoardCollector(board))
    registry.register(federation)
    prometheus_client.ProcessCollector(registry=registry)
    return registry


class BoardCollector:
    """A collector in Prometheus' sense."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def collect(self) -> Iterator[Metric]:
        yield from self._run_gauges()
        yield from self._run_histograms()
        yield from self._run_states()
        yield from self._evaluations()
        yield from self._services()
        yield from self._queues()

    def _shown(self) -> Iterable[tuple[str, RunNumbers]]:
        return [(run_id, numbers) for run_id, numbers in self.board.runs.items() if run_id in self.board.states]

    def _run_gauges(self) -> Iterator[Metric]:
        for family, metrics in FAMILIES.items():
            gauge = GaugeMetricFamily(f"turnout_{family.name}", family.help, labels=["run_id", *family.labels])
            for run_id, numbers in self._shown():
                for metric in metrics:
                    if metric.name in numbers.metrics:
                        gauge.add_metric([run_id, *metric.labels], numbers.metrics[metric.name])
                for (split, samples), value in numbers.accuracy.items() if family is ACCURACY else ():
                    gauge.add_metric([run_id, split, str(samples)], value)
            yield gauge
        step = GaugeMetricFamily("turnout_step", "Newest finished training step.", labels=["run_id"])
        groups = CounterMetricFamily(
            "turnout_groups", "Prompt groups: fed, trained, replaced, dropped_<reason>.", labels=["run_id", "outcome"]
        )
        for run_id, numbers in self._shown():
            step.add_metric([run_id], numbers.step)
            for outcome, count in numbers.groups.items():
                if outcome != "in_flight":  # can decrease, so it is not a counter
                    groups.add_metric([run_id, outcome], count)
        in_flight = GaugeMetricFamily(
            "turnout_groups_in_flight",
            "Groups fed and not yet trained, replaced or dropped, at the newest step.",
            labels=["run_id"],
        )
        for run_id, numbers in self._shown():
            if "in_flight" in numbers.groups:
                in_flight.add_metric([run_id], numbers.groups["in_flight"])
        yield from (step, groups, in_flight)

    def _run_histograms(self) -> Iterator[Metric]:
        for name, histogram in STEP_HISTOGRAMS.items():
            family = HistogramMetricFamily(f"turnout_{name}", histogram.help, labels=["run_id"])
            for run_id, numbers in self._shown():
                _add(family, run_id, numbers.histograms.get(name))
            yield family
        pushes = HistogramMetricFamily(
            "turnout_weight_push_seconds",
            "Time to update one rollout server to new weights, including verification.",
            labels=["run_id"],
        )
        for run_id, numbers in self._shown():
            _add(pushes, run_id, numbers.push_seconds)
        yield pushes
        failed = CounterMetricFamily("turnout_weight_push_failures", "Weight pushes that failed.", labels=["run_id"])
        for run_id, numbers in self._shown():
            failed.add_metric([run_id], numbers.num_failed_pushes)
        yield failed

    def _run_states(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("turnout_run_state", "1 for the run's current state.", labels=["run_id", "state"])
        for run_id, (_, now) in self.board.states.items():
            for possible in RUN_STATES:
                state.add_metric([run_id, possible], float(possible == now))
        yield state
        info = GaugeMetricFamily("turnout_run_info", "Always 1; carries the run's name.", labels=["run_id", "name"])
        for run_id, (name, _) in self.board.states.items():
            info.add_metric([run_id, name], 1.0)
        yield info

    def _evaluations(self) -> Iterator[Metric]:
        number = GaugeMetricFamily("turnout_evaluations", "Evaluations of their own by state.", labels=["state"])
        for state in get_args(EvaluationState):
            number.add_metric([state], self.board.evaluations.get(state, 0))
        yield number
        for name, help_text, value in (
            ("questions", "Questions that evaluations have finished", self.board.evaluated_questions),
            ("samples", "Samples of these questions that count", self.board.evaluated_samples),
        ):
            family = CounterMetricFamily(f"turnout_evaluated_{name}", f"{help_text} since the API started.")
            family.add_metric([], value)
            yield family

    def _services(self) -> Iterator[Metric]:
        labels = ["service", "instance"]
        up = GaugeMetricFamily("turnout_service_up", "1 for every instance that is alive.", labels=[*labels, "state"])
        tokens = CounterMetricFamily("turnout_tokens", "Tokens handled since the instance started.", labels=labels)
        version = GaugeMetricFamily(
            "turnout_weight_version", "Weight version held or published.", labels=["run_id", *labels]
        )
        for record in self.board.services:
            up.add_metric([record.kind, record.instance, record.state], 1.0)
            if record.kind != "api":
                tokens.add_metric([record.kind, record.instance], record.tokens_total)
            if record.weight_version is not None:
                version.add_metric([record.run_id or "", record.kind, record.instance], record.weight_version)
        yield from (up, tokens, version)
        stalled = GaugeMetricFamily(
            "turnout_stalled_seconds",
            "Longest current wait of a service's instances, by what they wait for.",
            labels=["run_id", "service", "waiting_for"],
        )
        longest: dict[tuple[str, str, str], float] = {}
        for wait in self.board.waits:
            key: tuple[str, str, str] = (wait.run_id, wait.kind, wait.label)
            longest[key] = max(longest.get(key, 0.0), wait.seconds)
        for labelled, seconds in longest.items():
            stalled.add_metric(list(labelled), seconds)
        yield stalled
        yield self._stalls()
        out = GaugeMetricFamily(
            "turnout_server_out_of_rotation",
            "1 if a rollout server failed to load weights and is kept from sampling.",
            labels=["run_id", "instance"],
        )
        for (run_id, instance), value in self.board.out_of_rotation.items():
            out.add_metric([run_id, instance], value)
        yield out

    def _stalls(self) -> Metric:
        family = GaugeMetricFamily(
            "turnout_stall_seconds",
            "How long a run has been stalled, by culprit (empty if every service reports that it is working).",
            labels=["run_id", "culprit", "cause"],
        )
        longest: dict[tuple[str, str, str], float] = {}
        for stall in self.board.stalls:
            key: tuple[str, str, str] = (stall.run_id, stall.culprit.instance, stall.culprit.cause)
            longest[key] = max(longest.get(key, 0.0), stall.seconds)
        for labelled, seconds in longest.items():
            family.add_metric(list(labelled), seconds)
        return family

    def _queues(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("turnout_queue_depth", "Messages not yet acknowledged.", labels=["run_id", "stream"])
        oldest = GaugeMetricFamily(
            "turnout_queue_oldest_seconds",
            "Age of the oldest message not yet acknowledged.",
            labels=["run_id", "stream"],
        )
        removed = CounterMetricFamily(
            "turnout_dead_letters_removed",
            "Dead letters that were removed to make room.",
            labels=["run_id"],
        )
        for queue in self.board.queues:
            if queue.stream == "dead":
                removed.add_metric([queue.run_id], queue.removed)
            depth.add_metric([queue.run_id, queue.stream], queue.depth)
            oldest.add_metric([queue.run_id, queue.stream], queue.oldest_seconds)
        yield from (depth, oldest, removed)


def _add(family: HistogramMetricFamily, run_id: str, histogram: RunningHistogram | None) -> None:
    if histogram is not None and histogram.edges:
        family.add_metric([run_id], histogram.buckets(), histogram.total)
