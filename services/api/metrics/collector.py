"""Prometheus' view of the board: every name that dashboards rely on, also where it has no value yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from services.api.live.board import Board, RunNumbers
from services.api.live.histograms import RunningHistogram
from services.contracts.states import RUN_STATES

_GAUGES = {
    "teacher_information_ratio": "Share of rollouts with teacher information.",
    "policy_entropy_nats": "Mean entropy of the policy over response tokens.",
    "teacher_entropy_nats": "Mean entropy of the self-teacher over tokens routed to SDPO.",
    "reward_mean": "Mean reward of the newest step's rollouts.",
    "response_tokens_mean": "Mean response length.",
    "logprob_mismatch_nats": "Mean |learner minus behaviour log-prob| over response tokens.",
    "importance_weight_truncated_ratio": "Share of tokens whose engine correction was truncated.",
    "clip_ratio": "Share of GRPO tokens whose importance ratio was clipped.",
    "gradient_norm": "Global gradient norm before clipping.",
}
_LABELLED = {
    "routing_ratio": (
        "Share of rollouts routed to a branch.",
        "branch",
        {"grpo": "routing_ratio_grpo", "sdpo": "routing_ratio_sdpo"},
    ),
    "loss": (
        "The objective's value and its parts, by branch.",
        "branch",
        {"all": "loss", "grpo": "loss_grpo", "sdpo": "loss_sdpo"},
    ),
    "step_seconds": (
        "Wall-clock time of the newest step, by phase.",
        "phase",
        {
            "all": "seconds",
            "wait": "seconds_wait",
            "teacher": "seconds_teacher",
            "train": "seconds_train",
            "publish": "seconds_publish",
            "checkpoint": "seconds_checkpoint",
        },
    ),
}


class BoardCollector:
    """A collector in Prometheus' sense."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def collect(self) -> Iterator[Metric]:
        yield from self._run_gauges()
        yield from self._run_histograms()
        yield from self._run_states()
        yield from self._services()
        yield from self._queues()

    def _shown(self) -> Iterable[tuple[str, RunNumbers]]:
        return [(run_id, numbers) for run_id, numbers in self.board.runs.items() if run_id in self.board.states]

    def _run_gauges(self) -> Iterator[Metric]:
        for name, text in _GAUGES.items():
            family = GaugeMetricFamily(f"turnout_{name}", text, labels=["run_id"])
            for run_id, numbers in self._shown():
                if name in numbers.metrics:
                    family.add_metric([run_id], numbers.metrics[name])
            yield family
        for name, (text, label, parts) in _LABELLED.items():
            family = GaugeMetricFamily(f"turnout_{name}", text, labels=["run_id", label])
            for run_id, numbers in self._shown():
                for part, metric in parts.items():
                    if metric in numbers.metrics:
                        family.add_metric([run_id, part], numbers.metrics[metric])
            yield family
        accuracy = GaugeMetricFamily(
            "turnout_accuracy",
            "avg@k of the newest evaluation (samples=k); split train: the newest step's rollouts, samples=1.",
            labels=["run_id", "split", "samples"],
        )
        for run_id, numbers in self._shown():
            for (split, samples), value in numbers.accuracy.items():
                accuracy.add_metric([run_id, split, str(samples)], value)
            if "accuracy" in numbers.metrics:
                accuracy.add_metric([run_id, "train", "1"], numbers.metrics["accuracy"])
        yield accuracy
        step = GaugeMetricFamily("turnout_step", "Newest training step finished.", labels=["run_id"])
        groups = CounterMetricFamily(
            "turnout_groups", "Prompt groups: fed, trained, dropped_<reason>.", labels=["run_id", "outcome"]
        )
        for run_id, numbers in self._shown():
            step.add_metric([run_id], numbers.step)
            for outcome, count in numbers.groups.items():
                if outcome != "in_flight":  # goes down as well, so it is no counter
                    groups.add_metric([run_id, outcome], count)
        in_flight = GaugeMetricFamily(
            "turnout_groups_in_flight",
            "Groups fed and not yet trained or dropped, at the newest step.",
            labels=["run_id"],
        )
        for run_id, numbers in self._shown():
            if "in_flight" in numbers.groups:
                in_flight.add_metric([run_id], numbers.groups["in_flight"])
        yield from (step, groups, in_flight)

    def _run_histograms(self) -> Iterator[Metric]:
        families = {
            "distillation_weight": "Entropy-aware weights of tokens routed to SDPO; their mean is 1.",
            "staleness_versions": "Age of trained tokens in weight versions.",
            "push_seconds": "Time to bring one rollout server to new weights, verified.",
        }
        names = {"push_seconds": "turnout_weight_push_seconds"}
        for attribute, text in families.items():
            family = HistogramMetricFamily(names.get(attribute, f"turnout_{attribute}"), text, labels=["run_id"])
            for run_id, numbers in self._shown():
                histogram: RunningHistogram = getattr(numbers, attribute)
                if histogram.edges:
                    family.add_metric([run_id], histogram.buckets(), histogram.total)
            yield family
        failed = CounterMetricFamily("turnout_weight_push_failures", "Weight pushes that failed.", labels=["run_id"])
        for run_id, numbers in self._shown():
            failed.add_metric([run_id], numbers.num_failed_pushes)
        yield failed

    def _run_states(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("turnout_run_state", "1 for the run's present state.", labels=["run_id", "state"])
        for run_id, (_, now) in self.board.states.items():
            for possible in RUN_STATES:
                state.add_metric([run_id, possible], float(possible == now))
        yield state
        info = GaugeMetricFamily("turnout_run_info", "1; names a run.", labels=["run_id", "name"])
        for run_id, (name, _) in self.board.states.items():
            info.add_metric([run_id, name], 1.0)
        yield info

    def _services(self) -> Iterator[Metric]:
        labels = ["service", "instance"]
        up = GaugeMetricFamily("turnout_service_up", "1 for every instance that is alive.", labels=[*labels, "state"])
        tokens = CounterMetricFamily("turnout_tokens", "Tokens handled since the instance's start.", labels=labels)
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
            "Longest present wait of a service's instances for one thing.",
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
            "1 where a rollout server failed to take weights and is kept from sampling.",
            labels=["run_id", "instance"],
        )
        for (run_id, instance), value in self.board.out_of_rotation.items():
            out.add_metric([run_id, instance], value)
        yield out

    def _stalls(self) -> Metric:
        family = GaugeMetricFamily(
            "turnout_stall_seconds",
            "A run does not move: whose fault it is (empty: nobody's by their own word), and for how long.",
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
            "Dead letters that had to go for newer ones.",
            labels=["run_id"],
        )
        for queue in self.board.queues:
            if queue.stream == "dead":
                removed.add_metric([queue.run_id], queue.removed)
            depth.add_metric([queue.run_id, queue.stream], queue.depth)
            oldest.add_metric([queue.run_id, queue.stream], queue.oldest_seconds)
        yield from (depth, oldest, removed)
