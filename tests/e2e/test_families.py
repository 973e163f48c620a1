"""Greedy tokens over HTTP equal transformers' own `generate`, for a tiny random checkpoint of each family."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from support.checkpoints import FAMILIES, tiny_checkpoint
from support.server import ServerProcess

PROMPT = "The quick brown fox jumps over the lazy dog and"
NUM_TOKENS = 48


def oracle(folder: Path) -> tuple[list[int], list[int]]:
    """Prompt ids and the ids that transformers generates from them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False, attention_mask=torch.ones_like(ids))
    return ids[0].tolist(), out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, family)
    prompt_ids, expected = oracle(folder)
    body = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    body |= {"return_token_ids": True, "logprobs": 1}
    with ServerProcess(str(folder), "--served-model-name", family, "--dtype", "float32") as server:
        answer = httpx.post(server.url + "/v1/completions", json={"model": family, **body}, timeout=60).json()
        by_ids = httpx.post(
            server.url + "/v1/completions", json={"model": family, **body, "prompt": prompt_ids}, timeout=60
        ).json()
    choice = answer["choices"][0]
    assert choice["prompt_token_ids"] == prompt_ids
    assert choice["token_ids"] == expected
    assert by_ids["choices"][0]["token_ids"] == expected
