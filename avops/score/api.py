"""One call from model, items and tokenizer to preference accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avops.score.forward import Scorer
from avops.score.metrics import ScoreSummary, summarise
from avops.score.prompts import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from avops.score.items import Items
    from avops.score.plan import TokenPlan


@dataclass(frozen=True, eq=False)
class ScoreResult:
    """``scores`` is S[item, level], f32; ``plan.record`` says how the items became tokens."""

    scores: NDArray[np.float32]
    summary: ScoreSummary
    items: Items
    plan: TokenPlan


def score(
    model: Any,
    items: Items,
    tokenizer: Any,
    *,
    template: str | None = None,
    score_eos: bool = True,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreResult:
    """Score ``items`` with any causal LM of transformers, in eval mode.

    To score many candidates, ``encode`` once, make one ``Scorer``, and ``run`` it for each.

    Parameters
    ----------
    model, items, tokenizer
        What to score with, and what.
    template, score_eos
        How items become chats: see ``encode``.
    batch_tokens, progress
        How they are run: see ``Scorer``.

    """
    plan = encode(items, tokenizer, template=template, score_eos=score_eos)
    scores = Scorer(model, plan, batch_tokens=batch_tokens).run(progress)
    return ScoreResult(scores, summarise(scores, items), items, plan)
