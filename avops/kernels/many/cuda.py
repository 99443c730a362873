"""combine_many in CUDA C++."""

from __future__ import annotations

DEVICES = ("cuda",)


def available() -> tuple[bool, str]:
    return False, "being written"
