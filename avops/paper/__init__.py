"""The paper on the small world: its tables and figures, measured again (extra ``avops[align]``).

Shahriar et al., Inference time LLM alignment in single and multidomain preference spectrum, arXiv
2410.19206. Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avops.paper.book import Book
    from avops.paper.lab import Lab, Plan
    from avops.paper.page import write_page
    from avops.paper.stages import Stage, all_stages

__all__ = ["Book", "Lab", "Plan", "Stage", "all_stages", "write_page"]

_HOMES = {
    "Book": "book",
    "Lab": "lab",
    "Plan": "lab",
    "Stage": "stages",
    "all_stages": "stages",
    "write_page": "page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'avops.paper' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avops.paper.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
