"""The engine's configuration: frozen, torch-free, and the first frame over the process line."""

from __future__ import annotations

from typing import Literal

import msgspec

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
KernelsName = Literal["auto", "reference", "cpu", "pytorch", "triton"]
Quantization = Literal["int8", "int4", "int8-w8a8"]
CacheDtype = Literal["float32", "bfloat16", "float16", "int8"]
Policy = Literal["fcfs", "priority", "fair"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator asked for. None means: found at start from model and hardware (`resolve`)."""

    model: str
    """A local folder; hub names are resolved before (`quire.engine.model_folder`)."""
    model_name: str
    """What error messages call it."""
    load_format: Literal["auto", "dummy"] = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization | None = None
    """Of the weights of linear layers, while they are loaded."""
    kv_cache_dtype: Literal["auto"] | CacheDtype = "auto"
    device: Device = "auto"
    gpu_memory_utilization: float | None = None
    """Share of the GPU's memory that may be taken, above 0 and up to 1; None: 0.9. Of no use on a CPU."""
    enforce_eager: bool = False
    """Never record steps: slower on a GPU; on a CPU nothing is recorded anyway."""
    batch_invariant: bool = False
    """Answers must not depend on who else is served, to the last bit; refused where the kernels cannot."""
    kernels: KernelsName = "auto"
    tokenizer_vocab_size: int | None = None
    """Ids the tokenizer knows; columns from there on are never sampled. None: the model's vocab_size."""
    max_model_len: int | None = None
    block_size: int = 16
    """Tokens a block; a power of two from 1 to 256."""
    kv_cache_memory_bytes: int | None = None
    num_blocks_override: int | None = None
    enable_prefix_caching: bool = True
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    long_prefill_token_threshold: int | None = None
    """A prompt longer than this is prefilled in chunks of at most this many tokens."""
    scheduling_policy: Policy = "fcfs"
    target_itl_ms: float | None = None
    """How long a step may take, by what tokens were measured to cost, while somebody generates; None: no limit."""
    max_logprobs: int = 20
    threads: int | None = None
    seed: int = 0
    """Of dummy weights; requests carry their own."""
    check_weights: bool = False
    """Scan every tensor for NaN and Inf while loading."""
    shuffle_blocks: bool = False
    """Hand out blocks in shuffled order (tests: block tables that are no ranges)."""
