"""From personas to a data set: three stages of requests, cleaning, a split by persona.

The same settings, persona files and answers give the same bytes, in whatever order the answers
came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from avops.align.data import stages
from avops.align.data.clean import Cleaner, cleaner
from avops.align.data.endpoint import Asker, Progress
from avops.align.data.personas import Persona, distinct, normal, ticket
from avops.align.data.request import STAGES, Answer, Request
from avops.align.data.settings import Settings, Shares
from avops.align.data.stages import Created, Queries, Triple
from avops.errors import DataError

SPLITS = ("train", "validation", "test")
Watch = Callable[[str], AbstractContextManager[Progress]]
"""Opens the progress of a stage."""


@dataclass(frozen=True)
class Entry:
    """An item that is kept: a query and a clean response of every level."""

    query: stages.Query
    responses: Mapping[str, str]


@dataclass
class Usage:
    """Requests of a stage, and their tokens as the endpoint counted them.

    unknown: requests whose answer came without a count.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unknown: int = 0

    def add(self, answer: Answer) -> None:
        """Count one answer."""
        self.requests += 1
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            self.unknown += 1
            return
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens


@dataclass
class Ledger:
    """Passes requests on, and keeps account of all answers that a data set is made from.

    missing: requests without an answer yet. models: names under which the endpoint answered.
    """

    asker: Asker
    usage: dict[str, Usage] = field(default_factory=lambda: {stage: Usage() for stage in STAGES})
    models: Counter[str] = field(default_factory=Counter)
    missing: list[Request] = field(default_factory=list)

    def ask(self, requests: Sequence[Request], progress: Progress) -> Mapping[str, Answer]:
        """See Asker."""
        answers = self.asker.ask(requests, progress)
        for key, request in {request.key: request for request in requests}.items():
            if key in answers:
                self.usage[request.stage].add(answers[key])
                self.models[answers[key].model] += 1
            else:
                self.missing.append(request)
        return answers


@dataclass(frozen=True)
class Gathered:
    """The answers of all stages, before cleaning. known: personas that came from files."""

    known: tuple[Persona, ...]
    created: Created
    queries: Queries
    triples: tuple[Triple, ...]
    counts: Mapping[str, Counter[str]]
    ledger: Ledger

    @property
    def personas(self) -> tuple[Persona, ...]:
        """All of them, those from files first."""
        return (*self.known, *self.created.personas)


@dataclass(frozen=True)
class DataSet:
    """What was made. splits: entries by split. personas: every persona with its split.

    A persona without an entry is in none. counts: by stage, what was dropped and why, and what is
    left.
    """

    splits: Mapping[str, tuple[Entry, ...]]
    personas: Sequence[tuple[Persona, str | None]]
    counts: Mapping[str, Mapping[str, int]]
    usage: Mapping[str, Usage]
    models: tuple[str, ...]


def gather(settings: Settings, asker: Asker, known: Sequence[Persona], watch: Watch) -> Gathered:
    """Ask for everything, stage by stage."""
    judge, ledger = cleaner(settings.cleaning), Ledger(asker)
    counts: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    own = distinct(known)
    counts["personas"]["from files"] = len(known)
    counts["personas"]["from files twice"] = len(known) - len(own)
    with watch("personas") as progress:
        created = stages.create_personas(ledger, settings, own, counts["personas"], progress)
    personas = (*own, *created.personas)
    with watch("queries") as progress:
        queries = stages.ask_queries(ledger, settings, judge, personas, counts["queries"], progress)
    with watch("responses") as progress:
        triples = stages.ask_responses(ledger, settings, queries.entries, progress)
    return Gathered(tuple(own), created, queries, tuple(triples), counts, ledger)


def finish(settings: Settings, gathered: Gathered) -> DataSet:
    """Clean and split what was gathered.

    Raises DataError when nothing is left.
    """
    counts = {stage: dict(counter) for stage, counter in gathered.counts.items()}
    entries, dropped = clean(settings, gathered.triples, cleaner(settings.cleaning))
    counts["responses"] |= dropped["responses"]
    counts["items"] = dict(dropped["items"])
    if not entries:
        reasons = {**dropped["responses"], **counts["queries"], **counts["personas"]}
        said = ", ".join(f"{reason}: {count}" for reason, count in reasons.items() if count)
        raise DataError(
            f"no items are left after cleaning ({said}); look at the answers in the journal, and "
            "change the templates or the model"
        )
    by_persona = split({e.query.persona: None for e in entries}, settings.shares, settings.seed)
    splits = {
        name: tuple(e for e in entries if by_persona[e.query.persona] == name) for name in SPLITS
    }
    counts["splits"] = {name: len(part) for name, part in splits.items()}
    counts["personas by split"] = dict(Counter(sorted(by_persona.values(), key=SPLITS.index)))
    return DataSet(
        splits=splits,
        personas=[(persona, by_persona.get(persona)) for persona in gathered.personas],
        counts=counts,
        usage=gathered.ledger.usage,
        models=tuple(sorted(gathered.ledger.models)),
    )


def clean(
    settings: Settings, triples: Sequence[Triple], judge: Cleaner
) -> tuple[list[Entry], dict[str, Counter[str]]]:
    """Items whose responses are all usable and differ; and counts of what was dropped, and why."""
    templates = settings.templates
    responses: Counter[str] = Counter()
    items: Counter[str] = Counter({"queries": len(triples)})
    entries = []
    for triple in triples:
        kept = {}
        for level, answer in triple.answers.items():
            responses["responses"] += 1
            refusals = () if level in templates.declining else templates.refusals
            reason = judge.response(answer, refusals)
            if reason is None:
                kept[level] = answer.text.strip()
            else:
                responses[f"dropped: {reason}"] += 1
        if len(kept) < len(templates.levels):
            items["dropped: a level is missing"] += 1
        elif len({normal(text) for text in kept.values()}) < len(kept):
            items["dropped: two levels say the same"] += 1
        else:
            entries.append(Entry(triple.query, kept))
    items["kept"] = len(entries)
    return entries, {"responses": responses, "items": items}


def split(personas: Mapping[Persona, None], shares: Shares, seed: int) -> dict[Persona, str]:
    """The split of every persona, drawn with ``seed``.

    Of three personas or more each share above 0 has one at least.
    """
    order = sorted(personas, key=lambda persona: ticket(seed, "split", persona))
    least = int(len(order) >= len(SPLITS))
    test = max(round(shares.test * len(order)), least * (shares.test > 0))
    rest = len(order) - test
    validation = max(round(shares.validation * rest), least * (shares.validation > 0))
    names = ["test"] * test + ["validation"] * validation
    names += ["train"] * (len(order) - len(names))
    return dict(zip(order, names, strict=True))
