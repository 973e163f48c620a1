"""Plain word lists the families draw from."""

from quire.models.starter.data.lists import terms

FIRST_NAMES = terms(
    """Ada Alan Alba Alma Amina Amir Ana Andre Anika Anton Aria Arlo Asha Astrid Ava Basil Bea Ben Bianca Boris Bruno
Cara
Carl Carla Carmen Cedric Celia Chloe Clara Cleo Colin Cora Cyrus Dana Daniel Dara David Delia Diego Dora Edgar Edith
Eli Elias Elif Elin Elsa Emil Emma Enzo Erik Esther Eva Ezra Farah Felix Fiona Flora Frank Freya Gita Grace Greta
Gus Hana Hanna Harold Hazel Heidi Helen Henry Hugo Ida Igor Ines Ingrid Irene Iris Isaac Ivan Ivy Jack Jade James
Jana Jasmin Jens Joan Joel Jonas Jorge Josef Julia June Kai Kamal Karen Karim Kate Keiko Kenji Kira Klaus Lara Lars
Laura Leah Leila Lena Leo Liam Lily Lina Linus Liv Lola Louis Lucas Lucy Luis Luna Maja Malik Mara Marco Maria Marta
Martin Mateo Maya Mei Mia Mila Milo Mina Mira Mona Musa Nadia Nate Neil Nell Nia Nico Nils Nina Noah Noor Nora Olga
Olive Omar Oscar Otto Owen Pablo Paula Pedro Penny Petra Pia Priya Ralph Rania Raul Ravi Rhea Rita Robin Rosa Ruben
Ruth Sadie Sam Sana Sara Selma Simon Sofia Sonia Stella Sven Tara Tariq Tess Theo Tim Tina Tobias Tom Tove Uma Vera
Victor Viola Walter Wanda Wendy Willa Yara Yusuf Zara Zoe"""
)

CITIES = terms(
    """Paris London Berlin Madrid Rome Vienna Prague Warsaw Lisbon Dublin Oslo Stockholm Helsinki Copenhagen Athens
Cairo
Tokyo Kyoto Osaka Beijing Shanghai Seoul Delhi Mumbai Chennai Bangkok Hanoi Manila Jakarta Sydney Melbourne Perth
Auckland Toronto Montreal Vancouver Boston Chicago Denver Dallas Houston Seattle Portland Miami Atlanta Phoenix Lima
Bogota Quito Santiago Havana Nairobi Lagos Accra Dakar Tunis Rabat Istanbul Ankara Tehran Baghdad Dubai Doha Kyiv
Riga Vilnius Tallinn Budapest Bucharest Sofia Belgrade Zagreb Geneva Zurich Basel Bern Munich Hamburg Cologne
Dresden Leipzig Lyon Nice Bordeaux Milan Turin Naples Venice Florence Bologna Seville Valencia Bilbao Porto Bruges
Ghent Antwerp Brussels Utrecht Rotterdam Amsterdam Glasgow Edinburgh Leeds Bristol Cardiff Belfast Cork Galway
Krakow Gdansk Brno Graz Salzburg"""
)
TWO_WORD_CITIES = [
    "New York",
    "San Francisco",
    "Los Angeles",
    "Cape Town",
    "Buenos Aires",
    "Mexico City",
    "Hong Kong",
    "New Delhi",
    "San Diego",
    "Rio de Janeiro",
    "Kuala Lumpur",
    "Tel Aviv",
    "Addis Ababa",
    "Las Vegas",
]

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Japan": "Tokyo",
    "China": "Beijing",
    "South Korea": "Seoul",
    "India": "New Delhi",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Indonesia": "Jakarta",
    "the Philippines": "Manila",
    "Australia": "Canberra",
    "New Zealand": "Wellington",
    "Canada": "Ottawa",
    "the United States": "Washington",
    "Mexico": "Mexico City",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Argentina": "Buenos Aires",
    "Brazil": "Brasilia",
    "Colombia": "Bogota",
    "Ecuador": "Quito",
    "Kenya": "Nairobi",
    "Ghana": "Accra",
    "Senegal": "Dakar",
    "Tunisia": "Tunis",
    "Morocco": "Rabat",
    "Nigeria": "Abuja",
    "Ethiopia": "Addis Ababa",
    "Turkey": "Ankara",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Qatar": "Doha",
    "Ukraine": "Kyiv",
    "Russia": "Moscow",
    "Latvia": "Riga",
    "Lithuania": "Vilnius",
    "Estonia": "Tallinn",
    "Hungary": "Budapest",
    "Romania": "Bucharest",
    "Bulgaria": "Sofia",
    "Serbia": "Belgrade",
    "Croatia": "Zagreb",
    "Switzerland": "Bern",
    "Belgium": "Brussels",
    "the Netherlands": "Amsterdam",
    "the United Kingdom": "London",
    "England": "London",
    "Scotland": "Edinburgh",
    "Iceland": "Reykjavik",
    "Slovakia": "Bratislava",
    "Slovenia": "Ljubljana",
    "Albania": "Tirana",
    "Malta": "Valletta",
    "the Czech Republic": "Prague",
}

ANIMALS = terms(
    """fox rabbit bear mouse owl cat dog horse hedgehog squirrel badger otter beaver frog turtle duck goose swan crow
sparrow robin wolf deer goat sheep cow pig hen donkey pony lion tiger elephant giraffe monkey panda koala kangaroo
penguin seal whale dolphin crab snail bee ant spider butterfly dragon lizard parrot camel"""
)
PETS = terms("""cat dog rabbit hamster parrot turtle goldfish pony mouse canary lizard goat duck ferret snake""")
SOUNDS = {
    "cow": "moo",
    "dog": "woof",
    "cat": "meow",
    "duck": "quack",
    "pig": "oink",
    "sheep": "baa",
    "horse": "neigh",
    "hen": "cluck",
    "owl": "hoot",
    "frog": "ribbit",
    "bee": "buzz",
    "lion": "roar",
    "mouse": "squeak",
    "snake": "hiss",
    "crow": "caw",
    "goose": "honk",
    "wolf": "howl",
    "donkey": "hee-haw",
    "rooster": "cock-a-doodle-doo",
}

THINGS = terms(
    """apples pears books pens coins stamps marbles cards shells stones eggs cookies balls cups plates keys buttons
stickers pencils flowers tickets boxes bottles chairs candles lemons oranges plums nuts beads kites lamps spoons
hats socks letters postcards tomatoes carrots potatoes onions muffins pies sandwiches bricks nails screws ropes
baskets toys"""
)
OBJECTS = terms(
    """lantern key map kite drum bell boat compass basket blanket bottle book box broom button candle clock coin
crown cup
feather flute hat jar kettle ladder lamp letter mirror needle paintbrush pebble pencil pillow ring rope scarf seed
shell shovel spoon star stone sword teapot ticket trumpet umbrella violin wagon wheel whistle"""
)
COLORS = terms("red blue green yellow black white brown purple orange pink grey silver golden")
PRODUCTS = terms(
    """lamp chair table desk mug kettle jacket scarf backpack notebook pen keyboard mouse monitor phone tablet charger
headset speaker camera bicycle helmet tent blanket pillow clock radio mirror vase bowl knife pan toaster blender
shirt dress coat boots sandals sofa shelf carpet umbrella wallet watch ring guitar drum puzzle ball kite shovel
hammer drill ladder"""
)
FOODS = terms(
    """pizza soup salad pasta rice bread cheese sushi curry stew pancakes noodles burger sandwich omelette risotto tacos
dumplings lasagna pie cake waffles ramen falafel hummus paella"""
)
JOBS = terms(
    """baker teacher doctor nurse pilot farmer painter writer singer lawyer plumber carpenter gardener chef driver
engineer
librarian dentist photographer tailor mechanic musician scientist actor dancer electrician cook waiter sailor potter"""
)
HOBBIES = terms(
    """chess tennis painting hiking music reading cooking dancing swimming fishing cycling running yoga football
knitting
gardening photography singing climbing skating rowing pottery"""
)
ADJECTIVES = terms(
    """small big old new quiet loud bright dark brave clever kind happy lonely gentle curious tiny silver golden broken
lost hidden secret warm cold green blue wild soft"""
)
WEEKDAYS = terms("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = terms("January February March April May June July August September October November December")
CONDITIONS = terms("sunny cloudy rainy windy foggy snowy stormy clear hot cold humid icy")
LANGUAGES = terms(
    """French German Spanish Italian Dutch Polish Greek Turkish Arabic Japanese Korean Swedish Danish Finnish"""
)
OPPOSITES = [
    pair.split("/")
    for pair in terms(
        """hot/cold big/small fast/slow old/young up/down left/right open/closed day/night black/white happy/sad
high/low
wet/dry hard/soft full/empty rich/poor strong/weak long/short light/dark early/late good/bad thick/thin loud/quiet
clean/dirty near/far true/false first/last inside/outside heavy/light new/old easy/difficult sweet/sour tall/short
win/lose buy/sell push/pull above/below always/never love/hate start/stop wide/narrow deep/shallow rough/smooth
safe/dangerous"""
    )
]
THING_COLORS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "a banana": "yellow",
    "a lemon": "yellow",
    "coal": "black",
    "blood": "red",
    "a ripe tomato": "red",
    "milk": "white",
    "a carrot": "orange",
    "chocolate": "brown",
    "a frog": "green",
    "a strawberry": "red",
    "the sun": "yellow",
    "salt": "white",
    "an elephant": "grey",
    "a pumpkin": "orange",
    "a plum": "purple",
}

TOOL_NOUNS = terms(
    """train flight hotel book movie song recipe order package invoice ticket parcel room car bus taxi table customer
employee student teacher patient doctor project task note file folder document report photo playlist album game team
player match city country river mountain museum library park restaurant shop product item price coupon account card
loan payment message mail contact meeting event reminder alarm timer lamp door window heater printer server router
sensor robot camera battery engine machine garden plant tree flower animal pet bird farm field ship boat truck
bicycle road bridge building house flat apartment office school course lesson exam language"""
)
TOOL_ATTRIBUTES = terms(
    """price status size weight color owner author title date time address phone length height width speed
age name level rating score count capacity temperature distance duration language version type category location
schedule balance total description limit hint department manager supplier stock condition humidity pressure
brightness volume population area genre"""
)
TOOL_ACTIONS = terms(
    """create delete update open close start stop book cancel order send print share rename copy move lock unlock
archive
restore check repair clean rent sell buy reserve approve reject assign track pause resume publish hide"""
)
