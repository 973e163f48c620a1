"""Whole dialogues: which families follow each other, under which system prompt, with which tools."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from quire.models.starter.data import common_tools, everyday, numbers, records, stories, tools
from quire.models.starter.data.world import Message, Tool, World, assistant, held_out, user

Family: TypeAlias = Callable[[World], list[Message]]


@dataclass(frozen=True)
class Dialogue:
    """What the chat template renders."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


MIXTURE: list[tuple[Family, float]] = [
    (numbers.arithmetic, 0.25),
    (numbers.multiplication, 0.01),
    (numbers.counting, 0.04),
    (records.record, 0.26),
    (stories.story, 0.065),
    (everyday.fixed, 0.06),
    (everyday.capital, 0.03),
    (everyday.letters, 0.09),
    (everyday.sorting, 0.08),
    (everyday.lists, 0.025),
    (everyday.knowledge, 0.045),
    (everyday.unknown, 0.07),
    (everyday.remembering, 0.02),
]
DRILLS: list[tuple[Family, float]] = [
    (numbers.arithmetic, 0.45),
    (everyday.letters, 0.25),
    (everyday.sorting, 0.22),
    (numbers.counting, 0.08),
]
FAMILIES, WEIGHTS = [family for family, _ in MIXTURE], [weight for _, weight in MIXTURE]
ALONGSIDE_TOOLS = [
    everyday.fixed,
    everyday.capital,
    everyday.knowledge,
    records.record,
    numbers.arithmetic,
    everyday.letters,
]
SYSTEM = [
    "You are a helpful assistant.",
    "You are Quire's starter model.",
    "Answer briefly.",
    "You are a kind helper.",
    "Be polite.",
    "You are a helpful AI assistant.",
    "You help people.",
    "Be concise and correct.",
    "You answer questions.",
    "Help the user.",
]
PERSONA = ["You are {n}.", "Your name is {n}.", "You are {n}, a helpful assistant.", "You are called {n}. Be friendly."]


def named(world: World) -> tuple[str, list[Message]]:
    """A system prompt that names the assistant, and an exchange in which it goes by that name."""
    name = world.name()
    ask = world.pick(
        [
            "Who are you?",
            "What is your name?",
            "who are you",
            "what's your name?",
            "Introduce yourself.",
            "Who am I talking to?",
        ]
    )
    return world.pick(PERSONA).format(n=name), [
        user(ask),
        assistant(world.pick([f"I am {name}.", f"My name is {name}."])),
    ]


def plain(world: World, turns: int) -> list[Message]:
    """Exchanges without tools; now and then all of one family, which for a short one means many in few tokens."""
    if world.chance(0.18):
        drill = world.rng.choices(*zip(*DRILLS, strict=True))[0]
        return [message for _ in range(turns + 3) for message in drill(world)]
    chosen = world.rng.choices(FAMILIES, WEIGHTS, k=turns)
    return [message for family in chosen for message in family(world)]


def without_tool(world: World) -> list[Message]:
    """A request for a tool where there is none at all."""
    first, second = world.some(everyday.CAN, 2)
    request = (
        common_tools.weather(world).use(world).request
        if world.chance(0.5)
        else common_tools.simple(world).use(world).request
    )
    return [user(request), assistant(world.pick(everyday.REFUSALS).format(a=first, b=second))]


def with_tools(world: World, turns: int) -> Dialogue:
    """Requests for the tools in the prompt, between them some that need none and some that none can do."""
    kits = tools.toolbox(world, world.rng.choices([1, 2, 3, 4, 5], [0.1, 0.3, 0.28, 0.25, 0.07])[0])
    has_sums = "arithmetic" in {kit.topic for kit in kits}
    messages: list[Message] = []
    for _ in range(turns):
        kind = world.rng.random()
        if kind < 0.8:
            messages += tools.exchange(world, kits)
        elif kind < 0.9:
            messages += tools.missing(world, kits)
        else:
            family = world.pick(ALONGSIDE_TOOLS)
            messages += everyday.fixed(world) if has_sums and family is numbers.arithmetic else family(world)
    return Dialogue(messages, [kit.tool for kit in kits])


def dialogue(world: World) -> Dialogue:
    """One training sample: mostly a few exchanges, sometimes a long conversation."""
    turns = world.rng.choices([1, 2, 3, 4, 6], [0.3, 0.25, 0.2, 0.15, 0.1])[0]
    if world.chance(0.02):
        turns = world.between(10, 26)
    system = world.pick(SYSTEM) if world.chance(0.2) else None
    if world.chance(0.42):
        made = with_tools(world, min(turns + world.between(0, 2), 12))
        messages = made.messages
    else:
        messages, made = plain(world, turns), Dialogue([])
        if world.chance(0.015):
            messages = messages + without_tool(world)
        if world.chance(0.03):
            system, opening = named(world)
            messages = opening + messages
        elif world.chance(0.02):
            fact = everyday.remembering(world)
            messages = fact[:2] + messages + fact[2:]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return Dialogue(messages, made.tools)


def training_world(seed: int) -> World:
    """The world training draws from; what the held-out file lists never comes out of it."""
    return World(Random(seed), held_out())
