"""Sampling on the device: four launches for the tokens of all rows, two for their log probabilities."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from quire.kernels.fused import NOT_FINITE, NOTHING_LEFT, LogprobTensors, SamplingTensors
from quire.kernels.triton.sampling_kernels import (
    draw_kernel,
    logprob_chunk_kernel,
    logprob_kernel,
    pick_kernel,
    scan_kernel,
    threshold_kernel,
)

CHUNK = 4096
"""Columns of a program; the order of equal candidates does not depend on it."""
BLOCK = 1024
"""Columns that a search looks at together."""


def sample(scores: Tensor, sampling: SamplingTensors) -> Tensor:
    """See `FusedKernels.sample`."""
    scores = _rows(scores)
    rows, columns = scores.shape
    chunks = triton.cdiv(columns, CHUNK)
    tokens = _empty(scores, (rows,), torch.int64)
    if not rows:
        return tokens
    chunk_scores, largest = _empty(scores, (rows, chunks), torch.float32), _empty(scores, (rows,), torch.float32)
    chunk_numbers, faults = _empty(scores, (rows, chunks), torch.int32), _empty(scores, (rows,), torch.int32)
    thresholds = _empty(scores, (rows,), torch.int64)
    chunk, block = min(CHUNK, triton.next_power_of_2(columns)), min(BLOCK, triton.next_power_of_2(columns))
    masked = sampling.masked.view(torch.uint8)
    padded_chunks, stride = triton.next_power_of_2(chunks), scores.stride(0)
    scan_kernel[(rows, chunks)](scores, masked, chunk_scores, chunk_numbers, stride, columns, chunk, num_warps=8)
    threshold_kernel[(rows,)](
        scores,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        chunk_scores,
        chunk_numbers,
        largest,
        faults,
        thresholds,
        stride,
        COLUMNS=columns,
        CHUNKS=chunks,
        PADDED_CHUNKS=padded_chunks,
        BLOCK=block,
        num_warps=16,
    )
    draw_kernel[(rows, chunks)](
        scores,
        sampling.temperature,
        sampling.min_p,
        sampling.keys,
        sampling.positions,
        largest,
        thresholds,
        chunk_scores,
        chunk_numbers,
        stride,
        COLUMNS=columns,
        CHUNK=chunk,
        num_warps=8,
    )
    pick_kernel[(rows,)](
        chunk_scores,
        chunk_numbers,
        largest,
        faults,
        tokens,
        CHUNKS=chunks,
        PADDED_CHUNKS=padded_chunks,
        NOT_FINITE=NOT_FINITE,
        NOTHING_LEFT=NOTHING_LEFT,
        num_warps=1,
    )
    return tokens


def logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
    """See `FusedKernels.logprobs`."""
    logits = _rows(logits)
    rows, columns = logits.shape
    chunks = triton.cdiv(columns, CHUNK)
    found = LogprobTensors(
        _empty(logits, (rows,), torch.float32),
        _empty(logits, (rows,), torch.int32),
        _empty(logits, (rows, num_top), torch.float32),
        _empty(logits, (rows, num_top), torch.int32),
    )
    if not rows:
        return found
    largest, sums = (_empty(logits, (rows, chunks), torch.float32) for _ in range(2))
    better = _empty(logits, (rows, chunks), torch.int32)
    top_values = _empty(logits, (rows, chunks, num_top), torch.float32)
    top_ids = _empty(logits, (rows, chunks, num_top), torch.int32)
    parts = (largest, sums, better, top_values, top_ids)
    logprob_chunk_kernel[(rows, chunks)](
        logits,
        token_ids,
        *parts,
        logits.stride(0),
        COLUMNS=columns,
        CHUNK=min(CHUNK, triton.next_power_of_2(columns)),
        TOP=num_top,
        num_warps=8,
    )
    logprob_kernel[(rows,)](
        logits,
        token_ids,
        *parts,
        found.values,
        found.ranks,
        found.top_values,
        found.top_ids,
        logits.stride(0),
        CHUNKS=chunks,
        PADDED_CHUNKS=triton.next_power_of_2(chunks),
        TOP=num_top,
        CANDIDATES=triton.next_power_of_2(max(1, chunks * num_top)),
        num_warps=4,
    )
    return found


def _rows(logits: Tensor) -> Tensor:
    """float32 logits of which each row has no gaps."""
    if logits.dtype != torch.float32:
        raise TypeError(f"logits are sampled in float32, not {logits.dtype}")
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)
