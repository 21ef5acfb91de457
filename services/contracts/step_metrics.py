"""Names of the numbers that a training step reports: one name in code, REST, Prometheus, page and documentation.

`STEP_METRICS` maps each name in `StepFinished.metrics` to its meaning and unit.
"""

from __future__ import annotations

from typing import Final

STEP_METRICS: Final[dict[str, str]] = {
    "reward_mean": "mean reward of the step's rollouts",
    "accuracy": "share of the step's rollouts at or above the success threshold",
    "routing_ratio_grpo": "share of rollouts routed to the GRPO branch",
    "routing_ratio_sdpo": "share of rollouts routed to the SDPO branch",
    "teacher_information_ratio": "share of rollouts with teacher information",
    "policy_entropy_nats": "mean entropy of the policy over response tokens, nats",
    "teacher_entropy_nats": "mean entropy of the self-teacher over tokens routed to SDPO, nats",
    "loss": "the objective's value over the whole step",
    "loss_grpo": "the GRPO branch's part of the loss",
    "loss_sdpo": "the SDPO branch's part of the loss",
    "divergence_nats": "mean unweighted divergence over tokens routed to SDPO, nats",
    "gradient_norm": "global gradient norm before clipping",
    "learning_rate": "learning rate of the step's last optimizer update",
    "reference_kl_nats": "k3 estimate of KL(policy || initial model) over GRPO tokens, nats; 0 where not measured",
    "clip_ratio": "share of GRPO tokens whose importance ratio was clipped",
    "importance_weight_truncated_ratio": "share of tokens whose engine correction was truncated",
    "importance_weight_mean": "mean engine correction weight",
    "logprob_mismatch_nats": "mean |learner minus behaviour log-prob| over response tokens, nats",
    "logprob_mismatch_kl_nats": "k3 estimate of KL(behaviour || learner), nats",
    "response_tokens_mean": "mean response length, tokens",
    "response_tokens_max": "longest response, tokens",
    "truncated_ratio": "share of responses cut at the limit",
    "staleness_mean": "mean age of the step's tokens, in weight versions",
    "staleness_max": "largest age of the step's tokens, in weight versions",
    "num_groups": "groups trained in the step",
    "num_rollouts": "rollouts trained in the step",
    "num_excluded_rollouts": "rollouts excluded because of an infrastructure fault",
    "num_masked_rollouts": "rollouts left out because they were cut at the limit (objective.mask_truncated)",
    "num_uninformative_groups": "groups left out for want of signal (objective.skip_uninformative_groups)",
    "num_tokens": "response tokens trained in the step",
    "num_computed_tokens": "tokens that the learner pushed through the models: shared prefixes once, padding included",
    "num_teacher_rollouts": "rollouts that cost a teacher pass",
    "mixed_group_ratio": "share of groups with both correct and failed rollouts",
    "seconds": "wall-clock time of the step, waiting included",
    "seconds_wait": "time spent waiting for groups",
    "seconds_teacher": "time spent in teacher passes",
    "seconds_train": "time spent in student passes and the optimizer",
    "seconds_publish": "time spent publishing weights",
    "seconds_checkpoint": "time that training stood still for a checkpoint: its copies, or an older one's writing",
    "tokens_per_second": "response tokens trained a second of wall-clock time",
}
