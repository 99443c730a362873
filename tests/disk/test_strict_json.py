"""The strict reader of JSON: positions, limits, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avops.disk.strict_json import JsonError, Scanner, shown, unique

DECODER = json.JSONDecoder(object_pairs_hook=unique)


def scan(text: str | bytes) -> Scanner:
    return Scanner(text.encode() if isinstance(text, str) else text, DECODER)


def read(scanner: Scanner, most: int = 1000) -> Any:
    """A whole document through members, string and value."""
    if scanner.kind != "an object":
        return scanner.string() if scanner.kind == "a text" else scanner.value(most)
    return {key: read(scanner, most) for key in scanner.members()}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 0, 3]))
def test_reads_what_json_writes(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    scanner = scan(f" {text}\n")
    assert read(scanner, most=100_000) == value
    scanner.finish()


def test_members_can_be_skipped_by_value() -> None:
    scanner = scan('{"a": [1, {"b": 2}], "c": {"d": "e"}}')
    found = {}
    for key in scanner.members():
        found[key] = (scanner.kind, scanner.value(100))
    scanner.finish()
    assert found == {"a": ("a list", [1, {"b": 2}]), "c": ("an object", {"d": "e"})}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":1,"\\u0061":2}', "duplicate key 'a'"),
        ('{"a":1 "b":2}', r"expected ',' at character 7"),
        ('{"a" 1}', r"expected ':' at character 5"),
        ('{"a":1', r"expected ',' at character 6"),
        ("{1:2}", r"expected a string at character 1"),
        ('{"a":1}x', "something after the end at character 7"),
        ('{"a":"\\ud800"}', r"text '\\ud800' is not valid Unicode"),
        ('{"a":"\t"}', "Invalid control character at at character 6"),
        ('{"a":tru}', "Expecting value at character 5"),
        ('{"a":[1}', "character 7"),
        ('{"a":' + "[" * 5000, "nested too deeply at character 5|longer than"),
        ('{"a":' + "7" * 5000 + "}", "a number too long to read after character 5"),
        (b'{"\xff":1}', r"not UTF-8 \(byte 2\)"),
    ],
)
def test_refusals_say_where(text: str | bytes, message: str) -> None:
    with pytest.raises(JsonError, match=message):
        _ = (scanner := scan(text), read(scanner, 10_000), scanner.finish())


def test_a_value_longer_than_allowed() -> None:
    text = '{"a":[' + "1," * 50 + "1]}"
    assert read(scan(text), 103) == {"a": [1] * 51}
    with pytest.raises(JsonError, match="value at character 5 is longer than 102, or not JSON"):
        read(scan(text), 102)
    with pytest.raises(JsonError, match="expected ',' at character 7"):  # not the number 12
        read(scan('{"a":123}'), 2)


def test_flat_objects_end_at_the_first_brace() -> None:
    scanner = scan('{"a":{"b":1},"c":{"d":{}}}')
    values = scanner.members()
    assert next(values) == "a"
    assert scanner.value(100, flat=True) == {"b": 1}
    assert next(values) == "c"
    with pytest.raises(JsonError, match="object at character 17 holds another one, or is not JSON"):
        scanner.value(100, flat=True)


def test_long_things_are_cut_in_messages() -> None:
    assert shown("a" * 10) == repr("a" * 10)
    assert len(shown("a" * 10**6)) == len(shown(list(range(10**4)))) == 201
    assert shown("\x1b[31m").isprintable()
