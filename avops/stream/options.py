"""What a merge may be asked for, besides its recipe and its output."""

from __future__ import annotations

from dataclasses import dataclass

from avops.dtypes import DType


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    dtype: of floating outputs (None: the base's). force: replace an earlier output.
    allow_missing, allow_extra: accept AVs that lack or add tensors. allow_nonfinite: accept NaN
    and infinities in the result. vocab: ``strict``, or ``base`` to merge the rows that both
    vocabularies have. rounding: ``nearest``, or ``dither`` with ``seed``. resume: take up what a
    killed run of the same merge left.
    """

    dtype: DType | None = None
    force: bool = False
    allow_missing: bool = False
    allow_extra: bool = False
    allow_nonfinite: bool = False
    vocab: str = "strict"
    rounding: str = "nearest"
    seed: int = 0
    resume: bool = False
