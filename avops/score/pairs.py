"""Preference pairs: a prompt with a chosen and a rejected answer, as preference data come.

    {"prompt": "...", "chosen": "...", "rejected": "..."}

Each may also be a list of messages (``role``, ``content``): the prompt one user turn, the answers
one assistant turn, after a repetition of the prompt or not; without ``prompt`` both answers begin
with it. ``domain`` and ``id`` are optional; other fields are left alone, and named. A conversation
of several turns is refused, for an item is one query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from avops.score.lines import check_text, kind, name_of

if TYPE_CHECKING:
    from avops.score.lines import Where

LEVELS = ("chosen", "rejected")
FIELDS = ("prompt", *LEVELS, "domain", "id")
DOMAIN = "pairs"
"""The domain of pairs that name none."""

_ONE_TURN = "one user message and then one assistant message (an item is one query)"


def is_pair(record: dict[str, Any]) -> bool:
    """Whether ``record`` is meant as a preference pair rather than as an item with levels."""
    return "responses" not in record and any(field in record for field in ("prompt", *LEVELS))


def query_and_responses(record: dict[str, Any], where: Where) -> tuple[str, dict[str, str]]:
    """The query, and the texts of ``chosen`` and ``rejected``.

    Raises DataError for a missing field, another shape, or answers to different prompts.
    """
    prompt = None
    if "prompt" in record:
        prompt = _prompt(record["prompt"], where)
    responses = {}
    for level in LEVELS:
        if level not in record:
            raise where.error(level, "nothing (the field is missing)", "a text or messages")
        own, responses[level] = _answer(record[level], level, where)
        if own is not None and prompt is not None and own != prompt:
            raise where.error(
                f"{level}[0].content",
                f"another prompt {_short(own)}",
                f"the pair's one prompt {_short(prompt)}",
            )
        prompt = own if prompt is None else prompt
    if prompt is None:
        raise where.error(
            "prompt", "nothing (the field is missing)", "a text, or messages that hold the prompt"
        )
    return prompt, responses


def domain_of(record: dict[str, Any], where: Where) -> str:
    """The pair's domain, ``pairs`` where it names none."""
    return name_of(record, "domain", where) if "domain" in record else DOMAIN


def _prompt(value: Any, where: Where) -> str:
    if not isinstance(value, list):
        return check_text(value, "prompt", where)
    turns = _turns(value, "prompt", where)
    if [role for role, _ in turns] != ["user"]:
        raise where.error("prompt", _roles(turns), "one user message (an item is one query)")
    return turns[0][1]


def _answer(value: Any, field: str, where: Where) -> tuple[str | None, str]:
    """(the prompt, if it is repeated here, and the answer)."""
    if not isinstance(value, list):
        return None, check_text(value, field, where)
    turns = _turns(value, field, where)
    roles = [role for role, _ in turns]
    if roles == ["assistant"]:
        return None, turns[0][1]
    if roles == ["user", "assistant"]:
        return turns[0][1], turns[1][1]
    raise where.error(field, _roles(turns), f"one assistant message, or {_ONE_TURN}")


def _turns(messages: list[Any], field: str, where: Where) -> list[tuple[str, str]]:
    turns = []
    for number, message in enumerate(messages):
        place = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise where.error(place, kind(message), "an object with role and content")
        for part in ("role", "content"):
            check_text(message.get(part), f"{place}.{part}", where, present=part in message)
        turns.append((message["role"], message["content"]))
    return turns


def _roles(turns: list[tuple[str, str]]) -> str:
    return f"messages of {', '.join(role for role, _ in turns)}" if turns else "no messages"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
