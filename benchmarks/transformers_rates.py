"""How fast transformers' `generate` is: seconds a step at batch 1 and in a batch, as `engine_rates` prints them.

A step's time is that of a long answer less that of one of a single token, over the difference of their lengths.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import msgspec
import torch

from quire.benchmarks.engine_rates import Rates


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON object a round."""
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(prog="quire.benchmarks.transformers_rates", description="transformers' generate.")
    parser.add_argument("model", metavar="FOLDER")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    torch.manual_seed(0)

    def seconds(batch: int, tokens: int) -> float:
        prompts = torch.randint(300, model.config.vocab_size, (batch, options.input_len))
        begun = perf_counter()
        made = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        if made.shape[1] != options.input_len + tokens:
            raise RuntimeError(f"expected {tokens} new tokens, found {made.shape[1] - options.input_len}")
        return perf_counter() - begun

    more = options.output_len - 1
    seconds(1, 2)
    for _ in range(options.rounds):
        first, whole = seconds(1, 1), seconds(1, options.output_len)
        batch_first, batch_whole = seconds(options.batch, 1), seconds(options.batch, options.output_len)
        rates = Rates(
            prefill=options.input_len / first,
            decode=more / (whole - first),
            batch=options.batch,
            batch_decode=options.batch * more / (batch_whole - batch_first),
        )
        print(json.dumps(msgspec.to_builtins(rates)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
