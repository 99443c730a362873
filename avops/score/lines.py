"""Lines of JSON, read strictly, with one wording of errors: what all formats of items share."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from avops.errors import DataError


@dataclass(frozen=True)
class Where:
    """A line of a file, and the one wording of its errors."""

    source: str
    line: int

    def error(self, field: str | None, got: str, expected: str) -> DataError:
        """The error that ``field`` holds ``got`` where something else was ``expected``."""
        place = f"{self.source}, line {self.line}" + (f", field {field!r}" if field else "")
        return DataError(f"{place}: got {got}, expected {expected}; correct this line")


def decode(raw: bytes, where: Where) -> str:
    """The line as text. Raises DataError for bytes that are not UTF-8."""
    try:
        return raw.decode("utf-8-sig" if where.line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise where.error(
            None, f"byte 0x{raw[error.start]:02x} at column {error.start + 1}", "UTF-8 text"
        ) from error


def parse_object(text: str, where: Where) -> dict[str, Any]:
    """The JSON object in ``text``; doubled keys and NaN are errors."""

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(members)
        if len(record) < len(members):
            names = [name for name, _ in members]
            doubled = next(name for name in names if names.count(name) > 1)
            raise where.error(doubled, "the key more than once", "each key once")
        return record

    def constant(name: str) -> Any:
        raise where.error(None, name, "JSON, which has no such number")

    try:
        record = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise where.error(
            None, f"text that is not JSON ({error.msg} at column {error.colno})", "a JSON object"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deep; an integer too long to hold
        raise where.error(None, f"JSON out of bounds ({error})", "a JSON object") from error
    if not isinstance(record, dict):
        raise where.error(None, kind(record), "a JSON object")
    return record


def check_text(value: Any, field: str, where: Where, *, present: bool = True) -> str:
    """``value`` if it is a text that can be scored."""
    if not present:
        raise where.error(field, "nothing (the field is missing)", "a text")
    if not isinstance(value, str):
        raise where.error(field, kind(value), "a text")
    if not value.strip():
        raise where.error(field, f"an empty text {value!r}", "a text with visible characters")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise where.error(field, "half of a surrogate pair", "text that UTF-8 can encode")
    return value


def text_of(record: dict[str, Any], field: str, where: Where) -> str:
    """The text in ``field``."""
    return check_text(record.get(field), field, where, present=field in record)


def name_of(record: dict[str, Any], field: str, where: Where) -> str:
    """The name in ``field``."""
    value = text_of(record, field, where)
    check_name(value, field, where)
    return value


def check_name(value: str, field: str, where: Where) -> None:
    """Names go into tables and file columns: one line of visible text."""
    check_text(value, field, where)
    if any(unicodedata.category(char) == "Cc" for char in value):
        raise where.error(field, f"control characters in {value!r}", "a name on one line")


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
