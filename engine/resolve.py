"""What will be done, from what the operator asked for and what model and machine are. One pure function, torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError, UsageError
from quire.engine.hardware import Hardware
from quire.engine.models.config import ModelConfig
from quire.engine.precision import why_not_compiled

DEFAULT_MAX_NUM_SEQS = 64
"""On a CPU; more sequences at once share the same matmul rate and only wait for each other."""
GPU_MAX_NUM_SEQS = 256
"""Sequences at once where nothing is asked: a GPU has the matmul rate for them."""
GPU_MAX_NUM_BATCHED_TOKENS = 8192
"""Tokens of a step where nothing is asked: a GPU needs that many to be busy, and is done with them soon."""
MAX_BLOCK_SIZE = 256


@dataclass(frozen=True)
class Resolved:
    """Settings with nothing left open but what only a loaded model tells: blocks, and the token budget if not given."""

    device: Literal["cpu", "cuda"]
    threads: int
    block_size: int
    max_model_len: int
    max_model_len_given: bool
    max_num_seqs: int
    max_num_batched_tokens: int | None
    vocab_size: int
    """Columns that may be sampled."""


def resolve(config: EngineConfig, model: ModelConfig, hardware: Hardware, *, for_gpu: bool = False) -> Resolved:
    """Check every setting and fill in what was left open. `for_gpu`: a plan for a GPU that need not be here.

    Raises UsageError naming flag, value and what is allowed; ModelError when the tokenizer belongs to another model.
    """
    device = _device(config, hardware, for_gpu)
    _check_at_least_one(config)
    if config.block_size > MAX_BLOCK_SIZE or config.block_size & (config.block_size - 1):
        raise UsageError(f"--block-size {config.block_size}: must be a power of two from 1 to {MAX_BLOCK_SIZE}")
    limit = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise UsageError(
            f"--max-model-len {config.max_model_len}: model {config.model_name} was made for contexts of up to {limit} "
            f"tokens; lower it to {limit} at most"
        )
    max_num_seqs = config.max_num_seqs or (DEFAULT_MAX_NUM_SEQS if device == "cpu" else GPU_MAX_NUM_SEQS)
    if config.max_num_batched_tokens is not None and config.max_num_batched_tokens < max_num_seqs:
        if config.max_num_seqs is not None:
            raise UsageError(
                f"--max-num-batched-tokens {config.max_num_batched_tokens}: must be at least --max-num-seqs "
                f"{max_num_seqs}, so that every running sequence can get its next token in one step"
            )
        max_num_seqs = config.max_num_batched_tokens
    return Resolved(
        device=device,
        threads=config.threads or hardware.cores,
        block_size=config.block_size,
        max_model_len=config.max_model_len or limit,
        max_model_len_given=config.max_model_len is not None,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens
        or (None if device == "cpu" else max(GPU_MAX_NUM_BATCHED_TOKENS, max_num_seqs)),
        vocab_size=_vocab_size(config, model),
    )


def _device(config: EngineConfig, hardware: Hardware, for_gpu: bool) -> Literal["cpu", "cuda"]:
    """Where to compute: a GPU when it is asked for."""
    if config.device == "cuda" and hardware.gpu is None:
        raise UsageError(f"--device cuda: no GPU to serve from: {hardware.why_no_gpu}; use --device cpu")
    device: Literal["cpu", "cuda"] = "cuda" if config.device == "cuda" or for_gpu else "cpu"
    share = config.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"--gpu-memory-utilization {share}: must be above 0 and at most 1, such as 0.9")
    if share is not None and device == "cpu":
        raise UsageError(
            f"--gpu-memory-utilization {share}: no GPU is used; --kv-cache-memory-bytes sets the KV cache on the CPU"
        )
    if config.batch_invariant:
        _check_batch_invariant(config, device)
    return device


def _check_batch_invariant(config: EngineConfig, device: str) -> None:
    """Who promises answers to the last bit: the compiled kernels always, Triton's when they are told to."""
    if device == "cuda":
        why = "--kernels reference was asked for" if config.kernels == "reference" else None
        who, fix = "the Triton kernels", "--kernels triton"
    else:
        why, who, fix = why_not_compiled(config.kernels), "the compiled CPU kernels", "--kernels cpu"
    if why is not None:
        raise UsageError(f"--batch-invariant: only {who} promise it, and {why}; use {fix} or leave the flag out")


def _check_at_least_one(config: EngineConfig) -> None:
    values = {
        "--max-model-len": config.max_model_len,
        "--block-size": config.block_size,
        "--kv-cache-memory-bytes": config.kv_cache_memory_bytes,
        "--num-gpu-blocks-override": config.num_blocks_override,
        "--max-num-seqs": config.max_num_seqs,
        "--max-num-batched-tokens": config.max_num_batched_tokens,
        "--long-prefill-token-threshold": config.long_prefill_token_threshold,
        "--threads": config.threads,
    }
    for flag, value in values.items():
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: must be at least 1")


def _vocab_size(config: EngineConfig, model: ModelConfig) -> int:
    wanted = config.tokenizer_vocab_size
    if wanted is None:
        return model.vocab_size
    if not 1 <= wanted <= model.vocab_size:
        why = f"the tokenizer knows ids up to {wanted - 1}, the model has {model.vocab_size} of them"
        fix = "use the tokenizer that belongs to this model"
        raise ModelError(config.model_name, "tokenizer and model do not belong together", "tokenizer.json", why, fix)
    return wanted
