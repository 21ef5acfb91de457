"""Builds vLLM's asynchronous engine for a run, and stops it."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psutil

from services.contracts.errors import ConfigurationError, TurnoutError
from services.contracts.run_config import RunConfig
from services.contracts.trainable import check_split
from services.rollout import last_words
from services.rollout.environment import BACKEND, on_cpu
from services.rollout.vllm import blocks
from services.runtime.inputs import trusts_remote_code
from services.runtime.logs import get_logger
from services.runtime.settings import Settings

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

log = get_logger(__name__)
MAX_LOGPROBS = 20
"""Most alternatives of a token that served requests may ask for, as OpenAI's API allows. Training asks for none."""
GIB = 1 << 30
ASKED_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
"""Whether the deployment lets no service use the hub's network."""
EXIT_SECONDS = 10.0
"""Longest wait for a killed process to exit."""
_QUEUE = re.compile(r"/dev/shm/(?:psm|vllm_dist)_[^/\n ]+$", re.MULTILINE)
"""A file of vLLM's message queues in a process's memory map."""
EXTENSION = "services.rollout.weights.vllm_plugin.WeightUpdates"
"""What our plugin adds to vLLM's worker class."""
SCHEDULER = "services.rollout.vllm.scheduler.DecodingScheduler"
"""The scheduler of an engine on a CPU whose worker is in its own process."""

_queues: WeakKeyDictionary[AsyncLLM, set[Path]] = WeakKeyDictionary()
"""Files to delete with each engine. Killed workers leave them behind, hundreds of megabytes of memory once used."""


class EngineStartError(TurnoutError):
    """vLLM rejected the model or died while it started."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is built for. Runs with equal specs can use the same engine, one after the other."""

    model: str
    dtype: str
    max_model_tokens: int
    """Longest sequence, prompt and response, in tokens."""
    max_num_seqs: int
    seed: int
    trust_remote_code: bool
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory for weights and KV cache; ignored on a CPU."""
    tensor_parallel_size: int = 1
    """Workers that share each layer, one on each GPU; processes on a CPU."""
    sleeps: bool = False
    """Whether it can free its GPU's memory while the learner needs it. vLLM then uses an allocator of its own."""


def spec_for(config: RunConfig, settings: Settings, instance: str) -> EngineSpec:
    """The engine that a run needs. A run's servers get different seeds, otherwise they would sample the same responses.

    Raises:
        ConfigurationError: the run asks for the model's own Python code, but the operator does not allow it.
    """
    return EngineSpec(
        model=config.model.path,
        dtype=config.model.dtype,
        max_model_tokens=config.max_model_tokens,
        max_num_seqs=config.rollout.max_num_seqs,
        seed=zlib.crc32(f"{config.training.seed}/{instance}".encode()) >> 1,
        trust_remote_code=trusts_remote_code(config.model, settings.allow_remote_code),
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=config.rollout.tensor_parallel_size,
        sleeps=config.rollout.share_gpu,
    )


def build(spec: EngineSpec) -> AsyncLLM:
    """Start an engine. Blocks until it can sample, so run it in a thread.

    Raises:
        EngineStartError: with vLLM's reason.
        ConfigurationError: the run's `rollout.tensor_parallel_size` does not fit the model or the GPUs.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    check_devices(spec)
    stay_offline(needs_no_hub(spec.model))
    with last_words.expected() as reason:
        try:
            model = hf_config(spec)
            check_split(spec.tensor_parallel_size, spec.model, lambda name: getattr(model, name, None))
            arguments = AsyncEngineArgs(**engine_arguments(spec, model))
            if on_cpu():
                blocks.allow(arguments.block_size)
            vllm_config = arguments.create_engine_config()
            if on_cpu():
                os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # vLLM has just set it to `spawn`
            engine = AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=True)
        except (RuntimeError, ValueError, OSError, ImportError, KeyError, AttributeError, TypeError) as error:
            raise EngineStartError(
                f"vLLM did not start with model {spec.model}: {(reason() or str(error)).rstrip('.')}.",
                remedy="Check model.path, model.dtype and free memory, and see this service's log.",
            ) from error
    _queues[engine] = _queues_of(engine)
    return engine


def check_devices(spec: EngineSpec) -> None:
    """Raise `ConfigurationError` if a group of GPUs is wanted that is larger than what this server has."""
    import torch

    wanted = spec.tensor_parallel_size
    if wanted == 1 or on_cpu():
        return
    if (have := torch.cuda.device_count()) < wanted:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise ConfigurationError(
            f"rollout.tensor_parallel_size is {wanted}, but this rollout server sees {have} GPU{'s' * (have != 1)} "
            f"(CUDA_VISIBLE_DEVICES is {visible}).",
            remedy="Give each rollout server that many GPUs (ROLLOUT_GPUS_PER_SERVER with Compose and SLURM, "
            "nvidia.com/gpu on Kubernetes), or lower it.",
            field="rollout.tensor_parallel_size",
        )


def hf_config(spec: EngineSpec) -> Any:
    """The language model's part of the Hugging Face configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(spec.model, trust_remote_code=spec.trust_remote_code)
    return config.get_text_config()


def engine_arguments(spec: EngineSpec, model_config: Any) -> dict[str, Any]:
    """vLLM's engine arguments."""
    limit = getattr(model_config, "max_position_embeddings", None) or spec.max_model_tokens
    num_tokens = min(spec.max_model_tokens, limit)
    arguments: dict[str, Any] = {
        "model": spec.model,
        "dtype": spec.dtype,
        "trust_remote_code": spec.trust_remote_code,
        "max_model_len": num_tokens,
        "max_num_seqs": spec.max_num_seqs,
        "seed": spec.seed,
        "tensor_parallel_size": spec.tensor_parallel_size,
        # The distribution that tokens are sampled from, after penalty, temperature and cuts.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": MAX_LOGPROBS,
        # The model's own generation_config must not change temperature, top-p, top-k or penalties.
        "generation_config": "vllm",
        # Safe across weight updates, because every request carries the weights' epoch as its cache salt.
        "enable_prefix_caching": True,
        "weight_transfer_config": {"backend": BACKEND},
        "worker_extension_cls": EXTENSION,
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    if on_cpu():
        block_tokens = blocks.block_tokens(spec.dtype)
        arguments |= {
            "enforce_eager": True,
            "block_size": block_tokens,
            "kv_cache_memory_bytes": kv_cache_bytes(model_config, spec, num_tokens, block_tokens),
            "max_num_batched_tokens": max(4096, num_tokens),
        }
        if spec.tensor_parallel_size == 1:
            arguments["scheduler_cls"] = SCHEDULER
    else:
        arguments["gpu_memory_utilization"] = spec.gpu_memory_utilization
        arguments["enable_sleep_mode"] = spec.sleeps
    return arguments


def kv_cache_bytes(model_config: Any, spec: EngineSpec, num_tokens: int, block_tokens: int) -> int:
    """Bytes of each worker's KV cache: every sequence at full length plus one block, but at most half of free memory.

    A small, explicit size makes the start fast: vLLM neither probes memory nor zeroes gigabytes.
    """
    num_blocks = -(-num_tokens // block_tokens) + 1
    all_heads = getattr(model_config, "num_key_value_heads", None) or model_config.num_attention_heads
    heads = -(-all_heads // spec.tensor_parallel_size)
    width = getattr(model_config, "head_dim", None) or model_config.hidden_size // model_config.num_attention_heads
    bytes_per_value = 4 if spec.dtype == "float32" else 2
    bytes_per_token = 2 * model_config.num_hidden_layers * heads * width * bytes_per_value
    wanted = spec.max_num_seqs * num_blocks * block_tokens * bytes_per_token
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(max(wanted, 16 << 20), max(free // 2 // spec.tensor_parallel_size, GIB // 4)))


def needs_no_hub(model: str) -> bool:
    """Whether the hub's client must find `model` on this machine."""
    return ASKED_OFFLINE or Path(model).is_dir()


def stay_offline(offline: bool) -> None:
    """Allow the hub's client to use the network, or not: only for models that are given by hub name."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline
    os.environ["HF_HUB_OFFLINE"] = "1" if offline else "0"


async def final_outputs(
    engine: AsyncLLM, prompt: Any, params: SamplingParams, request_id: str
) -> list[CompletionOutput]:
    """Run one request to its end. Returns its final outputs."""
    final = None
    async for output in engine.generate(prompt, params, request_id):
        final = output
    return [] if final is None else list(final.outputs)


async def pause(engine: AsyncLLM, mode: Any, *, clear_cache: bool) -> None:
    """Stop decoding, and return when the current step has finished.

    vLLM's own `pause_generation` sleeps another 20 ms for callers that need the last outputs, which is half the time of
    a small model's weight update. No caller here does; a request whose first token has not arrived yet counts as one
    that has sampled nothing.
    """
    if clear_cache:
        await engine.renderer.clear_mm_cache_async()
    await engine.engine_core.pause_scheduler_async(mode=mode, clear_cache=clear_cache)


def end(engine: AsyncLLM) -> None:
    """Stop an engine and its processes, and free their memory. Blocks for up to some seconds, so run it in a thread."""
    processes = list(_processes(engine))
    workers = _children(engine)
    if on_cpu():
        # They have nothing to clean up, and vLLM's own shutdown would wait five seconds for them.
        for process in processes:
            process.kill()
    engine.shutdown(timeout=0)
    for process in processes:
        process.join(EXIT_SECONDS)
    for worker in workers:
        with suppress(psutil.Error):
            worker.kill()
    psutil.wait_procs(workers, EXIT_SECONDS)
    for queue in _queues.pop(engine, ()):
        queue.unlink(missing_ok=True)


def _children(engine: AsyncLLM) -> list[psutil.Process]:
    """The workers of an engine that has several, and their helpers."""
    found: list[psutil.Process] = []
    for pid in process_ids(engine):
        with suppress(psutil.Error):
            found += psutil.Process(pid).children(recursive=True)
    return found


def _queues_of(engine: AsyncLLM) -> set[Path]:
    """Files of the shared memory through which an engine's workers communicate."""
    found: set[Path] = set()
    for pid in (*process_ids(engine), *(child.pid for child in _children(engine))):
        with suppress(OSError):
            found.update(map(Path, _QUEUE.findall(Path(f"/proc/{pid}/maps").read_text())))
    return found


def process_ids(engine: AsyncLLM) -> list[int]:
    """Ids of the vLLM processes that run the engine; they may have children."""
    return [process.pid for process in _processes(engine)]


def _processes(engine: AsyncLLM) -> Sequence[Any]:
    return getattr(engine.engine_core.resources.engine_manager, "processes", ())
