"""Tools described in the prompt, requests that need one, its result, and the answer from it."""

from quire.models.starter.data import words
from quire.models.starter.data.common_tools import adder, simple, weather
from quire.models.starter.data.composed_tools import action, lookup
from quire.models.starter.data.everyday import common_words
from quire.models.starter.data.records import listed
from quire.models.starter.data.toolkit import Call, Kit
from quire.models.starter.data.world import Message, World, assistant, user


def any_word(world: World) -> str:
    """A word that may never have named a tool before, so that tool names are copied and not remembered."""
    while True:
        word = world.pick(common_words()) if world.chance(0.65) else world.invented(1, 3).lower()
        forbidden = {*world.held.tool_nouns, *world.held.tool_attributes}
        if word not in forbidden and word.capitalize() not in world.forbidden_words:
            return word


def noun(world: World) -> str:
    if world.testing:
        return world.pick(world.held.tool_nouns)
    if world.chance(0.7):
        return any_word(world)
    if world.chance(0.2):
        return world.pick([thing for thing in words.OBJECTS if thing not in world.held.tool_nouns])
    return world.pick(words.TOOL_NOUNS)


def kit(world: World, near: str | None = None) -> Kit:
    """Any tool; with `near`, one about that noun."""
    kind = world.rng.random()
    if near is None and not world.testing and kind < 0.24:
        return weather(world) if kind < 0.06 else adder(world) if kind < 0.09 else simple(world)
    about = near or noun(world)
    if world.chance(0.6):
        if world.testing:
            return lookup(world, about, world.pick(world.held.tool_attributes))
        return lookup(world, about, any_word(world) if world.chance(0.65) else world.pick(words.TOOL_ATTRIBUTES))
    return action(world, about, world.pick(words.TOOL_ACTIONS))


def toolbox(world: World, count: int) -> list[Kit]:
    """Tools with different names and topics; some share their noun, so that the attribute decides."""
    kits: list[Kit] = []
    while len(kits) < count:
        near = kits[0].topic.split()[0] if kits and " " in kits[0].topic and world.chance(0.45) else None
        new = kit(world, near)
        names = {other.tool["function"]["name"] for other in kits}
        if new.topic not in {other.topic for other in kits} and new.tool["function"]["name"] not in names:
            kits.append(new)
    world.rng.shuffle(kits)
    return kits


def call_message(calls: list[tuple[Kit, Call]]) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": used.tool["function"]["name"], "arguments": call.arguments}}
            for used, call in calls
        ],
    }


def exchange(world: World, kits: list[Kit]) -> list[Message]:
    """A request, the call (sometimes two calls), the results and the answer."""
    chosen = [world.pick(kits)]
    if not world.testing and world.chance(0.15):
        chosen.append(world.pick(kits))
    calls = [(used, used.use(world)) for used in chosen]
    first, *others = (call.request for _, call in calls)
    request = first
    for other in others:
        joint = world.pick([" And ", " Also, ", " Then, "])
        request = f"{first}{'' if first[-1] in '.?' else '.'}{joint}{other[0].lower()}{other[1:]}"
    results = [{"role": "tool", "content": call.result} for _, call in calls]
    return [user(request), call_message(calls), *results, assistant(" ".join(call.answer for _, call in calls))]


NO_TOOL = [
    "I am sorry, I have no tool for that. I can use {t}.",
    "Sorry, none of my tools can do that. I have {t}.",
    "I do not have a tool for that, sorry. My tools are {t}.",
]


def missing(world: World, kits: list[Kit]) -> list[Message]:
    """A request that needs a tool which is not there."""
    while True:
        other = kit(world)
        if other.topic not in {one.topic for one in kits} and other.topic != "arithmetic":
            break
    request = other.use(world).request
    return [
        user(request),
        assistant(world.pick(NO_TOOL).format(t=listed([one.tool["function"]["name"] for one in kits]))),
    ]
