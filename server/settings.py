"""What `quire serve` can be told. One definition gives the flags, the QUIRE_* variables, the keys of config.yaml and
their help; config.yaml beside this file holds every default. Torch-free.

`quire.server.layers.load_settings` reads flags, environment and files into it, once; nobody changes it afterwards.
"""

from __future__ import annotations

import functools
import ipaddress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quire.engine.config import CacheDtype, Device, Dtype, EngineConfig, KernelsName, Policy, Quantization
from quire.engine.errors import UsageError
from quire.server.api_keys import ApiKey, read_api_keys
from quire.server.parsing import (
    BlockSize,
    Count,
    Name,
    Names,
    OptionalCount,
    OptionalMilliseconds,
    OptionalPort,
    OptionalShare,
    Port,
    RootPath,
    Seconds,
    Whole,
)
from quire.server.yaml_file import read_yaml

PACKAGED_CONFIG = Path(__file__).with_name("config.yaml")


@functools.cache
def packaged_defaults() -> dict[str, Any]:
    """The keys and values of the config.yaml inside the package."""
    return read_yaml(PACKAGED_CONFIG)


def _flag(group: str, metavar: str, description: str, secret: bool = False) -> Any:
    """A field that is a flag, a variable and a key at once. Its default stands in config.yaml."""
    return Field(description=description, json_schema_extra={"group": group, "metavar": metavar}, repr=not secret)


MODEL, ADDRESS, ACCESS, DEVICE = "Model", "Address", "Access", "Device and memory"
SCHEDULING, REQUESTS, OPERATION = "Scheduling", "Requests", "Operation"


class ServerSettings(BaseModel):
    """Everything the server was told, checked and frozen. A field that is not given takes the packaged default."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    model: Name | None = _flag(MODEL, "MODEL", "folder, GGUF file or Hugging Face name; without one, the starter model")
    served_model_name: Names = _flag(MODEL, "NAME ...", "names clients may ask for; answers carry the first")
    tokenizer: Name | None = _flag(MODEL, "PATH", "folder or name to take the tokenizer from instead")
    revision: Name | None = _flag(MODEL, "REV", "branch, tag or commit of a Hugging Face name")
    download_dir: Name | None = _flag(MODEL, "DIR", "where downloads go instead of Hugging Face's cache")
    load_format: Literal["auto", "dummy"] = _flag(MODEL, "FORMAT", "auto: safetensors; dummy: random weights")
    dtype: Dtype = _flag(MODEL, "DTYPE", "auto, float32, bfloat16 or float16")
    quantization: Quantization | None = _flag(MODEL, "KIND", "pack weights in int8, int4, or int8-w8a8")
    generation_config: Literal["auto", "none"] = _flag(MODEL, "auto|none", "whether the model's sampling defaults hold")
    chat_template: Name | None = _flag(MODEL, "FILE", "Jinja template in place of the model's own")
    seed: Whole = _flag(MODEL, "N", "seed of the weights of --load-format dummy")
    check_weights: bool = _flag(MODEL, "", "look for NaN and Inf while loading")

    host: Name = _flag(ADDRESS, "HOST", "address to listen on")
    port: Port = _flag(ADDRESS, "PORT", "port to listen on; 0 takes a free one")
    health_port: OptionalPort = _flag(
        ADDRESS, "PORT", "also answer /health, /ready and /metrics there, whatever the load"
    )
    uds: Name | None = _flag(ADDRESS, "PATH", "listen on a Unix socket instead")
    root_path: RootPath = _flag(ADDRESS, "PATH", "prefix that a proxy in front takes off")
    ssl_keyfile: Name | None = _flag(ADDRESS, "FILE", "private key for https")
    ssl_certfile: Name | None = _flag(ADDRESS, "FILE", "certificate chain for https")
    allowed_origins: Names = _flag(ADDRESS, "ORIGIN ...", "web origins that may call this server (CORS)")

    api_key: Names = _flag(ACCESS, "KEY ...", "seen by every `ps`: rather --api-key-file or QUIRE_API_KEY", secret=True)
    api_key_file: Name | None = _flag(ACCESS, "FILE", "one `name key` or `key` a line, readable by its owner only")
    allow_unauthenticated: bool = _flag(ACCESS, "", "leave this machine without a key")

    device: Device = _flag(DEVICE, "DEVICE", "cpu or cuda; auto: cpu")
    gpu_memory_utilization: OptionalShare = _flag(DEVICE, "SHARE", "of the GPU's memory that may be taken [0.9]")
    enforce_eager: bool = _flag(DEVICE, "", "on a GPU, launch every kernel by itself; slower")
    batch_invariant: bool = _flag(DEVICE, "", "answers that no neighbour changes, to the last bit; slower on a GPU")
    kernels: KernelsName = _flag(DEVICE, "NAME", "auto, cpu, pytorch, reference or triton")
    threads: OptionalCount = _flag(DEVICE, "N", "compute threads on the CPU")
    kv_cache_memory_bytes: OptionalCount = _flag(DEVICE, "SIZE", "memory of the KV cache, such as 2GiB")
    kv_cache_dtype: Literal["auto"] | CacheDtype = _flag(DEVICE, "DTYPE", "auto, float32, bfloat16, float16 or int8")
    block_size: BlockSize = _flag(DEVICE, "TOKENS", "tokens a block; a power of two up to 256")
    num_gpu_blocks_override: OptionalCount = _flag(DEVICE, "N", "blocks of the KV cache, on any device")
    enable_prefix_caching: bool = _flag(DEVICE, "", "reuse the blocks of equal prompt beginnings")

    max_model_len: OptionalCount = _flag(SCHEDULING, "TOKENS", "longest prompt and answer together")
    max_num_seqs: OptionalCount = _flag(SCHEDULING, "N", "sequences that run at once")
    max_num_batched_tokens: OptionalCount = _flag(SCHEDULING, "TOKENS", "token budget of one step")
    long_prefill_token_threshold: OptionalCount = _flag(
        SCHEDULING, "TOKENS", "most prompt tokens of one request a step"
    )
    scheduling_policy: Literal["auto", "fcfs", "priority", "fair"] = _flag(
        SCHEDULING, "NAME", "fcfs, priority or fair; auto: fair with two or more keys"
    )
    target_itl_ms: OptionalMilliseconds = _flag(SCHEDULING, "MS", "longest step while answers stream, by measured cost")
    max_num_queued_reqs: Count = _flag(SCHEDULING, "N", "waiting sequences before new ones get 503")

    max_tokens: Count = _flag(REQUESTS, "TOKENS", "answer limit of a chat request that names none")
    completions_max_tokens: Count = _flag(REQUESTS, "TOKENS", "the same for /v1/completions")
    max_logprobs: Whole = _flag(REQUESTS, "N", "most log probabilities a token that may be asked for")
    tool_call_parser: Literal["hermes"] = _flag(REQUESTS, "NAME", "how the model writes tool calls")
    enable_auto_tool_choice: bool = _flag(REQUESTS, "", "let the model decide when it calls a tool")
    strict: bool = _flag(REQUESTS, "", "refuse unknown request fields instead of naming them")

    metrics_prefix: Name = _flag(OPERATION, "WORD", "first word of every metric; vllm fits its dashboards")
    disable_log_stats: bool = _flag(OPERATION, "", "no line of figures every 10 seconds")
    enable_log_requests: bool = _flag(OPERATION, "", "log every request, its prompt included")
    shutdown_timeout: Seconds = _flag(OPERATION, "SECONDS", "for running answers to end after SIGTERM")
    debug: bool = _flag(OPERATION, "", "tracebacks instead of one line")
    config: Name | None = _flag(OPERATION, "FILE", "YAML file of these keys, dashes as underscores")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        return {**packaged_defaults(), **given} if isinstance(given, dict) else given

    def is_local(self) -> bool:
        """Whether only this machine can reach the server: a loopback address or a Unix socket."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def read_api_keys(self) -> tuple[ApiKey, ...]:
        """The keys of --api-key and of the key file, hashed. Raises UsageError without a key's text in it."""
        return read_api_keys(self.api_key, self.api_key_file)

    def policy(self) -> Policy:
        """Who goes first: as said, or fair sharing as soon as there are keys to share between."""
        if self.scheduling_policy != "auto":
            return self.scheduling_policy
        return "fair" if len(self.read_api_keys()) > 1 else "fcfs"

    def check(self) -> None:
        """What single fields cannot know. Raises UsageError."""
        keys = self.read_api_keys()
        if not (keys or self.is_local() or self.allow_unauthenticated):
            raise UsageError(
                f"--host {self.host}: other machines could use this server without a key; set QUIRE_API_KEY or "
                f"--api-key-file, or say --allow-unauthenticated"
            )
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise UsageError("--ssl-keyfile and --ssl-certfile: one is given without the other; https needs both")
        for flag, path in (("--ssl-keyfile", self.ssl_keyfile), ("--ssl-certfile", self.ssl_certfile)):
            if path is not None and not Path(path).is_file():
                raise UsageError(f"{flag} {path}: no such file")
        if self.chat_template is not None and not Path(self.chat_template).is_file():
            raise UsageError(f"--chat-template {self.chat_template}: no such file")
        budget, sequences = self.max_num_batched_tokens, self.max_num_seqs
        if budget is not None and sequences is not None and budget < sequences:
            raise UsageError(
                f"--max-num-batched-tokens {budget}: below --max-num-seqs {sequences}; every running sequence needs "
                f"one token of the budget"
            )

    def to_engine_config(self, folder: str | Path, tokenizer_vocab_size: int | None) -> EngineConfig:
        """The engine's part, for the model in `folder` (`model` resolved) and the tokenizer's number of ids."""
        same: dict[str, Any] = {
            name: getattr(self, name) for name in EngineConfig.__struct_fields__ if hasattr(self, name)
        }
        same |= {
            "model": str(folder),
            "model_name": self.model or "starter",
            "num_blocks_override": self.num_gpu_blocks_override,
            "scheduling_policy": self.policy(),
            "tokenizer_vocab_size": tokenizer_vocab_size,
        }
        return EngineConfig(**same)
