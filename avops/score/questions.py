"""Questions to answer: read from files, and made into prompts.

A prompt is what scoring puts before a response, so that a model writes where its log-probs are
measured: the tokens of the whole chat up to the first that may reach into the response. White space
of the template that a response's first token takes in (" the" after "[/INST]") is the model's to
write.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.errors import DataError
from avops.score.items import Item, Items, load_items
from avops.score.prompts import MARK, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

_ITEMS = (".jsonl", ".json")
_LEVEL = "answer"


@dataclass(frozen=True)
class Question:
    """A question, and where it comes from (for messages)."""

    text: str
    place: str = "the question"


@dataclass(frozen=True)
class Prompt:
    """The tokens before an answer.

    stop: the chat's end-of-turn token, where its template has one. trim: white space at the
    answer's beginning is the template's, and not part of its text. place: for messages.
    """

    ids: tuple[int, ...]
    stop: int | None = None
    trim: bool = True
    place: str = "the prompt"


def load_questions(path: Path, *, levels: Sequence[str] | None = None) -> list[Question]:
    """The queries of an item file (.jsonl, with ``levels``), or the lines of a text file.

    Blank lines are skipped. Raises DataError.
    """
    if path.suffix in _ITEMS:
        items = load_items(path, levels=levels)
        return [Question(item.query, items.place(i)) for i, item in enumerate(items)]
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the questions cannot be read: {error}; give a text file with one question "
            "per line, or items as .jsonl"
        ) from error
    found = [
        Question(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise DataError(f"{path}: no questions in the file, expected one per line")
    return found


def encode_questions(
    questions: Sequence[Question], tokenizer: Any, *, template: str | None = None
) -> list[Prompt]:
    """Each question in the chat that ``encode`` makes of it, up to the response.

    template: a text with ``{query}`` and ``{response}``; None: the tokenizer's chat template.
    Raises DataError as ``encode`` does; a template without an end-of-turn token is allowed.
    """
    _check(questions)
    entries = [
        Item("", question.text, {_LEVEL: MARK}, number)
        for number, question in enumerate(questions, start=1)
    ]
    places = tuple(question.place for question in questions)
    asked = _Asked("the questions", (_LEVEL,), tuple(entries), places=places)
    plan = encode(asked, tokenizer, template=template, score_eos=False)
    end = plan.record.end_of_turn
    return [
        Prompt(
            tuple(plan.sequence(i, 0)[: plan.starts[i, 0]].tolist()),
            None if end is None else end.id,
            place=place,
        )
        for i, place in enumerate(places)
    ]


def encode_raw(questions: Sequence[Question], tokenizer: Any) -> list[Prompt]:
    """Each question as a text to continue, with the special tokens that the tokenizer adds."""
    _check(questions)
    prompts = []
    for question in questions:
        ids = tuple(tokenizer(question.text, verbose=False)["input_ids"])
        if not ids:
            raise DataError(
                f"{question.place}: {question.text!r} vanishes in the tokenizer; "
                "give a text that has tokens"
            )
        prompts.append(Prompt(ids, trim=False, place=question.place))
    return prompts


@dataclass(frozen=True)
class _Asked(Items):
    """Questions as items whose one response is not written yet."""

    places: tuple[str, ...] = ()

    def place(self, index: int, level: str | None = None) -> str:  # noqa: ARG002
        """Where the question comes from."""
        return self.places[index]


def _check(questions: Sequence[Question]) -> None:
    for question in questions:
        if not question.text.strip():
            raise DataError(
                f"{question.place}: got {question.text!r}, expected a text with visible "
                "characters; write a question"
            )
        if any("\ud800" <= char <= "\udfff" for char in question.text):
            raise DataError(
                f"{question.place}: got {question.text!r}, expected text that UTF-8 can encode"
            )
