"""A tiny model, a plain engine and random mini-batches."""

import random
from dataclasses import replace

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from services.contracts.run_config import RunConfig, parse_run_config
from services.learner.model.tree_attention import share_prefixes
from services.learner.packing.sequence import TrainSequence

VOCABULARY = 29


def tiny_model(seed: int, dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Qwen3ForCausalLM(config).to(dtype)


class PlainEngine:
    """An engine of one process without optimizer: `step` keeps the summed gradients in `gradients`."""

    rank = 0
    num_ranks = 1
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32, *, share: bool = True) -> None:
        self.student = tiny_model(1, dtype)
        self.teacher = tiny_model(2, dtype).requires_grad_(False)
        self.reference: torch.nn.Module | None = tiny_model(3, dtype).requires_grad_(False)
        if share:
            assert all(share_prefixes(model) for model in (self.student, self.teacher, self.reference))
        self.gradients: dict[str, torch.Tensor] = {}
        self.num_backward = 0
        self.lasts: list[bool] = []

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()
        self.num_backward += 1
        self.lasts.append(last)

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def all_reduce_max(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def step(self) -> float:
        self.gradients = {name: value.grad.clone() for name, value in self.student.named_parameters()}
        self.student.zero_grad()
        return float(torch.nn.utils.get_total_norm(list(self.gradients.values())))


def large_teacher(dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY) -> Qwen3ForCausalLM:
    """Another model than the student: wider, deeper, and with six rows of padding beyond its `vocabulary`."""
    torch.manual_seed(4)
    config = tiny_model(4, vocabulary=vocabulary + 6).config
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 24, 40, 3
    config.layer_types = ["full_attention"] * 3
    return Qwen3ForCausalLM(config).to(dtype).requires_grad_(False)


def run_config(
    tokens_per_microbatch: int = 4096, rollout: dict[str, float] | None = None, **objective: object
) -> RunConfig:
    return parse_run_config(
        {
            "name": "test",
            "model": {"path": "unused", "dtype": "float32"},
            "data": {"train": "unused"},
            "objective": objective,
            "rollout": rollout or {},
            "training": {"steps": 1, "tokens_per_microbatch": tokens_per_microbatch},
        }
    )


def with_hints(sequences: list[TrainSequence]) -> list[TrainSequence]:
    """Two of three sequences with a teacher get a wrong hint."""
    hints = [[(3 * index + place) % VOCABULARY for place in range(1 + index % 5)] for index in range(len(sequences))]
    return [
        replace(item, wrong_hint_ids=hint if item.teacher_prompt_ids is not None and index % 3 else None)
        for index, (item, hint) in enumerate(zip(sequences, hints, strict=True))
    ]


def random_sequences(
    seed: int, number: int, *, longest: int = 7, routes: tuple[str, ...] = ("grpo", "sdpo"), teach_grpo: bool = False
) -> list[TrainSequence]:
    """Sequences with every awkward length (empty, one token, long), many common prefixes, and some zero advantages."""
    rng = random.Random(seed)
    begun: list[list[int]] = [[]]

    def ids(least: int, most: int) -> list[int]:
        """Tokens of the given length; every other time they begin like an earlier sequence, or equal it."""
        length = rng.randint(least, most)
        start = rng.choice(begun)[:length] if rng.random() < 0.5 else []
        begun.append(start + [rng.randrange(VOCABULARY) for _ in range(length - len(start))])
        return begun[-1]

    sequences = []
    for index in range(number):
        route = routes[index % len(routes)]
        response = ids(0, longest)
        taught = route == "sdpo" or (teach_grpo and index % 3 != 0)
        sequences.append(
            TrainSequence(
                prompt_ids=ids(1, 6),
                response_ids=response,
                behaviour_logprobs=[-rng.uniform(0.5, 8.0) for _ in response],
                advantage=0.0 if index % 5 == 4 else rng.uniform(-1, 1),
                route=route,  # type: ignore[arg-type]
                teacher_prompt_ids=ids(1, 12) if taught else None,
                difficulty=(0.5, 0.0, 0.25, 0.4)[index % 4],
            )
        )
    return sequences
