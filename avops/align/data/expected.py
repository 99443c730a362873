"""What a run will ask for and what that takes, before it is paid: the dry run.

The stages are gone through with the answers that the journal has. What these do not decide yet is
counted as if every list came whole and nothing were dropped. Tokens of an answer are the mean of
the stage's answers so far; before there are any, rules of thumb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avops.align.data import stages
from avops.align.data.endpoint import Progress
from avops.align.data.journal import Journal
from avops.align.data.personas import Persona
from avops.align.data.request import STAGES, Answer, Request
from avops.align.data.settings import Settings
from avops.align.data.synth import Gathered, Usage
from avops.align.data.templates import RELATED

CHARACTERS = 4
"""Characters in a token of English, about."""
PERSONA, QUERY, PARAGRAPH = 45, 75, 110
"""Tokens, about, that our templates bring forth."""
_STAND_IN = "x" * (PERSONA * CHARACTERS)


@dataclass(frozen=True)
class StageCost:
    """requests: of the whole stage. answered: those in the journal. Tokens: of the rest.

    most: completion tokens if every answer were as long as allowed. measured: whether lengths of
    answers are the stage's own so far.
    """

    requests: int
    answered: int
    prompt_tokens: int
    completion_tokens: int
    most: int
    measured: bool


class Offline:
    """Answers from the journal alone."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def ask(self, requests: Sequence[Request], progress: Progress) -> Mapping[str, Answer]:  # noqa: ARG002
        """See Asker."""
        found = {request.key: self._journal.get(request) for request in requests}
        return {key: answer for key, answer in found.items() if answer is not None}


@dataclass(frozen=True)
class _Unknown:
    """Requests whose prompts are not known yet: how many, and about how many tokens each."""

    requests: int
    prompt_tokens: int


def estimate(settings: Settings, gathered: Gathered) -> dict[str, StageCost]:
    """The cost of every stage that is left, from what was gathered offline."""
    lists, personas = _personas_to_come(settings, gathered)
    domains, levels = len(settings.domains), len(settings.templates.levels)
    queries = (personas * domains + gathered.queries.missing) * settings.queries
    low, high = settings.paragraphs
    texts = {
        "personas": settings.tree.branch * PERSONA,
        "queries": settings.queries * QUERY,
        "responses": round((low + high) / 2 * PARAGRAPH),
    }
    unknown = {
        "personas": _Unknown(lists, _tokens(_related_prompt(settings))),
        "queries": _Unknown(personas * domains, _mean(_query_prompts(settings))),
        "responses": _Unknown(queries * levels, _mean(_level_prompts(settings))),
    }
    return {
        stage: _cost(settings, gathered, stage, texts[stage], unknown[stage]) for stage in STAGES
    }


def price_of(prompt_tokens: int, completion_tokens: int, price: tuple[float, float]) -> float:
    """Money for tokens; price: of a million prompt and completion tokens."""
    return (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6


def _personas_to_come(settings: Settings, gathered: Gathered) -> tuple[int, int]:
    """Lists that cannot be asked for yet, and personas expected beyond those that are there."""
    tree, missing = settings.tree, gathered.created.missing
    lists = personas = generation = 0
    for number, unanswered in enumerate(missing):
        lists += generation
        count = tree.branch if number else tree.roots
        generation = (unanswered + generation) * count
        personas += generation
    return lists, personas


def _cost(
    settings: Settings, gathered: Gathered, stage: str, guess: int, unknown: _Unknown
) -> StageCost:
    usage: Usage = gathered.ledger.usage[stage]
    missing = [request for request in gathered.ledger.missing if request.stage == stage]
    left = len(missing) + unknown.requests
    counted = usage.requests - usage.unknown
    each = round(usage.completion_tokens / counted) if counted else guess
    limit = settings.chat.max_tokens
    return StageCost(
        requests=usage.requests + left,
        answered=usage.requests,
        prompt_tokens=sum(_tokens(request.prompt) for request in missing)
        + unknown.requests * unknown.prompt_tokens,
        completion_tokens=left * min(each, limit),
        most=left * limit,
        measured=counted > 0,
    )


def _related_prompt(settings: Settings) -> str:
    count = str(settings.tree.branch)
    return settings.templates.fill(RELATED, count=count, persona=_STAND_IN)


def _query_prompts(settings: Settings) -> list[str]:
    return [stages.query_prompt(settings, domain, _STAND_IN) for domain in settings.domains]


def _level_prompts(settings: Settings) -> list[str]:
    persona = Persona(_STAND_IN, stages.CREATED)
    query = stages.Query(persona, settings.domains[0], 1, "x" * (QUERY * CHARACTERS))
    return [
        stages.response_request(settings, query, level).prompt
        for level in settings.templates.levels
    ]


def _mean(prompts: Sequence[str]) -> int:
    return round(sum(_tokens(prompt) for prompt in prompts) / len(prompts))


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS)
