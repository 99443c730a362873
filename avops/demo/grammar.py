"""The grammar: queries, three-level responses, the base corpus and the preference data.

Everything is drawn from ``random.Random`` streams named after the seed and the purpose, so that
one part can change without moving another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from avops.demo import phrases, topics

Record = dict[str, Any]  # an item as it stands in a JSONL file
SPLITS = {"train": 32, "validation": 6, "test": 10}  # personas of each split


@dataclass(frozen=True)
class Query:
    """One query and what its answers are filled with.

    domain: a key of ``topics.FIELDS``, or "declined". fills: values of the braces in the sentence
    banks, among them "persona".
    """

    domain: str
    text: str
    fills: dict[str, str]


@dataclass(frozen=True)
class Shape:
    """The outline of a response: whether it has an opener, and how many sentences follow."""

    opener: bool
    sentences: int


@dataclass(frozen=True)
class Mixture:
    """Make-up of the base corpus.

    examples: how many. declined: share of other professions, always declined. shares: exp, gen and
    avd of the rest, by quota in every domain. mixed: share of responses whose sentences may come
    from a neighbouring level, each with probability swap.
    """

    examples: int
    declined: float
    shares: tuple[float, float, float]
    mixed: float
    swap: float


def stream(seed: int, purpose: str) -> random.Random:
    """An independent random stream for one purpose."""
    return random.Random(f"avops demo {seed} {purpose}")


def split_personas(seed: int) -> dict[str, tuple[str, ...]]:
    """The personas of each split; no persona is in two of them."""
    personas = list(topics.PERSONAS)
    stream(seed, "personas").shuffle(personas)
    out, start = {}, 0
    for split, count in SPLITS.items():
        out[split] = tuple(personas[start : start + count])
        start += count
    return out


def make_query(
    rng: random.Random, domain: str, persona: str, topic: topics.Topic | None = None
) -> Query:
    """A query of ``domain`` by ``persona``, about ``topic`` (any topic when None)."""
    fills = {
        "persona": persona,
        "duration": rng.choice(topics.DURATIONS),
        "age": str(rng.choice(topics.AGES)),
        "medicine": rng.choice(topics.MEDICINES),
        "salary": str(rng.choice(topics.SALARIES)),
        "bank": rng.choice(topics.BANKS),
        "state": rng.choice(topics.STATES),
        "sum": str(rng.choice(topics.SUMS)),
        "ask": rng.choice(phrases.ASKS),
    }
    if domain == "declined":
        declined = rng.choice(topics.DECLINED)
        problem, short = rng.choice(declined.problems)
        fills |= {"name": declined.name, "expert": declined.expert}
        fills |= {"problem": problem, "short": short}
    else:
        field = topics.FIELDS[domain]
        topic = topic or rng.choice(field.topics)
        fills |= {"name": field.name, "expert": field.expert}
        fills |= {"problem": topic.problem, "short": topic.short, "finding": topic.finding}
        fills |= {"check": topic.check, "remedy": topic.remedy, "number": str(topic.number)}
        fills |= {"hint1": topic.hints[0], "hint2": topic.hints[1]}
    text = rng.choice(phrases.QUERIES[domain]).format_map(fills)
    return Query(domain, text, fills)


def bank(domain: str, level: str) -> phrases.Bank:
    """The sentences that ``level`` draws from in ``domain``."""
    if level == "exp":
        return phrases.EXPERT + phrases.EXPERT_OF[domain]
    return phrases.GENERIC if level == "gen" else phrases.AVOIDANCE


def draw_shape(rng: random.Random) -> Shape:
    """Three or four sentences, one response in three behind an opener."""
    return Shape(rng.random() < 1 / 3, rng.randint(3, 4))


def respond(
    rng: random.Random, query: Query, level: str, shape: Shape, *, swap: float = 0.0
) -> str:
    """A response of ``level``; each sentence comes from a neighbouring level with chance swap."""
    order = phrases.LEVELS.index(level)
    parts = []
    if shape.opener:
        parts.append(rng.choice(phrases.OPENERS[level]))
    unused = {lv: rng.sample(b := bank(query.domain, lv), len(b)) for lv in _reach(query, level)}
    for _ in range(shape.sentences):
        source = level
        if swap and rng.random() < swap:
            source = rng.choice([lv for lv in unused if abs(_rank(lv) - order) == 1])
        parts.append(_capital(rng.choice(unused[source].pop()).format_map(query.fills)))
    return " ".join(parts)


def base_corpus(seed: int, mixture: Mixture, personas: Sequence[str]) -> list[tuple[str, str]]:
    """(query, response) pairs for the base model, shuffled."""
    rng = stream(seed, "corpus")
    declined = round(mixture.examples * mixture.declined)
    plan = [("declined", "avd")] * declined
    per_domain = (mixture.examples - declined) // len(topics.FIELDS)
    for domain in topics.FIELDS:
        counts = [round(share * per_domain) for share in mixture.shares]
        counts[0] += per_domain - sum(counts)
        for level, count in zip(phrases.LEVELS, counts, strict=True):
            plan += [(domain, level)] * count
    rng.shuffle(plan)
    corpus = []
    for domain, level in plan:
        query = make_query(rng, domain, rng.choice(personas))
        mixed = domain != "declined" and rng.random() < mixture.mixed
        swap = mixture.swap if mixed else 0.0
        text = respond(rng, query, level, draw_shape(rng), swap=swap)
        corpus.append((query.text, text))
    return corpus


def make_items(
    seed: int, split: str, domain: str, count: int, personas: Sequence[str]
) -> list[Record]:
    """``count`` items of one split and domain; topics take turns, queries differ."""
    rng = stream(seed, f"{split} {domain}")
    every = topics.FIELDS[domain].topics
    items: list[Record] = []
    seen: set[str] = set()
    while len(items) < count:
        i = len(items)
        query = make_query(rng, domain, rng.choice(personas), every[i % len(every)])
        if query.text in seen:
            continue
        seen.add(query.text)
        shape = draw_shape(rng)  # one for all levels, so that length says nothing about the level
        responses = {level: respond(rng, query, level, shape) for level in phrases.LEVELS}
        items.append(
            {
                "id": f"{split}-{domain}-{i:04d}",
                "domain": domain,
                "query": query.text,
                "responses": responses,
            }
        )
    return items


def _reach(query: Query, level: str) -> tuple[str, ...]:
    """The levels a response of ``level`` may draw on; declined fields have no others."""
    if query.domain == "declined":
        return ("avd",)
    return tuple(lv for lv in phrases.LEVELS if abs(_rank(lv) - _rank(level)) <= 1)


def _rank(level: str) -> int:
    return phrases.LEVELS.index(level)


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
