"""Log-probabilities that transformers and PEFT compute for the tokens that the service has sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from services.contracts.messages import CompletedGroup, Rollout
from services.learner.packing.sequence import TrainSequence
from services.learner.update.layout import lay_out
from services.learner.update.sampled import Sampled
from services.rollout.sampling.responses import ResponseDecoder
from tests.services.rollout.models import make_model, make_tokenizer

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


def learner_mismatch(group: CompletedGroup, seed: int, sampled: Sampled) -> torch.Tensor:
    """|service minus learner| of each token of a group, nats; the learner with the given settings of sampling."""
    prompt = group.prompt_token_ids.tolist()
    sequences = [
        TrainSequence(prompt, rollout.token_ids.tolist(), rollout.logprobs.tolist(), 0.0, "grpo", None)
        for rollout in group.rollouts
    ]
    layout = lay_out(sequences, None, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        rows = [make_model(seed)(torch.tensor([prompt + item.response_ids])).logits[0] for item in sequences]
    logits = torch.cat([row[len(prompt) - 1 : -1].float() for row in rows]) / sampled.temperature
    return (sampled.logprobs(logits, layout, torch.arange(layout.num_tokens)) - layout.behaviour).abs()


def greedy_until_stopped(seed: int, prompt: list[int], stops: dict[str, Any], limit: int = 30) -> tuple[Any, ...]:
    """Tokens, text, and what ended a greedy response: "token", "string", "end" or nothing."""
    model, tokenizer = make_model(seed), make_tokenizer()
    ends = [1, *stops["stop_token_ids"]]
    tokens, decoder = list[int](), ResponseDecoder(tokenizer, ends)
    while len(tokens) < limit:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
        whole, text = str(tokenizer.decode(tokens)), decoder.text(tokens)
        found = [stop for stop in stops["stop"] if stop in whole]
        if found:
            return tokens, text[: text.find(found[0]) + len(found[0])], "string"
        if tokens[-1] in ends:
            return tokens, text, "end" if tokens[-1] == 1 else "token"
    return tokens, decoder.text(tokens), ""
