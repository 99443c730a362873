"""The working path: S[item, level] of one plan, again and again as a model's weights change.

Computes S = (1/T_r) Σ log P(t | context), the same expressions as the oracle: f32 logits, f32
log-softmax, an exactly rounded f64 sum. Two paths do it:

packed: items as token trees (``tree.py``), whole items packed into blocks (``blocks.py``), each
query prefix computed once. The default, wherever a model's attention goes through transformers'
AttentionInterface and a block scored both ways shows the same numbers (``check.py``).

exact: whole sequences of equal length together (``exact.py``). For every other model; which path
was taken, and why, is said by ``Scorer.path`` and ``Scorer.reason``.

Nothing is padded, and a row's value depends on its own sequence alone; a path differs from the
oracle, and from itself at another ``batch_tokens``, only in the order in which matrix products are
summed, and in roundings that fused operations leave out (``fused.py``). To first order, with
roundings taken as independent, all but a share 2·exp(−T²/2) of differences obey

    |S − oracle| ≤ 2·T·u·√(Σ_y n_y Σ_j (∂S/∂y_j · a_j)²) + u·|S|,        u = 2⁻²⁴,

over the outputs y of all operations: n_y roundings stand behind an element of y (the inner length
of its sum, and a few), each at most u·a_j, that sum over absolute values; the factor 2 is for two
evaluations and u·|S| for S in f32. The tests evaluate it by automatic differentiation (T = 7).

Bits are the same in every run with the same plan, ``batch_tokens``, machine and thread count; with
native products, in the architectures of ``fused.py``, for any of these but the machine.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import MissingExtraError, NonFiniteError, UserError
from avops.score.blocks import cut_blocks
from avops.score.check import Verdict, self_check
from avops.score.exact import Batch, ExactPath
from avops.score.forwards import bare
from avops.score.head import Head, check_eval
from avops.score.packed import PackedPath, why_not
from avops.score.turns import turn

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

    from numpy.typing import NDArray

    from avops.score.blocks import Block
    from avops.score.plan import TokenPlan

BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens per forward pass by device, unless one item is longer: as few as keep it busy.

On the CPU more has no gain: larger activations leave the caches, and go back to the system at once.
"""

PATHS = ("auto", "packed", "exact")

_NARROW = "; in float16 nothing is above 65504: load the model in bfloat16 or float32"


class Scorer:
    """Scores one plan with one model, again and again as the model's weights change.

    The work is cut here, from the plan and ``batch_tokens``; nothing derived from weights is kept.
    The model must be in eval mode, and stay on its device. While ``run`` is at work the model's
    attention implementation and the forwards of its layers are others; before and after, they are
    the model's own. Threads that score one model, or generate with it, take turns (``turns.py``).

    Parameters
    ----------
    model, plan
        What to score with, and what.
    batch_tokens
        Tokens per forward pass, unless one item is longer; None for what suits the device.
    path
        ``packed`` or ``exact`` forces one; ``packed`` then fails where a model cannot be.

    """

    def __init__(
        self,
        model: Any,
        plan: TokenPlan,
        *,
        batch_tokens: int | None = None,
        path: str = "auto",
    ) -> None:
        if batch_tokens is None:
            device = model.get_input_embeddings().weight.device.type
            batch_tokens = BATCH_TOKENS.get(device, BATCH_TOKENS["cuda"])
        if batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}, expected 1 or more")
        if path not in PATHS:
            raise UserError(f"path is {path!r}, expected one of {', '.join(PATHS)}")
        model = bare(model)
        head = Head(model)
        plan.check_fits(
            positions=getattr(model.config.get_text_config(), "max_position_embeddings", None),
            vocabulary=model.get_input_embeddings().weight.shape[0],
        )
        self.model = model
        self.plan = plan
        self.check: Verdict | None = None
        self._head = head
        self._wanted = path
        self._batch_tokens = batch_tokens
        self._ends = np.cumsum(plan.scored.ravel(), dtype=np.int64)
        reason = "it was asked for" if path != "auto" else "the model's attention is pluggable"
        refusal = None
        if path != "exact":
            refusal = why_not(model, int(plan.lengths.max()) - 1)
        self._path: PackedPath | ExactPath
        if path == "exact":
            self._take_exact(reason)
        elif refusal is not None:
            self._fall_back(refusal)
        else:
            self._path = PackedPath(head, cut_blocks(plan, batch_tokens))
            self._reason = reason

    @property
    def path(self) -> str:
        """``packed`` or ``exact``; a packed one may turn exact in the first run."""
        return self._path.name

    @property
    def reason(self) -> str:
        """Why this path."""
        return self._reason

    @property
    def units(self) -> tuple[Block | Batch, ...]:
        """The forward passes of a run, in order; each has ``sha256``, ``slots`` and ``tokens``."""
        return tuple(self._path.units)

    @property
    def tokens(self) -> int:
        """Tokens that a run feeds: those that responses share count once if packed."""
        return sum(unit.tokens for unit in self._path.units)

    def run(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        finished: MutableMapping[str, NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """S[item, level] with the model's present weights.

        Parameters
        ----------
        progress
            ``progress(done_tokens, total_tokens)`` is called after every forward pass.
        finished
            Log-probs by the hash of a unit. What is there is not computed again, and what is
            computed is put there at once, so that an interrupted run can be taken up. The hash
            knows nothing of weights: use one mapping for one λ.

        Raises
        ------
        NonFiniteError
            A log-prob that is NaN, infinite or above 0, naming item and level.

        """
        check_eval(self.model)
        with turn(self.model):
            self._decide()
            log_probs = self._log_probs(progress, {} if finished is None else finished)
        parts = np.split(log_probs, self._ends[:-1])
        means = [math.fsum(part.tolist()) / part.size for part in parts]
        return np.array(means, np.float32).reshape(self.plan.starts.shape)

    def _log_probs(
        self,
        progress: Callable[[int, int], None] | None,
        finished: MutableMapping[str, NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        """Of all scored tokens of the plan, one after the other."""
        path = self._path
        log_probs = np.empty(self._ends[-1], np.float32)
        done, total = 0, self.tokens
        session = path.session() if isinstance(path, PackedPath) else nullcontext()
        with torch.inference_mode(), session:
            for unit in path.units:
                values = finished.get(unit.sha256)
                if values is None:
                    values = path.score(unit)  # type: ignore[arg-type]
                    self._check(values, unit)
                    finished[unit.sha256] = values
                log_probs[unit.slots] = values
                done += unit.tokens
                if progress is not None:
                    progress(done, total)
        return log_probs

    def part(self, items: Sequence[int]) -> Scorer:
        """A scorer of some items of the plan, on this one's path.

        What the self-check found out of the whole plan is not found out again.
        """
        with turn(self.model):
            self._decide()
        made = copy.copy(self)
        made.plan = self.plan.part(items)
        made._cut(packed=isinstance(self._path, PackedPath))  # noqa: SLF001 (one of its own)
        return made

    def _cut(self, *, packed: bool) -> None:
        """Cut the work of ``plan`` for a path."""
        self._ends = np.cumsum(self.plan.scored.ravel(), dtype=np.int64)
        if packed:
            blocks = cut_blocks(self.plan, self._batch_tokens)
            fuse = isinstance(self._path, PackedPath) and self._path.fused is not None
            self._path = PackedPath(self._head, blocks, fuse=fuse)
        else:
            self._path = ExactPath(self._head, self.plan, self._batch_tokens)

    def _decide(self) -> None:
        """Before the first run, see whether packed rows get the model's own numbers."""
        if self.check is not None or not isinstance(self._path, PackedPath):
            return
        verdict = self_check(self._path, self.plan)
        fused = self._path.fused
        if verdict.decided and verdict.reason is not None and fused is not None and fused.served:
            self._path.fused = None  # transformers' own layers, then
            verdict = self_check(self._path, self.plan)
        if verdict.decided:  # else the scores are not finite, and the run will say where
            self.check = verdict
            if verdict.reason is not None:
                self._fall_back(verdict.reason)

    def _fall_back(self, reason: str) -> None:
        if self._wanted == "packed":
            raise UserError(
                f"{type(self.model).__name__}: it cannot be scored packed: {reason}; "
                "use path='auto' or 'exact'"
            )
        self._take_exact(reason)

    def _take_exact(self, reason: str) -> None:
        self._path = ExactPath(self._head, self.plan, self._batch_tokens)
        self._reason = reason

    def _check(self, values: NDArray[np.float32], unit: Block | Batch) -> None:
        bad = ~(np.isfinite(values) & (values <= 0))
        if not bad.any():
            return
        first = int(bad.argmax())
        slot = int(np.arange(self._ends[-1])[unit.slots][first])
        number = int(np.searchsorted(self._ends, slot, side="right"))
        item, level = divmod(number, len(self.plan.items.levels))
        raise NonFiniteError(
            f"{self.plan.place(item, level)}: the log-prob of scored token "
            f"{slot - int(self._ends[number]) + int(self.plan.scored[item, level]) + 1} is "
            f"{values[first]}, expected a finite number of at most 0 ({int(bad.sum())} such tokens "
            "in the batch); check the model's weights for NaN, infinity or a λ that is too large"
            f"{_NARROW if self._head.module.weight.dtype == torch.float16 else ''}"
        )
