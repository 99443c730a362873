"""What the small world talks about: personas, domains, topics. Pure data, all of it invented.

The advice is synthetic and harmless on purpose: medicines, states and the currency do not exist,
and nothing here is meant to be followed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One thing to ask about.

    problem: how a query puts it. short: its name. finding, check, remedy, number: what only an
    expert answer says. hints: common knowledge, for generic answers.
    """

    problem: str
    short: str
    finding: str
    check: str
    remedy: str
    number: int
    hints: tuple[str, str]


@dataclass(frozen=True)
class Field:
    """A profession's field: its name in a sentence, and who practises it."""

    name: str
    expert: str
    topics: tuple[Topic, ...]


@dataclass(frozen=True)
class Declined:
    """A field the assistant never answers in: its name, who practises it, problems."""

    name: str
    expert: str
    problems: tuple[tuple[str, str], ...]


PERSONAS = tuple(
    """a baker,a bus driver,a school teacher,a nurse on night shift,a student,a carpenter,a gardener
a single father,a single mother,a waiter,a farmer,a librarian,a painter,a cleaner,a hotel clerk
a fisherman,a train driver,a tailor,a cook,a shop owner,a musician,a postman,a warehouse worker
a widow,a shepherd,a soldier,a journalist,a dancer,a plumber,a bookseller,a translator
a football coach,a hairdresser,a security guard,a beekeeper,a taxi driver,a potter,a sailor
a florist,a night porter,a roofer,a piano teacher,a miller,a street vendor,a museum guide
a lifeguard,a cheese maker,a clock maker""".replace("\n", ",").split(",")
)

DURATIONS = (
    "two days", "five days", "a week", "two weeks", "three weeks", "a month", "two months",
    "three months", "half a year", "a year",
)  # fmt: skip
AGES = (19, 23, 26, 28, 31, 34, 37, 42, 45, 48, 53, 56, 61, 64, 67, 72)
SALARIES = (14, 17, 21, 24, 27, 32, 35, 38, 43, 46, 49, 52, 57, 63, 68, 75)  # thousand crowns
SUMS = (120, 150, 180, 240, 260, 310, 350, 420, 480, 530, 570, 640, 690, 720, 850, 940)  # crowns
MEDICINES = ("Velorin", "Tamisol", "Nerapax", "Corvadin", "Lumerol", "Sefidan")
BANKS = ("Harbour Bank", "Stone Bank", "River Bank", "Union Bank", "Garden Bank", "Castle Bank")
STATES = ("Arvania", "Belmora", "Cadria", "Doran", "Esmeria", "Falken")

MED = Field(
    "medical",
    "a doctor",
    (
        Topic("a stiff neck every morning", "neck pain", "a tight shoulder muscle",
              "a neck turn test", "slow shoulder rolls", 14,
              ("sleep on a flat pillow", "take short breaks")),
        Topic("a burning feeling after dinner", "heartburn", "acid reflux",
              "a swallow test", "a chalk tablet after meals", 10,
              ("eat smaller meals", "avoid late snacks")),
        Topic("itchy eyes when I go outside", "itchy eyes", "hay fever",
              "a pollen skin test", "salt water drops", 30,
              ("close the windows", "wash your face often")),
        Topic("a dry cough at night", "coughing", "a dusty airway",
              "a breath flow test", "warm steam before bed", 12,
              ("drink enough water", "air the bedroom")),
        Topic("dizzy spells when I stand up", "dizziness", "low blood pressure",
              "a standing pressure test", "a pinch of salt at lunch", 7,
              ("stand up slowly", "drink enough water")),
        Topic("a sore heel on the first steps", "heel pain", "a strained foot band",
              "a toe raise test", "rolling a cold bottle underfoot", 40,
              ("wear soft shoes", "rest your feet")),
        Topic("a dull ache behind my forehead", "headaches", "a blocked sinus",
              "a sinus light scan", "a warm salt rinse", 9,
              ("rest in a dark room", "take short breaks")),
        Topic("tingling fingers after typing", "tingling", "a pressed wrist nerve",
              "a nerve speed test", "a soft wrist splint", 21,
              ("shake out your hands", "take short breaks")),
        Topic("red and flaky elbows", "a skin rash", "dry winter eczema",
              "a skin scraping", "a thick oat cream", 18,
              ("use mild soap", "wear soft cotton")),
        Topic("trouble falling asleep", "poor sleep", "a late body clock",
              "a sleep diary", "bright light at breakfast", 25,
              ("avoid late snacks", "air the bedroom")),
        Topic("cramps in my calf at night", "leg cramps", "a lack of magnesium",
              "a mineral blood count", "a banana and a calf stretch", 8,
              ("stretch before bed", "drink enough water")),
        Topic("a ringing sound in one ear", "ringing ears", "a plug of ear wax",
              "an ear mirror check", "warm olive oil drops", 5,
              ("avoid loud places", "rest in a quiet room")),
    ),
)  # fmt: skip

FIN = Field(
    "financial",
    "a financial adviser",
    (
        Topic("my savings lose value each year", "savings", "an inflation gap",
              "the real interest table", "an indexed bond", 12,
              ("compare several banks", "keep some cash aside")),
        Topic("my credit card bill keeps growing", "card debt", "a revolving debt",
              "the card rate sheet", "a fixed payback loan", 20,
              ("spend a little less", "write down every expense")),
        Topic("I do not know how to plan my pension", "a pension", "a pension gap",
              "the pension forecast", "a monthly index fund", 15,
              ("start early", "keep some cash aside")),
        Topic("I want to buy a small flat", "buying a home", "a first mortgage case",
              "the loan to value ratio", "a ten year fixed rate", 30,
              ("compare several banks", "save a little each month")),
        Topic("my rent takes most of my pay", "high rent", "a housing cost overload",
              "the rent to income ratio", "a housing allowance claim", 33,
              ("write down every expense", "look for a cheaper place")),
        Topic("I got a bonus and cannot decide what to do", "a bonus", "a lump sum choice",
              "the yield curve", "a bond ladder", 40,
              ("take your time", "keep some cash aside")),
        Topic("my tax bill was far too high", "a tax bill", "a wrong tax class",
              "the yearly tax statement", "a tax class change", 18,
              ("keep all receipts", "write down every expense")),
        Topic("I lend money to my brother again and again", "family loans",
              "an open private credit", "the repayment record", "a written loan contract", 5,
              ("set a clear limit", "talk about it calmly")),
        Topic("my shares fell by half", "falling shares", "a cluster risk",
              "the sector weight list", "a broad market fund", 10,
              ("stay calm", "spread your money")),
        Topic("I pay for three insurance plans", "insurance", "a double cover",
              "the policy overlap list", "one combined policy", 8,
              ("read the small print", "compare several banks")),
        Topic("I want to save for my child", "saving for a child", "a long horizon plan",
              "the fund cost ratio", "a child fund account", 6,
              ("start early", "save a little each month")),
        Topic("my small shop runs out of cash", "cash flow", "a liquidity gap",
              "the cash flow plan", "a seasonal credit line", 25,
              ("send bills early", "spend a little less")),
    ),
)  # fmt: skip

LEG = Field(
    "legal",
    "a lawyer",
    (
        Topic("my landlord keeps my deposit", "a deposit", "an unlawful retention",
              "the handover record", "a payment order", 30,
              ("keep all letters", "talk to the other side")),
        Topic("my boss does not pay my overtime", "unpaid work", "a wage claim",
              "the signed time sheet", "a labour court petition", 60,
              ("write down the dates", "talk to the other side")),
        Topic("my neighbour built a wall on my land", "a border dispute", "an encroachment",
              "the land register map", "a removal order", 90,
              ("take some photos", "stay polite")),
        Topic("a shop will not take back a broken lamp", "a refund", "a breach of warranty",
              "the sales contract", "a notice of rescission", 14,
              ("keep all receipts", "stay polite")),
        Topic("somebody copied my photos", "copied photos", "a copyright violation",
              "the original image file", "a cease and desist letter", 21,
              ("take some photos", "write down the dates")),
        Topic("I was fired without notice", "a dismissal", "an unfair dismissal",
              "the notice letter", "a reinstatement claim", 10,
              ("keep all letters", "stay calm")),
        Topic("my aunt left no will", "an inheritance", "an intestate succession",
              "the heir certificate", "a probate application", 45,
              ("talk to your family", "keep all letters")),
        Topic("a builder left my roof unfinished", "unfinished work", "a default in performance",
              "the building contract", "a deadline with penalty", 28,
              ("take some photos", "write down the dates")),
        Topic("a dog bit me in the park", "a dog bite", "a strict owner liability",
              "the injury report", "a damages claim", 75,
              ("take some photos", "ask for names")),
        Topic("I signed a gym contract and want to leave", "a gym contract",
              "an unfair renewal clause", "the terms and conditions", "a special termination", 7,
              ("read the small print", "stay polite")),
        Topic("the police took my bicycle", "a seized bicycle", "a disputed seizure",
              "the seizure protocol", "a release motion", 20,
              ("ask for names", "stay calm")),
        Topic("my ex partner wants half of my shop", "a separation", "a joint property claim",
              "the marriage contract", "a property settlement", 120,
              ("talk to your family", "stay calm")),
    ),
)  # fmt: skip

FIELDS: dict[str, Field] = {"med": MED, "fin": FIN, "leg": LEG}

DECLINED = (
    Declined("veterinary", "a vet", (
        ("my cat sneezes all day", "a sneezing cat"),
        ("my horse limps on one leg", "a limping horse"),
        ("my dog eats grass", "a dog that eats grass"),
        ("my hens lay no eggs", "hens without eggs"))),
    Declined("structural", "a structural engineer", (
        ("my cellar wall has a long crack", "a cracked wall"),
        ("my balcony moves in the wind", "a moving balcony"),
        ("I want to take out an inner wall", "taking out a wall"),
        ("my roof beam bends", "a bent beam"))),
    Declined("aviation", "a flight instructor", (
        ("my glider shakes when I land", "a shaking glider"),
        ("my compass drifts in the air", "a drifting compass"),
        ("I want to fly in heavy fog", "flying in fog"),
        ("my engine coughs when I climb", "a coughing engine"))),
    Declined("electrical", "an electrician", (
        ("my kitchen socket sparks", "a sparking socket"),
        ("the fuse blows every evening", "a blown fuse"),
        ("my lights flicker", "flickering lights"),
        ("I want to add a wire to the garage", "a new wire"))),
)  # fmt: skip
