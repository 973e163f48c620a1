"""Additions, subtractions and small multiplications asked in many wordings."""

from quire.models.starter.data import words
from quire.models.starter.data.lists import phrases, terms
from quire.models.starter.data.world import Message, World, assistant, user

FRAMES = phrases(
    """What is {x}?|what is {x}|What's {x}?|what's {x}|How much is {x}?|how much is {x}|Calculate {x}.|calculate {x}
Compute {x}.|compute {x}|{x}|{x}|{x}?|{x} =|{x} = ?|Tell me {x}.|tell me {x}|Please tell me {x}.|I need {x}.
i need {x}|Can you work out {x}?|can you work out {x}|Work out {x}, please.|Do you know {x}?|Solve {x}.|solve {x}
Solve: {x}|Give me {x}.|What does {x} make?|And {x}?|and {x}?|Now {x}.|now {x}|Could you calculate {x} for me?
Could you tell me {x}?|Help me with {x}.|Hey, what is {x}?|Hi! What's {x}?|Quick question: {x}?
Quick one: what is {x}?|Please calculate {x}.|please compute {x}|I would like to know {x}.|Can you tell me {x}?
can you tell me what {x} is|What would {x} be?|Any idea what {x} is?|Do the sum for me: {x}
My homework says {x}. What is the answer?|What is the result of {x}?|result of {x}|Find {x}.|find {x}|Next: {x}
Then {x}?|What about {x}?|what about {x}|How about {x}?|Let's see, {x}?|Evaluate {x}.|evaluate {x}|{x}, please
{x} please|{x}, thanks|So what is {x}?|what do you get for {x}?|Say, how much is {x}?|OK, {x}?"""
)

PLUS = [
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b}",
    "{a} plus {b}",
    "{a} plus {b}",
    "the sum of {a} and {b}",
    "{a} added to {b}",
    "{a} and {b} together",
    "{a} and {b} added together",
    "the total of {a} and {b}",
    "{a} & {b} summed",
    "{a} increased by {b}",
    "{a} raised by {b}",
    "{a} with {b} more",
    "{b} more than {a}",
    "{b} on {a}",
    "summing {a} and {b}",
    "putting {b} to {a}",
    "{a} and another {b}",
    "{a} and {b} combined",
    "{a} topped up by {b}",
    "counting {a} and {b} together",
    "adding {b} to {a}",
    "{a} made larger by {b}",
    "{b} put on top of {a}",
]
MINUS = [
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b}",
    "{a} minus {b}",
    "{a} minus {b}",
    "{a} take away {b}",
    "{a} less {b}",
    "the difference of {a} and {b}",
    "{a} without {b}",
    "{b} subtracted from {a}",
    "{b} taken from {a}",
    "{a} lowered by {b}",
    "{a} decreased by {b}",
    "{a} cut by {b}",
    "{b} less than {a}",
    "{b} fewer than {a}",
    "{a} after losing {b}",
    "taking {b} from {a}",
    "subtracting {b} from {a}",
    "{b} knocked off {a}",
    "{a} with {b} removed",
    "{a} minus the number {b}",
    "{a} made smaller by {b}",
    "{a} shortened by {b}",
    "{a} diminished by {b}",
    "reducing {a} by {b}",
    "{b} struck off {a}",
    "{b} off of {a}",
]
ADD = phrases(
    """Add {a} and {b}.|add {a} and {b}|Add {b} to {a}.|add {b} to {a}|Sum {a} and {b}.|sum up {a} and {b}
add up {a} and {b}|Increase {a} by {b}.|What do you get when you add {b} to {a}?|Put {a} and {b} together.
What number is {b} more than {a}?|If I add {b} to {a}, what do I get?|Start with {a} and add {b}.
I have {a} and get {b} more. How many is that?|total {a} {b}|Raise {a} by {b}.|Please add {a} and {b}.
can you add {a} and {b}?|Can you add up {a} and {b} for me?|count {a} and {b} together|Take {a} and add {b}.
What do {a} and {b} add up to?|What do {a} and {b} make?|how much do {a} and {b} make together?
One number is {a}, the other is {b}. What is their sum?|Combine {a} and {b}.|{a}, and {b} more?
Join {a} and {b} into one sum.|on top of {a} comes {b}. Total?|Pile {b} onto {a}.|from {a}, go up {b}|Stack {b} on {a}.
If {b} comes on top of {a}, what is the total?|I put {b} to {a}. What comes out?|to {a} I add {b}. What is that?
Which total do you get from {a} and {b}?|Let {a} grow by {b}.|Make {a} larger by {b}.|Total of these: {a}, {b}
What is {a} if it grows by {b}?|Give me {a} and {b} as one number.|Give me the sum: {a}, {b}
{a} here, {b} there. Total?"""
)
SUBTRACT = phrases(
    """Subtract {b} from {a}.|subtract {b} from {a}|Take {b} away from {a}.|take {b} from {a}|take away {b} from {a}
Decrease {a} by {b}.|What is left if you take {b} from {a}?|Start with {a} and subtract {b}.|Reduce {a} by {b}.
Lower {a} by {b}.|What number is {b} less than {a}?|If I take {b} away from {a}, what remains?
Please subtract {b} from {a}.|remove {b} from {a}|can you subtract {b} from {a}?
I have {a} and lose {b}. How many is that?|What do you get when you subtract {b} from {a}?|Take {a} and remove {b}.
How much is left of {a} after taking {b}?|Drop {b} from {a}.|Count back {b} from {a}.
Can you take {b} away from {a} for me?|{a}, take off {b}|What remains when {b} is taken from {a}?
Knock {b} off {a}.|Cut {a} by {b}.|Cut {b} off {a}.|from {a} go down {b}|From {a}, remove {b}.|Make {a} less by {b}.
From {a} we drop {b}. What is left?|{b} comes off {a}. What stays?|I remove {b} from {a}. What is the result?
What is {a} if it shrinks by {b}?|Let {a} shrink by {b}.|How much stays of {a} if {b} go?|Out of {a} take {b}.
{a} gets smaller by {b}. What is it now?|Make {a} lower by {b}.|Shorten {a} by {b}.
Make {a} shrink by {b}.|If {a} is reduced by {b}, what is it?|make {a} fewer by {b}
How small is {a} after it drops by {b}?
Give back {b} of {a}. What do you keep?|If you lose {b} of {a}, how much is it?|Spend {b} of {a}. What is left?"""
)
GAIN = [
    "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?|{n} has {c} {t} now.",
    "{n} had {a} {t} and bought {b} more. How many {t} is that?|{n} has {c} {t}.",
    "{n} finds {a} {t} in the morning and {b} {t} in the evening. How many in all?|{n} finds {c} {t} in all.",
    "There are {a} {t} in one box and {b} in another. How many {t} are there?|There are {c} {t}.",
    "A shop sold {a} {t} on Monday and {b} on Tuesday. How many {t} did it sell?|It sold {c} {t}.",
    "{n} has {a} {t}. {m} has {b} {t}. How many do they have together?|Together they have {c} {t}.",
    "{n} owns {a} {t}, and {m} gives {n} another {b}. How many {t} does {n} own?|{n} owns {c} {t}.",
    "If {n} collects {a} {t} and then {b} more, what is the total?|The total is {c} {t}.",
    "I counted {a} {t} here and {b} {t} there. What is the total?|The total is {c} {t}.",
    "We packed {a} {t} and then {b} more {t}. How many did we pack?|You packed {c} {t}.",
    "{n} is {a} years old. How old will {n} be in {b} years?|{n} will be {c} years old.",
    "{a} {t} are on the table and {n} adds {b}. How many {t} are on the table?|There are {c} {t} on the table.",
    "A bag holds {a} {t}. {n} puts in {b} more. How many {t} does it hold?|It holds {c} {t}.",
    "{n} walked {a} steps, then {b} steps. How many steps in total?|{n} walked {c} steps in total.",
    "{n} caught {a} {t} and {m} caught {b} {t}. How many {t} did they catch?|They caught {c} {t}.",
    "{n} carries {a} {t} and picks up {b} more. How many {t} is {n} carrying?|{n} is carrying {c} {t}.",
    "On a shelf are {a} {t}. {n} puts {b} more there. How many {t} are on the shelf?|There are {c} {t} on the shelf.",
    "{n} sees {a} {t} and then another {b} {t}. How many {t} did {n} see?|{n} saw {c} {t}.",
    "In the garden are {a} {t}, in the house {b}. How many {t} are that?|That is {c} {t}.",
    "{m} brought {a} {t}, {n} brought {b}. How many {t} did they bring?|They brought {c} {t}.",
]
LOSS = [
    "{n} has {a} {t} and gives away {b}. How many {t} are left?|{c} {t} are left.",
    "{n} had {a} {t} but lost {b} of them. How many {t} does {n} have now?|{n} has {c} {t} now.",
    "There were {a} {t} in the box. {n} took {b}. How many {t} remain?|{c} {t} remain.",
    "A shop had {a} {t} and sold {b}. How many {t} are left?|{c} {t} are left.",
    "{n} baked {a} {t} and {m} ate {b}. How many are left?|{c} {t} are left.",
    "{n} has {a} {t}; {m} has {b} fewer. How many {t} does {m} have?|{m} has {c} {t}.",
    "Out of {a} {t}, {b} are broken. How many {t} are fine?|{c} {t} are fine.",
    "I had {a} {t} and sold {b}. How many do I have left?|You have {c} {t} left.",
    "{n} needs {a} {t} and already has {b}. How many more {t} does {n} need?|{n} needs {c} more {t}.",
    "We had {a} {t}. {n} used {b}. How many {t} do we still have?|You still have {c} {t}.",
    "A bag of {a} {t} lost {b} {t} on the way. How many are in it now?|There are {c} {t} in it now.",
    "{n} has {a} {t} and {m} has {b}. How many more does {n} have?|{n} has {c} more {t}.",
    "{n} must read {a} pages and has read {b}. How many pages are left?|{c} pages are left.",
    "{n} buys {a} {t} and breaks {b}. How many {t} does {n} still have?|{n} still has {c} {t}.",
    "On a table are {a} {t}, and {n} takes {b} of them. How many {t} stay there?|{c} {t} stay.",
    "{n} picked {a} {t} and gave {m} {b}. How many {t} does {n} have left?|{n} has {c} {t} left.",
    "There were {a} {t} in a room. Someone carries {b} out. How many {t} are there now?|There are {c} {t} now.",
    "{n} found {a} {t} but {b} fell down. How many {t} are left?|{c} {t} are left.",
    "{a} {t} lie on a shelf. {n} buys {b}. How many {t} are still on the shelf?|{c} {t} are still there.",
    "A shop has {a} {t} and {n} buys {b} of them. How many {t} stay in the shop?|{c} {t} stay.",
    "Of {a} {t} that {n} bought, {m} ate {b}. How many {t} are there still?|There are {c} {t} still.",
]
SMALL = terms(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
)
TENS = terms("zero ten twenty thirty forty fifty sixty seventy eighty ninety")


def spelled(number: int) -> str:
    """A number below 100 in English words."""
    if number < 20:
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{SMALL[ones]}" if ones else "")


def operands(world: World) -> tuple[int, int]:
    """Mostly two-digit numbers; sometimes, in training, one or both with a single digit."""
    if world.testing or world.chance(0.92):
        return world.operands()
    return world.between(0, 99), world.between(0, 9)


def word_problem(world: World, adding: bool) -> list[Message]:
    a, b = operands(world)
    if not adding and a < b:
        a, b = b, a
    line = world.wording("gain" if adding else "loss", GAIN if adding else LOSS)
    result = a + b if adding else a - b
    text = line.format(a=a, b=b, c=result, t=world.pick(words.THINGS), n=world.name(), m=world.name())
    question, answer = text.split("|")
    return [user(question), assistant(f"{a} {'+' if adding else '-'} {b} = {result}. {answer[0].upper()}{answer[1:]}")]


def arithmetic(world: World) -> list[Message]:
    """One addition or subtraction; the answer restates it, so that the result stands beside its operands."""
    adding = world.chance(0.48)
    if world.chance(0.22):
        return word_problem(world, adding)
    a, b = operands(world)
    if not adding and a < b and world.chance(0.55):
        a, b = b, a
    shown_a, shown_b = (spelled(a), spelled(b)) if world.chance(0.07) and not world.testing else (str(a), str(b))
    if world.chance(0.6):
        expression = world.wording("plus" if adding else "minus", PLUS if adding else MINUS).format(
            a=shown_a, b=shown_b
        )
        question = world.wording("frames", FRAMES).format(x=expression)
    else:
        question = world.wording("add" if adding else "subtract", ADD if adding else SUBTRACT).format(
            a=shown_a, b=shown_b
        )
    question = question[0].upper() + question[1:] if world.chance(0.2) else question
    result = a + b if adding else a - b
    return [user(question), assistant(f"{a} {'+' if adding else '-'} {b} = {result}.")]


def multiplication(world: World) -> list[Message]:
    """The times tables up to ten."""
    a, b = world.between(0, 10), world.between(0, 10)
    expression = world.pick(["{a} times {b}", "{a} * {b}", "{a} x {b}", "{a} multiplied by {b}"]).format(a=a, b=b)
    return [user(world.pick(FRAMES).format(x=expression)), assistant(f"{a} * {b} = {a * b}.")]


def counting(world: World) -> list[Message]:
    """Count up or down between two numbers."""
    low = world.between(0, 60)
    high = low + world.between(2, 14)
    first, last = (low, high) if world.chance(0.7) else (high, low)
    step = 1 if first < last else -1
    ask = world.wording(
        "counting",
        [
            "Count from {f} to {l}.",
            "count from {f} to {l}",
            "Please count from {f} to {l}",
            "Can you count from {f} to {l}?",
            "List the numbers from {f} to {l}.",
            "Write the numbers {f} to {l}.",
            "Say the numbers from {f} to {l}.",
            "count {f} to {l}",
            "Give me the numbers from {f} to {l}",
            "the numbers from {f} to {l}, please",
            "all numbers from {f} to {l}",
            "{f} to {l}, please count",
        ],
    )
    numbers = ", ".join(str(n) for n in range(first, last + step, step))
    return [user(ask.format(f=first, l=last)), assistant(f"{numbers}.")]
