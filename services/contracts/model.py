"""The run configuration's section `model`, and what all sections are made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from services.contracts.chat_template import DEFAULT_ARGUMENTS, FullArguments
from services.contracts.thinking import CLOSE, OPEN

MAX_INTEGER = 2**53 - 1
"""Many readers of JSON, browsers among them, keep no larger one exactly."""
Integer = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
NotNegative = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
OUTSIDE_LAYERS = ("embed_tokens", "lm_head")


class Section(BaseModel):
    """Base of all sections: unknown fields are refused, values cannot change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def refuse_truth_values_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """`steps: yes` is a slip, not 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are no values of this field")
        return value


class LoraSection(Section):
    """There is no dropout: rollouts are sampled without it, and the policy that is trained must be the one sampled."""

    rank: Positive = 16
    """Rank of the two matrices, r."""
    alpha: Annotated[float, Field(ge=1e-3, le=1e6)] = 32.0
    """The update is scaled by alpha / rank."""
    target_modules: Literal["all-linear"] | Annotated[tuple[Name, ...], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get an adapter, such as `[q_proj, v_proj]`; `all-linear`: all but the LM head."""
    load_in_4bit: bool = False
    """Keep the frozen weights of linear layers in 4 bits on the learner (QLoRA), a quarter of their size in bfloat16.
    Rollout servers get whole weights instead of the adapter. Needs bitsandbytes."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def inner_layers(cls, names: object) -> object:
        """Embedding and LM head stay as they are: they are often one tensor, which two adapters would pull apart."""
        if isinstance(names, str) and names != "all-linear":
            raise ValueError("give a list of layer names, or all-linear")
        outside = [name for name in OUTSIDE_LAYERS if isinstance(names, list | tuple) and name in names]
        if outside:
            raise ValueError(f"{outside[0]} cannot have an adapter; name linear layers inside the model's blocks")
        return names


class ThinkingSection(Section):
    """Responses begin with reasoning, which is not part of the answer."""

    open: Name = OPEN
    """What the model writes before its reasoning, or its chat template at the end of the prompt."""
    close: Name = CLOSE
    """What it writes after its reasoning."""


class ModelSection(Section):
    path: str
    """Folder with a Hugging Face model, or a hub name. Relative folders are taken from the services' working folder."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights in forward passes and in the rollout engine; the optimizer keeps fp32 master weights."""
    trust_remote_code: bool = False
    """Run Python code from the model's folder. Refused unless the operator allows it."""
    chat_template_kwargs: FullArguments = dict(DEFAULT_ARGUMENTS)
    """Arguments of the chat template, such as `enable_thinking: true` or `reasoning_effort: low`, for all prompts.
    `enable_thinking` is false unless it is given. The run's notes name arguments that the template does not use."""
    thinking: ThinkingSection | None = None
    """Rewards read what follows the model's reasoning, and reasoning that never ends has no answer (section
    `model.thinking`; `{}` for `<think>` and `</think>`); null: they read the whole response."""
    lora: LoraSection | None = None
    """Train a LoRA adapter on the frozen model (section `model.lora`; `{}` for its defaults); null: all weights."""

    @property
    def is_quantized(self) -> bool:
        """Whether the learner's frozen weights are in 4 bits, so that not even its first policy is the model at `path`:
        rollout servers have to wait for version 0."""
        return self.lora is not None and self.lora.load_in_4bit
