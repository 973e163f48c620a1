"""Train the byte-level BPE tokenizer on a sample of the generated text.

Digits stand alone. Before a capitalised word, a digit or a quote the space is a token of its own, so that a name has
the same tokens in a sentence as in a JSON string: copying is then copying.
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from quire.models.starter.data.dialogue import dialogue, training_world
from quire.models.starter.rendering import FOLDER, render

VOCAB_SIZE = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN_ADDED = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
WORDS = (
    r"\p{N}| ?[\p{Ll}\p{Lo}\p{M}]+|\p{Lu}[\p{L}\p{M}]*|[^\S\r\n](?=[\p{Lu}\p{N}\"])| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"
)


def untrained() -> Tokenizer:
    """The tokenizer with its rules and no merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def main(dialogues: int = 12_000, seed: int = 7) -> None:
    world = training_world(seed)
    texts = []
    for _ in range(dialogues):
        sample = dialogue(world)
        text = render(sample.messages, sample.tools)
        for token in (*SPECIAL, *PLAIN_ADDED):
            text = text.replace(token, "\n")
        texts.append(text)
    tokenizer = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(PLAIN_ADDED),
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in PLAIN_ADDED])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
