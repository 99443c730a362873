"""The oracle: the truth that every fast path is compared to.

One unpadded sequence at a time through the model's own forward, all logits in f32 (or f64, for a
model in f64), log-softmax in the same type, an exactly rounded f64 sum, divided by T_r.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import MissingExtraError, UserError
from avops.score.head import check_eval
from avops.score.turns import turn

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.score.plan import TokenPlan


def oracle_scores(model: Any, plan: TokenPlan) -> NDArray[np.float64]:
    """The mean log-prob of each item and level."""
    check_eval(model)
    means = np.empty(plan.starts.shape, np.float64)
    with turn(model), torch.inference_mode():
        for item, level in np.ndindex(means.shape):
            ids = torch.from_numpy(plan.sequence(item, level).astype(np.int64)).to(model.device)
            log_probs = _log_probs(model, ids)
            start = int(plan.starts[item, level])
            scored = [log_probs[p - 1, ids[p]].item() for p in range(start, len(ids))]
            means[item, level] = math.fsum(scored) / len(scored)
    return means


def _log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[position, vocabulary], of all tokens but the last."""
    logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    if logits.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"oracle_scores: the model's logits are {logits.dtype}, expected float32; "
            "load the model with dtype=torch.float32"
        )
    return torch.log_softmax(logits, dim=-1)
