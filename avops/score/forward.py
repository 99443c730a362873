"""The working path: sequences of equal length together, logits only where tokens are scored.

Computes S[item, level] = (1/T_r) Σ log P(t | context), the same expressions as the oracle: f32
logits, f32 log-softmax, an exactly rounded f64 sum. Nothing is padded or masked, so a row's value
depends on its own sequence alone; the two differ only in the order in which matrix products are
summed. To first order, with roundings taken as independent, all but a share 2·exp(−T²/2) of
differences obey

    |S − oracle| ≤ 2·T·u·√(Σ_y n_y Σ_j (∂S/∂y_j · a_j)²) + u·|S|,        u = 2⁻²⁴,

over the outputs y of all operations: n_y roundings stand behind an element of y (the inner length
of its sum, and a few), each at most u·a_j, that sum over absolute values; the factor 2 is for two
evaluations and u·|S| for S in f32. The tests evaluate it by automatic differentiation (T = 7).

Bits are the same in every run with the same plan, ``batch_tokens``, machine and thread count.

A head in bf16 or f16 is multiplied in f32: its inputs are exact in f32, and logits rounded to
bf16 would put log-probs on a grid coarse enough to change winners.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import MissingExtraError, NonFiniteError, UserError

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from avops.score.plan import TokenPlan

BATCH_TOKENS = 4096
"""Tokens per forward pass, unless one sequence is longer."""

BATCH_LOGITS = 1 << 26
"""Logits per forward pass (256 MiB in f32), unless one sequence has more."""

SOFTMAX_LOGITS = 1 << 22
"""Logits per log-softmax, whose result is as large as its input."""


@dataclass(frozen=True)
class Batch:
    """Sequences of one length, fed without their last token.

    ids: [sequence, position]. rows: flat positions whose logits are needed. targets: the token
    that each row predicts. slots: where its log-prob belongs among all scored tokens of the plan.
    """

    ids: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    slots: NDArray[np.int64]


class Scorer:
    """Scores one plan with one model, again and again as the model's weights change.

    The batches are decided here, from the plan's lengths, the vocabulary's size and
    ``batch_tokens``; nothing derived from weights is kept. The model must be in eval mode, and
    stay on its device.
    """

    def __init__(self, model: Any, plan: TokenPlan, *, batch_tokens: int = BATCH_TOKENS) -> None:
        if batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}, expected 1 or more")
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if head is None:
            raise UserError(
                f"{type(model).__name__}: it has no language-model head, expected a causal LM; "
                "load the model with load_model"
            )
        if head.weight.dtype != torch.float32 and type(head) is not torch.nn.Linear:
            raise UserError(
                f"{type(model).__name__}: its head is a {type(head).__name__} in "
                f"{head.weight.dtype}, expected torch.nn.Linear or float32, so that logits are "
                "float32; load the model with dtype=torch.float32"
            )
        config = model.config.get_text_config()
        plan.check_fits(
            positions=getattr(config, "max_position_embeddings", None),
            vocabulary=embedding.weight.shape[0],
        )
        self.model = model
        self.plan = plan
        self._head = head
        self._ends = np.cumsum(plan.scored.ravel(), dtype=np.int64)
        self._batches = [
            _build_batch(plan, numbers, self._ends, embedding.weight.device)
            for numbers in _group(plan, batch_tokens, BATCH_LOGITS // head.weight.shape[0])
        ]
        self._total = sum(batch.ids.numel() for batch in self._batches)

    def run(self, progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """S[item, level] with the model's present weights.

        ``progress(done_tokens, total_tokens)`` is called after every batch.

        Raises
        ------
        NonFiniteError
            A log-prob that is NaN, infinite or above 0, naming item and level.

        """
        if self.model.training:
            raise UserError(
                f"{type(self.model).__name__}: the model is in training mode, where dropout makes "
                "scores random; call model.eval() first"
            )
        log_probs = np.empty(self._ends[-1], np.float32)
        done = 0
        with torch.inference_mode():
            for batch in self._batches:
                values = self._score(batch)
                self._check(values, batch)
                log_probs[batch.slots] = values
                done += batch.ids.numel()
                if progress is not None:
                    progress(done, self._total)
        parts = np.split(log_probs, self._ends[:-1])
        means = [math.fsum(part.tolist()) / part.size for part in parts]
        return np.array(means, np.float32).reshape(self.plan.starts.shape)

    def _score(self, batch: Batch) -> NDArray[np.float32]:
        """The log-prob of each of the batch's targets."""
        with _project_rows(self._head, batch.rows):
            logits = self.model(input_ids=batch.ids, use_cache=False).logits
        if logits.dtype != torch.float32 or logits.shape[:-1] != (1, batch.rows.numel()):
            raise UserError(
                f"{type(self.model).__name__}: its forward gives {logits.dtype} logits of shape "
                f"{list(logits.shape)} for {batch.rows.numel()} scored tokens, expected float32 "
                "straight from its head; this architecture cannot be scored"
            )
        step = max(1, SOFTMAX_LOGITS // logits.shape[-1])
        parts = [
            torch.log_softmax(rows, dim=-1).gather(1, targets[:, None])[:, 0]
            for rows, targets in zip(
                torch.split(logits[0], step), torch.split(batch.targets, step), strict=True
            )
        ]
        values: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return values

    def _check(self, values: NDArray[np.float32], batch: Batch) -> None:
        bad = ~(np.isfinite(values) & (values <= 0))
        if not bad.any():
            return
        first = int(bad.argmax())
        slot = int(batch.slots[first])
        number = int(np.searchsorted(self._ends, slot, side="right"))
        item, level = divmod(number, len(self.plan.items.levels))
        raise NonFiniteError(
            f"{self.plan.place(item, level)}: the log-prob of scored token "
            f"{slot - int(self._ends[number]) + int(self.plan.scored[item, level]) + 1} is "
            f"{values[first]}, expected a finite number of at most 0 ({int(bad.sum())} such tokens "
            "in the batch); check the model's weights for NaN, infinity or a λ that is too large"
        )


@contextmanager
def _project_rows(head: Any, rows: torch.Tensor) -> Iterator[None]:
    """Within the context, the head projects only ``rows``, in f32: logits [1, rows, vocabulary].

    Whatever the model's forward does to logits afterwards (scaling, soft-capping) still happens.
    """
    project, own = head.forward, head.__dict__.get("forward")

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        picked = hidden.flatten(0, -2).index_select(0, rows)[None]
        weight, bias = head.weight, getattr(head, "bias", None)
        if weight.dtype == torch.float32:
            logits: torch.Tensor = project(picked)
        else:
            logits = torch.nn.functional.linear(
                picked.float(), weight.float(), None if bias is None else bias.float()
            )
        return logits

    head.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del head.__dict__["forward"]
        else:
            head.__dict__["forward"] = own


def _group(plan: TokenPlan, batch_tokens: int, batch_rows: int) -> list[list[int]]:
    """Sequence numbers batch by batch: the longest first, so that a lack of memory shows early."""
    fed, scored = plan.lengths.ravel() - 1, plan.scored.ravel()
    batches: list[list[int]] = []
    length = tokens = rows = 0
    for number in np.argsort(-fed, kind="stable").tolist():
        tokens, rows = tokens + int(fed[number]), rows + int(scored[number])
        if int(fed[number]) != length or tokens > batch_tokens or rows > batch_rows:
            batches.append([])
            length, tokens, rows = int(fed[number]), int(fed[number]), int(scored[number])
        batches[-1].append(number)
    return batches


def _build_batch(
    plan: TokenPlan, numbers: list[int], ends: NDArray[np.int64], device: torch.device
) -> Batch:
    width = len(plan.items.levels)
    ids, rows, slots = [], [], []
    for k, number in enumerate(numbers):
        item, level = divmod(number, width)
        sequence = plan.sequence(item, level)
        scored = int(plan.scored[item, level])
        ids.append(sequence)
        # Row p − 1 predicts token p, so the rows of ids[start:] begin at start − 1.
        first = k * (sequence.size - 1) + int(plan.starts[item, level]) - 1
        rows.append(np.arange(first, first + scored))
        slots.append(np.arange(ends[number] - scored, ends[number]))
    table = torch.from_numpy(np.stack(ids).astype(np.int64)).to(device)
    flat_rows = torch.from_numpy(np.concatenate(rows)).to(device)
    fed = table[:, :-1].contiguous()
    targets = table[:, 1:].flatten().index_select(0, flat_rows)
    return Batch(fed, flat_rows, targets, np.concatenate(slots))
