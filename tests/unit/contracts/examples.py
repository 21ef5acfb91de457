"""One example of every message of the wire format, with every field away from its default."""

from __future__ import annotations

import msgspec

from services.contracts import events, messages
from services.contracts.arrays import LogProbs, TokenIds

QUESTION = messages.Question(id="q7", kind="mcq", prompt="What?", system="Be brief.", answer="B", tests="-")
SAMPLING = messages.Sampling(num_samples=2, temperature=0.6, top_p=0.95, top_k=20, max_response_tokens=64)
TASK = messages.PromptTask(
    run_id="run-1",
    group_id="train-3",
    sequence=3,
    purpose="train",
    question=QUESTION,
    sampling=SAMPLING,
    min_weight_version=4,
    step=5,
    max_prompt_tokens=96,
    fed_at=1700000000.25,
)
ROLLOUTS = [
    messages.Rollout(
        status="ok",
        text="B",
        token_ids=TokenIds([5, 6, 1]),
        logprobs=LogProbs([-0.5, -0.25, -1.0]),
        weight_versions=[messages.VersionSpan(4, 0, 2), messages.VersionSpan(5, 2, 3)],
        finish_reason="stop",
    ),
    messages.Rollout(status="infrastructure_fault", fault="engine died"),
]
COMPLETED = messages.CompletedGroup(
    task=TASK, prompt_token_ids=TokenIds([1, 2, 3]), rollouts=ROLLOUTS, server="rollout-0", seconds=0.5
)
VERDICTS = [
    messages.Verdict(
        status="ok", reward=1.0, correct=True, parsed_answer="B", format_ok=True, feedback="", seconds=0.001
    ),
    messages.Verdict(status="infrastructure_fault", fault="not sampled"),
]
SAMPLE = events.Sample(
    index=0,
    text="B",
    tokens=["B"],
    reward=0.0,
    correct=False,
    route="sdpo",
    advantage=-0.5,
    feedback="no",
    teacher_prompt="What?",
    behaviour_logprobs=[-0.5],
    logprobs=[-0.5],
    teacher_entropy=[0.25],
    distillation_weight=[1.5],
    divergence=[0.125],
)
EXAMPLES: list[msgspec.Struct] = [
    TASK,
    COMPLETED,
    messages.ScoredGroup(group=COMPLETED, verdicts=VERDICTS, verifier="verifier-0"),
    messages.DeadLetter(stream="s", message_id="1-0", reason="no", payload=b"\x00junk", at=1.5),
    events.RunStateChanged(run_id="run-1", at=1.0, state="failed", reason="out of memory"),
    events.StepFinished(
        run_id="run-1",
        at=2.0,
        step=6,
        metrics={"reward_mean": 0.5},
        histograms={"staleness_versions": events.Histogram(edges=[0.0, 1.0, 2.0], counts=[3, 1], total=1.0)},
        groups={"fed": 16, "trained": 8, "in_flight": 7, "dropped_stale": 1},
    ),
    events.EvaluationFinished(
        run_id="run-1",
        at=3.0,
        step=6,
        split="validation",
        num_questions=4,
        num_samples=16,
        accuracy=0.25,
        pass_at_k=0.75,
        accuracy_by_kind={"mcq": 0.25},
        response_tokens_mean=31.5,
        truncated_ratio=0.125,
        num_faults=1,
        seconds=2.5,
    ),
    events.ProbeFinished(
        run_id="run-1",
        at=3.5,
        num_questions=4,
        num_samples=8,
        accuracy=0.25,
        pass_at_k=0.75,
        all_correct_ratio=0.0,
        mixed_ratio=0.75,
        all_wrong_ratio=0.25,
        well_formed_ratio=0.875,
        truncated_ratio=0.125,
        response_tokens_mean=31.5,
        response_tokens_p95=40,
        num_taught_questions=3,
        taught_accuracy=0.5,
        untaught_accuracy=0.25,
        num_faults=1,
        seconds=2.5,
    ),
    events.CheckpointWritten(run_id="run-1", at=4.0, step=6, path="checkpoints/step-00000006", bytes=1024, seconds=0.5),
    events.WeightsPublished(run_id="run-1", at=5.0, version=6, path="w", checksum="blake3:00", bytes=512),
    events.Note(run_id="run-1", at=6.0, level="warning", source="learner-0", text="waiting"),
    events.SamplesTaken(
        run_id="run-1",
        at=7.0,
        step=6,
        group_id="train-3",
        question_id="q7",
        prompt="What?",
        answer="B",
        samples=[SAMPLE],
    ),
]
