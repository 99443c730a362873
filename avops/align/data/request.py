"""What is asked of an endpoint, and what it answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STAGES = ("personas", "queries", "responses")


@dataclass(frozen=True)
class Request:
    """One chat completion.

    name: who asks, for messages. attempt: 0, or how often an unreadable answer was asked for
    before. body: what is sent. The key is made of stage, attempt and body alone, so that a run with
    more personas, or other prompts of one level, finds what it has in common with an earlier one.
    """

    stage: str
    name: str
    body: Mapping[str, Any]
    attempt: int = 0
    key: str = field(init=False)

    def __post_init__(self) -> None:
        what = [self.stage, self.attempt, dict(self.body)]
        text = json.dumps(what, sort_keys=True, ensure_ascii=False)
        object.__setattr__(self, "key", hashlib.sha256(text.encode()).hexdigest()[:32])

    @property
    def prompt(self) -> str:
        """The text that is sent."""
        return "\n".join(message["content"] for message in self.body["messages"])


@dataclass(frozen=True)
class Answer:
    """One completion, as the endpoint gave it.

    finish: its finish_reason. refused: why the endpoint declined, or None. model: as the endpoint
    names it. prompt_tokens, completion_tokens: its own count, None where it gave none.
    """

    text: str
    finish: str
    refused: str | None = None
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Chat:
    """How requests are made of prompts.

    extra: fields of the request's body; one that is None is left out, so that a default can be
    taken away.
    """

    model: str
    temperature: float = 1.0
    max_tokens: int = 1024
    extra: Mapping[str, Any] = field(default_factory=dict)

    def request(self, stage: str, name: str, prompt: str, attempt: int = 0) -> Request:
        """The request that sends ``prompt`` as the user's only turn."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        body |= self.extra
        kept = {field: value for field, value in body.items() if value is not None}
        return Request(stage, name, kept, attempt)
