"""Lists of texts: asked for as JSON, read strictly, asked for again when they cannot be read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avops.align.data.clean import encodable
from avops.align.data.endpoint import Asker, Progress
from avops.align.data.request import Answer, Chat

TRIES = 3
_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


@dataclass(frozen=True)
class ListAsk:
    """A prompt whose answer is to be a list of ``count`` texts."""

    stage: str
    name: str
    prompt: str
    count: int


@dataclass(frozen=True)
class ListResult:
    """texts: what came, at most as many as asked for; None where nothing could be read.

    missing: an answer is not there yet (of a journal that is read without an endpoint).
    """

    texts: tuple[str, ...] | None
    missing: bool = False


def ask_lists(
    asker: Asker, chat: Chat, asks: Sequence[ListAsk], counts: Counter[str], progress: Progress
) -> list[ListResult]:
    """The lists, in the order of ``asks``; what went wrong is added to ``counts``."""
    results: list[ListResult] = [ListResult(None, missing=True)] * len(asks)
    left = list(range(len(asks)))
    counts["lists asked for"] += len(asks)
    for attempt in range(TRIES):
        requests = {
            i: chat.request(asks[i].stage, asks[i].name, asks[i].prompt, attempt) for i in left
        }
        answers: Mapping[str, Answer] = asker.ask(list(requests.values()), progress)
        unreadable = []
        for i, request in requests.items():
            answer = answers.get(request.key)
            if answer is None:
                continue
            try:
                texts = read_list(answer)
            except ValueError as error:
                counts[f"unreadable: {error}"] += 1
                results[i] = ListResult(None)
                unreadable.append(i)
                continue
            counts["texts missing in lists"] += max(asks[i].count - len(texts), 0)
            counts["texts more than asked for"] += max(len(texts) - asks[i].count, 0)
            results[i] = ListResult(tuple(texts[: asks[i].count]))
        left = unreadable
        if not left:
            break
    counts["lists given up"] += len(left)
    return results


def read_list(answer: Answer) -> list[str]:
    """The texts in an answer: a JSON list, alone or in a fenced block.

    Raises ValueError, whose text is a short reason.
    """
    if answer.refused is not None:
        raise ValueError("declined by the endpoint")
    if answer.finish == "length":
        raise ValueError("truncated")
    text = answer.text.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        texts = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError("no list of texts")
    texts = [text.strip() for text in texts]
    if not all(text and encodable(text) for text in texts):
        raise ValueError("an empty text or half a surrogate pair in the list")
    return texts
