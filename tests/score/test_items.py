"""Item files: what is read, and every way one can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avops.errors import DataError
from avops.score import load_items

Write = Callable[..., Path]
GOOD = {"domain": "med", "query": "q", "responses": {"exp": "a", "gen": "b"}}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != field}


def test_items_in_order(write_items: Write) -> None:
    other = {"domain": "fin", "query": "p", "responses": {"gen": "d", "exp": "c"}, "id": "x1"}
    items = load_items(write_items(GOOD, "", "  \t\r", other))
    assert items.levels == ("exp", "gen")
    assert items.domains == ("med", "fin")
    assert [item.line for item in items] == [1, 4]
    assert list(items[1].responses.items()) == [("exp", "c"), ("gen", "d")]
    assert (items[0].id, items[1].id) == (None, "x1")
    assert items.place(1, "gen").endswith("items.jsonl, line 4, level 'gen'")


def test_chosen_levels_in_their_order(write_items: Write) -> None:
    more = GOOD | {"responses": {"exp": "a", "safe": "s", "gen": "b"}}
    items = load_items(write_items(more, GOOD), levels=["gen", "exp"])
    assert items.levels == ("gen", "exp")
    assert list(items[0].responses) == ["gen", "exp"]


def test_byte_order_mark_and_last_line_without_newline(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(load_items(path)) == 1


@pytest.mark.parametrize(
    ("record", "field", "message"),
    [
        ("{", None, "not JSON"),
        ('{"domain": "med", "query": "q"} x', None, "not JSON"),
        ("[" * 100_000, None, "JSON out of bounds"),
        ('{"query": NaN}', None, "got NaN"),
        ("[1]", None, "got a list, expected a JSON object"),
        ('"text"', None, "got a text, expected a JSON object"),
        (b'{"domain": "\xff"}', None, "byte 0xff at column 13, expected UTF-8"),
        ('{"domain": "a", "domain": "b"}', "domain", "the key more than once"),
        ('{"responses": {"exp": "a", "exp": "b"}}', "exp", "the key more than once"),
        (GOOD | {"qurey": "q"}, "qurey", "an unknown field, expected only domain, query"),
        (GOOD | {"messages": []}, "messages", "an unknown field"),
        (without("domain"), "domain", "nothing (the field is missing), expected a text"),
        (without("query"), "query", "nothing (the field is missing), expected a text"),
        (without("responses"), "responses", "nothing (the field is missing), expected an object"),
        (GOOD | {"domain": ""}, "domain", "an empty text ''"),
        (GOOD | {"domain": 3}, "domain", "got a number, expected a text"),
        (GOOD | {"domain": "all"}, "domain", "'all' stands for every domain"),
        (GOOD | {"domain": "a\nb"}, "domain", "control characters"),
        (GOOD | {"query": "  "}, "query", "an empty text '  '"),
        (GOOD | {"query": None}, "query", "got null, expected a text"),
        (GOOD | {"query": ["q"]}, "query", "got a list, expected a text"),
        (GOOD | {"query": '"\ud800"'}, "query", "half of a surrogate pair"),
        (GOOD | {"responses": ["a"]}, "responses", "got a list, expected an object"),
        (GOOD | {"responses": {}}, "responses.exp", "only no levels, expected all of exp, gen"),
        (GOOD | {"responses": {"exp": "a"}}, "responses.gen", "only exp, expected all of exp, gen"),
        (GOOD | {"responses": {"exp": "", "gen": "b"}}, "responses.exp", "an empty text"),
        (GOOD | {"responses": {"exp": True, "gen": "b"}}, "responses.exp", "got true or false"),
        (GOOD | {"responses": {"": "a", "gen": "b"}}, "responses", "an empty text"),
        (
            GOOD | {"responses": {"exp": "a", "gen": "b", "avd": "c"}},
            "responses.avd",
            "the levels exp, gen, avd, expected the first item's exp, gen",
        ),
        (GOOD | {"id": 3}, "id", "got a number, expected a text"),
        (GOOD | {"id": ""}, "id", "an empty text"),
    ],
)
def test_bad_item(write_items: Write, record: Any, field: str | None, message: str) -> None:
    path = write_items(GOOD, "", record)
    with pytest.raises(DataError) as caught:
        load_items(path)
    place = f"{path}, line 3" + (f", field {field!r}: got " if field else ": got ")
    assert str(caught.value).startswith(place)
    assert message in str(caught.value)
    assert str(caught.value).endswith("; correct this line")


def test_first_item_without_levels(write_items: Write) -> None:
    with pytest.raises(DataError, match=r"line 1, field 'responses': got no levels"):
        load_items(write_items(GOOD | {"responses": {}}))


def test_missing_chosen_level(write_items: Write) -> None:
    with pytest.raises(
        DataError, match=r"line 1, field 'responses.avd': got only exp, gen, expected all of exp, a"
    ):
        load_items(write_items(GOOD), levels=["exp", "avd"])


def test_unchosen_levels_are_checked_too(write_items: Write) -> None:
    bad = GOOD | {"responses": {"exp": "a", "gen": 5}}
    with pytest.raises(DataError, match=r"field 'responses.gen': got a number"):
        load_items(write_items(bad), levels=["exp"])


def test_id_used_twice(write_items: Write) -> None:
    named = GOOD | {"id": "x"}
    with pytest.raises(DataError, match=r"line 3, field 'id': got 'x' again, first on line 1"):
        load_items(write_items(named, GOOD, named))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], r"expected one or more names"),
        (["exp", " "], r"expected one or more names"),
        ("exp", r"got 'exp', expected one or more names"),
        (["exp", "gen", "exp"], r"exp given more than once in exp, gen, exp"),
    ],
)
def test_bad_levels(write_items: Write, levels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_items(write_items(GOOD), levels=levels)


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
@pytest.mark.parametrize("levels", [None, ["exp"]])
def test_empty_file(tmp_path: Path, content: bytes, levels: list[str] | None) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"items.jsonl: no items in the file"):
        load_items(path, levels=levels)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: the item file cannot be read: No such file"):
        load_items(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        load_items(tmp_path)


MIXED = [GOOD | {"domain": name, "query": f"q{i}"} for i, name in enumerate("abbacb")]


@pytest.mark.parametrize(
    ("domains", "limit", "kept"),
    [
        (None, None, [0, 1, 2, 3, 4, 5]),
        (None, 1, [0, 1, 4]),
        (None, 2, [0, 1, 2, 3, 4]),
        (None, 99, [0, 1, 2, 3, 4, 5]),
        (["b"], None, [1, 2, 5]),
        (["c", "b"], 2, [1, 2, 4]),  # in the order of the file
    ],
)
def test_some_of_the_items(
    write_items: Write, domains: list[str] | None, limit: int | None, kept: list[int]
) -> None:
    items = load_items(write_items(*MIXED)).select(domains=domains, limit=limit)
    assert [item.query for item in items] == [f"q{i}" for i in kept]
    assert [item.line for item in items] == [i + 1 for i in kept]
    assert items.levels == ("exp", "gen")


def test_items_that_are_not_there(write_items: Write) -> None:
    items = load_items(write_items(*MIXED))
    with pytest.raises(DataError, match=r"no items of domain 'd', expected one of a, b, c; name"):
        items.select(domains=["a", "d"])
    for limit in (0, -1):
        with pytest.raises(DataError, match=rf"limit is {limit}, expected 1 or more"):
            items.select(limit=limit)
