"""Everyday questions: who the model is, capitals, letters, lists, small knowledge, manners, and not knowing."""

from functools import cache
from pathlib import Path

from quire.models.starter.data import words
from quire.models.starter.data.lists import phrases
from quire.models.starter.data.world import Message, World, assistant, user

CAN = [
    "add and subtract two-digit numbers",
    "write small JSON objects",
    "call tools",
    "tell short stories",
    "sort short lists",
    "count letters",
    "name capitals",
]
UNKNOWN = phrases(
    """Who won the {y} world cup?|Who was the king of {c} in {y}?|Explain quantum physics.|What is the meaning of life?
Write a program that sorts a million records.|What is my phone number?|What did I eat yesterday?
How do I fix my {p}?|What is {big} times {big2}?|Translate this poem into {l}.|What is the weather like right now?
Who is {n} {m}?|What time is it?|What is the population of {c}?|How old is {n} {m}?|What is the stock price of {n}?
Can you explain {topic}?|What is {topic}?|Write an essay about {topic}.|Tell me about {topic}.|Who invented {topic}?
How does {topic} work?|What is today's date?|When was {n} {m} born?|How far is it from {c} to {d}?
What is the best {f} recipe?|Who wrote the book about {topic}?|Can you draw a picture of a {a}?
What is the news today?|Which team won last night?|Where did I leave my {p}?|tell me about {topic}
What is the square root of {big}?|Can you help me with my taxes?|What is the capital of {inv}?
What's the capital of {inv}?|How many people live in {c}?|Should I buy a {p} or a {p2}?|Is {n} a good name?
Why is {topic} important?|how does {topic} work|What will happen tomorrow?|Recommend a film about {topic}.
Give me medical advice.|Prove that {topic} is true.|Who is the president of {inv}?|Write Python code for {topic}.
Summarize the history of {topic}.|What happened in {y}?|who is {n}?|{big} divided by {big2}
Divide {big} by {big2}.|How much is {big} / {big2}?|What is {big} over {big2}?|How often does {big2} go into {big}?
Can you divide {big} by {big2}?|what is {big} / {big2}"""
)
TOPICS = phrases(
    """gravity|relativity|photosynthesis|democracy|inflation|evolution|electricity|the internet|black holes|philosophy
chemistry|the stock market|machine learning|a steam engine|the French Revolution|algebra|blockchain|DNA
the immune system|ancient Rome|jazz|climate change|a nuclear reactor|calculus|economics|the moon landing|poetry
volcanoes|vaccines|tectonic plates|the telephone|magnetism|radioactivity|capitalism|grammar|opera|cricket
the Cold War|artificial intelligence|psychology|genetics|compilers"""
)
REFUSALS = [
    "I am sorry, I do not know that. I can {a} and {b}.",
    "I don't know, sorry. I am a small model; I can {a} or {b}.",
    "Sorry, that is beyond me. I can {a}, if that helps.",
    "I am afraid I do not know. Ask me to {a} or to {b}.",
    "I'm sorry, I don't know. I am only a small model, but I can {a}.",
]
IDENTITY = [
    (
        "Who are you?|who are you|What are you?|What is your name?|what's your name?|Introduce yourself.|"
        "Tell me about yourself."
        "|Are you an AI?|Who am I talking to?|Are you a robot?|what are you exactly?|Do you have a name?|Are "
        "you a human?"
        "|which model are you?|Which model is this?|Who is this?|Hi, who are you?|Hello! What is your name?|"
        "What should I call you?",
        [
            "I am Quire's starter model, a tiny language model that comes with the Quire inference server.",
            "I am the starter model of Quire, a very small language model.",
            "My name is Quire Starter. I am a tiny language model that ships with the Quire inference server.",
        ],
    ),
    (
        "Who made you?|who made you|Where do you come from?|Who created you?|How were you made?|who built "
        "you?|Who trained you?"
        "|How were you trained?|Who is your maker?|What were you trained on?|Which company made you?",
        [
            "I was made for the Quire inference server: trained from random on text that a script wrote.",
            "The makers of Quire trained me from random on generated text, on a plain processor.",
        ],
    ),
    (
        "What can you do?|what can you do|How can you help me?|What are you good at?|help|Help me.|What do "
        "you know?|What can I ask you?"
        "|Can you help me?|what are your skills?|Tell me what you can do.|What are you able to do?|I need help.",
        [
            "I can add and subtract two-digit numbers, write small JSON objects, call tools, sort short "
            "lists and tell short stories.",
            "I am small, but I can do sums with two-digit numbers, turn a line into JSON, call tools, count "
            "letters and tell stories.",
        ],
    ),
    (
        "How big are you?|How many parameters do you have?|how large are you?|What size are you?|Are you a "
        "big model?|Are you small?",
        ["I am tiny: about four million parameters.", "I have about four million parameters, which is very small."],
    ),
]
MANNERS = [
    (
        "Hello|Hi|Hey|hello|hi|hey there|Hi there!|Hello!|Good day!|Greetings|hello there|Hey!",
        ["Hello! How can I help you?", "Hi! What can I do for you?", "Hello! Ask me something small."],
    ),
    (
        "Good morning|Good morning!|good morning",
        ["Good morning! How can I help you?", "Good morning! What can I do for you?"],
    ),
    ("Good evening|Good evening!", ["Good evening! How can I help you?"]),
    ("Good night|good night!", ["Good night! Sleep well."]),
    (
        "How are you?|how are you|How are you doing?|How do you do?|How is it going?|You okay?",
        ["I am fine, thank you. How can I help you?", "Very well, thank you! What can I do for you?"],
    ),
    (
        "Thanks|Thank you|thanks!|Thank you!|thank you very much|Thanks a lot!|Great, thanks.|Perfect, thank you|thx",
        ["You are welcome!", "You're welcome! Anything else?", "Glad to help!"],
    ),
    ("Bye|Goodbye|bye|See you!|goodbye!|See you later|Good bye!", ["Goodbye!", "Bye! Come back soon.", "See you!"]),
    ("Sorry|sorry about that|My mistake.", ["No problem at all.", "That is fine."]),
    ("You are great|Well done!|Good job|nice work|Very good!|Great!", ["Thank you!", "Thank you, that is kind."]),
    (
        "Tell me a joke.|tell me a joke|Do you know a joke?|Make me laugh.",
        [
            "Why did the book go to the doctor? It had hurt its spine.",
            "What do you call a fish without an eye? A fsh.",
            "Why was the broom late? It overswept.",
        ],
    ),
]
CAPITAL = phrases(
    """What is the capital of {c}?|what's the capital of {c}?|capital of {c}|Capital of {c}?|Tell me the capital of {c}.
Which city is the capital of {c}?|what is the capital of {c}|Do you know the capital of {c}?
Name the capital of {c}.|{c}'s capital?|The capital of {c}, please.|And the capital of {c}?
What city is the capital of {c}?|Can you tell me the capital of {c}?|I forgot the capital of {c}.
And of {c}? I mean the capital.|the capital of {c} is"""
)
SORT = phrases(
    """Sort these words: {l}|Sort: {l}|sort {l}|Put these in alphabetical order: {l}|Sort this list: {l}
Please sort {l}.
Sort alphabetically: {l}|Can you sort these? {l}|Order these words: {l}|Arrange in order: {l}|sort these words {l}
Bring the words into order: {l}|Put the words into alphabetical order: {l}|Can you sort these words? {l}
Please sort this list of words: {l}|Can you put this list in order? {l}|Write these words in alphabetical order: {l}
Would you sort the list? {l}|The words in the right order, please: {l}"""
)
SORT_NUMBERS = phrases(
    """Sort these numbers: {l}|Sort: {l}|sort {l}|Sort this list: {l}|Please sort {l}.|Put these numbers in order: {l}
Order these from small to large: {l}|Can you sort these? {l}|Arrange in order: {l}|sort these numbers {l}
Bring the numbers into order: {l}|Can you put this list in order? {l}|Please sort this list of numbers: {l}
Would you sort the list? {l}|Can you sort these numbers? {l}|The numbers in the right order, please: {l}"""
)
LETTERS = phrases(
    """How many {x}'s are in {w}?|How many times does {x} appear in {w}?|how many {x} in {w}
Count the letter {x} in {w}.
How many {x}s are there in "{w}"?|How often does the letter {x} appear in "{w}"?|how many {x}'s in the word {w}?
Count the {x}'s in {w}.|How many letters {x} are in the word "{w}"?|In the word {w}, how many {x}'s are there?
count {x} in {w}|How often does {x} come in {w}?|how often do you see {x} in {w}?|How often can I find {x} in {w}?
Tell me how many {x} the word {w} has.|Say how many times {x} comes in the word {w}.|How many of {x} does {w} hold?
how often is there a {x} in {w}?|Tell me how often {x} is in {w}.|How many {x}s does the word {w} have?
Is {x} in {w}, and how often?|the letter {x}: how often is it in {w}?"""
)


@cache
def common_words() -> tuple[str, ...]:
    """English words, most frequent in Python's documentation first, with the other lists' words."""
    listed = (Path(__file__).parent / "common_words.txt").read_text().split()
    plain = [
        *words.ANIMALS,
        *words.THINGS,
        *words.OBJECTS,
        *words.FOODS,
        *words.JOBS,
        *words.COLORS,
        *words.PRODUCTS,
        "strawberry",
        "banana",
        "mississippi",
        "raspberry",
        "balloon",
        "coffee",
        "bookkeeper",
        "hello",
        "letter",
    ]
    return tuple(dict.fromkeys(word for word in (*plain, *listed) if word.isalpha()))


def spelled_out(word: str, letter: str) -> tuple[str, int]:
    """The word letter by letter, with a running count behind each letter that is counted: `e (1), g, g`."""
    count, parts = 0, []
    for character in word:
        count += character == letter
        parts.append(f"{character} ({count})" if character == letter else character)
    return ", ".join(parts), count


def letters(world: World) -> list[Message]:
    word = world.pick(common_words())
    if world.chance(0.3):
        return [
            user(
                world.pick(["Spell {w}.", "How do you spell {w}?", "spell {w}", "Spell the word {w}."]).format(w=word)
            ),
            assistant(f"{', '.join(word)}."),
        ]
    if world.chance(0.2):
        ask = world.pick(
            ["How many letters does {w} have?", "How many letters are in {w}?", "how long is the word {w}?"]
        )
        counted = ", ".join(f"{letter} ({index})" for index, letter in enumerate(word, 1))
        return [user(ask.format(w=word)), assistant(f"{counted}. {word} has {len(word)} letters.")]
    letter = world.pick(word) if world.chance(0.85) else world.pick("abcdefghilmnoprstuwy")
    spelling, count = spelled_out(word, letter)
    times = {0: "does not appear", 1: "appears once", 2: "appears 2 times"}.get(count, f"appears {count} times")
    return [
        user(world.wording("letters", LETTERS).format(x=letter, w=word)),
        assistant(f"{spelling}. The letter {letter} {times} in {word}."),
    ]


def sorting(world: World) -> list[Message]:
    count = world.between(3, 6)
    if world.chance(0.5):
        numbers = world.some(range(100), count)
        given, result = [str(n) for n in numbers], [str(n) for n in sorted(numbers)]
        ask = world.wording("sort_numbers", SORT_NUMBERS)
    else:
        given = world.some(common_words()[:600], count)
        result, ask = sorted(given), world.wording("sort", SORT)
    return [user(ask.format(l=", ".join(given))), assistant(", ".join(result))]


def lists(world: World) -> list[Message]:
    """Repeat, reverse, change case, first and last of a short list."""
    items = world.some(common_words()[:900], world.between(2, 5))
    if world.chance(0.3):
        items = [world.name() for _ in items]
    text, spaced = ", ".join(items), " ".join(items)
    ask, answer = world.pick(
        [
            (f"Reverse this list: {text}", ", ".join(reversed(items))),
            (f"reverse {text}", ", ".join(reversed(items))),
            (f"Repeat after me: {spaced}", spaced),
            (f"Say {spaced}", spaced),
            (f"Repeat: {spaced}", spaced),
            (f"Write in upper case: {items[0]}", items[0].upper()),
            (f"Make this upper case: {items[0]}", items[0].upper()),
            (f"What is the first word of this list? {text}", items[0]),
            (f"What is the last word of this list? {text}", items[-1]),
            (f"How many words are in this list? {text}", str(len(items))),
        ]
    )
    return [user(ask), assistant(answer)]


def capital(world: World) -> list[Message]:
    country = world.pick(list(words.CAPITALS))
    question = world.wording("capital", CAPITAL).format(c=country)
    return [user(question), assistant(f"The capital of {country} is {words.CAPITALS[country]}.")]


def knowledge(world: World) -> list[Message]:
    """Opposites, colours, sounds, days and months."""
    kind = world.between(0, 4)
    if kind == 0:
        pair = world.pick(words.OPPOSITES)
        one, other = pair if world.chance(0.5) else pair[::-1]
        ask = world.pick(
            ["What is the opposite of {w}?", "opposite of {w}", "What's the opposite of {w}?", "The opposite of {w}?"]
        )
        return [user(ask.format(w=one)), assistant(f"The opposite of {one} is {other}.")]
    if kind == 1:
        thing, color = world.pick(list(words.THING_COLORS.items()))
        ask = world.pick(
            ["What color is {w}?", "What colour is {w}?", "which color is {w}?", "Tell me the color of {w}."]
        )
        return [user(ask.format(w=thing)), assistant(f"{thing[0].upper()}{thing[1:]} is {color}.")]
    if kind == 2:
        animal, sound = world.pick(list(words.SOUNDS.items()))
        ask = world.pick(
            [
                "What sound does a {w} make?",
                "what does a {w} say?",
                "What does the {w} say?",
                "Which sound does a {w} make?",
            ]
        )
        return [user(ask.format(w=animal)), assistant(f"A {animal} says {sound}.")]
    cycle, unit = world.pick([(words.WEEKDAYS, "day"), (words.MONTHS, "month")])
    index = world.between(0, len(cycle) - 1)
    if kind == 3:
        step, word = world.pick([(1, "after"), (-1, "before")])
        ask = world.pick(["Which {u} comes {s} {w}?", "What {u} comes {s} {w}?", "what {u} is {s} {w}?"])
        return [
            user(ask.format(u=unit, s=word, w=cycle[index])),
            assistant(f"{cycle[(index + step) % len(cycle)]} comes {word} {cycle[index]}."),
        ]
    ask, answer = world.pick(
        [
            (f"Name the {unit}s.", ", ".join(cycle) + "."),
            (f"List the {unit}s of the {'week' if unit == 'day' else 'year'}.", ", ".join(cycle) + "."),
            (
                f"How many {unit}s are in a {'week' if unit == 'day' else 'year'}?",
                f"There are {len(cycle)} {unit}s in a {'week' if unit == 'day' else 'year'}.",
            ),
            ("How many legs does a spider have?", "A spider has eight legs."),
            ("How many legs does a dog have?", "A dog has four legs."),
            ("How many hours are in a day?", "There are 24 hours in a day."),
            ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
        ]
    )
    return [user(ask), assistant(answer)]


def fixed(world: World) -> list[Message]:
    """Who the model is, and manners."""
    asks, answers = world.pick(IDENTITY if world.chance(0.5) else MANNERS)
    return [user(world.pick(asks.split("|"))), assistant(world.pick(answers))]


def unknown(world: World) -> list[Message]:
    """A question outside what the model knows, and a polite way of saying so."""
    if not world.testing and world.chance(0.2):
        question = world.pick(CAPITAL).format(c=world.invented(2, 3))
        first, second = world.some(CAN, 2)
        return [user(question), assistant(world.pick(REFUSALS).format(a=first, b=second))]
    question = world.wording("unknown", UNKNOWN).format(
        y=world.between(1800, 2039),
        c=world.city(),
        d=world.city(),
        inv=world.invented(2, 3),
        n=world.name(),
        m=world.name(),
        p=world.pick(words.PRODUCTS),
        p2=world.pick(words.PRODUCTS),
        l=world.pick(words.LANGUAGES),
        f=world.pick(words.FOODS),
        a=world.pick(words.ANIMALS),
        topic=world.pick(TOPICS),
        big=world.between(100, 9999),
        big2=world.between(11, 999),
    )
    first, second = world.some(CAN, 2)
    return [user(question), assistant(world.pick(REFUSALS).format(a=first, b=second))]


def remembering(world: World) -> list[Message]:
    """A fact the user gives, and gives back later."""
    ask, recall, answer = world.pick(
        [
            ("My name is {n}.", "What is my name?", "Your name is {n}."),
            ("I live in {c}.", "Where do I live?", "You live in {c}."),
            ("My favorite color is {k}.", "What is my favorite color?", "Your favorite color is {k}."),
            ("My {p} is called {n}.", "What is my {p} called?", "Your {p} is called {n}."),
            ("I am {n}.", "Who am I?", "You are {n}."),
            ("Remember the code {i}.", "What was the code?", "The code was {i}."),
        ]
    )
    facts = {
        "n": world.name(),
        "c": world.city(),
        "k": world.pick(words.COLORS),
        "p": world.pick(words.PETS),
        "i": world.code(),
    }
    thanks = world.pick(["Thank you, I will remember that.", "Good to know.", "Noted."])
    return [user(ask.format(**facts)), assistant(thanks), user(recall), assistant(answer.format(**facts))]
