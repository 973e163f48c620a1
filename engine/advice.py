"""Which flag to change, in a sentence. Torch-free, pure."""

from __future__ import annotations

from dataclasses import replace

from quire.engine.plan import CachePlan, Footprint, gib

FEW = 8
"""Sequences at once below which a server mostly makes people wait for each other."""
SPARE = 0.9
"""Of the memory after the weights, what an advice dares to give to the cache."""


def advise(footprint: Footprint, plan: CachePlan, available_bytes: int, context: int) -> str:
    """What to change for sequences of `context` tokens; `available_bytes` is before anything is loaded."""
    if plan.notes:
        return plan.notes[0]
    limit = footprint.resolved.max_num_seqs
    fitting = int(plan.concurrency(context))
    if fitting >= 2 * limit:
        return (
            f"nothing to change; --max-num-seqs {limit} bounds the batch, "
            f"and the cache has room for {fitting} sequences of {context} tokens"
        )
    wanted = min(limit, FEW)
    if fitting >= wanted:
        return f"nothing to change: {min(fitting, limit)} sequences of {context} tokens run at once"
    problem = f"only {fitting} sequence{'s' * (fitting != 1)} of {context} tokens fit{'s' * (fitting == 1)} at once"
    blocks = wanted * plan.blocks_held(context) + plan.has_null_block
    rest = int(SPARE * (available_bytes - footprint.weights_bytes - footprint.tables_bytes))
    if blocks * footprint.block_bytes <= rest:
        in_bytes = plan.flag == "--kv-cache-memory-bytes"
        amount = f"{-(-blocks * footprint.block_bytes >> 20)}MiB" if in_bytes else f"{blocks}"
        return f"{problem}; {plan.flag} {amount} holds {wanted}"
    tokens = replace(plan, num_blocks=rest // footprint.block_bytes).num_tokens // wanted
    fix = f"--max-model-len {tokens} makes room for {wanted} shorter ones"
    if footprint.precision.cache == "float32":
        fix += ", --kv-cache-dtype bfloat16 for twice as many tokens"
    return f"{problem}, and there is no memory for {wanted} ({gib(blocks * footprint.block_bytes)}); {fix}"
