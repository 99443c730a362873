"""Preference pairs: every layout that they come in, and every way one can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avops.errors import DataError
from avops.score import holds_pairs, load_items

Write = Callable[..., Path]
PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
ITEM = {"domain": "med", "query": "q", "responses": {"chosen": "good", "rejected": "bad"}}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, GOOD, BAD = turn("user", "q"), turn("assistant", "good"), turn("assistant", "bad")


@pytest.mark.parametrize(
    "record",
    [
        PAIR,
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": "good", "rejected": [BAD]},
    ],
)
def test_every_layout_is_the_same_item(write_items: Write, record: dict[str, Any]) -> None:
    path = write_items(record)
    items = load_items(path)
    assert items.levels == ("chosen", "rejected")
    (item,) = items
    assert (item.domain, item.query, item.line, item.id) == ("pairs", "q", 1, None)
    assert dict(item.responses) == {"chosen": "good", "rejected": "bad"}
    assert items.ignored == ()
    assert holds_pairs(path)


def test_domain_id_and_fields_that_are_not_read(write_items: Write) -> None:
    first = PAIR | {"domain": "safety", "id": "a1", "score_chosen": 8.5, "source": "x"}
    items = load_items(write_items(first, PAIR | {"messages": []}))
    assert [(item.domain, item.id) for item in items] == [("safety", "a1"), ("pairs", None)]
    assert items.ignored == ("score_chosen", "source", "messages")


def test_levels_may_be_turned_round(write_items: Write) -> None:
    items = load_items(write_items(PAIR), levels=["rejected", "chosen"])
    assert items.levels == ("rejected", "chosen")
    assert list(items[0].responses) == ["rejected", "chosen"]
    with pytest.raises(DataError, match=r"field 'responses.exp': got only chosen, rejected, exp"):
        load_items(write_items(PAIR), levels=["exp", "gen"])


def test_items_are_no_pairs(write_items: Write) -> None:
    assert not holds_pairs(write_items(ITEM))
    assert not holds_pairs(write_items())
    with pytest.raises(DataError, match=r"field 'chosen': got an unknown field"):
        load_items(write_items(ITEM | {"chosen": "good"}))


@pytest.mark.parametrize(
    ("records", "got", "first"),
    [
        ((PAIR, "", ITEM), "an item with levels, expected only preference pairs", 1),
        (("", ITEM, PAIR), "a preference pair, expected only items with levels", 2),
    ],
)
def test_one_format_a_file(
    write_items: Write, records: tuple[Any, ...], got: str, first: int
) -> None:
    with pytest.raises(DataError, match=rf"line 3: got {got}, as on line {first}: one format"):
        load_items(write_items(*records))


def test_ids_are_used_once(write_items: Write) -> None:
    with pytest.raises(DataError, match=r"line 2, field 'id': got 'a' again, first on line 1"):
        load_items(write_items(PAIR | {"id": "a"}, PAIR | {"id": "a"}))


@pytest.mark.parametrize(
    ("record", "field", "message"),
    [
        ({"prompt": "q", "rejected": "b"}, "chosen", "nothing (the field is missing), expected a"),
        ({"prompt": "q", "chosen": "b"}, "rejected", "nothing (the field is missing), expected a"),
        ({"chosen": "a", "rejected": "b"}, "prompt", "or messages that hold the prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "prompt", "nothing (the field is missing)"),
        (PAIR | {"prompt": " "}, "prompt", "an empty text ' '"),
        (PAIR | {"prompt": 3}, "prompt", "got a number, expected a text"),
        (PAIR | {"chosen": ""}, "chosen", "an empty text ''"),
        (PAIR | {"chosen": None}, "chosen", "got null, expected a text"),
        (PAIR | {"rejected": []}, "rejected", "got no messages, expected one assistant message"),
        (PAIR | {"rejected": [USER]}, "rejected", "messages of user, expected one assistant"),
        (PAIR | {"rejected": [USER, GOOD, USER, BAD]}, "rejected", "an item is one query"),
        (PAIR | {"prompt": [USER, GOOD, USER]}, "prompt", "messages of user, assistant, user"),
        (PAIR | {"prompt": [turn("system", "s"), USER]}, "prompt", "of system, user, expected one"),
        (PAIR | {"chosen": ["good"]}, "chosen[0]", "got a text, expected an object with role and"),
        (PAIR | {"chosen": [{"role": "assistant"}]}, "chosen[0].content", "the field is missing"),
        (PAIR | {"chosen": [turn("assistant", "")]}, "chosen[0].content", "an empty text"),
        (
            PAIR | {"rejected": [turn("user", "p" * 60), BAD]},
            "rejected[0].content",
            f"another prompt '{'p' * 39}…', expected the pair's one prompt 'q'",
        ),
        (PAIR | {"domain": "all"}, "domain", "'all' stands for every domain"),
        (PAIR | {"domain": "a\nb"}, "domain", "control characters"),
        (PAIR | {"id": 7}, "id", "got a number, expected a text"),
    ],
)
def test_errors_name_line_and_field(
    write_items: Write, record: dict[str, Any], field: str, message: str
) -> None:
    path = write_items(PAIR, record)
    with pytest.raises(DataError) as caught:
        load_items(path)
    said = str(caught.value)
    assert said.startswith(f"{path}, line 2, field {field!r}: got ")
    assert message in said
    assert said.endswith("; correct this line")
