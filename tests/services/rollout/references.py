"""Log-probabilities that transformers and PEFT compute for the tokens that the service has sampled."""

from __future__ import annotations

from collections.abc import Callable

import torch

from services.contracts.messages import CompletedGroup, Rollout
from tests.services.rollout.models import make_model

Make = Callable[[int], torch.nn.Module]


def reference_logprobs(group: CompletedGroup, rollout: Rollout, seed: int, make: Make = make_model) -> torch.Tensor:
    """Log-probabilities of the rollout's tokens by transformers, fp32, temperature 1; [response tokens], nats."""
    ids = torch.tensor([group.prompt_token_ids.tolist() + rollout.token_ids.tolist()])
    with torch.no_grad():
        logits = make(seed)(ids).logits[0].float()
    start = len(group.prompt_token_ids)
    table = (logits / group.task.sampling.temperature).log_softmax(-1)[start - 1 : -1]
    return table.gather(1, ids[0, start:, None])[:, 0]


def mismatch(group: CompletedGroup, seed: int, make: Make = make_model) -> float:
    """Mean |service minus transformers| over all tokens of a group, nats."""
    differences = [
        (torch.tensor(rollout.logprobs) - reference_logprobs(group, rollout, seed, make)).abs()
        for rollout in group.rollouts
    ]
    return float(torch.cat(differences).mean())


def mismatch_after_update(group: CompletedGroup, version: int, seed: int) -> float:
    """Mean |service minus transformers|, nats, over tokens of `version` in responses that older weights began."""
    group.check()
    differences = []
    for rollout in group.rollouts:
        if len(rollout.weight_versions) == 2:
            span = rollout.weight_versions[1]
            assert span.version == version
            expected = reference_logprobs(group, rollout, seed)[span.start : span.end]
            differences.append((torch.tensor(rollout.logprobs)[span.start : span.end] - expected).abs())
    assert differences, "no response was in flight during the update"
    return float(torch.cat(differences).mean())


def reference_greedy(group: CompletedGroup, seed: int) -> torch.Tensor:
    """Log-probabilities at temperature 1 of the service's greedy tokens, which must also be the reference's best."""
    rollout = group.rollouts[0]
    ids = torch.tensor([group.prompt_token_ids.tolist() + rollout.token_ids.tolist()])
    with torch.no_grad():
        table = make_model(seed)(ids).logits[0].float().log_softmax(-1)
    start = len(group.prompt_token_ids)
    best = table[start - 1 : -1].max(-1)
    assert best.indices.tolist() == rollout.token_ids.tolist()
    return best.values


def mismatch_greedy(group: CompletedGroup, model: torch.nn.Module) -> bool:
    rollout = group.rollouts[0]
    ids = torch.tensor([group.prompt_token_ids.tolist() + rollout.token_ids.tolist()])
    with torch.no_grad():
        best = model(ids).logits[0].argmax(-1)
    start = len(group.prompt_token_ids)
    agree = (best[start - 1 : -1] == ids[0, start:]).float().mean()
    return bool(agree > 0.98)
