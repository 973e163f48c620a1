"""What will be done, from what the operator asked for and what model and machine are. One pure function, torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError, UsageError
from quire.engine.hardware import Hardware
from quire.engine.models.config import ModelConfig

DEFAULT_MAX_NUM_SEQS = 64
"""On a CPU; more sequences at once share the same matmul rate and only wait for each other."""
MAX_BLOCK_SIZE = 256


@dataclass(frozen=True)
class Resolved:
    """Settings with nothing left open but what only a loaded model tells: blocks, and the token budget if not given."""

    device: str
    threads: int
    block_size: int
    max_model_len: int
    max_model_len_given: bool
    max_num_seqs: int
    max_num_batched_tokens: int | None
    vocab_size: int
    """Columns that may be sampled."""


def resolve(config: EngineConfig, model: ModelConfig, hardware: Hardware) -> Resolved:
    """Check every setting and fill in what was left open.

    Raises UsageError naming flag, value and what is allowed; ModelError when the tokenizer belongs to another model.
    """
    _check_device(config)
    _check_at_least_one(config)
    if config.block_size > MAX_BLOCK_SIZE or config.block_size & (config.block_size - 1):
        raise UsageError(f"--block-size {config.block_size}: must be a power of two from 1 to {MAX_BLOCK_SIZE}")
    limit = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise UsageError(
            f"--max-model-len {config.max_model_len}: model {config.model_name} was made for contexts of up to {limit} "
            f"tokens; lower it to {limit} at most"
        )
    max_num_seqs = config.max_num_seqs or DEFAULT_MAX_NUM_SEQS
    if config.max_num_batched_tokens is not None and config.max_num_batched_tokens < max_num_seqs:
        if config.max_num_seqs is not None:
            raise UsageError(
                f"--max-num-batched-tokens {config.max_num_batched_tokens}: must be at least --max-num-seqs "
                f"{max_num_seqs}, so that every running sequence can get its next token in one step"
            )
        max_num_seqs = config.max_num_batched_tokens
    return Resolved(
        device="cpu",
        threads=config.threads or hardware.cores,
        block_size=config.block_size,
        max_model_len=config.max_model_len or limit,
        max_model_len_given=config.max_model_len is not None,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        vocab_size=_vocab_size(config, model),
    )


def _check_device(config: EngineConfig) -> None:
    if config.device == "cuda":
        raise UsageError("--device cuda: the GPU kernels are not built yet; use --device cpu")


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
