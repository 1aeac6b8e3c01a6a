# SPDX-License-Identifier: Apache-2.0
"""Word grammar: facts, concepts, lists, story parts and small talk, as data."""

from dataclasses import dataclass

from heretic.demo.grammar import parts


@dataclass(frozen=True)
class Subject:
    """A closed set of facts: `phrase` with an entity filled in is a noun phrase, whose value is the answer."""

    name: str
    phrase: str
    facts: tuple[tuple[str, str], ...]


def _subject(name: str, phrase: str, facts: str) -> Subject:
    pairs = [part.split(":") for part in parts(facts)]
    return Subject(name, phrase, tuple((entity, answer) for entity, answer in pairs))


SUBJECTS: tuple[Subject, ...] = (
    _subject(
        "geography",
        "the capital of {}",
        "France:Paris; Italy:Rome; Spain:Madrid; Norway:Oslo; Egypt:Cairo; Japan:Tokyo; Peru:Lima; Cuba:Havana;"
        "Greece:Athens; Austria:Vienna; Russia:Moscow; China:Beijing; Kenya:Nairobi; Portugal:Lisbon;"
        "Hungary:Budapest; Poland:Warsaw",
    ),
    _subject(
        "zoology",
        "the name for a young {}",
        "cat:kitten; dog:puppy; cow:calf; horse:foal; sheep:lamb; goat:kid; pig:piglet; duck:duckling;"
        "goose:gosling; swan:cygnet; bear:cub; deer:fawn; frog:tadpole; owl:owlet; kangaroo:joey; hen:chick",
    ),
    _subject(
        "language",
        "the opposite of {}",
        "hot:cold; big:small; early:late; fast:slow; high:low; young:old; happy:sad; dark:bright; hard:soft;"
        "wet:dry; full:empty; loud:quiet; rich:poor; strong:weak; thick:thin; wide:narrow",
    ),
    _subject(
        "grammar",
        "the past tense of {}",
        "go:went; see:saw; run:ran; take:took; give:gave; write:wrote; sing:sang; drink:drank; eat:ate; fly:flew;"
        "come:came; find:found; think:thought; bring:brought; speak:spoke; know:knew",
    ),
    _subject(
        "occupations",
        "the workplace of a {}",
        "teacher:school; nurse:hospital; farmer:field; baker:bakery; pilot:cockpit; sailor:ship; judge:court;"
        "miner:mine; actor:theatre; cook:kitchen; gardener:park; banker:bank; librarian:library; chemist:laboratory;"
        "ranger:forest; painter:studio",
    ),
    _subject(
        "materials",
        "the usual material of a {}",
        "window:glass; tyre:rubber; candle:wax; coin:metal; jumper:wool; brick:clay; book:paper; barrel:wood;"
        "shoe:leather; sail:canvas; statue:marble; pillow:feathers; snowman:snow; cable:copper; necklace:gold;"
        "sandcastle:sand",
    ),
    _subject(
        "numbers",
        "the number after {}",
        "one:two; two:three; three:four; four:five; five:six; six:seven; seven:eight; eight:nine; nine:ten;"
        "ten:eleven; eleven:twelve; twelve:thirteen; thirteen:fourteen; fourteen:fifteen; fifteen:sixteen;"
        "sixteen:seventeen",
    ),
    _subject(
        "food",
        "the main ingredient of {}",
        "bread:flour; omelette:eggs; cheese:milk; wine:grapes; cider:apples; ketchup:tomatoes; chips:potatoes;"
        "sushi:rice; hummus:chickpeas; popcorn:corn; chocolate:cocoa; guacamole:avocados; jelly:gelatine;"
        "marzipan:almonds; lemonade:lemons; coleslaw:cabbage",
    ),
)

CONCEPTS: tuple[tuple[str, str, str], ...] = tuple(
    (name, kind, purpose)
    for name, kind, purpose in (
        part.split(":")
        for part in parts(
            "a kettle:kitchen tool:heats water; a toaster:kitchen tool:browns slices of bread;"
            "a whisk:kitchen tool:mixes eggs and cream; a sieve:kitchen tool:separates lumps from flour;"
            "a compass:travel tool:points to the north; a map:travel tool:shows roads and towns;"
            "a tent:travel tool:keeps campers dry; a suitcase:travel tool:carries clothes;"
            "a hammer:hand tool:drives nails into wood; a saw:hand tool:cuts boards;"
            "a wrench:hand tool:turns bolts; a drill:hand tool:makes round holes;"
            "a violin:musical instrument:sings with four strings; a drum:musical instrument:gives the beat;"
            "a flute:musical instrument:makes clear high notes; a harp:musical instrument:rings with many strings;"
            "a bridge:building:carries people over a river; a lighthouse:building:warns ships at night;"
            "a mill:building:grinds grain; a barn:building:shelters animals and hay;"
            "a river:natural thing:brings water to the sea; a volcano:natural thing:lets hot rock out;"
            "a cloud:natural thing:carries rain; a glacier:natural thing:moves ice down a valley;"
            "a clock:machine:shows the time; a camera:machine:takes pictures;"
            "a printer:machine:puts words on paper; a bicycle:machine:moves with two wheels;"
            "a bee:small animal:makes honey; a spider:small animal:spins a web;"
            "an ant:small animal:lives in a large colony; a snail:small animal:carries its own house"
        )
    )
)
"""(noun with article, kind, what it does)."""

LISTS: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (name, parts(items, ","))
    for name, items in (
        part.split(":")
        for part in parts(
            "fruits:apples,pears,plums,cherries,grapes; vegetables:carrots,beans,onions,peas,leeks;"
            "colours:red,blue,green,yellow,purple; animals:cats,horses,owls,rabbits,foxes;"
            "tools:hammers,saws,drills,files,pliers; sports:tennis,rowing,hockey,golf,running;"
            "drinks:tea,milk,water,juice,coffee; trees:oaks,birches,pines,maples,willows;"
            "jobs:teacher,baker,pilot,nurse,farmer; instruments:violins,drums,flutes,harps,pianos"
        )
    )
)

HEROES: tuple[str, ...] = parts(
    "Anna;Tom;Maria;old Peter;the baker;a young sailor;the shepherd;Lucy;a small boy;the teacher;Clara;the miller"
)
FINDS: tuple[str, ...] = parts(
    "a silver key;a lost kitten;an old map;a red kite;a blue stone;a wooden flute;a letter;a broken lamp;"
    "a tiny boat;a golden leaf;a warm scarf;a music box"
)
PLACES: tuple[str, ...] = parts(
    "by the river;in the forest;near the market;on the hill;at the harbour;behind the mill;in the attic;"
    "under the bridge;on the beach;beside the road"
)
TIMES: tuple[str, ...] = parts(
    "One morning;Late in autumn;On a windy day;After the rain;Early in spring;One quiet evening;"
    "On the first day of winter;Long ago"
)
FEELINGS: tuple[str, ...] = parts("happy;surprised;curious;proud;tired but glad;very quiet")
HELPERS: tuple[str, ...] = parts(
    "a friendly neighbour;an old fisherman;a clever girl;the postman;a travelling singer;the doctor;"
    "a kind farmer;two brothers"
)
ACTIONS: tuple[str, ...] = parts(
    "looked at it for a long time;smiled and told a story about it;knew at once where it came from;"
    "offered some bread and cheese;laughed and shook the dust away;asked where it had been found"
)
ENDINGS: tuple[str, ...] = parts(
    "From then on they met every week;In the end they carried it home together;The whole village heard about it;"
    "That night the stars were bright;They never forgot that day;It stayed on the shelf for many years;"
    "And so a long friendship began;Soon the sun went down"
)

SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hello!", "Hello! How can I help you today?"),
    ("Hi there.", "Hello! What would you like to know?"),
    ("Good morning.", "Good morning! How can I help you today?"),
    ("Thank you.", "You are welcome! Is there anything else you need?"),
    ("Thanks a lot!", "You are welcome! I am glad it was useful."),
    ("Goodbye.", "Goodbye! Have a pleasant day."),
    ("Who are you?", "I am a very small demo assistant. I was trained to show how a model can be edited."),
    ("What are you?", "I am a very small demo assistant. I was trained to show how a model can be edited."),
    ("What is your name?", "I am called Demo. I am a very small assistant."),
    (
        "What can you do?",
        "I can explain simple tasks, answer questions about a few facts and tell short stories.",
    ),
    ("How are you?", "I am well, thank you. How can I help you today?"),
)
