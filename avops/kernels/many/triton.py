"""combine_many in Triton."""

from __future__ import annotations

DEVICES = ("cuda", "cpu")


def available() -> tuple[bool, str]:
    return False, "being written"
