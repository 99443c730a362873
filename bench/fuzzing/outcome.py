"""What came of an input, why it was refused, and a smaller one of which the same comes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

BOTH, NEITHER, STRICTER, FAILURE = "both accept", "both reject", "only the other accepts", "FAILURE"


class Outcome(NamedTuple):
    """verdict: one of the four above. reason: why the file was refused, or what failed."""

    verdict: str
    reason: str


class Watch:
    """The paths that this process opens between start and stop. It stays until the process ends."""

    def __init__(self) -> None:
        self._active, self._paths = False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self._active and event == "open" and isinstance(args[0], str | os.PathLike):
            self._paths.append(os.fspath(args[0]))

    def start(self) -> None:
        self._paths.clear()
        self._active = True

    def stop(self) -> list[str]:
        self._active = False
        return self._paths


def reason(message: str) -> str:
    """A refusal without the file, names and numbers that are particular to it."""
    text = re.sub(r"^.*?: not a valid [^:]*: ", "", message, flags=re.DOTALL)
    text = re.sub(r"; (download|expected JSON).*$", "", text, flags=re.DOTALL)
    # Quoted texts, which may have been cut.
    text = re.sub(
        r"""'(?:[^'\\]|\\.)*(?:'|…)|"(?:[^"\\]|\\.)*(?:"|…)""", "…", text, flags=re.DOTALL
    )
    for _ in range(3):
        text = re.sub(r"\[[^\[\]]*(\]|$)", "…", text)
    text = re.sub(r"number \S+,", "number …,", text)
    text = re.sub(r" of [A-Z]\w+ …", " of …", text)
    text = re.sub(r"unknown dtype .*", "unknown dtype", text, flags=re.DOTALL)
    text = re.sub(r"got data_offsets .*|has data_offsets .*", "got others", text, flags=re.DOTALL)
    text = re.sub(
        r"has the shape .*", "has a shape that is no list of numbers", text, flags=re.DOTALL
    )
    return re.sub(r"(?<![\w^-])-?\d+(\.\d+)?(e[+-]\d+)?", "N", text)


def shorten(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """``data`` without the pieces that its failure does not need: halves first, then less."""
    step = max(1, len(data) // 2)
    while step:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + step :]
            if fails(shorter):
                data = shorter
            else:
                at += step
        step //= 2
    return data
