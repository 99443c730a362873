"""Scoring: mean log-probs of every item and level, and preference accuracy; and answers.

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
    from avops.score.generate import Answer, Generator, Sampling, TextStream
    from avops.score.intervals import sign_test, wilson
    from avops.score.items import Item, Items, holds_pairs, load_items
    from avops.score.metrics import ScoreSummary, summarise
    from avops.score.model import load_model, load_tokenizer, new_model, new_tokenizer, save_model
    from avops.score.norms import normalise
    from avops.score.oracle import oracle_scores
    from avops.score.paired import Change, Pairwise, compare, pairwise
    from avops.score.plan import PlanRecord, Token, TokenPlan
    from avops.score.plan_cache import encode_cached
    from avops.score.prompting import instructed, instructions_for
    from avops.score.prompts import ChatFormat, encode, encode_ids
    from avops.score.questions import (
        Prompt,
        Question,
        encode_questions,
        encode_raw,
        load_questions,
    )
    from avops.score.resume import taken_up
    from avops.score.scores_file import read_table, to_npz
    from avops.score.table import Candidate, ScoreTable, check_table_path

__all__ = [
    "Answer",
    "Candidate",
    "Change",
    "ChatFormat",
    "Generator",
    "Item",
    "Items",
    "Pairwise",
    "PlanRecord",
    "Prompt",
    "Question",
    "Sampling",
    "ScoreResult",
    "ScoreSummary",
    "ScoreTable",
    "Scorer",
    "TextStream",
    "Token",
    "TokenPlan",
    "check_table_path",
    "compare",
    "encode",
    "encode_cached",
    "encode_ids",
    "encode_questions",
    "encode_raw",
    "holds_pairs",
    "instructed",
    "instructions_for",
    "load_items",
    "load_model",
    "load_questions",
    "load_tokenizer",
    "new_model",
    "new_tokenizer",
    "normalise",
    "oracle_scores",
    "pairwise",
    "read_table",
    "save_model",
    "score",
    "sign_test",
    "summarise",
    "taken_up",
    "to_npz",
    "wilson",
]

_MODULES = {
    "api": ("ScoreResult", "score"),
    "forward": ("Scorer",),
    "generate": ("Answer", "Generator", "Sampling", "TextStream"),
    "intervals": ("sign_test", "wilson"),
    "items": ("Item", "Items", "holds_pairs", "load_items"),
    "metrics": ("ScoreSummary", "summarise"),
    "model": ("load_model", "load_tokenizer", "new_model", "new_tokenizer", "save_model"),
    "norms": ("normalise",),
    "oracle": ("oracle_scores",),
    "paired": ("Change", "Pairwise", "compare", "pairwise"),
    "plan": ("PlanRecord", "Token", "TokenPlan"),
    "plan_cache": ("encode_cached",),
    "prompting": ("instructed", "instructions_for"),
    "prompts": ("ChatFormat", "encode", "encode_ids"),
    "questions": ("Prompt", "Question", "encode_questions", "encode_raw", "load_questions"),
    "resume": ("taken_up",),
    "scores_file": ("read_table", "to_npz"),
    "table": ("Candidate", "ScoreTable", "check_table_path"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'avops.score' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avops.score.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
