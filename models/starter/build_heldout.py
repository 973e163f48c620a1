"""Write heldout.json: what training must never show, and the prompts that measure the model.

Run once, before training: `python -m quire.models.starter.build_heldout`.
"""

import json
from dataclasses import asdict
from random import Random
from typing import Any

from quire.models.starter.data import everyday, numbers, records, stories, tools, words
from quire.models.starter.data.lists import terms
from quire.models.starter.data.world import HELD_OUT_FILE, HeldOut, Message, World

SEED = 20_261_122
NAMES = terms(
    """Agnes Balthasar Bertram Beatrix Callum Caspian Celeste Dorothea Dorian Eamon Eloise Esteban Fabian Fatima Gareth
Genevieve Gideon Gwendolyn Harriet Hector Henrietta Ignatius Imogen Isolde Jacinta Jerome Joaquin Josephine Kasimir
Katrin Leopold Lorenzo Lucinda Magnus Marguerite Matilda Maximilian Mortimer Nathaniel Octavia Odessa Ophelia
Orlando Percival Philippa Quentin Rafael Raphaela Rosalind Rupert Saskia Seraphina Silvester Sigrid Thaddeus
Theodora Tristan Ulrich Ursula Valentina Vincent Violetta Wilhelm Winifred Xavier Yolanda Zachary Zelda Brunko
Telmira Osvani Kelpin Dravo Mirelda Jantis Polvek Suvira Gorlan Timbre Halvea Norvik Ulmira Wexley Zintar"""
)
CITIES = terms(
    """Aberdeen Adelaide Arezzo Avignon Baku Bergen Brisbane Cadiz Calgary Casablanca Cordoba Delft Dubrovnik Durban
Freiburg Granada Heidelberg Izmir Jaipur Kampala Kobe Limerick Lucerne Lusaka Malmo Marseille Nagoya Nantes Odense
Palermo Pisa Plymouth Ravenna Salamanca Sapporo Split Stuttgart Tampere Tbilisi Toledo Trieste Tromso Uppsala
Valparaiso Wroclaw Yerevan York Zadar Korvington Melbrook Tavistead Orlenburg"""
)
TOOL_NOUNS = terms(
    """tide vaccine satellite elevator mortgage passport vineyard telescope submarine podcast warehouse conference drone
license greenhouse locker recording shipment aquarium glacier tournament pharmacy"""
)
TOOL_ATTRIBUTES = terms(
    """altitude frequency deadline rank mileage expiry voltage editor currency severity depth manufacturer curator
nickname"""
)
WORDINGS = {
    "frames": [
        "What's the value of {x}?",
        "Please work out {x} for me.",
        "Would you compute {x}?",
        "I wonder what {x} is.",
        "hi, can you do {x}",
        "One more: {x}",
        "Please answer: {x}",
        "My question is {x}",
        "what number is {x}?",
        "Show me {x}.",
    ],
    "plus": ["{a} + {b}", "{a} plus {b}", "{b} on top of {a}", "adding {a} and {b}"],
    "minus": ["{a} - {b}", "{a} minus {b}", "{b} off {a}", "{a} reduced by {b}"],
    "add": [
        "What total do {a} and {b} give?",
        "Give me {a} and {b} summed up.",
        "Bring {a} and {b} together in one sum.",
        "If you put {b} on {a}, how much is it?",
        "to {a} add {b}",
        "Please sum {a} and {b} for me.",
        "I add {b} to {a}. Result?",
    ],
    "subtract": [
        "From {a}, take {b}.",
        "from {a} subtract {b}",
        "Deduct {b} from {a}.",
        "What stays when you take {b} from {a}?",
        "I take {b} from {a}. Result?",
        "How much is {a} if you take away {b}?",
        "Make {a} smaller by {b}.",
    ],
    "gain": [
        "{n} has {a} {t}, then finds {b} more. How many {t} does {n} have?|{n} has {c} {t}.",
        "{m} picked {a} {t} and {n} picked {b} {t}. How many {t} did they pick?|They picked {c} {t}.",
        "In a room are {a} {t}. Someone brings {b} more {t}. How many {t} are in the room?|There are {c} {t}.",
    ],
    "loss": [
        "{n} carries {a} {t} and drops {b}. How many {t} are left?|{c} {t} are left.",
        "There are {a} {t} on a shelf, and {n} buys {b} of them. How many {t} stay on the shelf?|{c} {t} stay.",
        "{n} bought {a} {t} and gave {b} to {m}. How many {t} does {n} still have?|{n} has {c} {t}.",
    ],
    "json": [
        "Please write the JSON for this: {line}",
        "JSON version of this line, please: {line}",
        "{line} I want that as a JSON object.",
        "Can you give me JSON for this line? {line}",
        "Change this into a JSON object: {line}",
        "turn into json: {line}",
        "Express this in JSON: {line}",
        "{line} In JSON, please.",
        "What is this as JSON? {line}",
        "Your task: make JSON of the line. {line}",
    ],
    "json_keys": [
        "Write JSON, keys {keys}, for this: {line}",
        "Please turn this into JSON having the keys {keys}: {line}",
        "{line} Give me that as JSON with {keys}.",
        "Take {keys} from this line and write JSON: {line}",
    ],
    "letters": [
        "How many {x}'s does {w} have?",
        "how often is {x} in {w}?",
        "Tell me how many times {x} is in the word {w}.",
        "How many of the letter {x} are in {w}?",
    ],
    "sort": [
        "Bring these words into alphabetical order: {l}",
        "Please sort these words: {l}",
        "Can you sort this list? {l}",
    ],
    "sort_numbers": [
        "Bring these numbers into order: {l}",
        "Please sort these numbers: {l}",
        "Can you sort this list? {l}",
    ],
    "counting": [
        "Could you count from {f} to {l}?",
        "Count up or down from {f} to {l}.",
        "numbers from {f} to {l} please",
    ],
    "capital": [
        "Which is the capital of {c}?",
        "What is the name of the capital of {c}?",
        "Please tell me the capital of {c}.",
        "I would like to know the capital of {c}.",
        "Hi, what's the capital of {c}?",
    ],
    "unknown": [
        "Who discovered {topic}?",
        "Can you tell me about {topic}?",
        "What is {big} divided by {big2}?",
        "Who was {n} {m}?",
        "What do you think about {topic}?",
        "Which {p} should I buy?",
        "What will the weather be in {y}?",
        "Write a long report on {topic}.",
        "Where is {n} right now?",
        "What is the capital of {inv}?",
    ],
    "lookup": [
        "I would like to know the {a} of the {n} {v}.",
        "Please find the {a} of the {n} {v}.",
        "{n} {v}: what is its {a}?",
        "Could you look up which {a} the {n} {v} has?",
        "Tell me, what {a} does the {n} {v} have?",
        "The {a} of {n} {v}, please.",
    ],
    "action": [
        "I would like you to {p} the {n} {v}.",
        "Time to {p} the {n} {v}.",
        "Make sure to {p} the {n} {v}.",
        "Can we {p} the {n} {v}?",
        "My wish: {p} the {n} {v}.",
    ],
    "story": [
        "Tell me a little story{x}.",
        "Please write a story{x}.",
        "Could you tell me a story{x}?",
        "I'd love a short story{x}.",
        "write me a story{x}",
        "A tale{x}, please.",
        "How about a story{x}?",
    ],
}
PERSONAL = [
    ("who are you?", "Quire"),
    ("What's your name, please?", "Quire"),
    ("Hello, who are you?", "Quire"),
    ("Please introduce yourself.", "Quire"),
    ("Are you a language model?", "Quire"),
    ("Who has made you?", "Quire"),
    ("Hi! What can you do?", "sto"),
    ("what are you able to do for me?", "sto"),
    ("Hello.", "help|do for you|Ask me"),
    ("Thank you so much!", "welcome|Glad"),
    ("hi there", "help|do for you|Ask me"),
    ("good morning to you", "Good morning"),
    ("What is the opposite of hot?", "cold"),
    ("Which day comes after Monday?", "Tuesday"),
    ("What month comes before June?", "May"),
    ("what sound does a dog make?", "woof"),
    ("What color is the sky?", "blue"),
    ("Goodbye!", "bye|Bye|See you"),
]


def definition() -> HeldOut:
    """The lists; the pairs are drawn from the seed."""
    rng = Random(SEED)
    pairs = sorted({(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(400)})
    return HeldOut(
        tuple(NAMES),
        tuple(CITIES),
        tuple(pairs),
        tuple(TOOL_NOUNS),
        tuple(TOOL_ATTRIBUTES),
        (),
        {family: tuple(lines) for family, lines in WORDINGS.items()},
    )


def prompt(family: str, messages: list[Message], expect: Any, **more: Any) -> dict[str, Any]:
    return {"family": family, "messages": messages, "expect": expect, **more}


def tool_prompt(world: World) -> dict[str, Any]:
    """One request for one of two to four tools; the tool's message is kept for the second step."""
    kits = tools.toolbox(world, world.between(2, 4))
    messages = tools.exchange(world, kits)
    called = messages[1]["tool_calls"][0]["function"]
    return prompt(
        "tools",
        messages[:1],
        {"call": called, "result": messages[2]["content"], "answer": messages[3]["content"]},
        tools=[kit.tool for kit in kits],
    )


def story_prompt(world: World) -> dict[str, Any]:
    """A request with the words that the story must keep."""
    players = stories.cast(world)
    request = stories.with_articles(players.request)
    keep = [players.slots[slot] for slot in ("h", "f", "k", "fk", "o") if f" {players.slots[slot]}" in request]
    return prompt("stories", [{"role": "user", "content": request}], {"keep": list(dict.fromkeys(keep))})


def prompts(world: World) -> list[dict[str, Any]]:
    """All fixed prompts, family by family."""
    made: list[dict[str, Any]] = []
    for _ in range(400):
        messages = numbers.arithmetic(world)
        made.append(prompt("arithmetic", messages[:1], int(messages[1]["content"].split(" = ")[1].split(".")[0])))
    for _ in range(300):
        messages = records.record(world)
        made.append(prompt("json", messages[:1], json.loads(messages[1]["content"])))
    made += [tool_prompt(world) for _ in range(300)]
    for family, count in (
        (everyday.capital, 60),
        (everyday.sorting, 60),
        (everyday.letters, 60),
        (numbers.counting, 30),
    ):
        for _ in range(count):
            messages = family(world)
            made.append(prompt(family.__name__, messages[:1], messages[1]["content"]))
    made += [prompt("personal", [{"role": "user", "content": ask}], answer) for ask, answer in PERSONAL]
    made += [prompt("unknown", everyday.unknown(world)[:1], "polite") for _ in range(60)]
    made += [story_prompt(world) for _ in range(100)]
    return made


def main() -> None:
    lists = definition()
    assert not set(lists.names) & set(words.FIRST_NAMES)
    assert not set(lists.cities) & {*words.CITIES, *words.CAPITALS.values()}
    assert not set(lists.tool_nouns) & {*words.TOOL_NOUNS, *words.OBJECTS}
    assert not set(lists.tool_attributes) & set(words.TOOL_ATTRIBUTES)
    world = World(Random(SEED + 1), lists, testing=True)
    prompt_lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in prompts(world))
    HELD_OUT_FILE.write_text(
        f'{{"lists": {json.dumps(asdict(lists), ensure_ascii=False)},\n"prompts": [\n{prompt_lines}\n]}}\n'
    )


if __name__ == "__main__":
    main()
