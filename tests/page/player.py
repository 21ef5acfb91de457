"""Plays the other services for the page: heartbeats, and a run's events as the real learner sends them."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import redis as redis_sync

from services.contracts import codec, streams
from services.contracts.events import (
    CheckpointWritten,
    EvaluationFinished,
    Event,
    Note,
    QuestionCount,
    ReadableResponse,
    ReadingMaterial,
    RunStateChanged,
    Sample,
    SamplesTaken,
    StepFinished,
    TeacherInformation,
    WeightsPublished,
)
from services.contracts.heartbeat import ServiceKind, ServiceRecord
from services.contracts.messages import PromptTask, Question
from tests.services.api.test_evaluations import judged

TOKENS = ["The", " answer", " is", " <b>", "42", "</b>", ".", "\n", "<script>", "alert(1)", "</script>"]
ENTROPY = [0.9, 0.4, 0.1, 1.7, 2.345, 0.2, 0.05, 0.01, 1.1, 0.6, 0.3]


class Player:
    """Sends heartbeats for `learner-0`, `rollout-0` and `verifier-0` in a thread until `close`."""

    def __init__(self, url: str) -> None:
        self.redis = redis_sync.Redis.from_url(url)
        self.started_at = time.time()
        self.run_id: str | None = None
        self.version = 0
        self.rollout_url = "http://127.0.0.1:9"
        """Where the rollout server is said to listen; by default nothing does."""
        self._answered = Counter[str]()
        """Questions of each evaluation that have been judged."""
        self._stop = threading.Event()
        self.beat()
        self._thread = threading.Thread(target=self._beating, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.redis.close()

    def _beating(self) -> None:
        while not self._stop.wait(0.5):
            with contextlib.suppress(redis_sync.RedisError):
                self.beat()

    def beat(self) -> None:
        """Publish the three heartbeats."""
        working = self.run_id is not None
        self._record("learner", "learner-0", waiting="scored groups" if working else "", run=self.run_id)
        self._record("rollout", "rollout-0", waiting="", run=self.run_id)
        self._record("verifier", "verifier-0", waiting="completions", run=None)

    def _record(self, kind: ServiceKind, instance: str, waiting: str, run: str | None) -> None:
        record = ServiceRecord(
            kind=kind,
            instance=instance,
            url=self.rollout_url if kind == "rollout" else "http://127.0.0.1:9",
            state="ready" if run or kind == "verifier" else "idle",
            pid=1,
            started_at=self.started_at,
            at=time.time(),
            run_id=run,
            weight_version=None if kind == "verifier" or run is None else self.version,
            waiting_for=waiting,
            waiting_since=time.time() - 3 if waiting else None,
            tokens_total=48_000,
        )
        self.redis.set(streams.service(instance), msgspec.json.encode(record), ex=10)

    def emit(self, *events: Event) -> None:
        for event in events:
            self.redis.xadd(streams.EVENTS, {b"m": codec.encode(event)})

    def take(self, run_id: str) -> None:
        """Start to work on a run."""
        self.run_id = run_id
        self.beat()
        self.state("running")

    def state(self, state: Any, reason: str = "") -> None:
        assert self.run_id is not None
        self.emit(RunStateChanged(run_id=self.run_id, at=time.time(), state=state, reason=reason))

    def desired(self) -> str:
        value = self.redis.get(streams.desired(self.run_id or ""))
        return value.decode() if isinstance(value, bytes) else ""

    def step(self, step: int, *, at: float | None = None, offset: float = 0.0) -> None:
        """One training step with its weights and one group of samples."""
        assert self.run_id is not None
        at = time.time() if at is None else at
        self.version = step
        metrics = step_metrics(step, offset)
        groups = {"fed": 8 * step + 8, "trained": 8 * step, "in_flight": 8, "replaced": 0, "dropped_stale": step // 20}
        self.emit(
            StepFinished(run_id=self.run_id, at=at, step=step, metrics=metrics, groups=groups),
            WeightsPublished(run_id=self.run_id, at=at, version=step, path="v", checksum="blake3:0", bytes=1 << 22),
        )

    def samples(self, step: int) -> None:
        assert self.run_id is not None
        self.emit(sample_group(self.run_id, step))

    def judge(self, evaluation_id: str, num_correct: Sequence[int]) -> None:
        """Answer the first prompts of an evaluation that have not been answered, once they are fed, each with this
        number of correct samples."""
        wanted = self._answered[evaluation_id] + len(num_correct)
        deadline = time.monotonic() + 30
        while len(fed := cast(Any, self.redis.xrange(streams.prompts(evaluation_id)))) < wanted:
            assert time.monotonic() < deadline, f"{len(fed)} of {wanted} questions are fed"
            time.sleep(0.05)
        tasks = [codec.decode(fields[b"m"], PromptTask) for _, fields in fed]
        for task, correct in zip(tasks[self._answered[evaluation_id] :], num_correct, strict=False):
            self.redis.xadd(streams.evaluated(evaluation_id), {b"m": judged(task, correct)})
        self._answered[evaluation_id] = wanted

    def evaluation(self, step: int, accuracy: float, *, at: float | None = None, questions: Sequence[int] = ()) -> None:
        """Report an evaluation; `questions` are the numbers of correct samples, of 16, of each."""
        assert self.run_id is not None
        self.emit(
            EvaluationFinished(
                run_id=self.run_id,
                at=at or time.time(),
                step=step,
                split="validation",
                num_questions=64,
                num_samples=16,
                accuracy=accuracy,
                pass_at_k=min(1.0, accuracy + 0.25),
                seconds=4.2,
                questions=[QuestionCount(f"question-{n}", "math", 16, count) for n, count in enumerate(questions)],
            )
        )

    def checkpoint(self, step: int, path: str = "gone") -> None:
        assert self.run_id is not None
        self.emit(
            CheckpointWritten(run_id=self.run_id, at=time.time(), step=step, path=path, bytes=12_400_000, seconds=0.8)
        )

    def note(self, level: Any, text: str) -> None:
        assert self.run_id is not None
        self.emit(Note(run_id=self.run_id, at=time.time(), level=level, source="rollout-0", text=text))


def step_metrics(step: int, offset: float = 0.0) -> dict[str, float]:
    """Numbers that a learning run might report."""
    wave = 0.03 * math.sin(step * 1.7) + 0.02 * math.sin(step * 0.6)
    reward = min(1.0, 0.25 + offset + 0.6 * (1 - math.exp(-step / 30)) + wave)
    sdpo = max(0.0, 0.6 * math.exp(-step / 25) + 0.05 + wave / 2)
    return {
        "reward_mean": reward,
        "accuracy": max(0.0, reward - 0.04),
        "mixed_group_ratio": 0.5 + wave,
        "failed_group_ratio": max(0.0, 0.2 - wave),
        "sampled_teaching_ratio": 0.6 + wave,
        "trained_teaching_ratio": 0.9 + wave,
        "num_replaced_groups": 4.0,
        "routing_ratio_grpo": 1 - sdpo,
        "routing_ratio_sdpo": sdpo,
        "teacher_information_ratio": sdpo + 0.1,
        "policy_entropy_nats": 0.4 + 0.9 * math.exp(-step / 40) + wave,
        "teacher_entropy_nats": 0.3 + 0.4 * math.exp(-step / 40) + wave / 2,
        "loss": 0.1,
        "divergence_nats": 0.05 + 0.3 * math.exp(-step / 20) + abs(wave) / 4,
        "gradient_norm": 0.6 + 5 * abs(wave),
        "clip_ratio": 0.02 + abs(wave) / 4,
        "importance_weight_truncated_ratio": 0.004,
        "logprob_mismatch_nats": 0.004 + abs(wave) / 50,
        "logprob_mismatch_kl_nats": 0.0004,
        "response_tokens_mean": 38 + 8 * math.sin(step / 9),
        "response_tokens_max": 64.0,
        "staleness_mean": 0.6 + wave,
        "staleness_max": 1.0,
        "seconds": 1.9 + abs(wave),
        "seconds_wait": 0.5 + abs(wave),
        "seconds_teacher": 0.35,
        "seconds_train": 0.8,
        "seconds_publish": 0.12,
        "seconds_checkpoint": 0.4 if step % 10 == 0 else 0.0,
        "tokens_per_second": 1240.0 + 100 * wave,
        "learner_peak_memory_gib": 7.1 + 0.2 * math.log1p(step),
    }


def sample_group(run_id: str, step: int) -> SamplesTaken:
    """A group of four: two correct ones routed to GRPO, a failed one to SDPO, and a failed one to neither."""
    prompt = "What is six times seven? Answer in <b> marks."
    samples = [_sample(0, "grpo"), _sample(1, "sdpo"), _sample(2, "grpo"), _sample(3, "none")]
    return SamplesTaken(
        run_id=run_id,
        at=time.time(),
        step=step,
        group_id=f"g-{step}",
        question_id=f"recall-{step}",
        prompt=prompt,
        answer="42",
        samples=samples,
        material=ReadingMaterial(
            question=Question(id=f"recall-{step}", kind="exact", prompt=prompt, answer="42"),
            responses=[
                ReadableResponse(
                    index=sample.index,
                    token_ids=list(range(len(sample.tokens))),
                    demonstration=f"It is <b>42</b>, says {sample.index}." if sample.correct else "",
                    told=TeacherInformation(demonstrations=[0]) if sample.route == "sdpo" else None,
                )
                for sample in samples
            ],
        ),
    )


def _sample(index: int, route: Any) -> Sample:
    correct, taught = route == "grpo", route == "sdpo"
    long = TOKENS * (4 if index == 1 else 3)
    count = len(long)
    entropy = (ENTROPY * 4)[:count]
    return Sample(
        index=index,
        text="".join(long),
        tokens=long,
        reward=1.0 if correct else 0.0,
        correct=correct,
        route=route,
        advantage=0.5 if correct else -0.5,
        feedback="" if correct else "Expected 42; the reply had <i>none</i>.",
        teacher_prompt="What is six times seven?\nA correct reply was: The answer is 42." if taught else "",
        behaviour_logprobs=[-0.5 * value for value in entropy],
        logprobs=[-0.52 * value for value in entropy],
        teacher_entropy=entropy if taught else [],
        distillation_weight=[0.3 + 0.8 * value for value in entropy] if taught else [],
        divergence=[0.1 * value for value in entropy] if taught else [],
        parts={"row": float(correct), "length": 0.25} if index == 0 else msgspec.UNSET,
    )
