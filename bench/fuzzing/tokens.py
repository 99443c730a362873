"""JSON as trees of raw tokens, their spellings, and changes to bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any


class Object:
    """A JSON object: pairs of a raw key and a value (raw text, Object or Array)."""

    def __init__(self, members: list[list[Any]]) -> None:
        self.items = members


class Array:
    def __init__(self, items: list[Any]) -> None:
        self.items = items


Token = str | Object | Array


def spelled(rng: random.Random, text: str) -> str:
    """``text`` as a JSON string, in one of its spellings."""
    style = rng.random()
    if style < 0.6:
        return json.dumps(text, ensure_ascii=False)
    if style < 0.8 or len(text) > 20:
        return json.dumps(text)
    units = text.encode("utf-16-be").hex()
    return '"' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)) + '"'


def dump(token: Token, gap: Callable[[], str]) -> str:
    """The tree as text, with ``gap()`` between tokens."""
    if isinstance(token, str):
        return token
    if isinstance(token, Array):
        inside = f"{gap()},{gap()}".join(dump(item, gap) for item in token.items)
        return f"[{gap()}{inside}{gap()}]"
    pairs = (f"{key}{gap()}:{gap()}{dump(value, gap)}" for key, value in token.items)
    return "{" + gap() + f"{gap()},{gap()}".join(pairs) + gap() + "}"


def gaps(rng: random.Random) -> Callable[[], str]:
    """No space, some, or too much."""
    style = rng.random()
    if style < 0.6:
        return str
    choices = ("", "", " ") if style < 0.9 else ("", " ", "\n", "\t", "\r\n  ")
    return lambda: rng.choice(choices)


_BITS = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0000", b"\\ud83d", b"\0", b"\xff",
    b"\xc0\xaf", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b" ", b"\n", b"\x0c",
    b"\xc2\xa0", b"0", b"-", b".", b"e", b"//", b"/*", b"true", b"null", b'"a":', b"{}", b"[]",
    b"\x7f",
)  # fmt: skip


def garble(rng: random.Random, text: bytes, other: Callable[[], bytes]) -> bytes:
    """``text`` with one change of bytes; ``other()`` is a text to splice with."""
    kind = rng.randrange(7)
    at = rng.randint(0, len(text))
    if kind == 0 and at < len(text):
        return text[:at] + bytes((text[at] ^ (1 << rng.randrange(8)),)) + text[at + 1 :]
    if kind == 1:
        return text[:at] + rng.choice(_BITS) + text[at:]
    if kind == 2:
        return text[:at] + rng.choice(_BITS) + text[at + rng.randint(0, 4) :]
    if kind == 3:
        return text[:at] + text[at + rng.choice((1, 1, 2, 5, 40)) :]
    if kind == 4:
        return text[:at] + text[max(0, at - rng.choice((1, 5, 40))) :]
    if kind == 5:
        spliced = other()
        return text[:at] + spliced[rng.randint(0, len(spliced)) :]
    return text[:at]
