"""A second implementation of the objectives, from the equations: float64, one token and vocabulary entry at a time.

Numbers are 0-dimensional float64 tensors, so that gradients exist; nothing is vectorized except the model's own
forward pass. Nothing is imported from the learner.
"""

import math
from typing import Any

import torch


def logsumexp(values):
    peak = max(float(torch.as_tensor(value).detach()) for value in values)
    total = torch.zeros((), dtype=torch.float64)
    for value in values:
        total = total + torch.exp(torch.as_tensor(value) - peak)
    return torch.log(total) + peak


def log_softmax(logits):
    normaliser = logsumexp(list(logits))
    return [logit - normaliser for logit in logits]


def entropy(logits):
    return -sum(torch.exp(value) * value for value in log_softmax(logits))


def buckets(student, teacher, top_k) -> tuple[Any, Any]:
    """Log-probabilities of the student's top K tokens and of the tail, for both models."""
    p, q = log_softmax(student), log_softmax(teacher)
    if top_k is None or top_k >= len(p):
        return p, q
    order = sorted(range(len(p)), key=lambda token: -float(p[token].detach()))
    kept, rest = order[:top_k], order[top_k:]
    return (
        [p[token] for token in kept] + [logsumexp([p[token] for token in rest])],
        [q[token] for token in kept] + [logsumexp([q[token] for token in rest])],
    )


def kl(left, right):
    return sum(torch.exp(a) * (a - b) for a, b in zip(left, right, strict=True))


def divergence(p, q, alpha):
    q = [torch.as_tensor(value).detach() for value in q]
    if alpha == 0:
        return kl(q, p)
    if alpha == 1:
        return kl(p, q)
    mixture = [torch.log((1 - alpha) * torch.exp(a) + alpha * torch.exp(b)) for a, b in zip(p, q, strict=True)]
    return (1 - alpha) * kl(p, mixture) + alpha * kl(q, mixture)


def sequence_log_ratio(logprobs, old):
    return sum(now - before for now, before in zip(logprobs, old, strict=True)) / len(old)


def gspo_loss(logprobs, old, advantage, objective):
    """One response: |y| times GSPO's clipped term, without correction for the engine."""
    ratio = torch.exp(sequence_log_ratio(logprobs, old))
    return len(old) * clipped_loss(ratio, advantage, objective)


def rlsd_advantage(advantage, gap, objective):
    credit = math.exp(gap if advantage > 0 else -gap if advantage < 0 else 0.0)
    credit = min(max(credit, 1 - objective.rlsd_clip), 1 + objective.rlsd_clip)
    return advantage * (1 - objective.rlsd_lambda + objective.rlsd_lambda * credit)


def by_sequence(mean, logprob):
    """GSPO-token: the sequence's ratio by value, the token's own gradient."""
    return None if mean is None else math.exp(mean) * torch.exp(logprob - float(logprob.detach()))


def k3(logprob, initial):
    return torch.exp(initial - logprob) - (initial - logprob) - 1


def grpo_loss(logprob, old, behaviour, advantage, objective, ratio=None):
    ratio = torch.exp(logprob - old) if ratio is None else ratio
    if objective.surrogate == "cispo":
        weight = min(max(float(ratio.detach()), 1 - objective.clip_low), 1 + objective.clip_high)
        return -weight * advantage * logprob * correction(old, behaviour, objective)
    return clipped_loss(ratio, advantage, objective) * correction(old, behaviour, objective)


def correction(old, behaviour, objective):
    ratio = math.exp(old - behaviour)
    outside = not objective.engine_mask_low <= ratio <= objective.engine_mask_high
    return 0.0 if objective.engine_mask == "token" and outside else min(ratio, objective.importance_weight_cap)


def is_kept(old, behaviour, objective):
    """Whether a response's geometric mean is within the band."""
    mean = math.exp(sequence_log_ratio(old, behaviour))
    return objective.engine_mask != "sequence" or objective.engine_mask_low <= mean <= objective.engine_mask_high


def clipped_loss(ratio, advantage, objective):
    """With the dual clip of arXiv 1912.09729, eq. 5, for negative advantages."""
    surrogate = surrogate_objective(ratio, advantage, objective)
    bound = objective.dual_clip
    if bound is None or advantage >= 0 or float(surrogate.detach()) >= bound * advantage:
        return -surrogate
    return -torch.tensor(bound * advantage)


def surrogate_objective(ratio, advantage, objective):
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    clipped = (
        ratio if low <= float(ratio.detach()) <= high else torch.tensor(low if float(ratio.detach()) < low else high)
    )
    first, second = ratio * advantage, clipped * advantage
    return first if float(first.detach()) <= float(second.detach()) else second


def sdpo_loss(value, logprob, old, behaviour, objective):
    cap = objective.importance_weight_cap
    return value * min(math.exp(float(logprob.detach()) - old), cap) * correction(old, behaviour, objective)


def sampled_logprob(logits, earlier, token, rollout):
    """Of the distribution that the engine samples from: presence penalty (logits are at temperature 1 here), min-p,
    top-k and top-p, one after another; the sampled token stays whatever they say."""
    penalty = rollout.presence_penalty
    logits = [logit - penalty * (index in earlier) for index, logit in enumerate(logits)]
    left = {index: math.exp(float(value.detach())) for index, value in enumerate(log_softmax(logits))}
    most = max(left.values())
    left = {index: value for index, value in left.items() if value >= rollout.min_p * most}
    order = sorted(left, key=lambda index: -left[index])[: rollout.top_k or None]
    mass, total = 0.0, sum(left[index] for index in order)
    kept = {token}
    for index in order:
        if mass < rollout.top_p * total:
            kept.add(index)
        mass += left[index]
    return logits[token] - logsumexp([logits[index] for index in kept])


def contrasted(right, wrong, strength):
    """Log-probabilities of q (q / q_w)^k, normalised."""
    pairs = zip(log_softmax(right), log_softmax(wrong), strict=True)
    return log_softmax([q + strength * (q - other) for q, other in pairs])


def response_logits(model, prompt, response):
    """Logits of one unpadded sequence: a list of [vocabulary] rows, one per response token."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    return [logits[len(prompt) - 1 + step] for step in range(len(response))]


def minibatch_loss(student, teacher, sequences, old, config, initial=None):
    """The objective over a whole mini-batch, with gradients; also the weights by sequence."""
    objective = config.objective
    routed = [index for index, item in enumerate(sequences) if item.route != "none" and item.response_ids]
    taught = {}
    for index in routed:
        item = sequences[index]
        if item.teacher_prompt_ids is not None:
            with torch.no_grad():
                taught[index] = response_logits(teacher, item.teacher_prompt_ids, item.response_ids)
                if objective.wrong_hint and item.wrong_hint_ids is not None:
                    wrong = response_logits(teacher, item.wrong_hint_ids, item.response_ids)
                    taught[index] = [
                        torch.stack(contrasted(*rows, objective.wrong_hint))
                        for rows in zip(taught[index], wrong, strict=True)
                    ]
    weights = _weights(sequences, taught, objective)
    losses = []
    for index in routed:
        item, total = sequences[index], torch.zeros((), dtype=torch.float64)
        logits = response_logits(student, item.prompt_ids, item.response_ids)
        whole = [
            sampled_logprob(row, item.response_ids[:step], item.response_ids[step], config.rollout)
            for step, row in enumerate(logits)
        ]
        before_all = [float(value.detach()) for value in whole] if old is None else old[index].tolist()
        kept = float(is_kept(before_all, item.behaviour_logprobs, objective))
        mean = None
        if objective.ratio == "sequence":
            now = [float(value.detach()) for value in whole]
            mean = sequence_log_ratio(now, now if old is None else old[index].tolist())
        first = None
        if objective.reference_kl_coefficient:
            with torch.no_grad():
                first = response_logits(initial, item.prompt_ids, item.response_ids)
        for step, token in enumerate(item.response_ids):
            logprob, plain = whole[step], log_softmax(logits[step])[token]
            before = float(logprob.detach()) if old is None else float(old[index][step])
            behaviour = item.behaviour_logprobs[step]
            if item.route == "sdpo":
                value = divergence(
                    *buckets(logits[step], taught[index][step], objective.top_k), objective.divergence_alpha
                )
                total = total + kept * weights[index][step] * sdpo_loss(value, logprob, before, behaviour, objective)
                if objective.name == "srpo" and objective.keep_contrast and item.advantage < 0:
                    ratio = by_sequence(mean, logprob)
                    pushed = grpo_loss(logprob, before, behaviour, item.advantage, objective, ratio)
                    total = total + kept * objective.keep_contrast * pushed
                continue
            advantage = item.advantage
            if objective.name == "advantage_mix":
                advantage = objective.mix_lambda * advantage
                if index in taught:
                    gap = float(log_softmax(taught[index][step])[token]) - float(plain.detach())
                    advantage = advantage + (1 - objective.mix_lambda) * gap
            if objective.name == "rlsd" and index in taught:
                gap = float(log_softmax(taught[index][step])[token]) - float(plain.detach())
                advantage = rlsd_advantage(advantage, gap, objective)
            ratio = by_sequence(mean, logprob)
            total = total + kept * grpo_loss(logprob, before, behaviour, advantage, objective, ratio)
            if first is not None:
                total = total + objective.reference_kl_coefficient * k3(plain, float(log_softmax(first[step])[token]))
        losses.append((total, len(item.response_ids)))
    return aggregate(losses, config), weights


def aggregate(losses, config):
    """One number of each rollout's sum of token losses and length."""
    zero = torch.zeros((), dtype=torch.float64)
    if config.objective.aggregation == "sequence":
        return sum((total / length for total, length in losses), zero) / max(1, len(losses))
    total = sum((total for total, _ in losses), zero)
    if config.objective.aggregation == "constant":
        return total / max(1, len(losses) * config.rollout.max_response_tokens)
    return total / max(1, sum(length for _, length in losses))


def _weights(sequences, taught, objective):
    beta = objective.beta if objective.name == "srpo" else 0.0
    raw = {}
    for index, rows in taught.items():
        if sequences[index].route != "sdpo":
            continue
        scale = sequences[index].difficulty if objective.question_weight == "difficulty" else 1.0
        places = [step / (len(rows) - 1) if step else 0.0 for step in range(len(rows))]
        raw[index] = [
            scale * math.exp(-beta * float(entropy(row))) * math.exp(objective.position_beta * place)
            for row, place in zip(rows, places, strict=True)
        ]
    values = [value for row in raw.values() for value in row]
    mean = sum(values) / len(values) if values else 1.0
    floor = objective.weight_floor
    return {index: [floor + (1 - floor) * value / mean for value in row] for index, row in raw.items()}
