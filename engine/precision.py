"""In what numbers a model is stored and computed, and how many bytes that takes. Torch-free."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, cast

from quire.engine.config import CacheDtype, EngineConfig, Quantization
from quire.engine.errors import UsageError
from quire.engine.hardware import bfloat16_instructions
from quire.engine.models.config import ModelConfig
from quire.kernels.cpu.layout import KEPT, packed_bytes
from quire.kernels.cpu.library import LibraryMissing, usable

DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[DtypeName, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
SCALE_BYTES = 4
"""Of the int8 cache: one float32 for each head's key or value."""


@dataclass(frozen=True)
class Precision:
    """What is decided once, at start."""

    stored: DtypeName
    """What weights are read into, and in which they stay unless they are quantized."""
    activations: DtypeName
    cache: CacheDtype
    """Of keys and values."""
    reason: str
    """A sentence that says why."""
    quantization: Quantization | None = None
    """Of linear layers."""
    kept: tuple[str, ...] = ()
    """Kinds of quantized matrices that stay as the file has them, the most frequent first."""
    padded: bool = False
    """Whether linear layers lie in the compiled kernels' layout."""

    @property
    def name(self) -> str:
        """What the weights are in."""
        return self.quantization or ("+".join(self.kept) if self.kept else self.stored)

    @property
    def weight_bytes(self) -> float:
        """Of one weight of a large matrix."""
        kind = self.kept[0] if self.kept else None
        return self.matrix_bytes(1024, 1024, bias=False, precise=False, kind=kind) / 1024**2

    def matrix_bytes(
        self, out_features: int, in_features: int, *, bias: bool, precise: bool, kind: str | None = None
    ) -> int:
        """Of a linear layer; `precise`: the embedding and head, as in `Kernels.pack`; `kind`: one that is kept."""
        if self.padded:
            name = kind or self.quantization or self.stored
            return packed_bytes(out_features, in_features, name, bias=bias, precise=precise)
        vector = DTYPE_BYTES[self.activations] * out_features if bias else 0
        return DTYPE_BYTES[self.stored] * out_features * in_features + vector

    def table_bytes(self, count: int) -> int:
        """Of `count` weights that are only read by row."""
        return DTYPE_BYTES[self.stored] * count

    def vector_bytes(self, count: int) -> int:
        """Of `count` weights of norms."""
        return DTYPE_BYTES[self.activations] * count

    def slot_bytes(self, head_dim: int) -> int:
        """Of one head's key, or its value, of one token."""
        if self.cache == "int8":
            return head_dim + SCALE_BYTES
        return DTYPE_BYTES[self.cache] * head_dim


def choose_precision(model: ModelConfig, config: EngineConfig, device: str) -> Precision:
    """Decide from the checkpoint, the operator's wishes and the machine; device cpu | gpu.

    With the compiled kernels weights stay as the checkpoint has them and activations are float32. Without them a CPU
    computes in bfloat16 where it multiplies that itself, else in float32. Raises UsageError for what only the compiled
    kernels can do.
    """
    if device != "cpu":
        return _on_gpu(model, config)
    stored = cast(DtypeName, config.dtype if config.dtype != "auto" else model.torch_dtype or "float32")
    why = "as asked" if config.dtype != "auto" else "as the checkpoint"
    missing = why_not_compiled(config.kernels)
    if missing is None:
        return _compiled(model, config, stored, why)
    if config.quantization is not None:
        raise UsageError(f"--quantization {config.quantization}: only the compiled CPU kernels have it, and {missing}")
    if config.kv_cache_dtype == "int8":
        raise UsageError(f"--kv-cache-dtype int8: only the compiled CPU kernels have it, and {missing}")
    if config.dtype != "auto" or stored == "float32":
        return Precision(stored, stored, _cache(config, stored), f"{stored}, {why}")
    flag = bfloat16_instructions()
    if flag is None:
        reason = f"float32: the checkpoint is {stored}, but this CPU has no bfloat16 instructions"
        return Precision("float32", "float32", _cache(config, "float32"), reason)
    reason = f"bfloat16: the checkpoint is {stored} and this CPU has {flag}"
    return Precision("bfloat16", "bfloat16", _cache(config, "bfloat16"), reason)


def _on_gpu(model: ModelConfig, config: EngineConfig) -> Precision:
    """Half precision: as the checkpoint has it, bfloat16 for one in float32."""
    cpu_only = "only the compiled CPU kernels have it; leave the flag out on a GPU"
    if config.quantization is not None:
        raise UsageError(f"--quantization {config.quantization}: {cpu_only}")
    if config.kv_cache_dtype == "int8":
        raise UsageError(f"--kv-cache-dtype int8: {cpu_only}")
    stored: DtypeName
    if config.dtype != "auto":
        stored, why = config.dtype, "as asked"
    elif model.torch_dtype in ("bfloat16", "float16"):
        stored, why = cast(DtypeName, model.torch_dtype), "as the checkpoint"
    else:
        stored, why = "bfloat16", "as a GPU computes it; the checkpoint has more bits"
    return Precision(stored, stored, _cache(config, stored), f"{stored}, {why}")


def why_not_compiled(kernels: str) -> str | None:
    """Why `--kernels kernels` is not the compiled library, to follow "and"; None when it is."""
    if kernels not in ("auto", "cpu"):
        return f"--kernels {kernels} was asked for"
    try:
        if usable():
            return None
    except LibraryMissing as reason:
        return str(reason)
    return "they are not made for this CPU"


def _compiled(model: ModelConfig, config: EngineConfig, stored: DtypeName, why: str) -> Precision:
    cache = _cache(config, stored)
    if config.quantization is None and config.dtype == "auto" and model.quantized:
        kinds = [kind for kind, _ in Counter(kind for _, kind in model.quantized).most_common()]
        kept = tuple(kind for kind in kinds if kind in KEPT)
        others = ", ".join(kind for kind in kinds if kind not in KEPT)
        reason = f"{' and '.join(kept)} weights, as the file" if kept else ""
        if others:
            reason += f"{'; ' if kept else ''}{stored} weights, worked out of {others}"
        return Precision(stored, "float32", cache, f"{reason}, computed in float32", kept=kept, padded=True)
    if config.quantization is None:
        reason = f"{stored} weights, {why}" + (", computed in float32" if stored != "float32" else "")
        return Precision(stored, "float32", cache, reason, padded=True)
    reason = f"{config.quantization} weights, as asked, computed in float32"
    if config.quantization == "int8-w8a8":
        reason = "int8 weights and activations, as asked"
    return Precision(stored, "float32", cache, reason, config.quantization, padded=True)


def _cache(config: EngineConfig, stored: DtypeName) -> CacheDtype:
    return stored if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
