"""A small world of its own: data, a tiny base model, and one aligned checkpoint per domain.

``build`` makes it, stage by stage, and reuses what is there. Importing avops.demo imports neither
torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avops.demo.world import Report, World, build

__all__ = ["Report", "World", "build"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'avops.demo' has no attribute {name!r}")
    return getattr(importlib.import_module("avops.demo.world"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
