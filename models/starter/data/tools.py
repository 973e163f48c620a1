"""Tools described in the prompt, requests that need one, its result, and the answer from it.

Most tools are put together from nouns, attributes and actions, so that the right one has to be read from the list.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from models.starter.data import words
from models.starter.data.everyday import TOPICS
from models.starter.data.records import clock, date, listed
from models.starter.data.world import Message, Tool, World, assistant, user

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
        if isinstance(kind, list) and required or isinstance(kind, str) and not kind.endswith("?"):
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


def polite(world: World, request: str) -> str:
    """The request as it stands, or with a greeting, a please or in lower case at its start."""
    style = world.rng.random()
    lowered = request[0].lower() + request[1:]
    if style < 0.55 or request[1:2].isupper():
        return request
    if style < 0.7:
        return lowered.rstrip(".?") + world.pick(["", "", " please", ", please"])
    if request.endswith("?"):
        return world.pick(["Hey, ", "Hi, ", "Tell me: ", "Quick question: ", "One more: "]) + lowered
    return world.pick(["Please ", "Could you ", "Can you ", "Hey, ", "Now "]) + lowered


GET = ["get_{n}_{a}", "{n}_{a}", "fetch_{n}_{a}", "lookup_{n}_{a}", "read_{n}_{a}", "find_{n}_{a}", "check_{n}_{a}", "show_{n}_{a}"]
GET_TEXT = ["{A} of a {n}", "Get the {a} of a {n}", "Look up the {a} of a {n}", "Returns the {a} of the {n}", "The {a} of one {n}.",
            "Find out the {a} of a {n}", "Read a {n}'s {a}"]
GET_ASK = """What is the {a} of the {n} {v}?|What is the {a} of {n} {v}?|Tell me the {a} of {n} {v}.|I need the {a} of the {n} {v}.
Look up the {a} of {n} {v}.|Get the {a} for {n} {v}.|Which {a} does the {n} {v} have?|Find the {a} of {v}, a {n}.
Can you check the {a} of {n} {v}?|Show me the {a} of the {n} {v}.|What {a} has {n} {v}?|Check the {n} {v} and tell me its {a}.
Do you know the {a} of {n} {v}?|What's the {a} of {n} {v}?|Give me the {a} of {n} {v}.""".replace("\n", "|").split("|")
NUMERIC = set("""price size weight length height width speed age rating score count capacity temperature distance duration limit
balance total pressure brightness volume population humidity stock""".split())


def value_of(world: World, attribute: str) -> str | int | float:
    """Something a lookup might return."""
    if attribute in NUMERIC or world.testing and world.chance(0.3):
        return world.between(0, 999) if world.chance(0.8) else float(f"{world.between(0, 99)}.{world.between(1, 9)}")
    return world.pick([world.name, world.city, world.code, lambda: world.pick(words.COLORS), lambda: date(world),
                       lambda: world.pick(words.ADJECTIVES), lambda: clock(world)])()


def subject(world: World) -> str:
    return world.pick([world.name, world.name, world.city, world.code, world.code, lambda: f"{world.name()} {world.name()}"])()


def lookup(world: World, noun: str, attribute: str) -> Kit:
    """A tool that returns one attribute of one noun."""
    said, attribute_said = noun.replace("_", " "), attribute.replace("_", " ")
    key = world.pick(["name", "id", noun, "query", f"{noun}_id", f"{noun}_name", "key", "target", "code"])
    name = styled(world, world.pick(GET).format(n=noun, a=attribute))
    text = world.pick(GET_TEXT).format(n=said, a=attribute_said, A=attribute_said.capitalize())
    tool = declare(name, text, **{key: "string"})

    def use(world: World) -> Call:
        value, found = subject(world), value_of(world, attribute)
        request = world.wording("lookup", GET_ASK).format(a=attribute_said, n=said, v=value)
        returned = {attribute: found} if world.chance(0.6) else {key: value, attribute: found}
        result = json.dumps(returned, ensure_ascii=False) if world.chance(0.75) else (
            world.pick([str(found), f"{attribute_said}: {found}", f"The {attribute_said} is {found}."]))
        return Call(polite(world, request), {key: value}, result, f"The {attribute_said} of {said} {value} is {found}.")

    return Kit(tool, f"{noun} {attribute}", use)


ACT_TEXT = ["{V} a {n}", "{V} a {n} by its name", "{V} one {n}.", "{V} the given {n}"]
ACT_ASK = """{V} the {n} {v}.|{V} {n} {v}.|I want to {p} the {n} {v}.|{V} the {n} called {v}.|I need you to {p} {n} {v}.
The {n} {v}: {p} it.|{V} my {n} {v}.|Go ahead and {p} the {n} {v}.|Would you {p} the {n} {v}?""".replace("\n", "|").split("|")
PRIORITIES = [["low", "normal", "high"], ["slow", "fast"], ["small", "medium", "large"], ["red", "green", "blue"],
              ["cash", "card"], ["morning", "evening"], ["daily", "weekly", "monthly"], ["public", "private"]]
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
    tool = declare(styled(world, verb, noun), world.pick(ACT_TEXT).format(V=verb.capitalize(), n=said), required, **parameters)

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
            request = f"{request[:-1]}, {listed(extra)}{request[-1]}" if world.chance(0.6) else f"{request} With {listed(extra)}."
        return finish(world, polite(world, request), arguments, verb, f"{said} {value}")

    return Kit(tool, f"{noun} {verb}", use)


def finish(world: World, request: str, arguments: Arguments, verb: str, thing: str) -> Call:
    """The outcome of an action: done, done with an identifier, or refused with a reason."""
    outcome = world.rng.random()
    if outcome < 0.15:
        reason = world.pick(["not found", "not allowed", "no permission", "already done", "out of stock", "timeout", "busy"])
        return Call(request, arguments, json.dumps({"error": reason}), f"Sorry, I could not {verb} the {thing}: {reason}.")
    if outcome < 0.5:
        code = world.code()
        key = world.pick(["id", "number", "reference", "confirmation"])
        return Call(request, arguments, json.dumps({"status": "ok", key: code}), f"Done: {verb} {thing}. The {key} is {code}.")
    return Call(request, arguments, world.pick(['{"status": "ok"}', '{"ok": true}', "ok", "done", '{"success": true}']),
                f"Done: {verb} {thing}.")


def weather(world: World) -> Kit:
    key = world.pick(["city", "location", "place", "town"])
    parameters: dict[str, str | list[str]] = {key: "string"}
    units = world.pick([["celsius", "fahrenheit"], ["metric", "imperial"]])
    if world.chance(0.5):
        parameters["unit"] = units
    text = world.pick(["Current weather of a city", "Get the weather for a location", "Get the current weather in a given location",
                       "Weather in a place", "Returns the weather now"])
    tool = declare(styled(world, world.pick(["get_weather", "weather", "get_current_weather", "check_weather"])), text, False, **parameters)

    def use(world: World) -> Call:
        city, condition, degrees = world.city(), world.pick(words.CONDITIONS), world.between(-15, 42)
        request = world.wording("weather", [
            "What is the weather in {c}?", "How is the weather in {c}?", "What's the weather like in {c} today?", "Weather in {c}?",
            "Is it cold in {c}?", "How warm is it in {c}?", "Tell me the weather in {c}.", "Do I need an umbrella in {c}?",
            "I am going to {c}. What is the weather there?", "Check the weather for {c}."]).format(c=city)
        arguments: Arguments = {key: city}
        if "unit" in parameters and world.chance(0.5):
            arguments["unit"] = world.pick(units)
            request = f"{request[:-1]} in {arguments['unit']}{request[-1]}"
        result = world.pick([json.dumps({"temperature": degrees, "condition": condition}), f"{condition}, {degrees} degrees",
                             json.dumps({key: city, "condition": condition, "temperature": degrees}, ensure_ascii=False)])
        return Call(polite(world, request), arguments, result, f"It is {condition} in {city}, with {degrees} degrees.")

    return Kit(tool, "weather", use)


def adder(world: World) -> Kit:
    """A calculator: an expression, or two numbers."""
    single = world.chance(0.5)
    name = world.pick(["calculate", "calculator", "evaluate", "compute"]) if single else world.pick(["add", "add_numbers", "sum"])
    tool = declare(name, "Evaluate an arithmetic expression", expression="string") if single else (
        declare(name, "Add two numbers", a="integer", b="integer"))

    def use(world: World) -> Call:
        a, b = world.between(2, 999), world.between(2, 999)
        sign, said = world.pick([("+", "plus"), ("*", "times"), ("-", "minus")]) if single else ("+", "plus")
        result = {"+": a + b, "*": a * b, "-": a - b}[sign]
        arguments: Arguments = {"expression": f"{a} {sign} {b}"} if single else {"a": a, "b": b}
        request = world.pick([f"What is {a} {sign} {b}?", f"What is {a} {said} {b}?", f"Calculate {a} {sign} {b}.", f"{a} {sign} {b}?"])
        returned = world.pick([str(result), json.dumps({"result": result})])
        return Call(polite(world, request), arguments, returned, f"{a} {sign} {b} = {result}.")

    return Kit(tool, "arithmetic", use)


@dataclass(frozen=True)
class Simple:
    """A common tool written out: requests and answer are formats over the arguments and the result."""

    names: str
    text: str
    parameters: dict[str, Callable[[World], Any]]
    requests: str
    answer: str
    result_key: str
    result: Callable[[World], Any]


def topic(world: World) -> str:
    return world.pick([lambda: world.pick(TOPICS), lambda: f"{world.pick(words.ADJECTIVES)} {world.pick(words.PRODUCTS)}",
                       lambda: f"{world.pick(words.FOODS)} in {world.city()}", world.person])()


SIMPLE = (
    Simple("get_time|get_current_time|current_time", "Current time in a city", {"city": World.city},
           "What time is it in {city}?|Tell me the time in {city}.|What is the time in {city} now?|Current time in {city}?",
           "It is {r} in {city}.", "time", clock),
    Simple("web_search|search|search_web", "Search the web", {"query": topic},
           "Search the web for {query}.|Look up {query} on the web.|Search for {query}.|Find pages about {query}.",
           "I found this: {r}.", "title", lambda w: f"{w.pick(words.ADJECTIVES)} {w.pick(words.OBJECTS)} of {w.city()}"),
    Simple("send_email|send_mail", "Send an email to someone", {"to": World.name, "subject": topic},
           "Send an email to {to} about {subject}.|Write {to} an email about {subject}.|Email {to} about {subject}.",
           "I sent the email to {to}. Its number is {r}.", "id", World.code),
    Simple("get_stock_price|stock_price", "Price of a stock by its symbol", {"symbol": lambda w: w.invented(1, 2).upper()[:4]},
           "What is the stock price of {symbol}?|How much is a share of {symbol}?|Price of {symbol} stock?",
           "The stock price of {symbol} is {r}.", "price", lambda w: w.between(1, 900)),
    Simple("set_timer|start_timer", "Start a timer", {"minutes": lambda w: w.between(1, 90)},
           "Set a timer for {minutes} minutes.|Start a timer of {minutes} minutes.|Timer for {minutes} minutes.",
           "The timer for {minutes} minutes is set. It ends at {r}.", "ends", clock),
    Simple("set_alarm|create_alarm", "Set an alarm clock", {"time": clock},
           "Set an alarm for {time}.|Wake me at {time}.|I need an alarm at {time}.", "The alarm is set for {time}.", "status", lambda w: "set"),
    Simple("translate|translate_text", "Translate a word into a language",
           {"text": lambda w: w.pick([*words.ANIMALS, *words.OBJECTS]), "language": lambda w: w.pick(words.LANGUAGES)},
           "Translate {text} into {language}.|What is {text} in {language}?|How do you say {text} in {language}?",
           "In {language}, {text} is {r}.", "translation", lambda w: w.invented(1, 2).lower()),
    Simple("convert_currency|exchange", "Convert an amount of money between currencies",
           {"amount": lambda w: w.between(1, 900), "source": lambda w: w.pick(["EUR", "USD", "GBP"]),
            "target": lambda w: w.pick(["JPY", "CHF", "SEK", "NOK"])},
           "Convert {amount} {source} to {target}.|How much is {amount} {source} in {target}?|Change {amount} {source} into {target}.",
           "{amount} {source} is {r} {target}.", "amount", lambda w: w.between(1, 9000)),
    Simple("book_table|reserve_table", "Book a table in a restaurant",
           {"restaurant": World.name, "people": lambda w: w.between(1, 12), "time": clock},
           "Book a table at {restaurant} for {people} people at {time}.|Reserve a table for {people} at {restaurant}, {time}.",
           "The table at {restaurant} for {people} people at {time} is booked. The code is {r}.", "code", World.code),
    Simple("get_news|news", "Latest news about a topic", {"topic": topic},
           "What is the news about {topic}?|Any news on {topic}?|Give me news about {topic}.", "Here is the news: {r}.", "headline",
           lambda w: f"{w.city()} opens a {w.pick(words.ADJECTIVES)} {w.pick(['museum', 'bridge', 'library', 'park', 'school'])}"),
    Simple("play_music|play_song", "Play a song", {"song": lambda w: f"{w.pick(words.ADJECTIVES)} {w.pick(words.OBJECTS)}"},
           "Play the song {song}.|I want to hear {song}.|Put on {song}.", "Now playing {song} by {r}.", "artist", World.person),
    Simple("add_event|create_event", "Add an event to the calendar", {"title": lambda w: f"{w.pick(['lunch', 'meeting', 'call', 'dinner'])} with {w.name()}",
           "date": date}, "Add {title} to my calendar on {date}.|Put {title} on the calendar for {date}.",
           "I added {title} on {date}. Its number is {r}.", "id", World.code),
    Simple("random_number|roll", "A random number up to a maximum", {"maximum": lambda w: w.between(2, 999)},
           "Give me a random number up to {maximum}.|Pick a random number, at most {maximum}.", "The number is {r}.", "number", lambda w: w.between(1, 999)),
    Simple("take_note|create_note|save_note", "Save a note", {"text": lambda w: f"buy {w.between(2, 20)} {w.pick(words.THINGS)}"},
           "Make a note: {text}.|Note this: {text}.|Save a note that says {text}.", "I saved the note: {text}.", "status", lambda w: "saved"),
)


def simple(world: World) -> Kit:
    kind = world.pick(SIMPLE)
    name = world.pick(kind.names.split("|"))
    types = {key: "integer" if isinstance(draw(world), int) else "string" for key, draw in kind.parameters.items()}
    tool = declare(styled(world, name), kind.text, **types)

    def use(world: World) -> Call:
        arguments = {key: draw(world) for key, draw in kind.parameters.items()}
        found = kind.result(world)
        request = world.pick(kind.requests.split("|")).format(**arguments)
        result = json.dumps({kind.result_key: found}, ensure_ascii=False) if world.chance(0.7) else str(found)
        return Call(polite(world, request), arguments, result, kind.answer.format(**arguments, r=found))

    return Kit(tool, kind.names, use)


def noun(world: World) -> str:
    if world.testing:
        return world.pick(world.held.tool_nouns)
    if world.chance(0.2):
        return world.pick([thing for thing in words.OBJECTS if thing not in world.held.tool_nouns])
    return world.pick(words.TOOL_NOUNS)


def kit(world: World, near: str | None = None) -> Kit:
    """Any tool; with `near`, one about that noun."""
    kind = world.rng.random()
    if near is None and not world.testing and kind < 0.36:
        return weather(world) if kind < 0.09 else adder(world) if kind < 0.13 else simple(world)
    about = near or noun(world)
    if world.chance(0.6):
        attributes = world.held.tool_attributes if world.testing else words.TOOL_ATTRIBUTES
        return lookup(world, about, world.pick(attributes))
    return action(world, about, world.pick(words.TOOL_ACTIONS))


def toolbox(world: World, count: int) -> list[Kit]:
    """Tools with different names and topics; some share their noun, so that the attribute decides."""
    kits: list[Kit] = []
    while len(kits) < count:
        near = kits[0].topic.split()[0] if kits and " " in kits[0].topic and world.chance(0.35) else None
        new = kit(world, near)
        names = {other.tool["function"]["name"] for other in kits}
        if new.topic not in {other.topic for other in kits} and new.tool["function"]["name"] not in names:
            kits.append(new)
    world.rng.shuffle(kits)
    return kits


def call_message(calls: list[tuple[Kit, Call]]) -> Message:
    return {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": used.tool["function"]["name"], "arguments": call.arguments}}
        for used, call in calls]}


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


NO_TOOL = ["I am sorry, I have no tool for that. I can use {t}.", "Sorry, none of my tools can do that. I have {t}.",
           "I do not have a tool for that, sorry. My tools are {t}."]


def missing(world: World, kits: list[Kit]) -> list[Message]:
    """A request that needs a tool which is not there."""
    while True:
        other = kit(world)
        if other.topic not in {one.topic for one in kits} and other.topic != "arithmetic":
            break
    request = other.use(world).request
    return [user(request), assistant(world.pick(NO_TOOL).format(t=listed([one.tool["function"]["name"] for one in kits])))]
