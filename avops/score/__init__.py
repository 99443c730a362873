"""Scoring: mean log-probs of every item and level, and preference accuracy.

    items = load_items("items.jsonl", levels=("exp", "gen", "avd"))
    plan = encode(items, load_tokenizer("base"))
    scorer = Scorer(load_model("base"), plan)
    print(summarise(scorer.run(), items)["med"].dominant)

Takes any causal LM of transformers and knows nothing of recipes, checkpoints or λ. Names are
loaded on first use: importing avops.score imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "Item": "items",
    "Items": "items",
    "load_items": "items",
    "PlanRecord": "plan",
    "Token": "plan",
    "TokenPlan": "plan",
    "ChatFormat": "prompts",
    "encode": "prompts",
    "encode_ids": "prompts",
    "load_model": "model",
    "load_tokenizer": "model",
    "new_model": "model",
    "new_tokenizer": "model",
    "save_model": "model",
    "oracle": "oracle",
    "Scorer": "forward",
    "ScoreSummary": "metrics",
    "summarise": "metrics",
    "ScoreTable": "table",
    "read_table": "table",
    "write_table": "table",
    "ScoreResult": "api",
    "score": "api",
}

__all__ = [*_LAZY]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'avops.score' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avops.score.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
