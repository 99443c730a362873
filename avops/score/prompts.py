"""Prompts: each item and level becomes one whole chat, tokenised once.

The chat is text first: the tokenizer's own chat template with the response as the assistant's
turn, or a plain template such as ``<s>[INST] {query} [/INST] {response}</s>``. Its tokens are
those of the whole text; the response's are found by character offsets. Token lists are never
joined, for a merge across the border would then be lost: a token that spans the border belongs to
the response, at either end.

The template is all there is: the tokenizer adds no special tokens of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from avops.errors import DataError
from avops.score.plan import Framing, Token, TokenPlan, build_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from avops.score.items import Items

QUERY, RESPONSE = "{query}", "{response}"
EXAMPLE = "<s>[INST] {query} [/INST] {response}</s>"
MARK = "avops-response-mark"
"""Stands for the response while a chat template's own text around it is found."""

BLOCK = 1024
"""Chats per call of the tokenizer: bounds the memory that offsets take."""


class Chat(NamedTuple):
    """A whole chat as text, and the response's characters in it."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class ChatFormat:
    """How a query and a response become one chat.

    kind: chat or text. template: the text of the template. tokenizer: renders a chat template.
    """

    kind: str
    template: str
    tokenizer: Any

    @classmethod
    def of(cls, tokenizer: Any, template: str | None = None) -> ChatFormat:
        """The plain ``template``, or the tokenizer's own chat template where None is given."""
        name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        if template is None:
            if not getattr(tokenizer, "chat_template", None):
                raise DataError(
                    f"{name}: it has no chat template, and no template was given; "
                    f"give one as text, such as --template {EXAMPLE!r}"
                )
            return cls("chat", tokenizer.get_chat_template(), tokenizer)
        for part in (QUERY, RESPONSE):
            if template.count(part) != 1:
                raise DataError(
                    f"template {template!r}: {part} stands in it {template.count(part)} times, "
                    f"expected once; write it like {EXAMPLE!r}"
                )
        if template.index(QUERY) > template.index(RESPONSE):
            raise DataError(
                f"template {template!r}: {RESPONSE} stands before {QUERY}, expected after it; "
                f"write it like {EXAMPLE!r}"
            )
        bos = tokenizer.bos_token
        if bos and _adds_bos(tokenizer) and not template.startswith(bos):
            raise DataError(
                f"template {template!r}: it does not begin with {bos!r}, which {name} puts before "
                f"every text; write it as {bos + template!r}"
            )
        return cls("text", template, tokenizer)

    def render(self, query: str, response: str, place: str) -> Chat:
        """The chat's text, and where the response stands in it."""
        before, after = self._frame(query, place)
        if self.kind == "text":
            return Chat(before + response + after, len(before), len(before) + len(response))
        text = self._apply(query, response, place)
        end = len(text) - len(after)
        middle = text[len(before) : end]
        if text.startswith(before) and text.endswith(after) and middle.strip() == response.strip():
            return Chat(text, len(before), end)
        raise DataError(
            f"{place}: the chat template alters the response or the text around it: got "
            f"{middle!r}, expected {response!r}; give a template as text, such as "
            f"--template {EXAMPLE!r}"
        )

    def _frame(self, query: str, place: str) -> tuple[str, str]:
        """What stands before and after the response."""
        if self.kind == "text":
            before, after = self.template.split(RESPONSE)
            head, tail = before.split(QUERY)
            return head + query + tail, after
        text = self._apply(query, MARK, place)
        if text.count(MARK) != 1:
            raise DataError(
                f"{place}: the chat template shows the assistant's turn {text.count(MARK)} times, "
                f"expected once; give a template as text, such as --template {EXAMPLE!r}"
            )
        before, after = text.split(MARK)
        return before, after

    def _apply(self, query: str, response: str, place: str) -> str:
        turns = [
            {"role": "user", "content": query},
            {"role": "assistant", "content": response},
        ]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception as error:  # templates raise what they like
            raise DataError(
                f"{place}: the chat template fails on a user and an assistant turn: {error}; "
                f"give a template as text, such as --template {EXAMPLE!r}"
            ) from error


def encode(
    items: Items, tokenizer: Any, *, template: str | None = None, score_eos: bool = True
) -> TokenPlan:
    """Tokenise every item and level.

    Parameters
    ----------
    items
        What to score.
    tokenizer
        A fast transformers tokenizer.
    template
        A text with ``{query}`` and ``{response}``, special tokens written out; None: the
        tokenizer's chat template.
    score_eos
        Whether the end-of-turn token (the first special token after the response, with whatever
        the template puts between) is scored, and counted in T_r. What follows it never is.

    Raises
    ------
    DataError
        No template, a doubled or missing beginning-of-sequence token, special tokens written in an
        item, a response without tokens, or no end-of-turn token to score.

    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{type(tokenizer).__name__}: it cannot give character offsets, expected a fast "
            "tokenizer; provide its tokenizer.json"
        )
    chat_format = ChatFormat.of(tokenizer, template)
    specials = _special_tokens(tokenizer)
    places, chats = _render(items, chat_format, specials)
    sequences, starts, ends = [], [], set()
    for place, chat, (ids, offsets) in zip(places, chats, _tokenise(tokenizer, chats), strict=True):
        start, stop = _span(offsets, chat)
        if start >= stop:
            raise DataError(
                f"{place}: the response has no tokens: {chat.text[chat.start : chat.end]!r} "
                "vanishes in the tokenizer; give a response with text"
            )
        end = next((p for p in range(stop, len(ids)) if ids[p] in specials), None)
        ends.add(None if end is None else ids[end])
        sequences.append(ids[: end + 1] if score_eos and end is not None else ids[:stop])
        starts.append(start)
    framing = Framing(
        kind=chat_format.kind,
        template=chat_format.template,
        bos=_token(tokenizer, tokenizer.bos_token_id),
        end_of_turn=_end_of_turn(ends, specials, chat_format, score_eos=score_eos),
        score_eos=score_eos,
    )
    width = len(items.levels)
    return build_plan(items, _rows(sequences, width), _rows(starts, width), framing)


def encode_ids(
    items: Items,
    ids: Sequence[Sequence[Sequence[int]]],
    starts: Sequence[Sequence[int]],
    *,
    score_eos: bool,
    bos: Token | None = None,
    end_of_turn: Token | None = None,
) -> TokenPlan:
    """A plan from token ids [item][level], scored from ``starts`` [item][level] to their end.

    ``score_eos`` says whether the ids end with the end-of-turn token; with ``bos``, a doubled one
    is an error.
    """
    framing = Framing("ids", None, bos, end_of_turn, score_eos)
    return build_plan(items, ids, starts, framing)


def _render(
    items: Items, chat_format: ChatFormat, specials: dict[int, str]
) -> tuple[list[str], list[Chat]]:
    """Place and chat of every item and level, item by item."""
    places, chats = [], []
    for i, item in enumerate(items):
        _check_plain(item.query, specials, f"{items.place(i)}, field 'query'")
        for level in items.levels:
            response = item.responses[level]
            _check_plain(response, specials, f"{items.place(i)}, field 'responses.{level}'")
            places.append(items.place(i, level))
            chats.append(chat_format.render(item.query, response, places[-1]))
    return places, chats


def _tokenise(
    tokenizer: Any, chats: Sequence[Chat]
) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Token ids and character offsets of every chat."""
    for block in range(0, len(chats), BLOCK):
        encoded = tokenizer(
            [chat.text for chat in chats[block : block + BLOCK]],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        yield from zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


def _span(offsets: Sequence[tuple[int, int]], chat: Chat) -> tuple[int, int]:
    """The response's tokens, from the first that reaches into it to the last that begins in it.

    Byte-level tokenizers may trim white space from offsets: a token of white space is then empty
    and stands at its end, so an empty token at the response's end still belongs to it.
    """
    start = next((p for p, (_, b) in enumerate(offsets) if b > chat.start), len(offsets))
    stop = start
    while stop < len(offsets) and (offsets[stop][0] < chat.end or offsets[stop][1] <= chat.end):
        stop += 1
    return start, stop


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    added = tokenizer.added_tokens_decoder.items()
    specials = {number: token.content for number, token in added if token.special}
    if tokenizer.eos_token_id is not None:
        specials[tokenizer.eos_token_id] = tokenizer.eos_token
    return specials


def _check_plain(text: str, specials: dict[int, str], place: str) -> None:
    """A special token written in an item would be read as the token, not as text."""
    found = [token for token in specials.values() if token and token in text]
    if found:
        raise DataError(
            f"{place}: got the special token {found[0]!r} in the text, expected plain text; "
            "leave special tokens to the template"
        )


def _end_of_turn(
    ends: set[int | None], specials: dict[int, str], chat_format: ChatFormat, *, score_eos: bool
) -> Token | None:
    if len(ends) == 1:
        (end,) = ends
        if end is not None:
            return Token(end, specials[end])
        if not score_eos:
            return None
    found = sorted(specials[end] for end in ends if end is not None)
    raise DataError(
        f"template {chat_format.template!r}: the token after the response is "
        f"{' or '.join(found) or 'no special token'}, expected one end-of-turn token; end the "
        "template with it, such as </s>, or, in Python, leave it unscored (score_eos=False)"
    )


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return len(ids) > 0 and ids[0] == tokenizer.bos_token_id


def _token(tokenizer: Any, number: int | None) -> Token | None:
    return None if number is None else Token(number, tokenizer.convert_ids_to_tokens(number))


def _rows(flat: list[Any], width: int) -> list[list[Any]]:
    return [flat[k : k + width] for k in range(0, len(flat), width)]
