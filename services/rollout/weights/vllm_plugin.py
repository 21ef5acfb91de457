"""A weight transfer engine for vLLM that reads our weight store: "turnout" in vLLM's four-phase update protocol.

vLLM loads `register` through the entry point `vllm.general_plugins` in each of its processes. The engine itself runs in
vLLM's worker process. An update names a folder of the weight store and its checksum. Every byte is verified before the
model is changed, so a rejected update leaves the old weights intact.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.utils.nccl import unpinned_nccl_env

from services.contracts.transports.registry import parse_transfer
from services.rollout import last_words
from services.rollout.environment import BACKEND, REFUSED, REFUSED_ELSEWHERE, die_with_parent
from services.rollout.weights.receive.base import Update, Worker, any_refuses
from services.rollout.weights.receive.factory import Receivers
from services.runtime.weights.store import Marks

log = logging.getLogger(__name__)


@dataclass
class StoreInitInfo(WeightTransferInitInfo):
    """Empty, since both sides see the same folder."""


@dataclass
class StoreUpdateInfo(WeightTransferUpdateInfo):
    """One version of the weight store."""

    path: str
    """Folder with `manifest.json` and safetensors files: parameter names as in a Hugging Face checkpoint, or a LoRA
    adapter in PEFT's format."""
    checksum: str
    """`blake3:<hex>` that the manifest must have."""
    marks: Marks = field(default_factory=dict)
    """Marks of files that the server has already verified, and that need not be read twice."""
    transfer: dict[str, Any] | None = None
    """How to get the version from the learner itself (`services.contracts.transports`); None to read the folder."""
    refusal: str = ""
    """Why the server rejected this update. The engine then rejects it too, so that vLLM ends the update."""


class StoreWeightEngine(WeightTransferEngine[StoreInitInfo, StoreUpdateInfo]):
    """Loads a verified weight folder into the model by vLLM's layerwise reload (which redoes fusing and packing)."""

    init_info_cls = StoreInitInfo
    update_info_cls = StoreUpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self._touched = False
        parallel = self.parallel_config
        self._receivers = Receivers(
            Worker(
                self.device,
                number=parallel.data_parallel_index * parallel.world_size + parallel.rank,
                num_workers=parallel.world_size * parallel.data_parallel_size,
                model=self.model_config.model,
                dtype=self.model_config.dtype,
                nccl_environment=unpinned_nccl_env,
            )
        )
        die_with_parent()

    def init_transfer_engine(self, init_info: StoreInitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Leave the model alone until the files are verified."""
        self._touched = False

    def receive_weights(self, update_info: StoreUpdateInfo) -> None:
        """Verify the folder, then load it.

        Raises:
            RuntimeError: begins with `REFUSED` if the folder does not match its checksum, in this or another worker of
                the engine; the model is unchanged. Any other error may have left it half-written.
        """
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if update_info.refusal:
            raise RuntimeError(update_info.refusal)
        folder = Path(update_info.path)
        tensors, failure = self._offered_tensors(folder, update_info)
        if self._any_refuses(failure is not None):
            raise RuntimeError(f"{REFUSED}: {failure}" if failure else REFUSED_ELSEWHERE) from failure
        parameters = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        self._touched = True
        loaded = self.model.load_weights(tensors)
        if loaded is not None and not parameters <= set(loaded):
            missing = sorted(parameters - set(loaded))
            raise RuntimeError(f"weight folder {folder} lacks {missing[0]} and {len(missing) - 1} other parameters.")

    def _offered_tensors(
        self, folder: Path, info: StoreUpdateInfo
    ) -> tuple[Iterator[tuple[str, torch.Tensor]], Exception | None]:
        """All weights of a version, verified, or the reason why there are none."""
        try:
            transfer = None if info.transfer is None else parse_transfer(info.transfer)
            return self._receivers.receive(Update(folder, info.checksum, transfer, info.marks)), None
        except Exception as error:  # noqa: BLE001 - nothing is changed yet, and other workers wait for the answer
            return iter(()), error

    def _any_refuses(self, refuses: bool) -> bool:
        """Whether any of the engine's workers rejects the update. They must agree, since an engine in which only some
        workers changed their model is unusable."""
        from vllm.distributed.parallel_state import get_world_group

        workers = get_world_group()
        return refuses if workers.world_size == 1 else any_refuses(refuses, workers.cpu_group)

    def finish_weight_update(self) -> None:
        """Repeat vLLM's processing of loaded weights, and copy them to where the kernels read them."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        if not self._touched:
            raise RuntimeError(f"{REFUSED}: no weights were loaded before the update was finished.")
        finalize_layerwise_reload(self.model, self.model_config)
        process_tied_layers(self.model)
        torch.cuda.empty_cache()  # torch would cache a whole copy's memory, which a learner on the same GPU may need
        self._touched = False

    def shutdown(self) -> None:
        """Release the learner's memory."""
        self._receivers.close()


class WeightUpdates:
    """Added to vLLM's worker class.

    vLLM collects the workers' answers to a call in turn and stops at the first error, which leaves the other answers to
    be taken for those to the next call. Workers that reject an update therefore answer with the reason.
    """

    def try_update_weights(self, update_info: dict[str, Any]) -> str:
        """`update_weights`, whose error is returned: empty if there was none."""
        try:
            self.update_weights(update_info)  # type: ignore[attr-defined]
        except Exception as error:
            log.warning("weights not loaded", exc_info=True)
            return str(error) or type(error).__name__
        return ""


def process_tied_layers(model: torch.nn.Module) -> None:
    """Update layers that share another layer's weight, such as an output layer tied to the embedding.

    The layerwise reload skips such layers, since they have no weights of their own. Their values have changed through
    the other layer, but the copy packed for CPU kernels would be stale. They use the other layer's packed copy instead,
    which also saves memory.
    """
    seen: dict[int, torch.nn.Module] = {}
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        method = getattr(layer, "quant_method", None)
        if weight is None or method is None:
            continue
        first = seen.setdefault(id(weight), layer)
        if first is layer:
            continue
        if hasattr(first, "cpu_linear"):
            layer.cpu_linear = first.cpu_linear
        else:
            method.process_weights_after_loading(layer)


def register() -> None:
    """Entry point for vLLM, which may call it several times in each of its processes."""
    die_with_parent()
    last_words.record()
    # It warns about every layer without weights of its own (a rotary embedding, a tied head) at each update.
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, __name__, "StoreWeightEngine")
