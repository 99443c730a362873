"""The arithmetic: operations on flat arrays, each with a reference and faster backends.

Every backend of an operation computes the same bits, but for those of a model's forward pass
(``logprob``, ``head_logprob``, ``rms_norm``, ``swiglu``, ``linear``, ``gated_mlp``,
``tree_attention``), whose contracts state a bound; ``registry`` chooses among them.
Kernels know neither files nor tensors' names.
"""

from __future__ import annotations

from avops.kernels import registry
from avops.kernels.combine import CombineStats, combine
from avops.kernels.diff import DiffStats, diff
from avops.kernels.gated_mlp import gated_mlp
from avops.kernels.gram import gram
from avops.kernels.head_logprob import LogProb
from avops.kernels.linear import Workspace, linear
from avops.kernels.logprob import LogitRule, logprob
from avops.kernels.lowrank import Factors, factors, lowrank
from avops.kernels.operands import Dither, Operand, Term, dither_key
from avops.kernels.rms_norm import rms_norm
from avops.kernels.rope import rope
from avops.kernels.swiglu import swiglu
from avops.kernels.tree_attention import Nodes, tree_attention

__all__ = [
    "CombineStats",
    "DiffStats",
    "Dither",
    "Factors",
    "LogProb",
    "LogitRule",
    "Nodes",
    "Operand",
    "Term",
    "Workspace",
    "combine",
    "diff",
    "dither_key",
    "factors",
    "gated_mlp",
    "gram",
    "linear",
    "logprob",
    "lowrank",
    "registry",
    "rms_norm",
    "rope",
    "swiglu",
    "tree_attention",
]
