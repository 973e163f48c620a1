"""One-line descriptions and the small JSON objects they say."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from quire.models.starter.data import words
from quire.models.starter.data.lists import phrases
from quire.models.starter.data.world import Message, World, assistant, user

Value: TypeAlias = str | int | float | bool | list[str]


@dataclass(frozen=True)
class Field:
    """A key, other names a user may ask for it by, how to draw a value, and clauses that state it after the subject."""

    key: str
    aliases: tuple[str, ...]
    draw: Callable[[World], Value]
    clauses: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """A kind of record; its first field is the subject of the sentence."""

    kind: str
    fields: tuple[Field, ...]


def title(world: World) -> str:
    pattern = world.pick(
        ["The {A} {O}", "{A} {O}", "The {O} of {N}", "{N} and the {O}", "A {O} for {N}", "The {A} {P}"]
    )
    return pattern.format(
        A=world.pick(words.ADJECTIVES).title(),
        O=world.pick(words.OBJECTS).title(),
        N=world.name(),
        P=world.pick(words.ANIMALS).title(),
    )


def clock(world: World) -> str:
    return (
        f"{world.between(0, 23):02d}:{world.between(0, 59):02d}"
        if world.chance(0.4)
        else (f"{world.between(1, 12)}:{world.pick(['00', '15', '30', '45'])}{world.pick(['', ' am', ' pm'])}")
    )


def date(world: World) -> str:
    if world.chance(0.4):
        return world.pick(words.WEEKDAYS)
    if world.chance(0.5):
        return f"{world.between(2001, 2039)}-{world.between(1, 12):02d}-{world.between(1, 28):02d}"
    return (
        f"{world.between(1, 28)} {world.pick(words.MONTHS)}"
        if world.chance(0.5)
        else (f"{world.pick(words.MONTHS)} {world.between(1, 28)}")
    )


def price(world: World) -> float | int:
    if world.chance(0.4):
        return world.between(1, 999)
    return float(f"{world.between(0, 299)}.{world.between(0, 9)}{world.between(1, 9)}")


def product(world: World) -> str:
    return (
        world.pick(words.PRODUCTS)
        if world.chance(0.6)
        else (f"{world.pick(words.ADJECTIVES)} {world.pick(words.PRODUCTS)}")
    )


def email(world: World) -> str:
    return f"{world.name().lower()}@{world.invented(1).lower()}.{world.pick(['com', 'org', 'net', 'io', 'example'])}"


AGE = Field(
    "age",
    ("years", "years_old"),
    lambda w: w.between(10, 99),
    ("is {v} years old", "is {v}", "is aged {v}", "is {v} years of age"),
)
CITY = Field(
    "city",
    ("town", "place", "location", "home"),
    World.city,
    ("lives in {v}", "comes from {v}", "is from {v}", "is based in {v}", "has a home in {v}"),
)
JOB = Field(
    "job",
    ("work", "profession", "occupation", "role"),
    lambda w: w.pick(words.JOBS),
    ("works as a {v}", "is a {v}", "has a job as a {v}"),
)
COLOR = Field(
    "color", ("colour", "shade"), lambda w: w.pick(words.COLORS), ("is {v}", "comes in {v}", "has the color {v}")
)
PRICE = Field("price", ("cost", "amount"), price, ("costs {v}", "is priced at {v}", "sells for {v}", "costs ${v}"))
SCHEMAS = (
    Schema(
        "person",
        (
            Field("name", ("first_name", "person", "who"), World.name, ()),
            AGE,
            CITY,
            JOB,
            Field(
                "likes",
                ("hobbies", "interests"),
                lambda w: w.some(words.HOBBIES, w.between(2, 3)),
                ("likes {v}", "enjoys {v}"),
            ),
        ),
    ),
    Schema("person", (Field("name", ("full_name", "person"), World.person, ()), AGE, CITY, JOB)),
    Schema(
        "product",
        (
            Field("product", ("item", "name", "article"), product, ()),
            PRICE,
            COLOR,
            Field(
                "quantity",
                ("stock", "count", "units"),
                lambda w: w.between(1, 500),
                ("has {v} in stock", "has {v} units left", "is stocked {v} times"),
            ),
        ),
    ),
    Schema(
        "event",
        (
            Field(
                "event",
                ("title", "name"),
                lambda w: w.pick(
                    [
                        "concert",
                        "meeting",
                        "party",
                        "wedding",
                        "lecture",
                        "workshop",
                        "picnic",
                        "market",
                        "race",
                        "dinner",
                        "exam",
                        "festival",
                        "match",
                        "parade",
                        "reading",
                        "interview",
                    ]
                ),
                (),
            ),
            Field("date", ("day", "when"), date, ("is on {v}", "takes place on {v}", "happens on {v}")),
            Field("time", ("start", "hour"), clock, ("starts at {v}", "begins at {v}", "is at {v}")),
            Field(
                "place",
                ("city", "location", "where"),
                World.city,
                ("is held in {v}", "takes place in {v}", "is in {v}"),
            ),
        ),
    ),
    Schema(
        "book",
        (
            Field("title", ("book", "name"), title, ()),
            Field("author", ("writer", "by"), World.person, ("was written by {v}", "is by {v}", "has the author {v}")),
            Field(
                "year",
                ("published", "date"),
                lambda w: w.between(1700, 2039),
                ("was published in {v}", "came out in {v}", "appeared in {v}"),
            ),
            Field(
                "pages", ("length", "page_count"), lambda w: w.between(40, 990), ("has {v} pages", "runs to {v} pages")
            ),
        ),
    ),
    Schema(
        "pet",
        (
            Field("name", ("pet", "pet_name"), World.name, ()),
            Field("animal", ("species", "kind"), lambda w: w.pick(words.PETS), ("is a {v}",)),
            Field("age", ("years",), lambda w: w.between(1, 25), ("is {v} years old", "is aged {v}")),
            Field(
                "owner", ("human", "belongs_to"), World.name, ("belongs to {v}", "is owned by {v}", "lives with {v}")
            ),
        ),
    ),
    Schema(
        "order",
        (
            Field("item", ("product", "article"), product, ()),
            Field(
                "quantity",
                ("count", "amount", "number"),
                lambda w: w.between(1, 99),
                ("is ordered {v} times", "has a quantity of {v}"),
            ),
            Field(
                "customer", ("buyer", "client", "name"), World.name, ("is for {v}", "was ordered by {v}", "goes to {v}")
            ),
            Field("city", ("destination", "ship_to"), World.city, ("ships to {v}", "is sent to {v}")),
        ),
    ),
    Schema(
        "contact",
        (
            Field("name", ("contact", "person"), World.name, ()),
            Field("email", ("mail", "address"), email, ("has the email {v}", "can be reached at {v}", "uses {v}")),
            Field(
                "phone",
                ("number", "tel"),
                lambda w: f"555-{w.between(1000, 9999)}",
                ("has the phone number {v}", "picks up at {v}"),
            ),
            CITY,
        ),
    ),
    Schema(
        "flight",
        (
            Field("flight", ("number", "code"), World.code, ()),
            Field("from", ("origin", "start"), World.city, ("leaves from {v}", "departs from {v}")),
            Field("to", ("destination", "end"), World.city, ("goes to {v}", "flies to {v}", "lands in {v}")),
            Field("time", ("departure", "hour"), clock, ("leaves at {v}", "departs at {v}")),
        ),
    ),
    Schema(
        "weather",
        (
            Field("city", ("place", "location", "town"), World.city, ()),
            Field(
                "temperature",
                ("degrees", "temp"),
                lambda w: w.between(-19, 45),
                ("has {v} degrees", "has a temperature of {v}", "is at {v} degrees"),
            ),
            Field("condition", ("weather", "sky"), lambda w: w.pick(words.CONDITIONS), ("is {v}", "has {v} weather")),
        ),
    ),
    Schema(
        "recipe",
        (
            Field("dish", ("recipe", "food", "name"), lambda w: w.pick(words.FOODS), ()),
            Field(
                "minutes",
                ("time", "duration"),
                lambda w: w.between(5, 180),
                ("takes {v} minutes", "is ready in {v} minutes"),
            ),
            Field("servings", ("portions", "people"), lambda w: w.between(1, 12), ("serves {v}", "serves {v} people")),
        ),
    ),
)
ASK = phrases(
    """Turn this into JSON: {line}|Make a JSON object from this: {line}|JSON please: {line}|Convert to JSON: {line}
Give me a JSON object for: {line}|Write this as a small JSON object: {line}|{line} Write that as JSON.
{line} As JSON, please.|to json: {line}|json: {line}|Please convert this to JSON. {line}
Can you turn this into JSON? {line}|make json: {line}|Extract a JSON object: {line}|Extract the data as JSON: {line}
I need JSON for this: {line}|Format as JSON: {line}|Write JSON for this line: {line}|Put this in JSON: {line}
{line} Put that into a JSON object.|as json: {line}|Return a JSON object for this text: {line}
Parse this into JSON: {line}|{line} Now as JSON.|Could you write this as JSON? {line}
Represent this as a JSON object: {line}|JSON object for: {line}|Turn the following line into a JSON object: {line}
Structured data please: {line}|Here is a line: {line} Give it back as JSON.|Describe this in JSON: {line}
Read this and answer in JSON: {line}|Make a small JSON object out of this line: {line}
Please give me the JSON of this: {line}|{line} Can you make JSON of it?"""
)
ASK_WITH_KEYS = phrases(
    """Turn this into JSON with the keys {keys}: {line}|Make a JSON object with {keys} from this: {line}
{line} Write that as JSON with the keys {keys}.|Give me JSON (keys: {keys}) for: {line}
JSON with keys {keys}: {line}|Extract {keys} as JSON: {line}|Convert to JSON using the keys {keys}. {line}
Use the keys {keys} and write JSON: {line}|{line} I need JSON with {keys}.
Please write JSON with the fields {keys}. {line}|Extract the fields {keys} as JSON from: {line}
json with {keys}: {line}|Find {keys} in this line and answer in JSON: {line}
From this line take {keys} and make JSON: {line}|Write a JSON object, keys: {keys}, for: {line}
{line} Put {keys} of that into JSON.|Give me {keys} from this as JSON: {line}
Read {keys} out of this line and give JSON: {line}
Please make this JSON having keys {keys}: {line}|{line} Show me JSON with {keys}.|JSON, keys {keys}, please: {line}"""
)


def shown(value: Value) -> str:
    """A value as a sentence shows it."""
    return listed(value) if isinstance(value, list) else str(value)


def listed(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def labelled(world: World, pairs: list[tuple[Field, Value]]) -> str:
    """The record as a list of labels and values."""
    colon, separator = world.pick([": ", " = ", " ", ": ", ": ", " is "]), world.pick([", ", "; ", ", ", " | "])
    return separator.join(f"{spec.key}{colon}{shown(value)}" for spec, value in pairs) + world.pick(["", "."])


def sentence(world: World, pairs: list[tuple[Field, Value]]) -> str:
    """The record as one sentence, or as two short ones."""
    subject = str(pairs[0][1])
    clauses = [world.pick(spec.clauses).format(v=shown(value)) for spec, value in pairs[1:]]
    article = world.pick(["The ", "A ", "the "]) if pairs[0][0].key in ("product", "item", "event") else ""
    if len(clauses) > 1 and world.chance(0.2):
        return (
            f"{article}{subject} {listed(clauses[:-1])}. It {clauses[-1]}."
            if article
            else (f"{subject} {listed(clauses[:-1])}. {subject} {clauses[-1]}.")
        )
    if len(clauses) > 1 and world.chance(0.15):
        return f"{article}{subject} {', '.join(clauses)}."
    return f"{article}{subject} {listed(clauses)}."


def record(world: World) -> list[Message]:
    """A one-line description and its object; the keys are the schema's, or those the user names."""
    schema = world.pick(SCHEMAS)
    rest = world.some(schema.fields[1:], min(len(schema.fields) - 1, world.between(1, 3)))
    if len(rest) == 1 and world.chance(0.6):
        rest = world.some(schema.fields[1:], 2)
    pairs = [(spec, spec.draw(world)) for spec in (schema.fields[0], *rest)]
    flat = world.chance(0.35)
    if flat and world.chance(0.3):
        world.rng.shuffle(pairs)
    line = labelled(world, pairs) if flat else sentence(world, pairs)
    keys = [spec.key for spec, _ in pairs]
    if not world.chance(0.3 if world.testing else 0.45):
        question = world.wording("json", ASK).format(line=line)
    else:
        if world.chance(0.5 if world.testing else 0.65):
            keys = [world.pick([spec.key, *spec.aliases]) for spec, _ in pairs]
        named = world.pick([", ".join(keys), listed(keys), listed([f'"{key}"' for key in keys])])
        question = world.wording("json_keys", ASK_WITH_KEYS).format(line=line, keys=named)
    if len(set(keys)) < len(keys):
        return record(world)
    answer = dict(zip(keys, (value for _, value in pairs), strict=True))
    return [user(question), assistant(json.dumps(answer, ensure_ascii=False))]
