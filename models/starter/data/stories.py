"""Short stories on request: a plot, a cast and a place, of which the user may fix some."""

from dataclasses import dataclass

from quire.models.starter.data import words
from quire.models.starter.data.lists import phrases, terms
from quire.models.starter.data.plots import ENDINGS, MEETINGS, OPENINGS, PLOTS
from quire.models.starter.data.world import Message, World, assistant, user

PLACES = phrases(
    """the forest|the old mill|a small village|the harbor|the green valley|the mountains|a lighthouse|the city park
an old castle|the market square|a quiet farm|the desert|an island|the big garden|a tall tower|the library
the river bank|a snowy town|the meadow|a cave|the railway station|a windy hill|the swamp|the orchard|the deep lake
a little house by the sea"""
)
PEOPLE = terms(
    """girl boy farmer baker painter sailor king queen prince princess teacher miller tailor gardener robot wizard
knight
giant fisherman shepherd cook inventor clown postman"""
)
WEATHER = terms("sunny rainy foggy windy snowy stormy cold warm grey clear")
SNACKS = [
    "apple pie",
    "pancakes",
    "honey cakes",
    "soup",
    "bread",
    "cookies",
    "plums",
    "nuts",
    "cheese",
    "waffles",
    "jam",
    "muffins",
]
MOODS = terms("""brave clever kind lonely curious gentle quiet lazy cheerful careful proud shy patient small""")
ASK = phrases(
    """Tell me a story{x}.|tell me a story{x}|Write a short story{x}.|write a story{x}|A story{x}, please.
a short story{x} please|Can you tell me a story{x}?|Please tell me a short story{x}.|I would like a story{x}.
Make up a story{x}.|Tell me a tale{x}.|Could you write a story{x}?|short story{x}|Write me a little story{x}.
i want a story{x}|Tell a bedtime story{x}.|Do you know a story{x}?|Give me a story{x}.|Now a story{x}.
tell my child a story{x}|Invent a story{x}.|Let me hear a story{x}.|Story{x}!"""
)
ABOUT_HERO = [
    " about a {k} named {h}",
    " about {h} the {k}",
    " about a {k} called {h}",
    " with a {k} named {h}",
    " about {h}, a {k}",
]
ABOUT_NAME = [" about {h}", " with {h}", " in which {h} is the hero", " for {h}, who wants to be in it"]
ABOUT_KIND = [" about a {k}", " with a {k}", " about one {k}"]
ABOUT_TWO = [
    " about {h} and {f}",
    " with {h} and {f}",
    " about two friends, {h} and {f}",
    " about a {k} named {h} and a {fk} named {f}",
]
WITH_OBJECT = [" and a {o}", " with a {o} in it", " and a {a} {o}", ", and put a {o} in it"]
ONLY_OBJECT = [" about a {o}", " with a {o}", " about a {a} {o}", " in which a {o} matters"]
WITH_PLACE = [" in {p}", ", set in {p}", " that happens in {p}"]
STORY_NAMES = words.FIRST_NAMES[::2]


@dataclass(frozen=True)
class Cast:
    """What fills a plot's slots."""

    slots: dict[str, str]
    request: str


def with_articles(text: str) -> str:
    """`a owl` becomes `an owl`."""
    out = text.split(" ")
    for index in range(len(out) - 1):
        if out[index] in ("a", "A") and out[index + 1].lstrip('"').lower().startswith(("a", "e", "i", "o", "umb")):
            out[index] += "n"
    return " ".join(out)


def kind(world: World) -> str:
    return world.pick(words.ANIMALS) if world.chance(0.65) else world.pick(PEOPLE)


def cast(world: World) -> Cast:
    """Draw everything, then decide what the user's request says of it."""
    told = world.rng.random()
    hero_told, friend_told = told < 0.72, 0.56 < told < 0.72
    own = [
        world.name() if hero_told else world.pick(STORY_NAMES),
        world.name() if friend_told else world.pick(STORY_NAMES),
    ]
    if own[0] == own[1]:
        return cast(world)
    here, there = world.some(PLACES, 2)
    hero_kind, friend_kind = kind(world), kind(world)
    thing = world.pick(words.OBJECTS) if world.chance(0.85) else world.pick(words.PRODUCTS)
    if hero_kind == friend_kind:
        return cast(world)
    slots = {
        "h": own[0],
        "f": own[1],
        "k": hero_kind,
        "fk": friend_kind,
        "o": thing,
        "p": here,
        "q": there,
        "w": world.pick(WEATHER),
        "a": world.pick(words.ADJECTIVES),
        "s": world.pick(SNACKS),
        "m": world.pick(MOODS),
        "t": world.pick(["two", "three", "four", "five", "seven", "ten"]),
    }
    if told < 0.35:
        about = world.pick(ABOUT_HERO)
    elif told < 0.56:
        about = world.pick(ABOUT_NAME)
    elif told < 0.72:
        about = world.pick(ABOUT_TWO)
    elif told < 0.84:
        about = world.pick(ABOUT_KIND)
    else:
        about = world.pick(ONLY_OBJECT) if told < 0.93 else ""
    if about and about not in ONLY_OBJECT and world.chance(0.3):
        about += world.pick(WITH_OBJECT)
    if world.chance(0.2):
        about += world.pick(WITH_PLACE)
    return Cast(slots, world.wording("story", ASK).format(x=about.format(**slots)))


def tell(world: World, slots: dict[str, str]) -> str:
    """Fill a plot: an opening, its beats in order with some left out, an ending."""
    beats = PLOTS[world.pick(list(PLOTS))]
    lines = [world.pick(OPENINGS)]
    for beat in beats:
        lines.append(world.pick(MEETINGS) if beat == ["@meet"] else world.pick(beat))
        if world.chance(0.12):
            lines.append(
                world.pick(
                    [
                        '"Oh dear," said {h}.',
                        "It was a {w} day.",
                        "{h} was {m}, after all.",
                        '"We shall see," said {h}.',
                        "Nobody had expected that.",
                        "The clock struck {t}.",
                    ]
                )
            )
    lines += world.some(ENDINGS, 2 if world.chance(0.3) else 1)
    text = " ".join(lines)
    if "{o}" not in text:
        lines.insert(
            1, world.pick(["{h} owned a {a} {o}.", "A {a} {o} stood by the door.", "{h} always carried a {o}."])
        )
    if "{p}" not in text:
        lines.insert(1, world.pick(["{h} lived in {p}.", "It all began in {p}."]))
    if "{f}" not in lines[1] and "{k}" not in " ".join(lines):
        lines.insert(1, "{h} was a {k}.")
    return with_articles(" ".join(lines).format(**slots))


def story(world: World) -> list[Message]:
    """A request and the story that keeps to it."""
    players = cast(world)
    return [user(with_articles(players.request)), assistant(tell(world, players.slots))]
