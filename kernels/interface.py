"""What a backend offers: tensors in, tensors out. It knows no sequence, no scheduler, no model.

`reference` (plain PyTorch, float32, written to be read) is the specification; every other backend is tested against it
by one parametrized test. A backend is chosen once (`quire.kernels.select`) and handed to the modules by constructor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Where each query token's keys and values lie; built once a step, read once a layer.

    `query_start_loc` int32 [S + 1]: sequence s owns query rows query_start_loc[s] .. query_start_loc[s + 1] - 1.
    `seq_lens` int32 [S]: tokens of the sequence including this step's; its last query row is at position seq_len - 1.
    `block_tables` int32 [S, max_blocks]: entries beyond ceil(seq_len / block_size) are never read. Entries behind the
    window of a sequence's first query row may name block 0: it holds zeros then, and nobody writes it.
    `slot_mapping` int64 [T]: slot (block id * block_size + offset) that each query row's key and value go to.
    The `*_list` twins hold the same values for backends that loop on the host.
    `derived` is the backend's: what it has built from this plan for the first layer that needed it.
    Layers with block tables of their own have a plan of their own; a step has few.
    """

    query_start_loc: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    query_start_list: tuple[int, ...]
    seq_lens_list: tuple[int, ...]
    derived: dict[type, Any] = field(default_factory=dict, init=False, repr=False)


class Packed(Protocol):
    """A linear layer's weights as a backend keeps them."""

    @property
    def nbytes(self) -> int:
        """Bytes that they take, scales and bias included."""


@runtime_checkable
class PacksCodes(Protocol):
    """A backend that multiplies by weights as a GGUF file has them."""

    def pack_codes(self, kind: str, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Packed:
        """As `Kernels.pack`: kind q8_0 or q4_0 (codes -8 .. 7), codes int8 [out, in], scales float32 [out, in / 32].

        A weight is its code times its group's scale, which is a float16.
        """


class Kernels(Protocol):
    """The operations of one backend on one device. T = query rows of the step; every output is a new tensor."""

    name: str
    device: torch.device

    def set_threads(self, threads: int) -> None:
        """How many threads the operations use from now on; no result depends on it."""

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        """What activations, norms and biases are in where the matrices are in `weights`."""

    def pack(self, weight: Tensor, bias: Tensor | None, *, precise: bool = False) -> Any:
        """Bring a linear layer's weight [out, in] (and bias [out]) into the form that `linear` reads; once, at load.

        What it returns is a `Packed`. `precise`: errors in this matrix are seen directly (embedding and head), so
        a backend that stores few bits a weight may give it more.
        """

    def linear(self, x: Tensor, packed: Any) -> Tensor:
        """x [T, in] -> [T, out], in x's dtype. A row of the result depends on that row of x alone."""

    def embedding(self, token_ids: Tensor, packed: Any) -> Tensor:
        """Rows token_ids int64 [T] of a packed weight [out, in] -> [T, in]: a tied LM head is kept only once."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [..., H] / sqrt(mean(x^2) + eps) * weight; statistics in float32 (Zhang & Sennrich, 2019).

        weight [H], or [heads, H] where the heads of x [T, heads, H] have their own.
        """

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension; statistics in float32."""

    def rope(
        self, x: Tensor, positions: Tensor, cos_sin: Tensor, *, norm: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        """Rotate x [T, heads, D] by its positions int64 [T] (Su et al., 2021; halves, not pairs, as Hugging Face does).

        cos_sin float32 [max_positions, 2, R // 2]: cosines then sines; only the first R <= D features rotate. With
        `norm` [heads, D], `rms_norm(x, norm, eps)` is rotated.
        """

    def write_kv(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan) -> None:
        """Put key, value [T, kv_heads, D] into the caches [blocks, kv_heads, block_size, D] at `slot_mapping`."""

    def paged_attention(
        self,
        query: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of query [T, heads, D] over the blocks of its own sequence -> [T, heads, D].

        Query head h reads kv head h // (heads / kv_heads). window W: position i sees i - W + 1 .. i. softcap c: scores
        become c * tanh(score / c). sinks [heads]: one extra logit a head that takes weight and gives nothing. Slots
        outside the block table may hold NaN and must not matter. (Kwon et al., 2023, for the paging.)
        """

    def gated_activation(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        """act(gate) * up, elementwise (Shazeer, 2020)."""

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """act(x), elementwise. `gelu_tanh` is GPT-2's gelu_new."""

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        """For each (source, target) of pairs int64 [N, 2] copy the whole block in both caches."""
