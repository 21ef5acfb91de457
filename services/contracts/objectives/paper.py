"""The paper's settings (arXiv 2604.02288, table 3), for the presets `paper-<objective>`."""

from __future__ import annotations

from typing import Any, Final

CLIP: Final = {"clip_low": 0.2, "clip_high": 0.28}
DISTIL: Final = {"top_k": 100, "divergence_alpha": 0.5, "teacher_ema_rate": 0.05}


def paper(name: str, prompts_per_minibatch: int, learning_rate: float, objective: dict[str, Any]) -> dict[str, Any]:
    """Values of a run configuration: what all methods share, and what one of them has of its own."""
    return {
        "rollout": {
            "group_size": 8,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_prompt_tokens": 2048,
            "max_response_tokens": 8192,
        },
        "evaluation": {"num_samples": 16, "temperature": 0.6, "top_p": 0.95},
        "training": {"prompts_per_step": 32, "max_staleness": 0, "prompts_per_minibatch": prompts_per_minibatch},
        "objective": {"name": name, "importance_weight_cap": 2.0, **objective},
        "optimizer": {"learning_rate": learning_rate, "warmup_steps": 10, "weight_decay": 0.01, "gradient_clip": 1.0},
    }
