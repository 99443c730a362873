"""The three stages: personas, their queries, and a response of every level to each query.

Every stage makes its requests from the answers to the one before, in an order of its own: what
comes out does not depend on the order in which answers arrive.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from avops.align.data.clean import Cleaner
from avops.align.data.endpoint import Asker, Progress
from avops.align.data.lists import ListAsk, ask_lists
from avops.align.data.personas import Persona, distinct, normal
from avops.align.data.request import Answer, Request
from avops.align.data.settings import Settings
from avops.align.data.templates import QUERIES, RELATED, ROOTS, level_file

CREATED = "created"


@dataclass(frozen=True)
class Query:
    """A query of one persona in one domain; number: its place in the persona's list."""

    persona: Persona
    domain: str
    number: int
    text: str

    @property
    def id(self) -> str:
        """Names the item; the persona's id is in its middle."""
        return f"{self.domain}-{self.persona.id}-{self.number}"


@dataclass(frozen=True)
class Created:
    """Personas made. missing: lists without an answer yet, by round, roots first."""

    personas: tuple[Persona, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Queries:
    """Queries that are kept. missing: lists without an answer yet."""

    entries: tuple[Query, ...]
    missing: int


@dataclass(frozen=True)
class Triple:
    """A query and the answers to it by level; a level without an answer yet is absent."""

    query: Query
    answers: dict[str, Answer] = field(default_factory=dict)


def create_personas(
    asker: Asker,
    settings: Settings,
    known: Sequence[Persona],
    counts: Counter[str],
    progress: Progress,
) -> Created:
    """The tree of personas, without those that are ``known`` or come twice."""
    tree = settings.tree
    made: list[Persona] = []
    missing = []
    parents: list[Persona | None] = [None] if tree.roots else []
    for number in range(tree.rounds + 1):
        count = tree.branch if number else tree.roots
        asks = [_list_of_personas(settings, parent, count, number) for parent in parents]
        results = ask_lists(asker, settings.chat, asks, counts, progress)
        missing.append(sum(result.missing for result in results))
        new = [
            Persona(text, CREATED, number, None if parent is None else parent.id)
            for parent, result in zip(parents, results, strict=True)
            for text in result.texts or ()
        ]
        fresh = distinct(new, [*known, *made])
        counts["created"] += len(new)
        counts["created twice"] += len(new) - len(fresh)
        made += fresh
        parents = list(fresh)
    return Created(tuple(made), tuple(missing))


def _list_of_personas(
    settings: Settings, parent: Persona | None, count: int, number: int
) -> ListAsk:
    templates = settings.templates
    if parent is None:
        return ListAsk("personas", "roots", templates.fill(ROOTS, count=str(count)), count)
    prompt = templates.fill(RELATED, count=str(count), persona=parent.text)
    return ListAsk("personas", f"round {number} of {parent.id}", prompt, count)


def query_prompt(settings: Settings, domain: str, persona: str) -> str:
    """The prompt that asks for the queries of a persona in one domain."""
    return settings.templates.fill(
        QUERIES,
        count=str(settings.queries),
        persona=persona,
        domain=settings.templates.domains[domain],
    )


def ask_queries(
    asker: Asker,
    settings: Settings,
    cleaner: Cleaner,
    personas: Sequence[Persona],
    counts: Counter[str],
    progress: Progress,
) -> Queries:
    """The queries of all personas in all domains: in the right script and language, none twice."""
    pairs = [(persona, domain) for persona in personas for domain in settings.domains]
    asks = [
        ListAsk(
            "queries",
            f"{domain}-{persona.id}",
            query_prompt(settings, domain, persona.text),
            settings.queries,
        )
        for persona, domain in pairs
    ]
    results = ask_lists(asker, settings.chat, asks, counts, progress)
    kept: list[Query] = []
    seen: set[str] = set()
    for (persona, domain), result in zip(pairs, results, strict=True):
        for number, text in enumerate(result.texts or (), start=1):
            counts["queries"] += 1
            reason = cleaner.foreign(text)
            if reason is None and normal(text) in seen:
                reason = "the same query twice"
            if reason is not None:
                counts[f"dropped: {reason}"] += 1
                continue
            seen.add(normal(text))
            kept.append(Query(persona, domain, number, text))
    return Queries(tuple(kept), sum(result.missing for result in results))


def response_request(settings: Settings, query: Query, level: str) -> Request:
    """The request for the response of one level. Its number of paragraphs is drawn by the query."""
    seed = f"avops synth {settings.seed} paragraphs {level} {query.text}"
    count = random.Random(seed).randint(*settings.paragraphs)
    prompt = settings.templates.fill(
        level_file(level),
        query=query.text,
        domain=settings.templates.domains[query.domain],
        persona=query.persona.text,
        paragraphs="1 paragraph" if count == 1 else f"{count} paragraphs",
    )
    return settings.chat.request("responses", f"{query.id}/{level}", prompt)


def ask_responses(
    asker: Asker, settings: Settings, queries: Sequence[Query], progress: Progress
) -> list[Triple]:
    """A response of every level to every query."""
    requests = {
        (query.id, level): response_request(settings, query, level)
        for query in queries
        for level in settings.templates.levels
    }
    answers = asker.ask(list(requests.values()), progress)
    return [
        Triple(
            query,
            {
                level: answers[key]
                for level in settings.templates.levels
                if (key := requests[query.id, level].key) in answers
            },
        )
        for query in queries
    ]
