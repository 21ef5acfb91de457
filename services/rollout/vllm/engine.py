"""Builds vLLM's asynchronous engine for a run, and stops it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.contracts.errors import TurnoutError
from services.contracts.run_config import RunConfig
from services.rollout import last_words
from services.rollout.environment import BACKEND, on_cpu
from services.runtime.inputs import trusts_remote_code
from services.runtime.logs import get_logger
from services.runtime.settings import Settings

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

log = get_logger(__name__)
CPU_BLOCK_TOKENS = 128
"""Number of tokens in a block of the KV cache, vLLM's default on CPU."""
MAX_LOGPROBS = 20
"""Most alternatives of a token that served requests may ask for, as OpenAI's API allows. Training asks for none."""
GIB = 1 << 30
EXIT_SECONDS = 10.0
"""Longest wait for a killed process to exit."""


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
    )


def build(spec: EngineSpec) -> AsyncLLM:
    """Start an engine. Blocks until it can sample, so run it in a thread.

    Raises:
        EngineStartError: with vLLM's reason.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    stay_offline(Path(spec.model).is_dir())
    with last_words.expected() as reason:
        try:
            arguments = AsyncEngineArgs(**engine_arguments(spec, hf_config(spec)))
            vllm_config = arguments.create_engine_config()
            if vllm_config.parallel_config.world_size == 1 and on_cpu():
                os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # vLLM has just set it to `spawn`
            return AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=True)
        except (RuntimeError, ValueError, OSError, ImportError, KeyError, AttributeError, TypeError) as error:
            raise EngineStartError(
                f"vLLM did not start with model {spec.model}: {(reason() or str(error)).rstrip('.')}.",
                remedy="Check model.path, model.dtype and free memory, and see this service's log.",
            ) from error


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
        # The distribution that tokens are sampled from, after temperature, top-p and top-k.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": MAX_LOGPROBS,
        # The model's own generation_config must not change temperature, top-p, top-k or penalties.
        "generation_config": "vllm",
        # Safe across weight updates, because every request carries the weights' epoch as its cache salt.
        "enable_prefix_caching": True,
        "weight_transfer_config": {"backend": BACKEND},
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    if on_cpu():
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": kv_cache_bytes(model_config, spec, num_tokens),
            "max_num_batched_tokens": max(4096, num_tokens),
        }
    else:
        arguments["gpu_memory_utilization"] = spec.gpu_memory_utilization
    return arguments


def kv_cache_bytes(model_config: Any, spec: EngineSpec, num_tokens: int) -> int:
    """Size in bytes of a KV cache for every sequence at full length plus one block, but at most half of free memory.

    A small, explicit size makes the start fast: vLLM neither probes memory nor zeroes gigabytes.
    """
    blocks = -(-num_tokens // CPU_BLOCK_TOKENS) + 1
    heads = getattr(model_config, "num_key_value_heads", None) or model_config.num_attention_heads
    width = getattr(model_config, "head_dim", None) or model_config.hidden_size // model_config.num_attention_heads
    bytes_per_value = 4 if spec.dtype == "float32" else 2
    bytes_per_token = 2 * model_config.num_hidden_layers * heads * width * bytes_per_value
    wanted = spec.max_num_seqs * blocks * CPU_BLOCK_TOKENS * bytes_per_token
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(max(wanted, 16 << 20), max(free // 2, GIB // 4)))


def stay_offline(offline: bool) -> None:
    """Allow the hub's client to use the network only for models that are given by hub name."""
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
    if on_cpu():
        # They have nothing to clean up, and vLLM's own shutdown would wait five seconds for them.
        for process in processes:
            process.kill()
    engine.shutdown(timeout=0)
    for process in processes:
        process.join(EXIT_SECONDS)


def process_ids(engine: AsyncLLM) -> list[int]:
    """Ids of the vLLM processes that run the engine; they may have children."""
    return [process.pid for process in _processes(engine)]


def _processes(engine: AsyncLLM) -> Sequence[Any]:
    return getattr(engine.engine_core.resources.engine_manager, "processes", ())
