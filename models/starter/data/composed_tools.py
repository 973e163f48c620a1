"""Tools put together from nouns, attributes and actions, so that the right one has to be read from the prompt."""

import json
from collections.abc import Callable

from quire.models.starter.data import words
from quire.models.starter.data.lists import phrases, terms
from quire.models.starter.data.records import clock, date, listed
from quire.models.starter.data.toolkit import Arguments, Call, Kit, declare, polite, styled
from quire.models.starter.data.world import World

GET = [
    "get_{n}_{a}",
    "{n}_{a}",
    "fetch_{n}_{a}",
    "lookup_{n}_{a}",
    "read_{n}_{a}",
    "find_{n}_{a}",
    "check_{n}_{a}",
    "show_{n}_{a}",
]
GET_TEXT = [
    "{A} of a {n}",
    "Get the {a} of a {n}",
    "Look up the {a} of a {n}",
    "Returns the {a} of the {n}",
    "The {a} of one {n}.",
    "Find out the {a} of a {n}",
    "Read a {n}'s {a}",
]
GET_ASK = phrases(
    """What is the {a} of the {n} {v}?|What is the {a} of {n} {v}?|Tell me the {a} of {n} {v}.
I need the {a} of the {n} {v}.|Look up the {a} of {n} {v}.|Get the {a} for {n} {v}.|Which {a} does the {n} {v} have?
Find the {a} of {v}, a {n}.|Can you check the {a} of {n} {v}?|Show me the {a} of the {n} {v}.|What {a} has {n} {v}?
Check the {n} {v} and tell me its {a}.|Do you know the {a} of {n} {v}?|What's the {a} of {n} {v}?
Give me the {a} of {n} {v}.|{N} {v}: which {a}?|{n} {v}, what is the {a}?|About the {n} {v}: what is its {a}?
{n} {v}: {a}?|For the {n} {v} I need the {a}.|The {n} {v}, what {a} does it have?|{N} {v} - its {a}, please.
{a} of {n} {v}|Of {n} {v} I want the {a}.
I want to see its {a}: {n} {v}.|Concerning {n} {v}: tell me its {a}.|{n} {v}: its {a}?
{n} {v} has which {a}?|Is there a {a} for the {n} {v}?|I am looking for the {a} of {n} {v}.|{n} {v}: how is its {a}?
Can you see what {a} the {n} {v} has?|The {n} is {v}. What is its {a}?|Say the {a} of the {n} {v}.
{v}, the {n}: what is its {a}?|I wonder about the {a} of the {n} {v}.|My question is about {n} {v}: its {a}?"""
)
NUMERIC = set(
    terms(
        """price size weight length height width speed age rating score count capacity temperature distance duration
limit
balance total pressure brightness volume population humidity stock"""
    )
)


def value_of(world: World, attribute: str) -> str | int | float:
    """Something a lookup might return."""
    if attribute in NUMERIC or (world.testing and world.chance(0.3)):
        return world.between(0, 999) if world.chance(0.8) else float(f"{world.between(0, 99)}.{world.between(1, 9)}")
    draws: list[Callable[[], str]] = [
        world.name,
        world.city,
        world.code,
        lambda: world.pick(words.COLORS),
        lambda: date(world),
        lambda: world.pick(words.ADJECTIVES),
        lambda: clock(world),
    ]
    return world.pick(draws)()


def subject(world: World) -> str:
    draws: list[Callable[[], str]] = [world.name, world.name, world.city, world.code, world.code, world.person]
    return world.pick(draws)()


def lookup(world: World, noun: str, attribute: str) -> Kit:
    """A tool that returns one attribute of one noun."""
    said, attribute_said = noun.replace("_", " "), attribute.replace("_", " ")
    key = world.pick(["name", "id", noun, "query", f"{noun}_id", f"{noun}_name", "key", "target", "code"])
    name = styled(world, world.pick(GET).format(n=noun, a=attribute))
    text = world.pick(GET_TEXT).format(n=said, a=attribute_said, A=attribute_said.capitalize())
    tool = declare(name, text, **{key: "string"})

    def use(world: World) -> Call:
        value, found = subject(world), value_of(world, attribute)
        request = world.wording("lookup", GET_ASK).format(a=attribute_said, n=said, N=said.capitalize(), v=value)
        returned = {attribute: found} if world.chance(0.6) else {key: value, attribute: found}
        result = (
            json.dumps(returned, ensure_ascii=False)
            if world.chance(0.75)
            else (world.pick([str(found), f"{attribute_said}: {found}", f"The {attribute_said} is {found}."]))
        )
        return Call(polite(world, request), {key: value}, result, f"The {attribute_said} of {said} {value} is {found}.")

    return Kit(tool, f"{noun} {attribute}", use)


ACT_TEXT = ["{V} a {n}", "{V} a {n} by its name", "{V} one {n}.", "{V} the given {n}"]
ACT_ASK = phrases(
    """{V} the {n} {v}.|{V} {n} {v}.|I want to {p} the {n} {v}.|{V} the {n} called {v}.|I need you to {p} {n} {v}.
The {n} {v}: {p} it.|{V} my {n} {v}.|Go ahead and {p} the {n} {v}.|Would you {p} the {n} {v}?
We have to {p} the {n} {v}.|It is time that you {p} {n} {v}.|My plan: {p} {n} {v}.|Task: {p} the {n} {v}.
Could we {p} the {n} {v}?|My hope is to {p} the {n} {v}.|See to it that you {p} {n} {v}.|Let us {p} the {n} {v}.
Now we {p} {n} {v}.|What I want: {p} the {n} {v}.|Be so kind and {p} the {n} {v}."""
)
PRIORITIES = [
    ["low", "normal", "high"],
    ["slow", "fast"],
    ["small", "medium", "large"],
    ["red", "green", "blue"],
    ["cash", "card"],
    ["morning", "evening"],
    ["daily", "weekly", "monthly"],
    ["public", "private"],
]
CHOICE_KEYS = ["priority", "speed", "size", "color", "payment", "slot", "interval", "visibility"]


def action(world: World, noun: str, verb: str) -> Kit:
    """A tool that does something to a noun, perhaps with a number and a choice."""
    said = noun.replace("_", " ")
    key = world.pick(["name", "id", noun, f"{noun}_id", f"{noun}_name", "target"])
    parameters: dict[str, str | list[str]] = {key: "string"}
    number = world.pick(["quantity", "count", "minutes", "days", "amount", "number"]) if world.chance(0.3) else None
    if number:
        parameters[number] = world.pick(["integer", "number", "integer?"])
    choice = world.between(0, len(PRIORITIES) - 1) if world.chance(0.3) else None
    if choice is not None:
        parameters[CHOICE_KEYS[choice]] = PRIORITIES[choice]
    required = world.chance(0.5)
    tool = declare(
        styled(world, verb, noun), world.pick(ACT_TEXT).format(V=verb.capitalize(), n=said), required, **parameters
    )

    def use(world: World) -> Call:
        value = subject(world)
        arguments: Arguments = {key: value}
        request = world.wording("action", ACT_ASK).format(V=verb.capitalize(), p=verb, n=said, v=value)
        extra = []
        if number and (parameters[number] != "integer?" or world.chance(0.5)):
            arguments[number] = world.between(1, 90)
            extra.append(f"{number} {arguments[number]}")
        if choice is not None and (required or world.chance(0.6)):
            arguments[CHOICE_KEYS[choice]] = world.pick(PRIORITIES[choice])
            extra.append(f"{CHOICE_KEYS[choice]} {arguments[CHOICE_KEYS[choice]]}")
        if extra:
            request = (
                f"{request[:-1]}, {listed(extra)}{request[-1]}"
                if world.chance(0.6)
                else f"{request} With {listed(extra)}."
            )
        return finish(world, polite(world, request), arguments, verb, f"{said} {value}")

    return Kit(tool, f"{noun} {verb}", use)


def finish(world: World, request: str, arguments: Arguments, verb: str, thing: str) -> Call:
    """The outcome of an action: done, done with an identifier, or refused with a reason."""
    outcome = world.rng.random()
    if outcome < 0.15:
        reason = world.pick(
            ["not found", "not allowed", "no permission", "already done", "out of stock", "timeout", "busy"]
        )
        return Call(
            request, arguments, json.dumps({"error": reason}), f"Sorry, I could not {verb} the {thing}: {reason}."
        )
    if outcome < 0.5:
        code = world.code()
        key = world.pick(["id", "number", "reference", "confirmation"])
        return Call(
            request, arguments, json.dumps({"status": "ok", key: code}), f"Done: {verb} {thing}. The {key} is {code}."
        )
    return Call(
        request,
        arguments,
        world.pick(['{"status": "ok"}', '{"ok": true}', "ok", "done", '{"success": true}']),
        f"Done: {verb} {thing}.",
    )
