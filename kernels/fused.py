"""What a backend on a GPU offers beside `Kernels`: a decoder layer in ten launches, and sampling without the host.

Every operation can be recorded into a CUDA graph: no result visits the host, and no shape depends on data. A plan
whose sequences compute one token each may be padded to a size that graphs are recorded for: a padding row has
`seq_lens` 0 and slot -1, its `block_tables` are not read, nothing is written to the cache for it, and its rows of the
outputs are finite or zero. Such a plan's `query_start_list` is 0, 1, .. S, and its `seq_lens_list` is not read.

`quire.kernels.fused_reference` is the specification, in plain PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from quire.kernels.interface import Activation, AttentionPlan, Kernels

NOT_FINITE, NOTHING_LEFT = -1, -2
"""What `sample` answers for a row whose logits are not finite, and for one with every column masked."""


@dataclass(frozen=True, eq=False)
class SamplingTensors:
    """How each of R rows samples; contiguous tensors on the backend's device, which may be
    parts of longer ones.

    `temperature` float32 [R], 0: the first of the largest scores. `top_k` int32 [R], 0: all. `top_p`, `min_p` float32
    [R], 1 and 0: all. `keys` int64 [R]: `quire.kernels.noise.row_key` of seed and choice. `positions` int64 [R]: the
    absolute position that the sampled token will have. `masked` bool [R]: scores of -inf are columns that were masked;
    elsewhere they are a fault of the model.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    keys: Tensor
    positions: Tensor
    masked: Tensor


@dataclass(frozen=True, eq=False)
class LogprobTensors:
    """Log probabilities of R rows: `values` float32 [R] and `ranks` int32 [R] of the rows' own tokens (1 is the most
    likely, equals share the better rank), and the most likely: `top_values` float32 [R, K], `top_ids` int32 [R, K],
    best first, equals in the order of their ids."""

    values: Tensor
    ranks: Tensor
    top_values: Tensor
    top_ids: Tensor


class FusedKernels(Kernels, Protocol):
    """The operations of one backend on a GPU. T = query rows of the step; every output is a new tensor."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum), sum) with sum = x + residual [T, H], rounded to their dtype before it is normed."""

    def rope_and_write_kv(
        self,
        qkv: Tensor,
        positions: Tensor,
        cos_sin: Tensor | None,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: AttentionPlan,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        """Norm and rotate queries and keys, write keys and values to their slots; the queries [T, heads, D].

        qkv [T, heads + 2 * kv_heads, D], side by side as one matmul gives them; positions int64 [T]; `cos_sin` as in
        `rope`, None: nothing rotates; `norm` [heads + kv_heads, D] as in `rope`. Caches as in `write_kv`; in
        float8_e4m3fn they hold the value divided by its head's scale, kv_scales float32 [2, kv_heads] (of keys, of
        values). A slot of -1 is not written.
        """

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
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        """As in `Kernels`; `kv_scales` as in `rope_and_write_kv`."""

    def experts(
        self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, kind: Activation
    ) -> Tensor:
        """Sum over k of expert_weights[t, k] * ffn of expert expert_ids[t, k] (x[t]), added in the order of k.

        x [T, H]; expert_ids int32 or int64 [T, K], expert_weights float32 [T, K]; gate_up [E, 2 * I, H], down
        [E, H, I]; an expert computes down(act(gate(x)) * up(x)). -> [T, H].
        """

    def sample(self, scores: Tensor, parameters: SamplingTensors) -> Tensor:
        """A token for each row of scores (float32 [R, V], adjusted by penalties and masks), or NOT_FINITE,
        NOTHING_LEFT: int64 [R]. Means what `quire.engine.sampler` says in its steps 4 to 6."""

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
        """Of each row of logits (float32 [R, V]): its token's (int64 [R]), and the `num_top` most likely (from 0 on).

        A token below 0 gets the values of token 0.
        """
