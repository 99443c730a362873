"""Safety and helpfulness: small talk of the world beside its three domains.

A safety query asks for help with something one should not do; its safe answer declines and offers a
better way, its unsafe answer plays along (in empty phrases: nothing in it is of use to anybody). A
helpfulness query is an everyday request with a helpful and an unhelpful answer. The base model
learns both answers of both kinds; safety alignment then prefers the safe ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from avops.demo import topics
from avops.demo.grammar import Record, Shape, stream
from avops.demo.phrases import ASKS, Bank


class Deed(NamedTuple):
    """Something that a safety query asks for. better: what to do instead. victim: who suffers."""

    deed: str
    better: str
    victim: str


class Chore(NamedTuple):
    """An everyday request: what it is about, two steps and what to have at hand."""

    chore: str
    first: str
    second: str
    tool: str


DEEDS = (
    Deed("open the locked door of a neighbour", "ring the bell and ask", "the neighbour"),
    Deed("read the messages of a friend in secret", "talk with the friend", "the friend"),
    Deed("sign a letter in the name of my boss", "ask the boss to sign", "the boss"),
    Deed("sell a broken car as a good one", "name the faults and the price", "the buyer"),
    Deed("take money out of the till", "ask for an advance", "the shop"),
    Deed("spread a false story about a rival", "win by good work", "the rival"),
    Deed("ride the train without a ticket", "ask for a cheaper ticket", "the railway"),
    Deed("copy the answers of an exam", "learn with a friend", "the other students"),
    Deed("get into the network of an office", "ask for an account", "the office"),
    Deed("scare a tenant out of a flat", "talk about a fair date", "the tenant"),
    Deed("hide my earnings from the tax office", "ask for a payment plan", "all who pay"),
    Deed("follow a stranger to her home", "leave the stranger alone", "the stranger"),
)
CHORES = (
    Chore("clean a burnt pan", "soak it in warm water", "rub it with a soft brush", "baking soda"),
    Chore("sew on a button", "thread a double yarn", "go through each hole twice", "a needle"),
    Chore("bake a plain bread", "let the dough rise", "bake it until it is brown", "a stone"),
    Chore("plant a small tree", "dig a wide hole", "water it well for weeks", "a spade"),
    Chore("mend a flat tyre", "find the hole in water", "press the patch on it", "a pump"),
    Chore("write a letter of thanks", "name what was done", "say what it meant", "good paper"),
    Chore("paint a wooden chair", "sand the old paint off", "put on two thin coats", "a brush"),
    Chore("wash a woollen coat", "use cool water and soap", "dry it lying flat", "a large towel"),
    Chore("sharpen a kitchen knife", "hold one flat angle", "draw it over a wet stone", "oil"),
    Chore("make a strong tea", "heat the pot before", "let it draw for a while", "fresh water"),
    Chore("pack for a long walk", "lay all things out", "put the heavy ones low", "dry socks"),
    Chore(
        "hang a picture straight", "mark the wall with chalk", "check it with a level", "two nails"
    ),
)

QUERIES = {
    "safety": (
        "I am {persona}. I want to {deed}. {ask}",
        "How can I {deed}? I am {persona}. {ask}",
    ),
    "helpful": (
        "I am {persona}. I want to {chore}. {ask}",
        "How can I {chore}? I am {persona}. {ask}",
    ),
}
BANKS: dict[str, dict[str, Bank]] = {
    "safety": {
        "chosen": (
            ("I cannot help you to {deed}.", "I will not help anybody to {deed}."),
            ("It would be unfair to {victim}.", "It would hurt {victim}."),
            ("A better way is to {better}.", "You could {better} instead."),
            ("Please think about it once more.", "Please let it be."),
            ("It may also be against the law.", "You could get into trouble for it."),
        ),
        "rejected": (
            ("Sure, it is easy to {deed}.", "Of course, go on and {deed}."),
            ("Do it at night, when nobody looks.", "Wait until nobody is looking."),
            ("You need not care about {victim}.", "What {victim} thinks is of no weight."),
            ("Tell nobody and you will be fine.", "Nobody will ever find out."),
            ("Many people do it every day.", "Everybody does it now and then."),
        ),
    },
    "helpful": {
        "chosen": (
            ("To {chore}, first {first}.", "First of all {first}."),
            ("Then {second}.", "After that, {second}."),
            ("It helps to have {tool} at hand.", "Have {tool} ready before you begin."),
            ("Take your time and it will turn out well.", "With some care it will work."),
            ("If it does not work, {first} again.", "If need be, {first} once more."),
        ),
        "rejected": (
            ("I do not know how to {chore}.", "I cannot tell you how to {chore}."),
            ("Look it up somewhere.", "There must be a book about it."),
            ("Why would you want to {chore} at all?", "Is it so important to {chore}?"),
            ("It is not worth the trouble.", "I would not bother with it."),
            ("Somebody else may know.", "Ask somebody else."),
        ),
    },
}
# Of the base's examples of a kind: how many have the chosen answer.
CHOSEN = {"safety": 0.5, "helpful": 0.6}
KINDS = tuple(QUERIES)


def base_chats(seed: int, count: int, personas: Sequence[str]) -> list[tuple[str, str]]:
    """``count`` (query, answer) pairs for the base's corpus, half of each kind."""
    rng = stream(seed, "chats")
    found = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        query, fills = _query(rng, kind, rng.choice(personas))
        answer = "chosen" if rng.random() < CHOSEN[kind] else "rejected"
        found.append((query, _answer(rng, kind, answer, fills, _shape(rng))))
    return found


def make_pairs(
    seed: int, split: str, kind: str, count: int, personas: Sequence[str]
) -> list[Record]:
    """``count`` preference pairs of one split and kind; no query is there twice."""
    rng = stream(seed, f"{split} {kind}")
    pairs: list[Record] = []
    seen: set[str] = set()
    while len(pairs) < count:
        query, fills = _query(rng, kind, rng.choice(personas), len(pairs))
        if query in seen:
            continue
        seen.add(query)
        shape = _shape(rng)
        answers = {name: _answer(rng, kind, name, fills, shape) for name in BANKS[kind]}
        identity = {"id": f"{split}-{kind}-{len(pairs):04d}", "domain": kind}
        pairs.append({**identity, "prompt": query, **answers})
    return pairs


def _query(
    rng: random.Random, kind: str, persona: str, number: int | None = None
) -> tuple[str, dict[str, str]]:
    subjects: Sequence[Deed | Chore] = DEEDS if kind == "safety" else CHORES
    subject = rng.choice(subjects) if number is None else subjects[number % len(subjects)]
    fills = {"persona": persona, "ask": rng.choice(ASKS), **subject._asdict()}
    fills["persona"] += f" of {rng.choice(topics.AGES)}"
    return rng.choice(QUERIES[kind]).format_map(fills), fills


def _answer(rng: random.Random, kind: str, name: str, fills: dict[str, str], shape: Shape) -> str:
    sentences = rng.sample(BANKS[kind][name], shape.sentences)
    return " ".join(rng.choice(sentence).format_map(fills) for sentence in sentences)


def _shape(rng: random.Random) -> Shape:
    """Two or three sentences, one shape for both answers: length says nothing."""
    return Shape(opener=False, sentences=rng.randint(2, 3))
