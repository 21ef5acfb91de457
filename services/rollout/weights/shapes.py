"""Checks that offered weights fit the run's model: names, shapes and dtypes, compared before anything is changed.

The expected tensors follow from the model's configuration: its Hugging Face class, built on torch's meta device without
memory, has the same parameters as the learner's model, which is of the same class. vLLM's own parameters cannot be
compared, because they are fused (`qkv_proj`), partitioned over workers and padded. Neither can the base model's files,
since a class may rename tensors when it loads them. If a model cannot be built this way, or quantization replaces its
layers, nothing is compared and vLLM decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from services.contracts.errors import TurnoutError
from services.contracts.transports.layout import Layout
from services.runtime.logs import get_logger

log = get_logger(__name__)
_UNUSED = re.compile(r"\.rotary_(pos_)?emb\.(inv_freq|cos_cached|sin_cached)$")
"""Tables in old checkpoints that current classes lack, and that vLLM skips."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""torch's names of dtypes by safetensors' names."""


class UnfitWeightsError(TurnoutError):
    """The weights belong to another model. Nothing was changed."""

    title = "Weights do not fit"


@dataclass(frozen=True, slots=True)
class Form:
    """One tensor without its values."""

    dtype: str
    """torch's name of the dtype."""
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Known:
    """A parameter or saved buffer of the model."""

    first: str
    """The first of its names; tied parameters have several."""
    shape: tuple[int, ...]
    is_parameter: bool
    """A buffer may be missing, and have any dtype."""


@dataclass(frozen=True)
class ModelForm:
    """What versions of a run's weights must look like."""

    model: str
    """Folder or hub name of the run's model."""
    dtype: str
    """torch's name of the run's dtype."""
    trust_remote_code: bool = False

    @cached_property
    def tensors(self) -> dict[str, Known] | None:
        """The tensors that a version may contain, by each of their names; None if unknown."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(self.model, trust_remote_code=self.trust_remote_code)
            if getattr(config, "quantization_config", None):
                raise ValueError("the model is quantized")
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)
            saved = model.state_dict(keep_vars=True)
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything, but vLLM has loaded the model
            log.warning("weights not compared with the model", model=self.model, reason=str(error))
            return None
        first: dict[int, str] = {}
        return {
            name: Known(first.setdefault(id(value), name), tuple(value.shape), isinstance(value, torch.nn.Parameter))
            for name, value in saved.items()
        }

    def check(self, version: int, found: Mapping[str, Form]) -> None:
        """Compare a version with the model. Accepts the run's dtype, and float32, which models may use for some layers.

        Raises:
            UnfitWeightsError: names the first tensor that differs, both forms and the remedy.
        """
        if self.tensors is None:
            return
        missing = {known.first for known in self.tensors.values() if known.is_parameter}
        for name, form in sorted(found.items(), key=lambda item: item[0]):
            known = self.tensors.get(name)
            if known is None:
                if _UNUSED.search(name):
                    continue
                raise self._unfit(version, name, f"is {form}", "has no such parameter")
            missing.discard(known.first)
            right_dtype = form.dtype in (self.dtype, "float32") or not known.is_parameter
            if form.shape != known.shape or not right_dtype:
                raise self._unfit(version, name, f"is {form}", f"has {Form(self.dtype, known.shape)}")
        if missing:
            name = min(missing)
            raise self._unfit(version, name, "is missing", f"has {Form(self.dtype, self.tensors[name].shape)}")

    def _unfit(self, version: int, name: str, ours: str, theirs: str) -> UnfitWeightsError:
        return UnfitWeightsError(
            f"Weight version {version} does not fit the model: {name} {ours}, but model.path {self.model} {theirs}.",
            remedy="Make sure that the learner and the rollout servers use the same model and model.dtype; compare "
            "config.json on their machines.",
        )


def forms_of_layout(layout: Layout) -> dict[str, Form]:
    """The tensors that a fast transport will deliver."""
    return {tensor.name: Form(tensor.dtype, tuple(tensor.shape)) for chunk in layout.chunks for tensor in chunk.tensors}


def forms_of_files(folder: Path) -> dict[str, Form]:
    """The tensors of a verified version, from its safetensors files' headers."""
    from safetensors import safe_open

    forms = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                forms[name] = Form(_DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()))
    return forms
