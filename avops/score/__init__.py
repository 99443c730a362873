"""Scoring: mean log-probs of every item and level, and preference accuracy.

    items = load_items("items.jsonl", levels=("exp", "gen", "avd"))
    plan = encode(items, load_tokenizer("base"))
    scorer = Scorer(load_model("base"), plan)
    summarise(scorer.run(), items)["med"].dominant  # "exp"

Takes any causal LM of transformers and knows nothing of recipes, checkpoints or λ. Names are
loaded on first use: importing avops.score imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avops.score.api import ScoreResult, score
    from avops.score.forward import Scorer
    from avops.score.items import Item, Items, load_items
    from avops.score.metrics import ScoreSummary, summarise
    from avops.score.model import load_model, load_tokenizer, new_model, new_tokenizer, save_model
    from avops.score.oracle import oracle_scores
    from avops.score.plan import PlanRecord, Token, TokenPlan
    from avops.score.prompts import ChatFormat, encode, encode_ids
    from avops.score.table import ScoreTable, check_table_path, read_table, write_table

__all__ = [
    "ChatFormat",
    "Item",
    "Items",
    "PlanRecord",
    "ScoreResult",
    "ScoreSummary",
    "ScoreTable",
    "Scorer",
    "Token",
    "TokenPlan",
    "check_table_path",
    "encode",
    "encode_ids",
    "load_items",
    "load_model",
    "load_tokenizer",
    "new_model",
    "new_tokenizer",
    "oracle_scores",
    "read_table",
    "save_model",
    "score",
    "summarise",
    "write_table",
]

_MODULES = {
    "api": ("ScoreResult", "score"),
    "forward": ("Scorer",),
    "items": ("Item", "Items", "load_items"),
    "metrics": ("ScoreSummary", "summarise"),
    "model": ("load_model", "load_tokenizer", "new_model", "new_tokenizer", "save_model"),
    "oracle": ("oracle_scores",),
    "plan": ("PlanRecord", "Token", "TokenPlan"),
    "prompts": ("ChatFormat", "encode", "encode_ids"),
    "table": ("ScoreTable", "check_table_path", "read_table", "write_table"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'avops.score' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avops.score.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
