"""Presets: the paper's settings for each method (arXiv 2604.02288, table 3), under the names `paper-<method>`."""

from __future__ import annotations

from typing import Any, Final

_COMMON: Final[dict[str, Any]] = {
    "rollout": {
        "group_size": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_prompt_tokens": 2048,
        "max_response_tokens": 8192,
    },
    "evaluation": {"num_samples": 16, "temperature": 0.6, "top_p": 0.95},
    "training": {"prompts_per_step": 32, "max_staleness": 0},
}


def _preset(name: str, minibatch: int, learning_rate: float, objective: dict[str, Any]) -> dict[str, Any]:
    return {
        **_COMMON,
        "training": {**_COMMON["training"], "prompts_per_minibatch": minibatch},
        "objective": {"name": name, "importance_weight_cap": 2.0, **objective},
        "optimizer": {
            "learning_rate": learning_rate,
            "warmup_steps": 10,
            "weight_decay": 0.01,
            "gradient_clip": 1.0,
        },
    }


_CLIP: Final = {"clip_low": 0.2, "clip_high": 0.28}
_DISTIL: Final = {"top_k": 100, "divergence_alpha": 0.5, "teacher_ema_rate": 0.05}

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "paper-grpo": _preset("grpo", 8, 1e-6, {**_CLIP}),
    "paper-sdpo": _preset("sdpo", 32, 1e-5, {**_DISTIL}),
    "paper-srpo": _preset("srpo", 32, 5e-6, {**_CLIP, **_DISTIL, "beta": 1.0}),
}
