"""The arithmetic: operations on flat arrays, each with a reference and faster backends.

Every backend of an operation computes the same bits, but for ``logprob`` and ``head_logprob``,
whose bound their contracts state; ``registry`` chooses among them.
Kernels know neither files nor tensors' names.
"""

from __future__ import annotations

from avops.kernels import registry
from avops.kernels.combine import CombineStats, combine
from avops.kernels.diff import DiffStats, diff
from avops.kernels.gram import gram
from avops.kernels.head_logprob import LogProb
from avops.kernels.logprob import LogitRule, logprob
from avops.kernels.lowrank import Factors, factors, lowrank
from avops.kernels.operands import Dither, Operand, Term, dither_key

__all__ = [
    "CombineStats",
    "DiffStats",
    "Dither",
    "Factors",
    "LogProb",
    "LogitRule",
    "Operand",
    "Term",
    "combine",
    "diff",
    "dither_key",
    "factors",
    "gram",
    "logprob",
    "lowrank",
    "registry",
]
