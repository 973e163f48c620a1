"""What a tool is to the generator: its description, a way to use it, and how requests are dressed up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from quire.models.starter.data.lists import phrases
from quire.models.starter.data.world import Tool, World

Arguments: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One use of a tool: what the user says, the arguments, what the tool returns and what the model then says."""

    request: str
    arguments: Arguments
    result: str
    answer: str


@dataclass(frozen=True)
class Kit:
    """A tool and how to draw uses of it; `topic` is what two tools must not share when only one may be right."""

    tool: Tool
    topic: str
    use: Callable[[World], Call]


def declare(name: str, description: str, required: bool = True, /, **parameters: str | list[str]) -> Tool:
    """An OpenAI tool object; a parameter is a type name, a type name with `?` when optional, or a list of choices."""
    properties: dict[str, Any] = {}
    needed = []
    for key, kind in parameters.items():
        properties[key] = {"type": "string", "enum": kind} if isinstance(kind, list) else {"type": kind.rstrip("?")}
        if (isinstance(kind, list) and required) or (isinstance(kind, str) and not kind.endswith("?")):
            needed.append(key)
    schema = {"type": "object", "properties": properties, "required": needed}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def styled(world: World, *parts: str) -> str:
    """A function name of the parts, mostly in snake case."""
    style = world.rng.random()
    flat = "_".join(parts)
    if style < 0.85:
        return flat
    if style < 0.95:
        head, *tail = flat.split("_")
        return head + "".join(part.capitalize() for part in tail)
    return flat.replace("_", "-")


LEADS = phrases(
    """My request|A task|Job for you|Next|A question|To do|My turn|Listen|Well|Good|I hope you can do this|If you can
Again|Only one thing|So|Work|Question|Thanks|Then|First|Last one|For me|It is urgent|When you have time
The order is"""
)


def polite(world: World, request: str) -> str:
    """The request as it stands, or with a greeting, a please or in lower case at its start."""
    style = world.rng.random()
    lowered = request[0].lower() + request[1:]
    if not world.testing and style < 0.12:
        return f"{world.pick(LEADS)}{world.pick([': ', ', ', ' - ', ' '])}{lowered}"
    if style < 0.55 or request[1:2].isupper():
        return request
    if style < 0.7:
        return lowered.rstrip(".?") + world.pick(["", "", " please", ", please"])
    if request.endswith("?"):
        return world.pick(["Hey, ", "Hi, ", "Tell me: ", "Quick question: ", "One more: "]) + lowered
    return world.pick(["Please ", "Could you ", "Can you ", "Hey, ", "Now "]) + lowered
