"""JSON of untrusted files, read member by member within limits.

The json package would build whatever a file holds before anything can be checked: 100 MB of
brackets become gigabytes, and the last of two equal keys wins. Here the caller walks through the
objects it expects and says how long each value may be, so that time is linear in the text, and
memory in what is kept of it. Strings and small values are decoded by the json package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*").match
# A string without escapes, which stands for itself.
_PLAIN = re.compile(r'"([^"\\\x00-\x1f]*)"')
_NEVER = re.compile(r"(?!)")
_KINDS = {"{": "an object", "[": "a list", '"': "a text", "t": "true", "f": "false", "n": "null"}
_SHOWN = 200


class JsonError(ValueError):
    """The text is not JSON, or not within the limits; the message says where and why."""


class Scanner:
    """A position in a JSON text. ``decoder`` decodes strings and values.

    Every method skips white space first. All raise JsonError.
    """

    def __init__(self, raw: bytes, decoder: json.JSONDecoder) -> None:
        try:
            self._text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise JsonError(f"not UTF-8 (byte {error.start})") from None
        self._decode = decoder.raw_decode
        self._at = 0

    @property
    def kind(self) -> str:
        """What the next value is, by its first character."""
        return _KINDS.get(self._peek(), "a number")

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; the caller reads each value in between."""
        return (key for key, _ in self.plain_members(_NEVER))

    def plain_members(self, plain: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str] | None]]:
        """As ``members``, but a member that ``plain`` matches comes whole, with its match.

        plain: a key, its first group and without escapes, then its value and the comma. Of
        objects with very many members this is the fast way.
        """
        self._expect("{")
        if self._peek() == "}":
            self._at += 1
            return
        seen: set[str] = set()
        text, match = self._text, plain.match
        while True:
            while found := match(text, self._at):
                key = found[1]
                if key in seen:
                    raise JsonError(f"duplicate key {shown(key)}")
                seen.add(key)
                self._at = found.end()
                yield key, found
            key = self.string()
            if key in seen:
                raise JsonError(f"duplicate key {shown(key)}")
            seen.add(key)
            self._expect(":")
            yield key, None
            if self._peek() == "}":
                self._at += 1
                return
            self._expect(",")

    def string(self) -> str:
        """The string that comes next."""
        plain = self.match(_PLAIN)
        if plain:
            return plain[1]
        if self._peek() != '"':
            self._fail("expected a string")
        try:
            value, self._at = self._decode(self._text, self._at)
        except json.JSONDecodeError as error:
            raise JsonError(f"not JSON ({error.msg} at character {error.pos})") from None
        text = str(value)
        # Escapes can spell halves of surrogate pairs, which nothing can print or encode.
        if not text.isascii() and not _is_unicode(text):
            raise JsonError(f"text {shown(text)} is not valid Unicode")
        return text

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What ``pattern`` matches next; the position moves past it."""
        self._peek()
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    def value(self, most: int, *, flat: bool = False) -> Any:
        """The value that comes next, of at most ``most`` characters.

        flat: it is an object that holds no other one, so it ends at the first brace that closes.
        """
        start = self._skip()
        end = self._text.find("}", start, start + most) + 1 if flat else 0
        fragment = self._text[start : end or start + most]
        try:
            value, length = self._decode(fragment)
        except JsonError:
            raise
        except json.JSONDecodeError as error:
            if end and "{" in fragment[1:]:
                raise JsonError(
                    f"the object at character {start} holds another one, or is not JSON"
                ) from None
            if len(fragment) == most:
                raise JsonError(
                    f"the value at character {start} is longer than {most}, or not JSON"
                ) from None
            raise JsonError(f"not JSON ({error.msg} at character {start + error.pos})") from None
        except RecursionError:
            raise JsonError(f"nested too deeply at character {start}") from None
        except ValueError:
            # What int() says of more than 4300 digits.
            raise JsonError(f"a number too long to read after character {start}") from None
        self._at = start + length
        return value

    def finish(self) -> None:
        """Check that nothing but white space is left."""
        if self._skip() != len(self._text):
            self._fail("something after the end")

    def _skip(self) -> int:
        found = _SPACE(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._at

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        here = self._text[self._at : self._at + 1]
        if here > " ":
            return here
        at = self._skip()
        return self._text[at : at + 1]

    def _expect(self, mark: str) -> None:
        if self._peek() != mark:
            self._fail(f"expected {mark!r}")
        self._at += 1

    def _fail(self, problem: str) -> None:
        raise JsonError(f"not JSON ({problem} at character {self._at})")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary: an ``object_pairs_hook`` that refuses duplicate keys."""
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        raise JsonError(f"duplicate key {shown(next(k for k in keys if keys.count(k) > 1))}")
    return table


def shown(value: Any) -> str:
    """``value`` for a message: its repr, cut where it is long."""
    if isinstance(value, str):
        value = value[: _SHOWN + 1]
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
