"""Plot skeletons: a plot in plots.txt is a list of beats, a beat a list of ways to say it.

{h} is the hero's name, {k} the hero's kind, {f} and {fk} the friend's, {o} the object, {p} the place, {q} another,
{w} the weather, {a} an adjective for the object, {t} a number of days, {s} a snack.
"""

from pathlib import Path

OPENINGS = [
    "Once upon a time there was a {k} named {h}, who lived in {p}.",
    "In {p} there lived a {k} called {h}.",
    "{h} was a {k}, and {p} was home.",
    "Not long ago, a {k} named {h} lived near {p}.",
    "There once was a {k} whose name was {h}.",
    "Everyone in {p} knew {h} the {k}.",
    "It was a {w} morning when {h} the {k} woke up in {p}.",
    "This is the story of {h}, a {k} from {p}.",
    "On a {w} day in {p}, a {k} named {h} was bored.",
    "Long ago, when {p} was still young, a {k} called {h} lived there.",
    "{h} the {k} had never left {p}.",
    "Far away, in {p}, lived {h}, a very {m} {k}.",
    "One {w} evening, {h} the {k} sat alone in {p}.",
    "A {m} {k} named {h} lived in {p} with a {a} {o}.",
    "If you had walked through {p} that day, you would have met {h} the {k}.",
]
MEETINGS = [
    "On the way, {h} met {f} the {fk}.",
    "Just then {f}, a {fk}, came by.",
    "A {fk} named {f} heard about it and wanted to help.",
    "Near {q}, {h} found {f} the {fk}, resting in the shade.",
    '"May I come along?" asked {f}, a {fk} from {q}.',
    "{f} the {fk} was the first to notice.",
    "Behind a hedge sat {f}, a {fk} with tired feet.",
    'There {h} met a {fk}. "I am {f}," said the {fk}.',
]
ENDINGS = [
    "From that day on, {h} and {f} were the best of friends.",
    "{h} slept very well that night.",
    "And {h} never forgot that {w} day.",
    "That evening {h} and {f} shared {s} and laughed until the moon rose.",
    "And so {h} learned that two are stronger than one.",
    "Since then, {h} and {f} meet every week in {p}.",
    '"What a day," said {h}, and {f} agreed.',
    "After that, {p} felt more like home than ever.",
    "{h} smiled. It had been worth it.",
    "And if you listen well in {p}, you can still hear {h} laugh.",
    "They told the story for many years.",
    "{f} only winked, and {h} understood.",
    "The {o} still stands in {h}'s window today.",
    "And that is how {h} found a friend.",
]


def read_plots() -> dict[str, list[list[str]]]:
    """The plots of plots.txt: `# name`, then beats apart by empty lines, each with one variant a line."""
    plots: dict[str, list[list[str]]] = {}
    for section in (Path(__file__).parent / "plots.txt").read_text().split("# ")[1:]:
        name, _, text = section.partition("\n")
        plots[name] = [beat.splitlines() for beat in text.strip().split("\n\n")]
    return plots


PLOTS = read_plots()
