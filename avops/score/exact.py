"""The exact path: sequences of equal length together, each whole, nothing padded or masked.

Serves every causal LM, whatever its attention, and computes each query once per response.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from avops.errors import MissingExtraError
from avops.score.head import SOFTMAX_LOGITS, Head, projecting

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.score.plan import TokenPlan

FORMAT = b"avops batch 1"

BATCH_LOGITS = 1 << 26
"""Logits per forward pass (256 MiB in f32), unless one sequence has more."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of one length, fed without their last token.

    ids: [sequence, position]. rows: flat positions whose logits are needed. targets: the token
    that each row predicts. slots: where its log-prob belongs among all scored tokens of the plan.
    """

    ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    slots: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Tokens that are fed."""
        return self.ids.size

    @cached_property
    def sha256(self) -> str:
        """Of everything that decides the batch's log-probs but the model."""
        digest = hashlib.sha256(FORMAT)
        for part in (np.array(self.ids.shape), self.ids, self.rows, self.targets, self.slots):
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


class ExactPath:
    """Scores batches of one model."""

    name = "exact"

    def __init__(self, head: Head, plan: TokenPlan, batch_tokens: int) -> None:
        ends = np.cumsum(plan.scored.ravel(), dtype=np.int64)
        self.units = [
            _build_batch(plan, numbers, ends)
            for numbers in _group(plan, batch_tokens, BATCH_LOGITS // head.vocabulary)
        ]
        self._head = head

    def score(self, batch: Batch) -> NDArray[np.float32]:
        """The log-prob of each of the batch's slots."""
        head, model = self._head, self._head.model
        device = model.get_input_embeddings().weight.device
        ids, rows, targets = (
            torch.from_numpy(part).to(device) for part in (batch.ids, batch.rows, batch.targets)
        )
        with projecting(head.module, rows, ids.numel()):
            logits = model(input_ids=ids, use_cache=False).logits
        if logits.dtype != torch.float32 or logits.shape[:-1] != (1, rows.numel()):
            raise head.refusal(logits, rows.numel())
        targets = targets.to(logits.device)
        step = max(1, SOFTMAX_LOGITS // logits.shape[-1])
        parts = [
            torch.log_softmax(some, dim=-1).gather(1, picked[:, None])[:, 0]
            for some, picked in zip(
                torch.split(logits[0], step), torch.split(targets, step), strict=True
            )
        ]
        values: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return values


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


def _build_batch(plan: TokenPlan, numbers: list[int], ends: NDArray[np.int64]) -> Batch:
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
    table = np.stack(ids).astype(np.int64)
    flat_rows = np.concatenate(rows)
    fed = np.ascontiguousarray(table[:, :-1])
    return Batch(fed, flat_rows, table[:, 1:].ravel()[flat_rows], np.concatenate(slots))
