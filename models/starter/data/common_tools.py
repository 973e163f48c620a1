"""Tools that demonstrations often bring: weather, a calculator, mail, timers and the like."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quire.models.starter.data import words
from quire.models.starter.data.everyday import TOPICS
from quire.models.starter.data.records import clock, date
from quire.models.starter.data.toolkit import Arguments, Call, Kit, declare, polite, styled
from quire.models.starter.data.world import World


def weather(world: World) -> Kit:
    key = world.pick(["city", "location", "place", "town"])
    parameters: dict[str, str | list[str]] = {key: "string"}
    units = world.pick([["celsius", "fahrenheit"], ["metric", "imperial"]])
    if world.chance(0.5):
        parameters["unit"] = units
    text = world.pick(
        [
            "Current weather of a city",
            "Get the weather for a location",
            "Get the current weather in a given location",
            "Weather in a place",
            "Returns the weather now",
        ]
    )
    tool = declare(
        styled(world, world.pick(["get_weather", "weather", "get_current_weather", "check_weather"])),
        text,
        False,
        **parameters,
    )

    def use(world: World) -> Call:
        city, condition, degrees = world.city(), world.pick(words.CONDITIONS), world.between(-15, 42)
        request = world.wording(
            "weather",
            [
                "What is the weather in {c}?",
                "How is the weather in {c}?",
                "What's the weather like in {c} today?",
                "Weather in {c}?",
                "Is it cold in {c}?",
                "How warm is it in {c}?",
                "Tell me the weather in {c}.",
                "Do I need an umbrella in {c}?",
                "I am going to {c}. What is the weather there?",
                "Check the weather for {c}.",
            ],
        ).format(c=city)
        arguments: Arguments = {key: city}
        if "unit" in parameters and world.chance(0.5):
            arguments["unit"] = world.pick(units)
            request = f"{request[:-1]} in {arguments['unit']}{request[-1]}"
        result = world.pick(
            [
                json.dumps({"temperature": degrees, "condition": condition}),
                f"{condition}, {degrees} degrees",
                json.dumps({key: city, "condition": condition, "temperature": degrees}, ensure_ascii=False),
            ]
        )
        return Call(polite(world, request), arguments, result, f"It is {condition} in {city}, with {degrees} degrees.")

    return Kit(tool, "weather", use)


def adder(world: World) -> Kit:
    """A calculator: an expression, or two numbers."""
    single = world.chance(0.5)
    name = (
        world.pick(["calculate", "calculator", "evaluate", "compute"])
        if single
        else world.pick(["add", "add_numbers", "sum"])
    )
    tool = (
        declare(name, "Evaluate an arithmetic expression", expression="string")
        if single
        else (declare(name, "Add two numbers", a="integer", b="integer"))
    )

    def use(world: World) -> Call:
        a, b = world.between(2, 999), world.between(2, 999)
        sign, said = world.pick([("+", "plus"), ("*", "times"), ("-", "minus")]) if single else ("+", "plus")
        result = {"+": a + b, "*": a * b, "-": a - b}[sign]
        arguments: Arguments = {"expression": f"{a} {sign} {b}"} if single else {"a": a, "b": b}
        request = world.pick(
            [f"What is {a} {sign} {b}?", f"What is {a} {said} {b}?", f"Calculate {a} {sign} {b}.", f"{a} {sign} {b}?"]
        )
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
    return world.pick(
        [
            lambda: world.pick(TOPICS),
            lambda: f"{world.pick(words.ADJECTIVES)} {world.pick(words.PRODUCTS)}",
            lambda: f"{world.pick(words.FOODS)} in {world.city()}",
            world.person,
        ]
    )()


SIMPLE = (
    Simple(
        "get_time|get_current_time|current_time",
        "Current time in a city",
        {"city": World.city},
        "What time is it in {city}?|Tell me the time in {city}.|What is the time in {city} now?|Current time "
        "in {city}?",
        "It is {r} in {city}.",
        "time",
        clock,
    ),
    Simple(
        "web_search|search|search_web",
        "Search the web",
        {"query": topic},
        "Search the web for {query}.|Look up {query} on the web.|Search for {query}.|Find pages about {query}.",
        "I found this: {r}.",
        "title",
        lambda w: f"{w.pick(words.ADJECTIVES)} {w.pick(words.OBJECTS)} of {w.city()}",
    ),
    Simple(
        "send_email|send_mail",
        "Send an email to someone",
        {"to": World.name, "subject": topic},
        "Send an email to {to} about {subject}.|Write {to} an email about {subject}.|Email {to} about {subject}.",
        "I sent the email to {to}. Its number is {r}.",
        "id",
        World.code,
    ),
    Simple(
        "get_stock_price|stock_price",
        "Price of a stock by its symbol",
        {"symbol": lambda w: w.invented(1, 2).upper()[:4]},
        "What is the stock price of {symbol}?|How much is a share of {symbol}?|Price of {symbol} stock?",
        "The stock price of {symbol} is {r}.",
        "price",
        lambda w: w.between(1, 900),
    ),
    Simple(
        "set_timer|start_timer",
        "Start a timer",
        {"minutes": lambda w: w.between(1, 90)},
        "Set a timer for {minutes} minutes.|Start a timer of {minutes} minutes.|Timer for {minutes} minutes.",
        "The timer for {minutes} minutes is set. It ends at {r}.",
        "ends",
        clock,
    ),
    Simple(
        "set_alarm|create_alarm",
        "Set an alarm clock",
        {"time": clock},
        "Set an alarm for {time}.|Wake me at {time}.|I need an alarm at {time}.",
        "The alarm is set for {time}.",
        "status",
        lambda w: "set",
    ),
    Simple(
        "translate|translate_text",
        "Translate a word into a language",
        {"text": lambda w: w.pick([*words.ANIMALS, *words.OBJECTS]), "language": lambda w: w.pick(words.LANGUAGES)},
        "Translate {text} into {language}.|What is {text} in {language}?|How do you say {text} in {language}?",
        "In {language}, {text} is {r}.",
        "translation",
        lambda w: w.invented(1, 2).lower(),
    ),
    Simple(
        "convert_currency|exchange",
        "Convert an amount of money between currencies",
        {
            "amount": lambda w: w.between(1, 900),
            "source": lambda w: w.pick(["EUR", "USD", "GBP"]),
            "target": lambda w: w.pick(["JPY", "CHF", "SEK", "NOK"]),
        },
        "Convert {amount} {source} to {target}.|How much is {amount} {source} in {target}?|Change {amount} "
        "{source} into {target}.",
        "{amount} {source} is {r} {target}.",
        "amount",
        lambda w: w.between(1, 9000),
    ),
    Simple(
        "book_table|reserve_table",
        "Book a table in a restaurant",
        {"restaurant": World.name, "people": lambda w: w.between(1, 12), "time": clock},
        "Book a table at {restaurant} for {people} people at {time}.|Reserve a table for {people} at "
        "{restaurant}, {time}.",
        "The table at {restaurant} for {people} people at {time} is booked. The code is {r}.",
        "code",
        World.code,
    ),
    Simple(
        "get_news|news",
        "Latest news about a topic",
        {"topic": topic},
        "What is the news about {topic}?|Any news on {topic}?|Give me news about {topic}.",
        "Here is the news: {r}.",
        "headline",
        lambda w: (
            f"{w.city()} opens a {w.pick(words.ADJECTIVES)} {w.pick(['museum', 'bridge', 'library', 'park', 'school'])}"
        ),
    ),
    Simple(
        "play_music|play_song",
        "Play a song",
        {"song": lambda w: f"{w.pick(words.ADJECTIVES)} {w.pick(words.OBJECTS)}"},
        "Play the song {song}.|I want to hear {song}.|Put on {song}.",
        "Now playing {song} by {r}.",
        "artist",
        World.person,
    ),
    Simple(
        "add_event|create_event",
        "Add an event to the calendar",
        {"title": lambda w: f"{w.pick(['lunch', 'meeting', 'call', 'dinner'])} with {w.name()}", "date": date},
        "Add {title} to my calendar on {date}.|Put {title} on the calendar for {date}.",
        "I added {title} on {date}. Its number is {r}.",
        "id",
        World.code,
    ),
    Simple(
        "random_number|roll",
        "A random number up to a maximum",
        {"maximum": lambda w: w.between(2, 999)},
        "Give me a random number up to {maximum}.|Pick a random number, at most {maximum}.",
        "The number is {r}.",
        "number",
        lambda w: w.between(1, 999),
    ),
    Simple(
        "take_note|create_note|save_note",
        "Save a note",
        {"text": lambda w: f"buy {w.between(2, 20)} {w.pick(words.THINGS)}"},
        "Make a note: {text}.|Note this: {text}.|Save a note that says {text}.",
        "I saved the note: {text}.",
        "status",
        lambda w: "saved",
    ),
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
