"""Measure the saved folder on the held-out prompts: `python -m quire.models.starter.evaluate`.

Prints a Markdown table: each family with greedy decoding and with the folder's default sampling.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer

from quire.models.starter.data import words
from quire.models.starter.data.everyday import REFUSALS
from quire.models.starter.data.world import HELD_OUT_FILE
from quire.models.starter.decoding import Sampling, decode
from quire.models.starter.model import StarterModel, load_model
from quire.models.starter.rendering import FOLDER, render

Prompt: TypeAlias = dict[str, Any]
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
POLITE = re.compile("|".join(re.escape(refusal.split("{")[0].split(".")[0][:20]) for refusal in REFUSALS))
NOT_NAMES = re.compile(r"[A-Z][a-z]+")


def numbers_agree(text: str, expect: int) -> bool:
    """The result after the equals sign and the last number of the answer are the one expected."""
    after = re.search(r"= (-?\d+)", text)
    last = re.findall(r"-?\d+", text)
    return after is not None and int(after[1]) == expect and abs(int(last[-1])) == abs(expect)


def json_agrees(text: str, expect: Any) -> bool:
    try:
        return bool(json.loads(text) == expect)
    except json.JSONDecodeError:
        return False


def call_agrees(text: str, expect: Any) -> bool:
    """Exactly one call, of the right tool, with the right arguments."""
    found = CALL.fullmatch(text)
    return found is not None and json_agrees(
        found[1], {"name": expect["call"]["name"], "arguments": expect["call"]["arguments"]}
    )


def keeps(text: str, expect: Any) -> bool:
    """The story names all that was asked for, ends, and is neither a line nor a book."""
    return (
        all(word in text for word in expect["keep"]) and 25 <= len(text.split()) <= 260 and text.rstrip()[-1:] in '.!?"'
    )


def same(text: str, expect: Any) -> bool:
    return bool(text == expect)


SCORES: dict[str, Callable[[str, Any], bool]] = {
    "arithmetic": numbers_agree,
    "json": json_agrees,
    "tool call": call_agrees,
    "tool answer": lambda text, expect: text == expect["answer"],
    "personal": lambda text, expect: re.search(expect, text) is not None,
    "unknown": lambda text, _: POLITE.match(text) is not None,
    "stories": keeps,
}

LIMITS = {"arithmetic": 60, "json": 140, "tool call": 140, "stories": 400}
LIMIT = 200


class Examination:
    """One model under one way of sampling; remembers what went wrong."""

    def __init__(self, model: StarterModel, tokenizer: Tokenizer, sampling: Sampling) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.wrong: dict[str, list[tuple[Any, str]]] = defaultdict(list)
        self.texts: dict[str, list[str]] = defaultdict(list)

    def ask(self, family: str, prompts: list[Prompt], rendered: list[str]) -> None:
        """Decode and score one family."""
        score = SCORES.get(family, same)
        texts = decode(self.model, self.tokenizer, rendered, self.sampling, LIMITS.get(family, LIMIT))
        for prompt, text in zip(prompts, texts, strict=True):
            good = score(text, prompt["expect"])
            self.asked[family] += 1
            self.right[family] += good
            self.texts[family].append(text)
            if not good:
                self.wrong[family].append((prompt["messages"][-1]["content"], text))

    def run(self, prompts: list[Prompt]) -> None:
        by_family: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in prompts:
            by_family[prompt["family"]].append(prompt)
        for family, some in by_family.items():
            asked = [render(prompt["messages"], prompt.get("tools"), True) for prompt in some]
            if family != "tools":
                self.ask(family, some, asked)
                continue
            self.ask("tool call", some, asked)
            called = [
                [
                    *prompt["messages"],
                    {"role": "assistant", "content": None, "tool_calls": [{"function": prompt["expect"]["call"]}]},
                    {"role": "tool", "content": prompt["expect"]["result"]},
                ]
                for prompt in some
            ]
            self.ask(
                "tool answer",
                some,
                [render(messages, prompt["tools"], True) for messages, prompt in zip(called, some, strict=True)],
            )


def strangers(texts: list[str], prompts: list[Prompt]) -> int:
    """Stories in which a held-out name appears that the request did not give."""
    names = set(json.loads(HELD_OUT_FILE.read_text())["lists"]["names"])
    return sum(
        bool(names & set(NOT_NAMES.findall(text)) - set(prompt["expect"]["keep"]))
        for text, prompt in zip(texts, prompts, strict=True)
    )


def story_variety(model: StarterModel, tokenizer: Tokenizer, count: int = 96) -> str:
    """How different stories for one request are at temperature 0.8: whole texts, first sentences, shared 4-grams."""
    request = render([{"role": "user", "content": "Tell me a story."}], None, True)
    texts = decode(model, tokenizer, [request] * count, Sampling(0.8, 1.0, 5))
    grams = [set(zip(*(text.split()[shift:] for shift in range(4)), strict=False)) for text in texts]
    pairs = [(a, b) for index, a in enumerate(grams) for b in grams[:index] if a and b]
    overlap = sum(len(a & b) / min(len(a), len(b)) for a, b in pairs) / len(pairs)
    heroes = {next((name for name in words.FIRST_NAMES if re.search(rf"\b{name}\b", text)), "") for text in texts}
    return (
        f"Of {count} stories for the same request at temperature 0.8, {len(set(texts))} are different, with "
        f"{len({text.split('.')[0] for text in texts})} different first sentences and {len(heroes)} heroes; "
        f"two of them share "
        f"{overlap:.0%} of their four-word sequences on average."
    )


def selected(per_family: int) -> list[Prompt]:
    """The held-out prompts, at most so many of each family."""
    seen: Counter[str] = Counter()
    prompts: list[Prompt] = []
    for prompt in json.loads(HELD_OUT_FILE.read_text())["prompts"]:
        seen[prompt["family"]] += 1
        if seen[prompt["family"]] <= per_family:
            prompts.append(prompt)
    return prompts


def table(results: dict[str, Examination]) -> str:
    """The scores as Markdown, one row a family, one column a way of sampling."""
    lines = ["| family | prompts | " + " | ".join(results) + " |", "|---|---|" + "---|" * len(results)]
    for family, asked in next(iter(results.values())).asked.items():
        shares = " | ".join(f"{result.right[family] / asked:.1%}" for result in results.values())
        lines.append(f"| {family} | {asked} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--per-family", type=int, default=1000, help="at most so many prompts of each family")
    parser.add_argument(
        "--ways", nargs="+", choices=["greedy", "default", "variety"], default=["greedy", "default", "variety"]
    )
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers of each family")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.folder), Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    prompts = selected(arguments.per_family)
    defaults = json.loads((arguments.folder / "generation_config.json").read_text())
    samplings = {"greedy": Sampling(), "default": Sampling(defaults["temperature"], defaults["top_p"], 11)}
    results = {way: Examination(model, tokenizer, samplings[way]) for way in arguments.ways if way in samplings}
    for result in results.values():
        result.run(prompts)
    if results:
        print(table(results))
    tales = [prompt for prompt in prompts if prompt["family"] == "stories"]
    for way, result in results.items():
        print(f"\nStories with a stranger's name ({way}): {strangers(result.texts['stories'], tales)} of {len(tales)}.")
        for family, wrong in result.wrong.items():
            for question, text in wrong[: arguments.show]:
                print(f"[{family}] {question!r} -> {text!r}")
    if "variety" in arguments.ways:
        print(story_variety(model, tokenizer))


if __name__ == "__main__":
    main()
