"""Each family and each rope type against transformers, the oracle; and checkpoints that can tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import END_OF_TEXT, END_OF_TURN, FAMILIES, PROMPT, tiny_checkpoint
from support.greedy import Driver, load_tiny
from support.kernel_cases import cut_plan
from torch import Tensor

from quire.engine.models.architectures import read_model_config
from quire.engine.models.config import CacheSpec
from quire.engine.models.decoder import Decoder

LONG_PROMPT = list(PROMPT) * 8
NUM_TOKENS = 64
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn_mscale": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
        "original_max_position_embeddings": 64,
    },
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    directory = tmp_path_factory.mktemp("checkpoints")
    return lambda family, **overrides: tiny_checkpoint(directory, family, **overrides)


@pytest.fixture(scope="module")
def oracle() -> Callable[..., Any]:
    """transformers' own model of a folder."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    def load(folder: Path, **options: Any) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)

    return load


def oracle_logits(model: Any, token_ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


def oracle_tokens(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **options)[
        0, len(prompt) :
    ].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_can_tell(family: str, folder_of: Callable[..., Path]) -> None:
    """Without this the comparisons below could not fail."""
    decoder = load_tiny(folder_of(family))
    tokens, logits = Driver(decoder).generate(PROMPT, NUM_TOKENS)
    best = logits.topk(2).values
    assert len(set(tokens)) >= NUM_TOKENS // 2
    assert (best[:, 0] - best[:, 1]).min().item() > 1e-3
    assert not {END_OF_TEXT, END_OF_TURN} & set(tokens)
    other, _ = Driver(decoder).generate((PROMPT[0] + 1, *PROMPT[1:]), NUM_TOKENS)
    assert other[0] != tokens[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_the_oracle(family: str, folder_of: Callable[..., Path], oracle: Callable[..., Any]) -> None:
    folder = folder_of(family)
    model, decoder = oracle(folder), load_tiny(folder)
    found = Driver(decoder).feed(LONG_PROMPT)
    torch.testing.assert_close(found, oracle_logits(model, LONG_PROMPT), rtol=1e-4, atol=1e-4)
    assert Driver(decoder).generate(PROMPT, NUM_TOKENS)[0] == oracle_tokens(model, list(PROMPT), NUM_TOKENS)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"rope-{name}": ("llama", {"rope_scaling": rope}) for name, rope in ROPES.items()},
    "rope-parameters": ("llama", {"rope_theta": None, "rope_parameters": ROPES["llama3"] | {"rope_theta": 5000.0}}),
    "rope-old-spelling": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
    "llama-head-dim": ("llama", {"head_dim": 24}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-no-kv-heads-named": ("llama", {"num_key_value_heads": 4}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "mistral-window-of-64": ("mistral", {"sliding_window": 64}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 96, "activation_function": "gelu"}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_the_oracle(name: str, folder_of: Callable[..., Path], oracle: Callable[..., Any]) -> None:
    family, overrides = VARIANTS[name]
    folder = folder_of(family, **overrides)
    found = Driver(load_tiny(folder)).feed(LONG_PROMPT)
    torch.testing.assert_close(found, oracle_logits(oracle(folder), LONG_PROMPT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "yarn", "llama3", "longrope"])
def test_rope_matters(name: str, folder_of: Callable[..., Path]) -> None:
    """The comparison above could tell a rope type from plain rope."""
    plain = Driver(load_tiny(folder_of("llama"))).feed(LONG_PROMPT)
    scaled = Driver(load_tiny(folder_of("llama", rope_scaling=ROPES[name]))).feed(LONG_PROMPT)
    assert (plain - scaled).abs().max().item() > 0.1


def test_smollm3_leaves_rope_out_of_some_layers(folder_of: Callable[..., Path], oracle: Callable[..., Any]) -> None:
    overrides = {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "no_rope_layers": [1, 0, 1]}
    folder = folder_of("smollm", **overrides, pad_token_id=0)
    found = Driver(load_tiny(folder)).feed(LONG_PROMPT)
    torch.testing.assert_close(found, oracle_logits(oracle(folder), LONG_PROMPT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_bfloat16_is_as_good_as_the_oracle(
    family: str, folder_of: Callable[..., Path], oracle: Callable[..., Any]
) -> None:
    """Error against float32 at most twice that of PyTorch in bfloat16."""
    folder = folder_of(family, dtype="bfloat16")
    exact = oracle_logits(oracle(folder, dtype=torch.float32), LONG_PROMPT)
    theirs = oracle_logits(oracle(folder, dtype=torch.bfloat16), LONG_PROMPT)
    ours = Driver(load_tiny(folder, dtype=torch.bfloat16), dtype=torch.bfloat16).feed(LONG_PROMPT)
    assert (ours - exact).abs().mean() <= 2 * (theirs - exact).abs().mean()
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gpt2"])
def test_kernels_agree_and_chunks_change_nothing(family: str, folder_of: Callable[..., Path]) -> None:
    folder = folder_of(family)
    decoder = load_tiny(folder)
    tokens, logits = Driver(decoder).generate(PROMPT, 40)
    for kernels, block_size, chunk in (("cpu", 1, 5), ("cpu", 128, 1), ("reference", 16, 7)):
        driver = Driver(
            decoder if kernels == "cpu" else load_tiny(folder, kernels),
            block_size=block_size,
            num_blocks=-(-64 // block_size) + 2,
            seed=3,
        )
        found, rows = driver.generate(PROMPT, 40, chunk=chunk)
        assert found == tokens
        tolerance = 1e-5 if kernels == "cpu" else 1e-4
        torch.testing.assert_close(rows.log_softmax(-1), logits.log_softmax(-1), rtol=tolerance, atol=tolerance)


def test_neighbours_change_nothing(folder_of: Callable[..., Path]) -> None:
    """Three sequences of different lengths in one step, against each alone."""
    decoder = load_tiny(folder_of("qwen3"))
    prompts = [list(PROMPT), LONG_PROMPT[5:75], [7]]
    alone = torch.cat([Driver(decoder).feed(prompt) for prompt in prompts])
    with torch.inference_mode():
        tables = [[9, 2, 11, 4, 7], [0, 5, 1, 3, 10], [8, 6, 12, 13, 14]]
        kv = [tuple(torch.full((15, 2, 16, 32), float("nan")) for _ in "kv") for _ in decoder.blocks]
        plan = cut_plan([(0, len(prompt)) for prompt in prompts], tables, 16)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
        token_ids = torch.tensor([token for prompt in prompts for token in prompt])
        together = decoder.forward(token_ids, positions, [plan] * len(kv), kv, lambda: None)
        found = decoder.logits(together)
    torch.testing.assert_close(found.log_softmax(-1), alone.log_softmax(-1), rtol=1e-5, atol=1e-5)


def test_wrong_block_changes_the_answer(folder_of: Callable[..., Path]) -> None:
    """A planted wrong block id must show: the block table points the fourth block at the first."""
    decoder = load_tiny(folder_of("llama"))
    right = Driver(decoder)
    right.feed(LONG_PROMPT)
    wrong = Driver(decoder)
    wrong.feed(LONG_PROMPT)
    wrong.table[3] = wrong.table[0]
    assert (right.feed([5]) - wrong.feed([5])).abs().max().item() > 1e-2


def test_every_layer_is_reported_and_cached(folder_of: Callable[..., Path]) -> None:
    decoder = load_tiny(folder_of("mistral"))
    assert decoder.cache_spec() == (CacheSpec(2, 16, 24),) * 3
    driver, layers = Driver(decoder), []
    with torch.inference_mode():
        plan = cut_plan([(0, 3)], [driver.table], 16)
        ids = torch.tensor([5, 6, 7])
        hidden = decoder.forward(ids, torch.arange(3), [plan] * 3, driver.kv, lambda: layers.append(None))
    assert len(layers) == 3
    assert hidden.shape == (3, 64)
    assert decoder.logits(hidden[-1:]).shape == (1, decoder.config.vocab_size)


def test_longest_sequence_decides_for_longrope(folder_of: Callable[..., Path]) -> None:
    """Served up to the original context the short factors count, beyond it the long ones."""
    from quire.engine.models.rope import inverse_frequencies

    config = read_model_config(folder_of("llama", rope_scaling=ROPES["longrope"]), "tiny")
    rope = config.layers[0].attention.rope
    assert rope is not None
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(inverse_frequencies(rope, 64), plain / torch.tensor(rope.short_factor))
    torch.testing.assert_close(inverse_frequencies(rope, 65), plain / torch.tensor(rope.long_factor))


def test_starter_loads() -> None:
    """The model that ships loads through the same path."""
    from quire.engine.model_folder import STARTER

    decoder: Decoder = load_tiny(STARTER)
    logits = Driver(decoder).feed([1, 2, 3])
    assert logits.shape == (3, decoder.config.vocab_size)
    assert torch.isfinite(logits).all()
