"""avops: weight arithmetic for aligned language models.

θ(λ) = θ_base + Σ λ_k · AV_k, where AV_k = θ_aligned_k − θ_base is an alignment vector.
Names are loaded on first use, so that importing avops imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

from avops.version import __version__

_LAZY = {
    "AvopsError": "avops.errors",
    "Evaluator": "avops.search",
    "Knobs": "avops.knobs",
    "Recipe": "avops.recipe",
    "Setup": "avops.search",
    "extract": "avops.stream",
    "fingerprint": "avops.disk",
    "merge": "avops.stream",
    "open_checkpoint": "avops.disk",
    "parse_terms": "avops.recipe",
    "plan_extract": "avops.stream",
    "plan_merge": "avops.stream",
}

__all__ = ["__version__", *_LAZY]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'avops' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
